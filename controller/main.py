"""The `skerry-controller` command: reads the configuration and wires all parts; nothing else here does."""

import asyncio
import faulthandler
import fcntl
import os
import signal
import sys
import syslog
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import click
import structlog
import uvloop

from common import log as logs
from common.checkup import checkup, table
from common.clock import system_clock
from common.codec import to_json
from common.errors import Conflict, SkerryError, Temporary
from common.faults import Faults
from common.heap import spare_collector, spare_heap
from common.ids import new_id
from common.sockets import feed_watchdog, notify, take_listeners
from controller import bootstrap, config
from controller.api.app import Parts, make_app
from controller.api.relay import PREFIX, Relay, only_controllers
from controller.config import Config, split_listen
from controller.doctor import examine, unreadable
from controller.fleet.auditor import Auditor
from controller.fleet.crew import Crew
from controller.fleet.hosts import Hosts
from controller.fleet.link import LinkServer, serve
from controller.fleet.links import ALONE
from controller.fleet.replicas import Replicas
from controller.fleet.sessions import Sessions
from controller.fleet.succession import Successor, asks, next_authority
from controller.fleet.tally import Tally
from controller.loop.loop import Loop
from controller.metrics.history import History
from controller.metrics.shelf import Keep
from controller.packages import Debian
from controller.pki.authority import Authority
from controller.sight import look
from controller.store.blobs import Blobs
from controller.store.database import schema_at, sqlite_file
from controller.store.opening import open_store
from controller.store.rows import Controller
from controller.store.store import Store
from controller.upgrade import Database, Settings, Upgrade

log = structlog.get_logger(__name__)

VERSION = version("skerry")
RENEWAL_EVERY_S = 3600.0
SWEEP_EVERY_S = 600.0
LOOP_HANGS_AFTER_S = 10.0


DEFAULT_CONFIG = "/etc/skerry/controller.toml"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "path", default=DEFAULT_CONFIG, show_default=True, help="The configuration file (TOML).")
@click.version_option(VERSION, "--version", prog_name="skerry-controller")
@click.pass_context
def main(context: click.Context, path: str) -> None:
    """Skerry's controller: schedules, keeps the books and answers the API.

    \b
    Examples:
      skerry-controller init
      skerry-controller token --name root
      skerry-controller run
    """
    if context.invoked_subcommand == "doctor":
        logs.configure(level="warning")
        context.obj = Path(path)  # what is wrong with it is a finding
        return
    with _told():
        context.obj = config.load(Path(path))
    logs.configure(level=context.obj.log.level)


@main.command("init")
@click.pass_obj
def init_command(settings: Config) -> None:
    """Make the state directory, the certificate authority and the database; what is there stays."""
    with _told(), _only_one(settings):
        asyncio.run(_initialise(settings, _authority(settings)))
    click.echo(f"ready: {settings.state_dir}")


@main.command("token")
@click.option("--name", required=True, help="The token's name; one that exists is replaced.")
@click.option("--project", default="system", show_default=True, help="The project it is for.")
@click.option("--role", type=click.Choice(["reader", "member", "admin"]), default="admin", show_default=True)
@click.pass_obj
def token_command(settings: Config, name: str, project: str, role: str) -> None:
    """Print a fresh API token: the first one, or one for an operator who lost theirs. The controller must not run."""

    async def issue() -> str:
        async with open_store(settings.database_url, system_clock) as store:
            await store.load(alone=not store.shared)
            await bootstrap.ensure_system_project(store, system_clock)
            secret = await bootstrap.issue_token(store, system_clock, project=project, name=name, role=role)
            return secret.reveal()

    with _told(), _only_one(settings):
        click.echo(asyncio.run(issue()))


@main.command("restored")
@click.pass_obj
def restored_command(settings: Config) -> None:
    """Say that the database was restored from a backup, before any controller runs again.

    Hosts take its documents for newer than what they have then. What it does not know stays on them, as orphans that
    `skerry audit` names.
    """

    async def begin() -> str:
        async with open_store(settings.database_url, system_clock) as store:
            await store.load(alone=not store.shared)
            if living := [one.url for one in store.seen.controllers() if one.alive and store.shared]:
                raise Conflict(
                    f"controllers run on this database: {', '.join(living)}",
                    fix="stop all of them first; one that was killed is taken for dead after six seconds",
                )
            return await store.begin_epoch()

    with _told(), _only_one(settings):
        click.echo(f"restored: hosts take this database's word from now on (epoch {asyncio.run(begin())})")


@main.command("doctor")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.pass_obj
def doctor_command(path: Path, output: str) -> None:
    """Check this machine, the configuration, database and certificates, and say for each failure what to do.

    Changes nothing; the controller may run or not. Exits with 1 where a check failed.
    """
    try:
        found = checkup(examine(asyncio.run(look(config.load(path)))))
    except SkerryError as err:
        found = checkup(unreadable(err.detail, err.fix))
    click.echo(to_json(found).decode() if output == "json" else table(found))
    sys.exit(0 if found.healthy else 1)


@main.command("upgrade")
@click.argument("packages", nargs=-1, type=click.Path(exists=True, resolve_path=True, path_type=Path))
@click.option("--wait-s", default=300.0, show_default=True, help="How long the newer release may take to be ready.")
@click.option("--dumped", is_flag=True, help="A dump of PostgreSQL was taken: the newer release changes the schema.")
@click.pass_obj
def upgrade_command(settings: Config, packages: tuple[Path, ...], wait_s: float, dumped: bool) -> None:
    """Install newer PACKAGES (.deb files), and go back to what is installed now if they do not become ready.

    Without PACKAGES: finish an upgrade that was cut short. Exits with 1 where the newer release does not run. What it
    does is told in the journal, too (journalctl -t skerry-upgrade).
    """
    for number in (signal.SIGHUP, signal.SIGINT):  # a lost connection must not end it half-way
        signal.signal(number, signal.SIG_IGN)

    def say(line: str) -> None:
        with suppress(OSError):  # who typed it is gone
            click.echo(line)
        syslog.syslog(line)

    url = settings.database_url
    database = Database(file=sqlite_file(url), schema=lambda: schema_at(url).revision or "")
    syslog.openlog("skerry-upgrade")
    with _told():
        upgrade = Upgrade(Debian(), database, Settings(wait_s=wait_s, dumped=dumped), say)
        try:
            sys.exit(0 if asyncio.run(upgrade.run(packages)) else 1)
        except SkerryError as err:
            syslog.syslog(syslog.LOG_ERR, err.detail)
            raise


@main.command("run")
@click.pass_obj
def run_command(settings: Config) -> None:
    """Run the controller until SIGTERM or SIGINT. Guests, DHCP, DNS and metadata go on without it."""
    faulthandler.enable(2)  # the service manager's watchdog ends a hung process with SIGABRT: say where it hung
    with _told(), _only_one(settings):
        spare_heap()
        uvloop.run(_run(settings))


async def _initialise(settings: Config, authority: Authority) -> None:
    async with open_store(settings.database_url, system_clock) as store:
        await store.load(alone=not store.shared)
        await _successor(store, authority, Sessions(), new_id("ctl")).begin()
        await bootstrap.ensure_system_project(store, system_clock)


def _authority(settings: Config) -> Authority:
    authority = Authority.ensure(settings.state_dir / "pki", system_clock())
    authority.ensure_server(settings.link.names, system_clock())
    return authority


def _successor(store: Store, authority: Authority, sessions: Sessions, me: str) -> Successor:
    return Successor(store, authority, sessions, me=me, clock=system_clock, ask=asks(authority))


def _crew(store: Store, sessions: Sessions, loop: Loop, me: str, settings: Config) -> Crew | None:
    """Return this controller's place among several; None where its database is its own."""
    if not store.shared:
        return None
    own = Controller(id=me, url=settings.link_url, version=VERSION, since=system_clock(), alive=True)
    return Crew(store, own, sessions, lambda: loop.busy)


async def _run(settings: Config) -> None:
    """Wire the parts and run them until a signal; stop them in the opposite order."""
    listeners = take_listeners(os.environ)
    authority = _authority(settings)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(settings.database_url, system_clock))
        queue = await store.load(alone=not store.shared)
        me = new_id("ctl")
        loop = Loop(store, system_clock, Faults(), worker=me)
        sessions = Sessions()
        crew = _crew(store, sessions, loop, me, settings)
        blobs = Blobs(settings.images_dir)
        history = History(settings.metrics_dir, _keep(settings), system_clock)
        await history.open()
        stack.push_async_callback(history.close)
        hosts = Hosts(
            store,
            authority,
            sessions,
            images=settings.images_dir,
            version=VERSION,
            clock=system_clock,
            changed=loop.host_changed,
            poke=loop.poke,
            links=crew or ALONE,
            measures=history,
        )
        if crew:
            await crew.enter()
        successor = _successor(store, authority, sessions, me)
        await successor.begin()
        await bootstrap.ensure_system_project(store, system_clock)
        tally = await _counted_anew(store, settings)
        loop.start(queue)
        spare_collector()
        parts = Parts(
            store=store,
            fleet=hosts,
            blobs=blobs,
            measured=history,
            choose=loop.inventory.would_choose,
            take_stock=loop.inventory.take_stock,
            readiness=lambda: _unready(loop),
            config=settings,
            authority_fingerprint=authority.fingerprint,
            successor=successor,
            authorities_pem=lambda: authority.trusted_pem,
            relay=Relay(store, me, authority.peer_context) if crew else None,
        )
        api = make_app(parts)
        stop = _stop_on_signals()
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        running = [
            tasks.create_task(loop.run(), name="loop"),
            tasks.create_task(hosts.run(), name="hosts"),
            tasks.create_task(history.run(), name="history"),
            tasks.create_task(
                Auditor(
                    store, hosts.audit, system_clock, every_s=settings.audit.every_s, mine=(crew or ALONE).mine
                ).run(),
                name="auditor",
            ),
            tasks.create_task(tally.run(), name="tally"),
        ]
        if crew:
            replicas = Replicas(store, blobs, me, authority.peer_context)
            running.append(tasks.create_task(crew.run(), name="crew"))
            running.append(tasks.create_task(replicas.run(), name="replicas"))
        context = authority.server_context()
        running += [
            tasks.create_task(_renew(authority, settings), name="renewal"),
            tasks.create_task(successor.run(), name="succession"),
            tasks.create_task(_sweep(store, blobs), name="sweep"),
            tasks.create_task(feed_watchdog(os.environ), name="watchdog"),
        ]
        link = LinkServer(
            hosts, sessions, lambda: authority.shown_pem, next_authority=lambda: next_authority(authority)
        ).app()
        if crew:
            link.add_subapp(PREFIX, make_app(parts, only_controllers()))
        listen = split_listen(settings.link.listen)
        await stack.enter_async_context(serve(link, context, listen=listen, sock=listeners.get("link")))
        api_context = context if settings.api.tls else None
        listen = split_listen(settings.api.listen)
        await stack.enter_async_context(serve(api, api_context, listen=listen, sock=listeners.get("api")))
        notify("READY=1", os.environ)
        log.info("controller ready", version=VERSION, api=settings.api.listen, link=settings.link_url)
        await stop.wait()
        notify("STOPPING=1", os.environ)
        log.info("controller stopping")
        for task in running:
            task.cancel()


def _keep(settings: Config) -> Keep:
    wanted = settings.metrics
    return Keep(
        raw_s=wanted.raw_hours * 3600,
        minute_s=wanted.minute_days * 86400,
        hour_s=wanted.hour_days * 86400,
        most_bytes=int(wanted.max_gib * (1 << 30)),
    )


async def _counted_anew(store: Store, settings: Config) -> Tally:
    """Return what counts quotas anew, once it did: a release that counted otherwise may have run before."""
    tally = Tally(store, settings.quota.default, system_clock, every_s=settings.audit.every_s)
    await tally.look()
    return tally


def _unready(loop: Loop) -> tuple[str, ...]:
    late = loop.late_s()
    return (f"the loop has not turned for {late:.0f} s",) if late > LOOP_HANGS_AFTER_S else ()


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def _renew(authority: Authority, settings: Config) -> None:
    while True:
        await asyncio.sleep(RENEWAL_EVERY_S)
        if authority.renew_server(settings.link.names, system_clock()):
            log.info("server certificate renewed")


async def _sweep(store: Store, blobs: Blobs) -> None:
    """Drop what was kept long enough, and image bytes that no image names: what is left of deleted images and of
    uploads that were cut off."""
    while True:
        await asyncio.sleep(SWEEP_EVERY_S)
        try:
            await store.tidy()
        except Temporary as err:
            log.warning("old rows not dropped", error=err.detail)
        await blobs.sweep(lambda: {image.spec.digest for image in store.seen.of_kind("image")})


@contextmanager
def _only_one(settings: Config) -> Iterator[None]:
    """Keep a second controller, or a command that writes, off the state directory while one runs."""
    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = settings.state_dir / "lock"
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            raise Conflict(
                f"a controller runs on {settings.state_dir}", fix="use its API (skerry token create), or stop it first"
            ) from err
        yield


@contextmanager
def _told() -> Iterator[None]:
    """Show our errors as two lines for people, and end with 1."""
    try:
        yield
    except SkerryError as err:
        click.echo(f"error: {err.detail}", err=True)
        if err.fix:
            click.echo(f"  fix: {err.fix}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
