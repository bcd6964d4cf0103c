"""Placements with a durable claim each: chosen over the columns, claimed in a transaction that is on disk."""

import os
import random
import tempfile
import time
from pathlib import Path

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

BUDGET_PER_S, BUDGET_P99_MS = 5_000.0, 5.0
"""At 10,000 hosts."""
AT_ONCE = 64
PLACEMENTS = 5_000
BIG_HOST = HostInventory(
    cpu_model="bench", cpu_flags=(), cpu_threads=64, memory_mib=1 << 20, disk_gib=100_000, nics=(), capabilities=(),
    virtualisation="kvm", kernel="6.1", boot_id="bench", vtep="10.0.0.1", underlay_mtu=1500,
)  # fmt: skip
SIZES = ((1, 512, 10), (2, 2048, 20), (4, 8192, 40))


async def measure(hosts: int, placements: int = PLACEMENTS) -> list[Figure]:
    """Place so many machines on so many hosts, on the one core that this process has."""
    core = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(core)})
    try:
        with tempfile.TemporaryDirectory(prefix="skerry-bench-", dir=_disk()) as folder:
            async with opened(Path(folder) / "books.db") as store:
                inventory = await _with_hosts(store, hosts)
                return await _place(store, inventory, hosts, placements)
    finally:
        os.sched_setaffinity(0, core)


async def _with_hosts(store: Store, hosts: int) -> Inventory:
    inventory = Inventory(store.seen)

    async def add(name: str) -> None:
        host = HostId(await create(store, "host", name, {}))
        row = store.seen.get(host)
        assert row is not None
        await store.step((SetCapacity(capacity=capacity_of(host, row.spec, BIG_HOST)),), (), "")
        store.seen.host(host).connected = True
        inventory.refresh(host)

    await together((f"h{number}" for number in range(hosts)), add, AT_ONCE)
    return inventory


async def _place(store: Store, inventory: Inventory, hosts: int, placements: int) -> list[Figure]:
    chance, took_ms, choosing = random.Random(1), list[float](), 0.0

    async def one(owner: str) -> None:
        nonlocal choosing
        vcpus, memory_mib, disk_gib = chance.choice(SIZES)
        demand = Demand(owner=Id(owner), vcpus=vcpus, memory_mib=memory_mib, disk_gib=disk_gib)
        began = time.perf_counter()
        choice = inventory.choose(demand)
        choosing += time.perf_counter() - began
        assert isinstance(choice, Choice)
        placement = Placement(
            owner=demand.owner, host=choice.host, vcpus=vcpus, memory_mib=memory_mib, disk_gib=disk_gib
        )
        await store.step((TakePlacement(placement=placement),), (), "")
        inventory.settle(choice, demand)
        took_ms.append((time.perf_counter() - began) * 1000)

    began = time.perf_counter()
    await together((new_id("vm") for _ in range(placements)), one, AT_ONCE)
    seconds = time.perf_counter() - began
    return [
        Figure(
            name=f"durable placements at {hosts:,} hosts, one core", figure=placements / seconds, unit="/s",
            budget=BUDGET_PER_S, beside="choosing alone", beside_figure=placements / choosing,
        ),
        Figure(
            name=f"  one of them, {AT_ONCE} at once, p99", figure=percentile(took_ms, 0.99), unit="ms",
            budget=BUDGET_P99_MS, beside="p50", beside_figure=percentile(took_ms, 0.5),
        ),
    ]  # fmt: skip


def _disk() -> Path:
    """Return a folder on a real disk: on a tmpfs an fsync costs nothing."""
    folder = Path(__file__).parents[2] / "build" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
