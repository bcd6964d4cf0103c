"""The `skerry-agent` command: reads the configuration, wires everything, and nothing else does."""

import asyncio
import faulthandler
import fcntl
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import structlog
import uvloop

from agent import config as configuration
from agent import join as joining
from agent import leave as leaving
from agent.attest import Vouchers
from agent.config import Config
from agent.console import Consoles
from agent.dial import Dialer
from agent.doctor import examine
from agent.drivers import machine, service
from agent.drivers.file_pool import FilePool
from agent.drivers.hypervisor import Hypervisor
from agent.drivers.images import ImageCache
from agent.drivers.libvirt import Libvirt
from agent.drivers.lvm import LvmPool
from agent.drivers.place import Place
from agent.drivers.pool import Pool
from agent.drivers.tpms import Tpms
from agent.host import CachedInventory, Documents, HostOrders
from agent.inventory import find_place
from agent.kinds.boot_watch import BootWatch
from agent.kinds.domain import Domains
from agent.kinds.network import Networks
from agent.kinds.unit import UnitKey
from agent.kinds.volume import Volumes
from agent.link import Host, Link
from agent.loop import Loop
from agent.memory import open_memory
from agent.outbox import Outbox
from agent.sight import look
from agent.telemetry import Telemetry
from common.checkup import checkup, table
from common.clock import system_clock
from common.codec import to_json
from common.documents import Report
from common.errors import Conflict, SkerryError, Temporary
from common.faults import Faults
from common.ids import HostId, Id
from common.log import configure
from common.sockets import feed_watchdog, notify

log = structlog.get_logger(__name__)

EVICT_EVERY_S = 600.0
NOBODY = HostId(Id("host-000000000000"))
"""The host while it is leaving: no port is this one's any more."""


@click.group()
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=configuration.DEFAULT_PATH,
    show_default=True,
    help="Configuration file (TOML).",
)
@click.version_option(package_name="skerry")
@click.pass_context
def main(context: click.Context, config_path: Path) -> None:
    """Run this machine as a host of a Skerry cloud."""
    with _errors_in_words():
        context.obj = configuration.load(config_path)
    configure(level=context.obj.log.level)


@main.command()
@click.argument("url")
@click.argument("token")
@click.option("--force", is_flag=True, help="Join anew, in place of an earlier join.")
@click.pass_obj
def join(config: Config, url: str, token: str, *, force: bool) -> None:
    """Join the controller at URL with a one-time TOKEN (`-`: read it from standard input), and start the service."""
    with _errors_in_words():
        text = sys.stdin.readline() if token == "-" else token  # noqa: S105 - a dash
        identity = uvloop.run(joining.join(url, text, config.identity_path, force=force))
        click.echo(f"joined {identity.url} as {identity.name} ({identity.host})")
        if _is_the_units(config) and uvloop.run(service.is_installed()):
            uvloop.run(service.begin())
            click.echo(f"{service.UNIT} runs")


@main.command()
@click.option("--force", is_flag=True, help="Destroy machines and disks that are here; go without the controller.")
@click.pass_obj
def leave(config: Config, *, force: bool) -> None:
    """Take this machine out of its cloud: have the controller let it go, and remove all that Skerry made on it."""
    with _errors_in_words():
        uvloop.run(_leave(config, force=force))
    click.echo("nothing of Skerry's is left but the packages: apt-get purge skerry-agent skerry-common")


async def _leave(config: Config, *, force: bool) -> None:
    identity = joining.load(config.identity_path) if await asyncio.to_thread(config.identity_path.exists) else None
    place = await asyncio.to_thread(find_place, config.state_dir, config.pool_path, config.pool.volume_group)
    async with AsyncExitStack() as stack:
        memory = await open_memory(config.memory_path)
        stack.push_async_callback(memory.close)
        kinds = await _without_link(config, place, Documents(memory, NOBODY), stack)
        if not force:
            leaving.refuse_losing(await leaving.survey(kinds))
    click.echo(await leaving.let_go(identity, force=force))
    if _is_the_units(config) and await service.is_installed():
        await service.disable()
        click.echo(f"{service.UNIT} is off")
    async with AsyncExitStack() as stack:
        stack.enter_context(_alone(config.state_dir))
        memory = await open_memory(config.memory_path)
        stack.push_async_callback(memory.close)
        networks, volumes, domains = await _without_link(config, place, Documents(memory, NOBODY), stack)
        await leaving.clear(memory, (networks, volumes, domains))
        await volumes.empty()
    await asyncio.to_thread(leaving.wipe, (config.pool_path, config.run_dir, config.state_dir))


async def _without_link(
    config: Config, place: Place, documents: Documents, stack: AsyncExitStack
) -> tuple[Networks, Volumes, Domains]:
    """Return kinds that destroy as ever and make nothing: no image is fetched, nobody is told."""
    faults = Faults()

    async def no_image(digest: str, _destination: Path, _progress: Callable[[int], None]) -> None:
        raise Temporary(f"image {digest} is not fetched: this host leaves")

    hypervisor = await stack.enter_async_context(
        Libvirt(config.libvirt.uri, on_event=lambda _vm: None, on_connected=lambda: None)
    )
    images = ImageCache(place.images, no_image, faults)
    networks = Networks(
        host_id=NOBODY,
        underlay="",
        run_dir=config.run_dir,
        lookup=documents.guest_at,
        owner_of_mac=documents.owner_of_mac,
        faults=faults,
    )
    stack.push_async_callback(networks.close)
    pool = await _pool(config, place, images, hypervisor)
    volumes = Volumes(place, pool, images, hypervisor, report=lambda _report: None, clock=system_clock, faults=faults)
    watch = BootWatch(networks, documents.address_of, place, system_clock)
    domains = Domains(
        place, pool, images, hypervisor, Tpms(), announce=Outbox().event, clock=system_clock, faults=faults, watch=watch
    )
    return networks, volumes, domains


def _is_the_units(config: Config) -> bool:
    """Say whether a configuration is the one that the service runs with."""
    return config == configuration.load(configuration.DEFAULT_PATH)


@main.command()
@click.pass_obj
def run(config: Config) -> None:
    """Run the agent until SIGTERM or SIGINT. Guests and their networks go on without it."""
    faulthandler.enable(2)  # the service manager's watchdog ends a hung process with SIGABRT: say where it hung
    with _errors_in_words():
        uvloop.run(_run(config))


@main.command()
@click.argument("url", required=False)
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.pass_obj
def doctor(config: Config, url: str | None, output: str) -> None:
    """Check whether this machine is fit to be a host, and say for each failure what to do. Changes nothing.

    Before the machine has joined, URL is the controller to ask. Exits with 1 where a check failed.
    """
    with _errors_in_words():
        if url:
            joining.checked_url(url)
    found = checkup(examine(uvloop.run(look(config, url))))
    click.echo(to_json(found).decode() if output == "json" else table(found))
    raise SystemExit(0 if found.healthy else 1)


async def _run(config: Config) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        await _start(config, stack)
        notify("READY=1", os.environ)
        log.info("agent started", version=version("skerry"))
        await stop.wait()
        notify("STOPPING=1", os.environ)
        log.info("agent stops; guests and networks go on")


async def _start(config: Config, stack: AsyncExitStack) -> None:
    """Build everything and start its tasks; leaving the stack ends them and closes what was opened."""
    stack.enter_context(_alone(config.state_dir))
    identity = joining.load(config.identity_path)
    vtep = config.underlay.address or machine.address_towards(identity.url)
    place = await asyncio.to_thread(find_place, config.state_dir, config.pool_path, config.pool.volume_group)
    config.run_dir.mkdir(parents=True, exist_ok=True)
    memory = await open_memory(config.memory_path)
    stack.push_async_callback(memory.close)
    dialer = await stack.enter_async_context(Dialer(identity))
    documents, outbox, faults = Documents(memory, identity.host), Outbox(), Faults()

    # Libvirt and the kinds tell the loop what moved, and the loop is made of them.
    def moved(vm: Id) -> None:
        for unit in documents.units_of_machine(vm):
            loop.poke(unit)

    def unserved(network: Id) -> None:
        loop.poke(UnitKey(f"network/{network}"))

    def all_moved() -> None:
        loop.poke_all()

    def told(report: Report) -> None:
        loop.told(report)

    hypervisor = await stack.enter_async_context(Libvirt(config.libvirt.uri, on_event=moved, on_connected=all_moved))
    images = ImageCache(place.images, dialer.fetch, faults)
    pool = await _pool(config, place, images, hypervisor)
    volumes = Volumes(place, pool, images, hypervisor, report=told, clock=system_clock, faults=faults)
    vouchers = await asyncio.to_thread(Vouchers, place.vouchers, dialer, documents.guests)
    networks = Networks(
        host_id=identity.host,
        underlay=vtep,
        run_dir=config.run_dir,
        lookup=documents.guest_at,
        owner_of_mac=documents.owner_of_mac,
        faults=faults,
        voucher=vouchers.of,
        ended=unserved,
    )
    watch = BootWatch(networks, documents.address_of, place, system_clock)
    domains = Domains(
        place, pool, images, hypervisor, Tpms(), announce=outbox.event, clock=system_clock, faults=faults, watch=watch
    )
    stack.push_async_callback(networks.close)
    kinds = (networks, volumes, domains)
    loop = Loop(memory=memory, kinds=kinds, sink=outbox.report, faults=faults)
    host = Host(
        version=version("skerry"),
        inventory=CachedInventory(place, pool, vtep, hypervisor).take,
        metrics=Telemetry(pool, hypervisor, system_clock).sample,
        orders=HostOrders(Consoles(place, hypervisor), kinds),
    )
    link = Link(dialer=dialer, memory=memory, loop=loop, outbox=outbox, host=host)
    await stack.enter_async_context(
        _tasks(
            loop.run(),
            hypervisor.watch(),
            link.run(),
            dialer.keep_certificate_fresh(),
            vouchers.run(),
            _evict(volumes, documents),
            feed_watchdog(os.environ),
        )
    )


async def _pool(config: Config, place: Place, images: ImageCache, hypervisor: Hypervisor) -> Pool:
    """Return where volumes lie, as the configuration says."""
    if not config.pool.volume_group:
        return FilePool(place, images, hypervisor)
    pool = LvmPool(place, config.pool.thin_pool, images, hypervisor)
    await pool.prepare()
    return pool


async def _evict(volumes: Volumes, documents: Documents) -> None:
    """Keep the image cache to what is used."""
    while True:
        await asyncio.sleep(EVICT_EVERY_S)
        try:
            await volumes.evict(documents.images())
        except Exception:
            log.exception("image cache not cleaned", again_in_s=EVICT_EVERY_S)


@asynccontextmanager
async def _tasks(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Own these tasks: they end with the block, and the block with the first of them that fails."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each) for each in work]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


@contextmanager
def _alone(state_dir: Path) -> Iterator[None]:
    """Hold the state directory's lock: two agents over one memory would fight over every guest."""
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o711)
    with (state_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            raise Conflict(
                f"another agent runs on {state_dir}", fix="stop it first, or give this one another [agent] state_dir"
            ) from err
        yield


@contextmanager
def _errors_in_words() -> Iterator[None]:
    """End the command with what is wrong and the way out; a bug keeps its traceback."""
    try:
        yield
    except SkerryError as err:
        click.echo(f"error: {err.detail}" + (f"\nfix:   {err.fix}" if err.fix else ""), err=True)
        raise SystemExit(1) from err


if __name__ == "__main__":
    main()
