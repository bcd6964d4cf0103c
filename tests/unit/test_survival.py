"""The loss of one host: what is said to survive does, by every packing there is; what fits is what can be made."""

from collections import Counter
from itertools import count

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.ids import HostId, Id
from common.refusal import Refusal
from controller.scheduler.capacity import Fits, Stock, how_many
from controller.scheduler.choose import Choice, Demand, choose
from controller.scheduler.columns import Columns, HostRow, Place, Room
from controller.scheduler.rules import Crowd, Rule
from controller.scheduler.survival import Survival
from tests.unit.rows import host_id

Z1, Z2 = Place("zone-1", "z1"), Place("zone-2", "z2")
Load = list[tuple[int, Room]]
"""Machines, each on the host of a number."""


def cloud(free: list[Room], load: Load, zones: list[Place | None] | None = None, cut: int = 0) -> Stock:
    """Return hosts h1, h2, … with so much free beside their machines; all in zone z1 where nothing else is said."""
    columns, loads = Columns(), dict[HostId, Counter[Room]]()
    for number, room in enumerate(free, 1):
        columns.put(
            HostRow(
                host=host_id(number), name=f"h{number}", connected=number != cut, schedulable=True, free=room,
                total=Room(8, 8, 8), zone=zones[number - 1] if zones else Z1,
            )
        )  # fmt: skip
    for number, room in load:
        loads.setdefault(host_id(number), Counter())[room] += 1
    return Stock(columns=columns, loads=loads, guarded=frozenset({"zone-1"}))


def survival(stock: Stock) -> Survival:
    return Survival(stock.columns, lambda host: stock.loads.get(host, Counter()), stock.guarded.__contains__)


def demand(room: Room, *, survives: bool = True) -> Demand:
    return Demand(
        owner=Id("vm-1"), vcpus=room.vcpus, memory_mib=room.memory_mib, disk_gib=room.disk_gib, survives=survives
    )  # fmt: skip


def fits_anyhow(machines: list[Room], free: list[Room]) -> bool:
    """Say whether machines fit on hosts, by trying every way."""
    if not machines:
        return True
    first, *rest = machines
    for at, room in enumerate(free):
        left = Room(*(has - wants for has, wants in zip(room, first, strict=True)))
        if min(left) >= 0 and fits_anyhow(rest, [*free[:at], left, *free[at + 1 :]]):
            return True
    return False


def survives(free: list[Room], load: Load, lost: int, cut: int = 0) -> bool:
    """Say whether the machines of a host find room on the others, whatever it takes."""
    others = [room for number, room in enumerate(free, 1) if number not in (lost, cut) and min(room) >= 0]
    return fits_anyhow([room for number, room in load if number == lost], others)


def taken(free: list[Room], number: int, need: Room) -> list[Room]:
    after = list(free)
    after[number - 1] = Room(*(has - wants for has, wants in zip(after[number - 1], need, strict=True)))
    return after


rooms = st.builds(Room, st.integers(0, 6), st.integers(0, 6), st.integers(0, 6))
machines = st.builds(Room, st.integers(1, 4), st.integers(1, 4), st.integers(1, 2))
clouds = st.integers(1, 4).flatmap(
    lambda hosts: st.tuples(
        st.lists(rooms, min_size=hosts, max_size=hosts),
        st.lists(st.tuples(st.integers(1, hosts), machines), max_size=6),
    )
)


@settings(max_examples=150, deadline=None)
@given(cloud=clouds, need=machines, wanted=st.booleans(), cut=st.integers(0, 4))
def test_what_is_admitted_survives_the_loss_of_any_host(
    cloud: tuple[list[Room], Load], need: Room, wanted: bool, cut: int
) -> None:
    free, load = cloud
    stock = _cloud(free, load, cut=cut)
    choice = choose(stock.columns, demand(need, survives=wanted), (), survival(stock))
    if isinstance(choice, Choice):
        number = choice.row + 1
        assert choice.zone == "zone-1"
        after = taken(free, number, need)
        grown = [*load, (number, need)] if wanted else load
        assert all(survives(after, grown, lost, cut) for lost in range(1, len(free) + 1))


_cloud = cloud


@settings(max_examples=150, deadline=None)
@given(
    slots=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    held=st.lists(st.integers(0, 4), min_size=4, max_size=4),
)
def test_of_machines_of_one_amount_none_is_refused_that_could_survive(slots: list[int], held: list[int]) -> None:
    one = Room(1, 1, 1)
    free = [Room(room, room, room) for room in slots]
    load = [(number, one) for number, machines in enumerate(held[: len(slots)], 1) for _ in range(machines)]
    stock = cloud(free, load)
    choice = choose(stock.columns, demand(one), (), survival(stock))
    could = [
        number
        for number, room in enumerate(slots, 1)
        if room > 0
        and all(survives(taken(free, number, one), [*load, (number, one)], lost) for lost in range(1, len(free) + 1))
    ]
    assert isinstance(choice, Choice) == bool(could)


def test_a_refusal_names_the_zone_the_host_and_the_way_out() -> None:
    free, load = [Room(4, 4, 4), Room(1, 1, 1)], [(1, Room(1, 1, 1))]
    stock = cloud(free, load)
    why = choose(stock.columns, demand(Room(1, 1, 1)), (), survival(stock))
    assert isinstance(why, Refusal)
    (cost,) = why.costs
    assert (cost.constraint, cost.hosts) == ("n-1", 2)
    assert "in zone z1, 1 machine of host h1 would find no room elsewhere" in cost.detail
    assert why.smallest_change.startswith("add a host to zone z1, or free as much there as 1 machine of host h1 need")


def test_a_zone_that_need_not_survive_takes_what_the_other_refuses() -> None:
    stock = cloud([Room(4, 4, 4), Room(1, 1, 1)], [], zones=[Z1, Z2])
    choice = choose(stock.columns, demand(Room(1, 1, 1)), (), survival(stock))
    assert isinstance(choice, Choice)
    assert choice.host == host_id(2)
    assert choice.zone is None


def test_a_machine_that_nobody_starts_elsewhere_may_use_what_is_left() -> None:
    stock = cloud([Room(4, 4, 4)], [])
    assert isinstance(choose(stock.columns, demand(Room(1, 1, 1)), (), survival(stock)), Refusal)
    assert isinstance(choose(stock.columns, demand(Room(1, 1, 1), survives=False), (), survival(stock)), Choice)


def test_a_soft_rule_is_broken_before_a_machine_waits_for_a_zone_to_survive() -> None:
    rule = Rule(group=Id("grp-1"), name="db", policy="anti-affinity", over="zone", hard=False)
    stock = cloud([Room(4, 4, 4), Room(1, 1, 1)], [], zones=[Z1, Z2])
    choice = choose(stock.columns, demand(Room(1, 1, 1)), [Crowd(rule=rule, members={"zone-2": 1})], survival(stock))
    assert isinstance(choice, Choice)
    assert choice.host == host_id(2)


# --- how many more ------------------------------------------------------------------------------------------------


def made_one_by_one(stock: Stock, need: Room) -> int:
    """Place machines until one is refused."""
    columns = stock.columns.copy()
    loads = {host: Counter(load) for host, load in stock.loads.items()}
    looks = Survival(columns, lambda host: loads.get(host, Counter()), stock.guarded.__contains__)
    for made in count():
        choice = choose(columns, demand(need), (), looks)
        if isinstance(choice, Refusal):
            return made
        row = columns.row(choice.host)
        left = Room(*(has - wants for has, wants in zip(row.free, need, strict=True)))
        columns.put(msgspec.structs.replace(row, free=left))
        loads.setdefault(choice.host, Counter())[need] += 1
    raise AssertionError


zoned = st.lists(st.sampled_from([Z1, Z2, None]), min_size=4, max_size=4)


@settings(max_examples=100, deadline=None)
@given(cloud=clouds, needs=st.lists(machines, min_size=1, max_size=3), zones=zoned, cut=st.integers(0, 4))
def test_as_many_fit_as_can_be_made_one_by_one(
    cloud: tuple[list[Room], Load], needs: list[Room], zones: list[Place | None], cut: int
) -> None:
    stock = _cloud(*cloud, zones=zones, cut=cut)
    found = how_many(stock, {str(at): need for at, need in enumerate(needs)})
    for at, need in enumerate(needs):
        one = found[str(at)]
        assert one.fits == made_one_by_one(stock, need) == sum(zone.fits for zone in one.zones)
        for zone in one.zones:
            if zone.zone:
                named = "zone-" + zone.zone[1:]
                assert how_many(stock, {"x": need}, named)["x"].zones == (zone,)


def lost(free: list[Room], load: Load, number: int) -> Stock | None:
    """Return what is left without a host whose machines all went to others; None: they did not fit."""
    others = [room for at, room in enumerate(free, 1) if at != number]
    stock = cloud(others, [])
    going = sorted((room for on, room in load if on == number), reverse=True)
    for need in going:
        choice = choose(stock.columns, demand(need), (), None)
        if isinstance(choice, Refusal):
            return None
        row = stock.columns.row(choice.host)
        left = Room(*(has - wants for has, wants in zip(row.free, need, strict=True)))
        stock.columns.put(msgspec.structs.replace(row, free=left))
    return stock


@settings(max_examples=100, deadline=None)
@given(
    slots=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    held=st.lists(st.integers(0, 3), min_size=4, max_size=4),
)
def test_with_one_host_lost_as_many_fit_as_after_the_worst_loss(slots: list[int], held: list[int]) -> None:
    """Exact for machines of one amount: it matters not which of the others takes whose."""
    one = Room(1, 1, 1)
    free = [Room(room, room, room) for room in slots]
    load = [(number, one) for number, machines in enumerate(held[: len(slots)], 1) for _ in range(machines)]
    stock = cloud(free, load, zones=[Z2] * len(slots))
    found: Fits = how_many(stock, {"one": one})["one"]
    after = [lost(free, load, number) for number in range(1, len(slots) + 1)]
    counted = [
        made_one_by_one(msgspec.structs.replace(left, guarded=frozenset()), one) if left else 0 for left in after
    ]
    assert found.fits == sum(slots)
    assert found.with_one_host_lost == min(counted)


def test_a_count_that_ends_early_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.scheduler.capacity.COUNTED_MOST", 3)
    stock = cloud([Room(8, 8, 8), Room(8, 8, 8)], [], zones=[Z1, Z1])
    found = how_many(stock, {"x": Room(1, 1, 1), "y": Room(4, 4, 4)})
    assert [(one.fits, one.at_least, one.zones[0].at_least) for one in found.values()] == [
        (3, True, True),
        (2, False, False),
    ]


def test_what_limits_is_named_by_host() -> None:
    free = [Room(8, 1, 8), Room(8, 1, 8), Room(0, 8, 8), Room(8, 8, 8)]
    found = how_many(cloud(free, [], zones=[None] * 4, cut=4), {"x": Room(1, 1, 1)})["x"]
    assert [(limit.what, limit.hosts, limit.named) for limit in found.limits] == [
        ("memory", 2, ("h1", "h2")),
        ("vcpus", 1, ("h3",)),
        ("not connected", 1, ("h4",)),
    ]
    assert found.fits == 2


def test_a_cloud_without_hosts_has_room_for_nothing() -> None:
    found = how_many(cloud([], []), {"x": Room(1, 1, 1)})["x"]
    assert found == Fits(fits=0, with_one_host_lost=0, zones=(), limits=())
