"""Capacity, addresses and VNIs: never given twice, never more than there is, and given back whole."""

import asyncio
from ipaddress import IPv4Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, func, select, update

from common.errors import Conflict, NoCapacity
from common.ids import HostId, Id
from controller.store import claims, tables
from controller.store.rows import Capacity
from controller.store.store import Store
from controller.store.writes import (
    ClaimAddress,
    ClaimVni,
    ForgetHost,
    ReleaseAddresses,
    ReleasePlacement,
    ReleaseVni,
    SetCapacity,
)
from sim.database import inline_store
from tests.store.desk import Clock, Desk, take

NET = Id("net-00000000000a")


def vm(number: int) -> str:
    return f"vm-{number:012d}"


def claim(number: int, *, network: Id = NET, cidr: str = "10.20.0.0/29", index: int = 0) -> ClaimAddress:
    return ClaimAddress(network=network, cidr=cidr, vm=Id(vm(number)), index=index, mac=f"02:00:00:00:00:{number:02x}")


def used(engine: Engine, host: HostId) -> tuple[int, int, int]:
    c = tables.capacity.c
    with engine.connect() as connection:
        statement = select(c.vcpus_used, c.memory_mib_used, c.disk_gib_used).where(c.host == host)
        return tuple(connection.execute(statement).one())


async def test_capacity_is_not_oversold_by_a_hundred_at_once(desk: Desk, engine: Engine) -> None:
    host = await desk.host("h1", vcpus=30)
    asked = [desk.write(take(host, vm(n), disk_gib=1, memory_mib=64)) for n in range(100)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(one is None for one in answers) == 30
    assert all(isinstance(one, Conflict) for one in answers if one is not None)
    assert used(engine, host) == (30, 30 * 64, 30)
    assert len(desk.store.seen.placed_on(host)) == 30
    assert desk.store.seen.used(host).vcpus == 30


@pytest.mark.parametrize("lacking", ["vcpus", "memory_mib", "disk_gib"])
async def test_each_resource_limits(desk: Desk, lacking: str) -> None:
    host = await desk.host("h1", **{"vcpus": 4, "memory_mib": 4, "disk_gib": 4} | {lacking: 3})
    with pytest.raises(Conflict, match=f"host {host} has no room"):
        await desk.write(take(host, vm(1), vcpus=4, memory_mib=4, disk_gib=4))


async def test_placing_twice_is_placing_once(desk: Desk, engine: Engine) -> None:
    one, other = await desk.host("h1"), await desk.host("h2")
    await desk.write(take(one, vm(1)))
    await desk.write(take(one, vm(1)))
    await desk.write(take(other, vm(1)))
    placement = desk.store.seen.placement(Id(vm(1)))
    assert placement is not None
    assert placement.host == one
    assert used(engine, one) == (1, 512, 10)
    assert used(engine, other) == (0, 0, 0)


async def test_releasing_gives_back_what_was_taken_once(desk: Desk, engine: Engine) -> None:
    host = await desk.host("h1")
    await desk.write(take(host, vm(1)), take(host, vm(2)))
    for _ in range(2):
        await desk.write(ReleasePlacement(owner=Id(vm(1))))
    assert used(engine, host) == (1, 512, 10)
    assert desk.store.seen.placement(Id(vm(1))) is None
    assert desk.store.seen.used(host).vcpus == 1


async def test_a_host_being_deleted_sells_nothing(desk: Desk) -> None:
    host = await desk.host("h1")
    row = desk.store.seen.get(host)
    assert row is not None
    await desk.delete(row)
    with pytest.raises(Conflict, match="no room"):
        await desk.write(take(host, vm(1)))


async def test_what_is_sold_stays_sold_when_a_host_has_less(desk: Desk, engine: Engine) -> None:
    host = await desk.host("h1", vcpus=4)
    await desk.write(take(host, vm(1), vcpus=4))
    await desk.write(SetCapacity(capacity=Capacity(host=host, vcpus=2, memory_mib=9, disk_gib=9)))
    assert used(engine, host)[0] == 4
    with pytest.raises(Conflict):
        await desk.write(take(host, vm(2), vcpus=1, memory_mib=1, disk_gib=1))


async def test_a_host_that_comes_back_has_sold_what_is_placed_on_it(desk: Desk, engine: Engine) -> None:
    host = await desk.host("h1")
    await desk.write(take(host, vm(1), vcpus=3))
    await desk.write(ForgetHost(host=host))
    assert desk.store.seen.capacity(host) is None
    await desk.write(SetCapacity(capacity=Capacity(host=host, vcpus=8, memory_mib=8192, disk_gib=100)))
    assert used(engine, host) == (3, 512, 10)


async def test_nothing_of_a_step_is_kept_when_one_write_of_it_fails(desk: Desk, engine: Engine) -> None:
    host = await desk.host("h1", vcpus=1)
    await desk.write(take(host, vm(1)))
    with pytest.raises(Conflict):
        await desk.write(claim(2), take(host, vm(2)))
    with engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(tables.address)).scalar_one() == 0
    assert not desk.store.seen.addresses(Id(vm(2)))


async def test_addresses_start_after_the_gateway_and_are_unique(desk: Desk) -> None:
    asked = [desk.write(claim(n, cidr="10.20.0.0/24")) for n in range(100)]
    await asyncio.gather(*asked)
    taken = [address.address for address in desk.store.seen.ports(NET)]
    assert len(set(taken)) == 100
    assert "10.20.0.1" not in taken
    assert all(address in [str(one) for one in IPv4Network("10.20.0.0/24").hosts()] for address in taken)


async def test_a_full_subnet_says_so_with_the_way_out(desk: Desk) -> None:
    for number in range(5):
        await desk.write(claim(number))
    with pytest.raises(NoCapacity) as refused:
        await desk.write(claim(5))
    assert refused.value.refusal is not None
    assert refused.value.refusal.summary == "subnet 10.20.0.0/29 has no free address: all 5 are taken"
    assert "larger subnet" in refused.value.refusal.smallest_change
    await desk.write(ReleaseAddresses(vm=Id(vm(2))))
    await desk.write(claim(5))
    assert [one.address for one in desk.store.seen.addresses(Id(vm(5)))] == ["10.20.0.4"]


async def test_an_address_just_freed_is_not_the_next_one_given(desk: Desk) -> None:
    await desk.write(claim(1))
    await desk.write(claim(2))
    await desk.write(ReleaseAddresses(vm=Id(vm(1))))
    await desk.write(claim(3))
    assert desk.store.seen.addresses(Id(vm(3)))[0].address == "10.20.0.4"


async def test_a_nic_keeps_its_address_and_each_nic_has_one(desk: Desk) -> None:
    for _ in range(2):
        await desk.write(claim(1), claim(1, network=Id("net-00000000000b"), cidr="10.9.0.0/24", index=1))
    assert [one.address for one in desk.store.seen.addresses(Id(vm(1)))] == ["10.20.0.2", "10.9.0.2"]


async def test_two_networks_may_use_the_same_addresses(desk: Desk) -> None:
    await desk.write(claim(1))
    await desk.write(claim(2, network=Id("net-00000000000b")))
    assert desk.store.seen.addresses(Id(vm(1)))[0].address == desk.store.seen.addresses(Id(vm(2)))[0].address


async def test_vnis_are_unique_and_kept(desk: Desk) -> None:
    networks = [Id(f"net-{n:012d}") for n in range(50)]
    await asyncio.gather(*(desk.write(ClaimVni(network=one)) for one in networks))
    given = [desk.store.seen.vni(one) for one in networks]
    assert len(set(given)) == 50
    assert min(one for one in given if one) == claims.FIRST_VNI
    await desk.write(ClaimVni(network=networks[0]))
    assert desk.store.seen.vni(networks[0]) == given[0]


async def test_behind_the_last_vni_a_gap_is_used(desk: Desk, engine: Engine, store: Store) -> None:
    networks = [Id(f"net-{n:012d}") for n in range(3)]
    for one in networks:
        await desk.write(ClaimVni(network=one))
    await desk.write(ReleaseVni(network=networks[1]))
    with engine.begin() as connection:
        c = tables.vni.c
        connection.execute(update(tables.vni).where(c.network == networks[2]).values(vni=claims.LAST_VNI))
    await desk.write(ClaimVni(network=Id("net-00000000000z")))
    assert store.seen.vni(Id("net-00000000000z")) == claims.FIRST_VNI + 1


@settings(max_examples=25, deadline=None)
@given(actions=st.lists(st.tuples(st.sampled_from(["take", "release"]), st.integers(0, 5)), max_size=40))
def test_claims_equal_use_whatever_the_order(actions: list[tuple[str, int]]) -> None:
    with inline_store() as (store, run, engine):
        desk = Desk(store, Clock())
        host = run(desk.host("h1", vcpus=4))
        expected: set[int] = set()
        for what, number in actions:
            if what == "release":
                run(desk.write(ReleasePlacement(owner=Id(vm(number)))))
                expected.discard(number)
            elif number in expected or len(expected) < 4:
                run(desk.write(take(host, vm(number))))
                expected.add(number)
            else:
                with pytest.raises(Conflict):
                    run(desk.write(take(host, vm(number))))
        assert used(engine, host) == (len(expected), 512 * len(expected), 10 * len(expected))
        assert {placement.owner for placement in store.seen.placed_on(host)} == {vm(one) for one in expected}
