"""A zone that has to survive the loss of a host does so whoever places in it at once, on one controller and on two."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack

import pytest

from common.clock import system_clock
from common.errors import Conflict
from common.ids import Id, Revision
from controller.loop.loop import Loop
from controller.store.opening import open_store
from controller.store.rows import ZoneUse
from controller.store.store import Store
from controller.store.writes import TakePlacement
from tests.kinds.bench import Bench
from tests.store.desk import Clock, Desk, take
from tests.store.loops import connected, controllers, on_hosts, settled, until


async def asked_at_once(benches: Sequence[Bench], loops: Sequence[Loop], vms: int) -> None:
    """Have a zone of three hosts with room for five machines each, and ask for machines, all at once."""
    first = benches[0]
    await first.furniture()
    await first.create("zone", "", "z1", n_minus_one=True)
    for number in range(3):
        host = await first.host(f"h{number}", vcpus=10, memory_mib=100_000, disk_gib=1000)
        await first.change(first.store.seen.get(host), zone="z1")  # type: ignore[arg-type]
    await connected(benches, loops)
    wanted = [benches[n % len(benches)].create("vm", "shop", f"vm{n}", image="tiny", size="small") for n in range(vms)]
    await asyncio.gather(*wanted)


def survives(store: Store) -> None:
    """Check that ten of fifteen have a host, and that each host's machines would find room on the two others."""
    counted = on_hosts(store)
    assert counted.total() == 10
    assert all(machines <= sum(5 - others for host, others in counted.items() if host != lost)
               for lost, machines in counted.items())  # fmt: skip
    for vm in store.seen.of_kind("vm"):
        assert vm.status.state != "blocked" or vm.status.why.costs[-1].constraint == "n-1"


async def test_at_once_no_more_are_placed_than_survive(store: Store) -> None:
    bench = Bench(store, Clock())
    async with controllers([store]) as loops:
        await asked_at_once([bench], loops, 16)
        await until(lambda: settled(store))
    survives(store)


async def test_on_two_controllers_neither(postgres_url: str) -> None:
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(open_store(postgres_url, system_clock)) for _ in range(2)]
        for store in stores:
            await store.load(alone=False)
        benches = [Bench(store, Clock(), seed=number) for number, store in enumerate(stores)]
        loops = await stack.enter_async_context(controllers(stores))
        await asked_at_once(benches, loops, 16)
        await until(lambda: all(settled(store) for store in stores))
        survives(stores[0])


async def test_who_looked_before_another_controller_placed_looks_again(desk: Desk) -> None:
    host, zone = await desk.host("h1"), Id("zone-000000000001")

    def placing(number: int, by: str, seen_at: Revision) -> TakePlacement:
        placement = take(host, f"vm-{number:012d}").placement
        return TakePlacement(placement=placement, use=ZoneUse(zone=zone, controller=by, revision=seen_at))

    before = desk.store.seen.revision
    await desk.write(placing(1, "ctl-1", before))
    await desk.write(placing(2, "ctl-1", before))
    with pytest.raises(Conflict, match="another controller placed a machine in zone-000000000001 meanwhile"):
        await desk.write(placing(3, "ctl-2", before))
    assert desk.store.seen.revision > before
    await desk.write(placing(3, "ctl-2", desk.store.seen.revision))
