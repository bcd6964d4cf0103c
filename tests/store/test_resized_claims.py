"""A claim that grows and shrinks: never more than the host has, and the books always equal the sum."""

import asyncio

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from common.errors import Conflict
from common.ids import HostId, Id
from controller.store.rows import Placement
from controller.store.writes import ReleasePlacement, ResizePlacement, SetCapacity
from sim.database import inline_store
from tests.store.desk import Clock, Desk, take
from tests.store.test_claims import used


def to(host: HostId, owner: str, vcpus: int, memory_mib: int, disk_gib: int) -> ResizePlacement:
    """Return the write that gives an owner this much."""
    placement = Placement(owner=Id(owner), host=host, vcpus=vcpus, memory_mib=memory_mib, disk_gib=disk_gib)
    return ResizePlacement(placement=placement)


async def test_room_is_sold_once_to_those_who_grow_together(desk: Desk, engine: Engine) -> None:
    host = await desk.host("h1", vcpus=100, memory_mib=1000, disk_gib=100)
    for number in range(8):
        await desk.write(take(host, f"vm-{number}", vcpus=1, memory_mib=50, disk_gib=1))
    grown = [desk.write(to(host, f"vm-{number}", 1, 250, 1)) for number in range(8)]
    answers = await asyncio.gather(*grown, return_exceptions=True)
    assert sum(one is None for one in answers) == 3
    assert all(isinstance(one, Conflict) for one in answers if one is not None)
    assert used(engine, host) == (8, 5 * 50 + 3 * 250, 8)
    assert desk.store.seen.used(host).memory_mib == 1000


async def test_what_does_not_grow_needs_no_room(desk: Desk, engine: Engine) -> None:
    host = await desk.host("h1", vcpus=4, memory_mib=1000)
    await desk.write(take(host, "vm-1", vcpus=4, memory_mib=500, disk_gib=10))
    capacity = desk.store.seen.capacity(host)
    assert capacity
    await desk.write(SetCapacity(capacity=msgspec.structs.replace(capacity, vcpus=2)))
    await desk.write(to(host, "vm-1", 3, 900, 10))
    assert used(engine, host) == (3, 900, 10)


async def test_who_is_not_placed_there_gets_nothing(desk: Desk) -> None:
    host = await desk.host("h1")
    with pytest.raises(Conflict, match="vm-1 is not placed on host"):
        await desk.write(to(host, "vm-1", 1, 64, 1))


sizes = st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(1, 600), st.integers(1, 60))


@settings(max_examples=30, deadline=None)
@given(actions=st.lists(st.tuples(st.sampled_from(["take", "resize", "resize", "release"]), sizes), max_size=25))
def test_the_books_equal_the_sum_whatever_the_order(actions: list[tuple[str, tuple[int, int, int, int]]]) -> None:
    with inline_store() as (store, run, engine):
        desk = Desk(store, Clock())
        host = run(desk.host("h1", vcpus=8, memory_mib=1000, disk_gib=100))
        for what, (number, *amount) in actions:
            owner = f"vm-{number}"
            vcpus, memory_mib, disk_gib = amount
            write = {
                "take": take(host, owner, vcpus=vcpus, memory_mib=memory_mib, disk_gib=disk_gib),
                "resize": to(host, owner, *amount),
                "release": ReleasePlacement(owner=Id(owner)),
            }[what]
            try:
                run(desk.write(write))
            except Conflict:
                continue
        placed = store.seen.placed_on(host)
        books = tuple(sum(getattr(one, name) for one in placed) for name in ("vcpus", "memory_mib", "disk_gib"))
        assert used(engine, host) == books
        assert books[0] <= 8
        assert books[1] <= 1000
        assert books[2] <= 100
