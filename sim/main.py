"""The `skerry-sim` command: a fleet of simulated hosts, for demonstrations, benchmarks and tests."""

import asyncio
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp
import click
import msgspec
import uvloop
from rich.console import Console
from rich.table import Table

from common import log as logs
from common.errors import SkerryError
from common.heap import spare_collector
from sim.agents import Pace
from sim.client import Client, Refused
from sim.controller import Process
from sim.fleet import Fleet, Site

EXAMPLES = """
\b
Examples:
  skerry-sim                                      50 hosts, 500 machines, a controller of its own
  skerry-sim --hosts 1000 --vms 25000             as the budgets have it
  skerry-sim --hosts 20 --vms 0 --stay            hosts to play with: the API's URL and a token are shown
  skerry-sim --rate 200 --faults 2                200 creates a second, an accident every 2 s
  skerry-sim --url http://127.0.0.1:8080 --token "$SKERRY_TOKEN"
                                                  at a controller that is there; all is deleted at the end
"""


IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a directory in it is made as mkdtemp does
"""Where agents write, so that a thousand of them do not wait for one disk. The controller has the disk."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for on the command line."""

    hosts: int
    vms: int
    per_network: int
    at_once: int
    rate: float
    start_ms: float
    faults: float
    url: str | None
    token: str | None
    stay: bool
    seed: int


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXAMPLES)
@click.option("--hosts", type=click.IntRange(1, 20_000), default=50, show_default=True, help="Simulated hosts.")
@click.option("--vms", type=click.IntRange(0, 1_000_000), default=500, show_default=True, help="Machines to create.")
@click.option(
    "--per-network", type=click.IntRange(1, 240), default=4, show_default=True,
    help="Machines in one network. Every host that has one of them knows all of them.",
)  # fmt: skip
@click.option("--at-once", type=click.IntRange(1, 10_000), default=64, show_default=True, help="Creates under way.")
@click.option("--rate", type=float, default=0.0, help="Creates a second; 0: as many as go.", show_default=True)
@click.option("--start-ms", type=float, default=0.0, show_default=True, help="What the start of a domain takes.")
@click.option("--faults", type=float, default=0.0, help="A link is cut or a host gets slow every so many seconds.")
@click.option("--url", help="The API of a controller that is there; else one of its own is started, and removed.")
@click.option("--token", envvar="SKERRY_TOKEN", help="An operator's token for --url.")
@click.option("--stay", is_flag=True, help="Keep everything up until Ctrl-C.")
@click.option("--seed", type=int, default=0, help="Of what is left to chance.")
def main(**words: object) -> None:
    """Simulate a fleet at a real controller: hosts that join with one-time tokens and dial over mutual TLS.

    Every host is the real agent's link, loop and memory over a machine that is made up, with guests that boot, report
    metrics and obey. All of them run in this process. Nothing of it is left when it ends.
    """
    plan = msgspec.convert(words, Plan)
    logs.configure(level="error")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        sys.exit(uvloop.run(_run(plan)))
    except SkerryError as err:
        click.echo(f"\nerror: {err.detail}" + (f"\n  fix: {err.fix}" if err.fix else ""), err=True)
    except (Refused, RuntimeError, OSError, TimeoutError) as err:
        click.echo(f"\nerror: {str(err) or type(err).__name__}", err=True)
    sys.exit(1)


class Progress:
    """Shows how far it is: in place on a terminal; elsewhere, of what changes quickly, a line every few seconds."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._at = 0.0

    def __call__(self, line: str) -> None:
        """Show a line."""
        now = time.monotonic()
        if self._terminal:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        elif now - self._at > 5.0:
            self._at = now
            print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the line."""
        if self._terminal:
            print(file=sys.stderr)


say = Progress()


@contextmanager
def _directory(parent: str | None = None) -> Iterator[Path]:
    """Give a directory that is gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="skerry-sim-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


async def _run(plan: Plan) -> int:
    """Do it, until it is done or somebody has enough; return the exit status."""
    work = asyncio.current_task()
    assert work is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, work.cancel)
    with _directory() as directory, _directory(IN_MEMORY) as memories:
        try:
            async with _at_controller(plan, directory) as (client, site, process):
                fleet = Fleet(client, site, memories, say)
                try:
                    return await _simulate(plan, fleet, process)
                finally:
                    if process is None:
                        await asyncio.shield(_cleared(fleet))
        except asyncio.CancelledError:
            say("ended")
            return 130


async def _simulate(plan: Plan, fleet: Fleet, process: Process | None) -> int:
    """Have hosts, then machines; tell what it took."""
    chance = random.Random(plan.seed)
    began = time.perf_counter()
    await fleet.join(plan.hosts, Pace(start_s=plan.start_ms / 1000))
    joined_s = time.perf_counter() - began
    async with AsyncExitStack() as stack:
        began = time.perf_counter()
        await stack.enter_async_context(fleet.connected())
        await fleet.all_ready(limit_s=60 + plan.hosts / 10)
        say(f"{plan.hosts} hosts are ready")
        ready_s = time.perf_counter() - began
        if plan.faults:
            group = await stack.enter_async_context(asyncio.TaskGroup())
            suffering = group.create_task(fleet.suffer(plan.faults, chance))
            stack.callback(suffering.cancel)
        table = [("hosts joined", f"{plan.hosts} in {joined_s:.1f} s"), ("all ready after", f"{ready_s:.1f} s")]
        good = True
        if plan.vms:
            good = await _create(plan, fleet, process, table)
        _show(table, fleet)
        if plan.stay:
            _invite(fleet, process)
            await asyncio.Event().wait()
    return 0 if good else 1


async def _create(plan: Plan, fleet: Fleet, process: Process | None, table: list[tuple[str, str]]) -> bool:
    """Create the machines; say whether all of them run, or say why not."""
    networks = -(-plan.vms // plan.per_network)
    await fleet.furnish(networks, vcpus=1, memory_mib=512, disk_gib=10)
    say(f"{networks} networks are made")
    spare_collector()  # which would stop all agents at once, a third of a second each time
    wanted: Iterator[tuple[str, dict[str, object]]] = (
        (f"vm-{number:06d}", {"image": "tiny", "size": fleet.site.name, "networks": [f"net-{number % networks:05d}"]})
        for number in range(plan.vms)
    )
    async with fleet.listening():
        before = process.usage()[0] if process else 0.0
        own, began = time.process_time(), time.perf_counter()
        await fleet.create(wanted, at_once=plan.at_once, rate=plan.rate)
        settled = await fleet.settled(limit_s=60 + plan.vms / 20)
        took = time.perf_counter() - began
    own = time.process_time() - own
    wishes = list(fleet.wishes.values())
    true = [wish.true_s for wish in wishes if wish.state == "done" and wish.true_s is not None]
    table += [
        ("machines accepted → running", f"{len(true)} of {plan.vms} in {took:.1f} s: {len(true) / took:.0f}/s"),
        ("  one of them", spread(true)),
        ("  its answer (202)", spread([wish.answered_s for wish in wishes])),
        ("CPU of these agents", cost(own, took, len(true))),
    ]
    if process:
        cpu, rss = process.usage()
        table.append(("CPU of the controller", f"{cost(cpu - before, took, len(true))}; it has {rss >> 20} MiB"))
    return settled and len(true) + sum(wish.state == "blocked" for wish in wishes) == plan.vms


def cost(cpu_s: float, took_s: float, machines: int) -> str:
    """Return what a side spent on it."""
    return f"{cpu_s / took_s:.0%} of a core, {1000 * cpu_s / max(1, machines):.1f} ms a machine"


def spread(seconds: list[float]) -> str:
    """Return the middle and the tail of some times."""
    if not seconds:
        return "none"
    ordered = sorted(seconds)
    at = [ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000 for share in (0.5, 0.99)]
    return f"p50 {at[0]:.0f} ms, p99 {at[1]:.0f} ms, worst {ordered[-1] * 1000:.0f} ms"


def _show(lines: list[tuple[str, str]], fleet: Fleet) -> None:
    table = Table("what", "figure", box=None, pad_edge=False)
    for line in lines:
        table.add_row(*line)
    for why, count in sorted(Counter(wish.why for wish in fleet.wishes.values() if wish.state == "blocked").items()):
        table.add_row(f"blocked: {why}", str(count))
    for why, count in (*sorted(fleet.refused.items()), *sorted(fleet.befell.items())):
        table.add_row(why[:100], str(count))
    say.end()
    Console().print(table)


def _invite(fleet: Fleet, process: Process | None) -> None:
    """Say how to get at it."""
    click.echo(f"\nThe API is at {fleet.site.api}; everything is in project {fleet.site.name}.")
    if process:
        click.echo(f"  export SKERRY_URL={process.api} SKERRY_TOKEN={fleet.client.token}")
        click.echo(f"  skerry host list; skerry vm list --project {fleet.site.name}")
    click.echo("Ctrl-C ends it.")


@asynccontextmanager
async def _at_controller(plan: Plan, directory: Path) -> AsyncIterator[tuple[Client, Site, Process | None]]:
    """Give a client, and where the controller is: one that runs, or one of one's own."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        if plan.url:
            if not plan.token:
                raise RuntimeError("--url needs --token (or SKERRY_TOKEN): an operator's, since hosts are made")
            client = Client(http, plan.token)
            _, me = await client.call(plan.url, "GET", "/v1/whoami")
            yield client, Site(api=plan.url, link=me["link_url"], name=f"sim-{os.getpid()}"), None
            return
        say("starting a controller")
        process = Process(directory / "controller", level="warning", limits="rate_per_s = 0")
        try:
            process.init()
            client = Client(http, process.token("sim"))
            process.start()
            await process.ready()
            yield client, Site(api=process.api, link=process.link), process
        finally:
            process.end()


async def _cleared(fleet: Fleet) -> None:
    say("deleting all that was made")
    async with fleet.connected():
        await fleet.clear()


if __name__ == "__main__":
    main()
