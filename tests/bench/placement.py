"""Placements with a durable claim each: chosen over the columns, claimed in a transaction that is on disk."""

import asyncio
import csv
import gzip
import os
import random
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import cycle, islice
from pathlib import Path

from common.heap import spare_collector
from common.ids import HostId, Id, new_id
from common.protocol import Inventory as HostInventory
from controller.kinds.host import capacity_of
from controller.scheduler.choose import Choice, Demand
from controller.scheduler.inventory import Inventory
from controller.store.rows import Placement
from controller.store.store import Store
from controller.store.writes import SetCapacity, TakePlacement
from tests.bench.books import create, opened, together
from tests.bench.figures import Figure, percentile

BUDGET_P99_MS = 5.0
AT_ONCE = 64
PLACEMENTS = 20_000
PACED_S = 4.0
TICK_S = 0.0005
FLOOR_S = 1.0
LOG_BYTES, COMMIT_BYTES = 4 << 20, 40 << 10
"""As large as SQLite's log, and as what a commit adds to it."""
BIG_HOST = HostInventory(
    cpu_model="bench", cpu_flags=(), cpu_threads=64, memory_mib=1 << 20, disk_gib=100_000, nics=(), capabilities=(),
    virtualisation="kvm", kernel="6.1", boot_id="bench", vtep="10.0.0.1", underlay_mtu=1500,
)  # fmt: skip
FOLDER = Path(__file__).parents[2] / "build" / "bench"
Size = tuple[int, int, int]
SIZES: tuple[Size, ...] = ((1, 512, 10), (2, 2048, 20), (4, 8192, 40))


async def measure(hosts: int) -> list[Figure]:
    """Place machines on so many hosts, on the one core that this process has: as many as it can, then at a pace.

    Their sizes are those of real ones, in their order, where SKERRY_TRACE names a trace of arrivals (see `choosing`).
    """
    with one_core():
        async with disk_store() as store:
            inventory = Inventory(store.seen)
            await with_hosts(store, inventory, hosts)
            sizes = arrivals()
            return [
                *await _flat_out(store, inventory, hosts, sizes),
                await _paced(store, inventory, hosts, sizes),
                _disk_alone(),
            ]


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this process on one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@asynccontextmanager
async def disk_store() -> AsyncIterator[Store]:
    """Give a store on a real disk: on a tmpfs an fsync costs nothing."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="skerry-bench-", dir=FOLDER) as folder:
        async with opened(Path(folder) / "books.db") as store:
            yield store


async def with_hosts(store: Store, inventory: Inventory, hosts: int) -> None:
    """Make hosts that are connected and have much to sell."""

    async def add(name: str) -> None:
        host = HostId(await create(store, "host", name, {}))
        row = store.seen.get(host)
        assert row is not None
        await store.step((SetCapacity(capacity=capacity_of(host, row.spec, BIG_HOST)),), (), "")
        store.seen.host(host).connected = True
        inventory.refresh(host)

    await together((f"h{number}" for number in range(hosts)), add, AT_ONCE)
    spare_collector()


def arrivals() -> Iterator[Size]:
    """Give sizes of machines without end."""
    trace = os.environ.get("SKERRY_TRACE")
    if trace is None:
        chance = random.Random(1)
        return iter(lambda: chance.choice(SIZES), None)
    with gzip.open(trace, "rt") as file:
        rows = [(int(row["vcpus"]), int(float(row["mem_gb"]) * 1024), 10) for row in csv.DictReader(file)]
    return cycle(rows)


async def _flat_out(store: Store, inventory: Inventory, hosts: int, sizes: Iterator[Size]) -> list[Figure]:
    took_ms, choosing = list[float](), list[float]()

    async def one(owner: str) -> None:
        began = time.perf_counter()
        choosing.append(await _claim(store, inventory, Id(owner), next(sizes)))
        took_ms.append((time.perf_counter() - began) * 1000)

    began = time.perf_counter()
    await together((new_id("vm") for _ in range(PLACEMENTS)), one, AT_ONCE)
    seconds = time.perf_counter() - began
    return [
        Figure(
            name=f"durable placements at {hosts:,} hosts, one core", figure=PLACEMENTS / seconds, unit="/s",
            budget=_budget(hosts), beside="choosing alone", beside_figure=PLACEMENTS / sum(choosing),
        ),
    ]  # fmt: skip


async def _paced(store: Store, inventory: Inventory, hosts: int, sizes: Iterator[Size]) -> Figure:
    """Ask at an even pace, whether or not the answers keep up, and take the time from when each was due."""
    rate, took_ms = _budget(hosts), list[float]()

    async def one(due: float, size: Size) -> None:
        await _claim(store, inventory, new_id("vm"), size)
        took_ms.append((time.perf_counter() - due) * 1000)

    async with _ticks() as ticks, asyncio.TaskGroup() as group:
        began, asked = time.perf_counter(), 0
        while asked < rate * PACED_S:
            due = int((time.perf_counter() - began) * rate) + 1
            for size in islice(sizes, due - asked):
                group.create_task(one(began + asked / rate, size))
                asked += 1
            await ticks.wait()
            ticks.clear()
    return Figure(
        name=f"  one of them, {rate:,.0f}/s asked, p99", figure=percentile(took_ms, 0.99), unit="ms",
        budget=BUDGET_P99_MS, beside="p50", beside_figure=percentile(took_ms, 0.5),
    )  # fmt: skip


@asynccontextmanager
async def _ticks() -> AsyncIterator[asyncio.Event]:
    """Give what is set twice a millisecond, by a timer of the system's: uvloop's own count whole milliseconds, and one
    asked for less takes turns without end, so that the thread that commits waits for the core."""
    loop, ticks = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGALRM, ticks.set)
    signal.setitimer(signal.ITIMER_REAL, TICK_S, TICK_S)
    try:
        yield ticks
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        loop.remove_signal_handler(signal.SIGALRM)


def _disk_alone() -> Figure:
    """Write a commit's bytes again and again into a file that is there, each time until they are on the disk."""
    took_ms = list[float]()
    with tempfile.TemporaryFile(dir=FOLDER) as file:
        os.pwrite(file.fileno(), bytes(LOG_BYTES), 0)
        os.fsync(file.fileno())
        until = time.perf_counter() + FLOOR_S
        while (began := time.perf_counter()) < until:
            os.pwrite(file.fileno(), bytes(COMMIT_BYTES), len(took_ms) * COMMIT_BYTES % LOG_BYTES)
            os.fdatasync(file.fileno())
            took_ms.append((time.perf_counter() - began) * 1000)
    return Figure(
        name="  the disk alone: one write of 40 KiB and its fdatasync, p99", figure=percentile(took_ms, 0.99),
        unit="ms", beside="p50", beside_figure=percentile(took_ms, 0.5),
    )  # fmt: skip


async def _claim(store: Store, inventory: Inventory, owner: Id, size: Size) -> float:
    """Choose and commit; return how long choosing took."""
    vcpus, memory_mib, disk_gib = size
    demand = Demand(owner=owner, vcpus=vcpus, memory_mib=memory_mib, disk_gib=disk_gib)
    began = time.perf_counter()
    choice = inventory.choose(demand)
    choosing = time.perf_counter() - began
    assert isinstance(choice, Choice)
    placement = Placement(owner=owner, host=choice.host, vcpus=vcpus, memory_mib=memory_mib, disk_gib=disk_gib)
    await store.step((TakePlacement(placement=placement),), (), "")
    inventory.settle(choice, demand)
    return choosing


def _budget(hosts: int) -> float:
    return 5_000.0 if hosts <= 10_000 else 2_000.0
