"""Rules of groups hold whoever claims at once, on either database, and with two controllers on one."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack

import pytest
from sqlalchemy import Engine, select

from common.clock import system_clock
from common.errors import Conflict
from common.ids import HostId, Id
from common.kinds.kind import AnyResource
from controller.kinds import admission
from controller.loop.loop import Loop
from controller.store import tables
from controller.store.opening import open_store
from controller.store.store import Store
from controller.store.writes import MoveHost, ReleasePlacement, TakePlacement
from tests.kinds.bench import Bench
from tests.store.desk import Clock, Desk, take
from tests.store.loops import connected, controllers, on_hosts, settled, until


def joining(host: HostId, number: int, group: AnyResource) -> TakePlacement:
    """Return the write that gives a member its host."""
    placement = take(host, f"vm-{number:012d}", memory_mib=64, disk_gib=1).placement
    return TakePlacement(placement=placement, groups=(group.id,))


async def grouped(desk: Desk, **spec: object) -> AnyResource:
    await desk.project()
    return await desk.create("group", "shop", "db", **spec)


async def racked(desk: Desk, *racks: str) -> list[HostId]:
    """Return a host in each of these racks; those named alike share one."""
    await desk.create("zone", "", "z1")
    for rack in sorted(set(racks)):
        await desk.create("rack", "", rack, zone="z1")
    hosts = [await desk.host(f"h{number}", vcpus=100) for number in range(len(racks))]
    for host, rack in zip(hosts, racks, strict=True):
        row = desk.store.seen.get(host)
        assert row is not None
        await desk.change(row, rack=rack)
    return hosts


async def at_once(desk: Desk, hosts: Sequence[HostId], group: AnyResource, count: int) -> list[object]:
    asked = [desk.write(joining(hosts[n % len(hosts)], n, group)) for n in range(count)]
    return list(await asyncio.gather(*asked, return_exceptions=True))


async def test_of_fifty_at_once_each_rack_gets_one(desk: Desk) -> None:
    group = await grouped(desk, policy="anti-affinity", over="rack")
    hosts = await racked(desk, "r1", "r1", "r2", "r3", "r3")
    answers = await at_once(desk, hosts, group, 50)
    assert sum(one is None for one in answers) == 3
    assert all(isinstance(one, Conflict) for one in answers if one is not None)
    assert set(desk.store.seen.crowd(group.id).values()) == {1}


async def test_of_fifty_at_once_all_are_where_the_first_is(desk: Desk) -> None:
    group = await grouped(desk, policy="affinity", over="rack")
    hosts = await racked(desk, "r1", "r1", "r2", "r2", "r3")
    answers = await at_once(desk, hosts, group, 50)
    assert sum(one is None for one in answers) == 20
    assert list(desk.store.seen.crowd(group.id).values()) == [20]


async def test_a_soft_rule_stops_nobody(desk: Desk) -> None:
    group = await grouped(desk, policy="anti-affinity", over="rack", hard=False)
    hosts = await racked(desk, "r1", "r2")
    assert await at_once(desk, hosts, group, 10) == [None] * 10
    assert sorted(desk.store.seen.crowd(group.id).values()) == [5, 5]


async def test_a_place_is_free_again_when_its_member_goes(desk: Desk, engine: Engine) -> None:
    group = await grouped(desk, policy="affinity")
    one, other = await desk.host("h1"), await desk.host("h2")
    await desk.write(joining(one, 1, group), joining(one, 2, group))
    await desk.write(ReleasePlacement(owner=Id("vm-000000000001")))
    with pytest.raises(Conflict, match="group db is in"):
        await desk.write(joining(other, 3, group))
    await desk.write(ReleasePlacement(owner=Id("vm-000000000002")))
    await desk.write(joining(other, 3, group))
    await desk.write(ReleasePlacement(owner=Id("vm-000000000003")))
    with engine.connect() as connection:
        assert not connection.execute(select(tables.meeting)).all()
        assert not connection.execute(select(tables.membership)).all()
    assert not desk.store.seen.crowd(group.id)


async def test_a_host_that_moved_meanwhile_is_where_it_is_now(desk: Desk) -> None:
    """Who chose it did so by its old rack: the transaction reads the new one."""
    group = await grouped(desk, policy="anti-affinity", over="rack")
    hosts = await racked(desk, "r1", "r2")
    await desk.write(joining(hosts[0], 1, group))
    moved = desk.store.seen.get(hosts[1])
    assert moved is not None
    await desk.change(moved, rack="r1")
    with pytest.raises(Conflict, match=r"is in rack-.* already"):
        await desk.write(joining(hosts[1], 2, group))
    pinned = take(hosts[1], "vm-000000000003").placement
    (rack,) = (row.id for row in desk.store.seen.of_kind("rack") if row.name == "r2")
    with pytest.raises(Conflict, match=r"host h1 is not in rack-.* any more"):
        await desk.write(TakePlacement(placement=pinned, within=(rack,)))


async def test_a_move_that_overtakes_a_look_is_stopped_by_the_books(desk: Desk, engine: Engine) -> None:
    """A claim may come between the admission of a move and its commit."""
    group = await grouped(desk, policy="anti-affinity", over="rack")
    hosts = await racked(desk, "r1", "r2")
    row = desk.store.seen.get(hosts[1])
    assert row is not None
    await desk.write(joining(hosts[0], 1, group))
    move = admission.change(desk.context, row, admission.Patch(spec={"rack": "r1"}))
    assert move.writes == (MoveHost(host=hosts[1]),)
    vm = await member(desk)
    await desk.write(TakePlacement(placement=take(hosts[1], vm.id).placement, groups=(group.id,)))
    with pytest.raises(Conflict, match="already"):
        await desk.store.admit(move)
    assert sorted(desk.store.seen.crowd(group.id).values()) == [1, 1]


async def member(desk: Desk, name: str = "m") -> AnyResource:
    """Return a VM that names the group."""
    await desk.create("size", "", "small", vcpus=1, memory_mib=64, disk_gib=4)
    await desk.create("image", "shop", "tiny")
    await desk.create("network", "shop", "default")
    return await desk.create("vm", "shop", name, image="tiny", size="small", groups=["db"])


# --- by whole loops -------------------------------------------------------------------------------------------------


async def made_at_once(benches: Sequence[Bench], loops: Sequence[Loop], hosts: int, vms: int, **spec: object) -> None:
    """Have a group, hosts that every controller sees connected, and all its members asked for at once."""
    first = benches[0]
    await first.furniture()
    await first.create("group", "shop", "db", **spec)
    for number in range(hosts):
        await first.host(f"h{number}", vcpus=100, memory_mib=100_000, disk_gib=1000)
    await connected(benches, loops)
    wanted = [
        benches[n % len(benches)].create("vm", "shop", f"db{n}", image="tiny", size="small", groups=["db"])
        for n in range(vms)
    ]
    await asyncio.gather(*wanted)


def held(store: Store, hosts: int, vms: int) -> None:
    """Check that each host has one, and that the others know what it would take."""
    counted = on_hosts(store)
    assert sorted(counted.values()) == [1] * hosts
    blocked = [vm for vm in store.seen.of_kind("vm") if vm.status.state == "blocked"]
    assert len(blocked) == vms - hosts
    for vm in blocked:
        assert [(cost.constraint, cost.hosts) for cost in vm.status.why.costs] == [("group db", hosts)]
        assert vm.status.why.smallest_change.startswith("add a host for group db")


async def test_parallel_creates_keep_apart(store: Store) -> None:
    bench = Bench(store, Clock())
    async with controllers([store]) as (loop,):
        await made_at_once([bench], [loop], hosts=6, vms=20, policy="anti-affinity")
        await until(lambda: settled(store))
    held(store, hosts=6, vms=20)


@pytest.mark.parametrize("policy", ["affinity", "anti-affinity"])
async def test_parallel_creates_on_two_controllers_keep_the_rule(postgres_url: str, policy: str) -> None:
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(open_store(postgres_url, system_clock)) for _ in range(2)]
        for store in stores:
            await store.load(alone=False)
        benches = [Bench(store, Clock(), seed=number) for number, store in enumerate(stores)]
        loops = await stack.enter_async_context(controllers(stores))
        await made_at_once(benches, loops, hosts=6, vms=20, policy=policy)
        await until(lambda: all(settled(store) for store in stores))
        if policy == "anti-affinity":
            held(stores[0], hosts=6, vms=20)
        else:
            assert list(on_hosts(stores[0]).values()) == [20]
