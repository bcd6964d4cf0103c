"""Pins, groups and kept scores: what is chosen is what the slow and obvious way chooses, whatever came before."""

import re
from collections import Counter
from typing import cast

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from common.ids import HostId
from common.refusal import Refusal
from controller.scheduler.choose import Choice, Demand, choose
from controller.scheduler.columns import LOG_MOST, SHAPES, Columns, HostRow, Over, Place, Room
from controller.scheduler.rules import Crowd, Rule
from tests.unit.rows import host_id, made_id

ROOM = Room(8, 8192, 100)
SHAPE = Room(2, 1024, 10)


def rack(number: int) -> Place | None:
    """Return rack r1, r2, …; 0: none."""
    return Place(f"rack-{number}", f"r{number}") if number else None


def zone(number: int) -> Place | None:
    """Return the zone of rack r1, r2, …: z1 has r1 and r2, z2 the others; 0: none."""
    return Place(f"zone-{(number + 1) // 2}", f"z{(number + 1) // 2}") if number else None


def a_host(number: int, free: Room = ROOM, in_rack: int = 0, *, connected: bool = True) -> HostRow:
    return HostRow(
        host=host_id(number), name=f"h{number}", connected=connected, schedulable=True, free=free, total=ROOM,
        rack=rack(in_rack), zone=zone(in_rack),
    )  # fmt: skip


def hosts(*racks: int, full: tuple[int, ...] = ()) -> Columns:
    """Return hosts h1, h2, … in these racks, all but some of them empty."""
    columns = Columns()
    for number, one in enumerate(racks, 1):
        columns.put(a_host(number, Room(0, 0, 0) if number in full else ROOM, one))
    return columns


def demand(room: Room = SHAPE, **pins: Place | HostId | None) -> Demand:
    return Demand(
        owner=made_id("vm", 1), vcpus=room.vcpus, memory_mib=room.memory_mib, disk_gib=room.disk_gib, **pins  # type: ignore[arg-type]
    )  # fmt: skip


def crowd(policy: str, over: str, members: dict[str, int] | None = None, *, hard: bool = True) -> Crowd:
    rule = Rule(group=made_id("grp", 1), name="db", policy=policy, over=over, hard=hard)  # type: ignore[arg-type]
    return Crowd(rule=rule, members=members or {})


def refusal(columns: Columns, wanted: Demand, *crowds: Crowd) -> Refusal:
    found = choose(columns, wanted, crowds)
    assert isinstance(found, Refusal)
    return found


# --- in words -----------------------------------------------------------------------------------------------------


def test_a_pin_to_a_zone_counts_the_hosts_outside_of_it() -> None:
    why = refusal(hosts(1, 3, 3, full=(1,)), demand(zone=zone(1)))
    assert [(cost.constraint, cost.hosts, cost.detail) for cost in why.costs][-1] == (
        "zone",
        2,
        "hosts outside zone z1",
    )
    assert (
        why.smallest_change
        == "free 2 vCPUs on host h1 and free 1024 MiB of memory on host h1 and free 10 GiB of disk on host h1"
    )


def test_a_zone_without_hosts_says_so() -> None:
    why = refusal(hosts(1), demand(zone=zone(5)))
    assert why.smallest_change == "put a host into zone z3 (skerry host set HOST --zone z3), or ask for another zone"


def test_what_keeps_apart_counts_as_a_constraint_and_names_the_way_out() -> None:
    why = refusal(hosts(1, 1, 2), demand(), crowd("anti-affinity", "rack", {"rack-1": 1, "rack-2": 1}))
    (cost,) = why.costs
    assert (cost.constraint, cost.hosts) == ("group db", 3)
    assert cost.detail == "hosts whose rack has a machine of group db already"
    assert why.smallest_change.startswith("add a rack for group db, or delete its machine on rack r1")


def test_a_host_in_no_rack_is_none_for_a_rule_over_racks() -> None:
    why = refusal(hosts(0), demand(), crowd("anti-affinity", "rack"))
    assert why.costs[0].detail.endswith("or that are in no rack")
    assert why.smallest_change == "put host h1 into a rack of its own (skerry host set h1 --rack NAME)"


def test_what_belongs_together_asks_for_room_where_it_is() -> None:
    why = refusal(hosts(1, 2, full=(1,)), demand(Room(2, 0, 0)), crowd("affinity", "rack", {"rack-1": 2}))
    assert [(cost.constraint, cost.hosts) for cost in why.costs][-1] == ("group db", 1)
    assert why.costs[-1].detail == "hosts outside rack r1, where group db is"
    assert why.smallest_change == "free 2 vCPUs on host h1"


def test_a_soft_rule_is_kept_where_it_can_be_and_broken_where_it_must() -> None:
    apart = crowd("anti-affinity", "zone", {"zone-1": 1}, hard=False)
    chosen = choose(hosts(1, 1, 3), demand(), [apart])
    assert isinstance(chosen, Choice)
    assert chosen.host == host_id(3)
    assert isinstance(choose(hosts(1, 1, 3, full=(3,)), demand(), [apart]), Choice)
    together = crowd("affinity", "zone", {"zone-2": 1}, hard=False)
    chosen = choose(hosts(1, 1, 3), demand(), [together])
    assert isinstance(chosen, Choice)
    assert chosen.host == host_id(3)


# --- properties ---------------------------------------------------------------------------------------------------

rooms = st.builds(Room, st.integers(-2, 12), st.integers(-64, 4096), st.integers(-5, 40))
rows = st.lists(st.tuples(rooms, st.integers(0, 4), st.booleans()), min_size=1, max_size=7)
places = {
    "host": [str(host_id(number)) for number in range(1, 8)],
    "rack": [f"rack-{number}" for number in range(1, 5)],
    "zone": ["zone-1", "zone-2"],
}


@st.composite
def crowds(draw: st.DrawFn) -> Crowd:
    over = draw(st.sampled_from(["host", "rack", "zone"]))
    policy = draw(st.sampled_from(["affinity", "anti-affinity"]))
    hard = draw(st.booleans())
    most = 1 if hard and policy == "affinity" else 3
    domains = draw(st.lists(st.sampled_from(places[over]), max_size=most, unique=True))
    return crowd(policy, over, {domain: draw(st.integers(1, 3)) for domain in domains}, hard=hard)


shapes = st.sampled_from([SHAPE, Room(1, 512, 5), Room(4, 64, 1)])
pins = st.fixed_dictionaries(
    {},
    optional={
        "host": st.integers(1, 8).map(host_id),
        "rack": st.integers(1, 5).map(rack),
        "zone": st.integers(1, 5).map(zone),
    },
)


def place_of(row: HostRow, over: str) -> str:
    found = {"host": Place(row.host, row.name), "rack": row.rack, "zone": row.zone}[over]
    return found.id if found else ""


def breaks(row: HostRow, one: Crowd) -> bool:
    """Say whether a host would break a rule."""
    place = place_of(row, one.rule.over)
    if not place:
        return True
    if one.rule.policy == "anti-affinity":
        return place in one.members
    return bool(one.members) and place not in one.members


def strained(row: HostRow, crowds: list[Crowd]) -> int:
    """Count the pairs that a host would have break a soft rule."""
    total = 0
    for one in crowds:
        if not one.rule.hard:
            here = one.members.get(place_of(row, one.rule.over), 0)
            total += here if one.rule.policy == "anti-affinity" else sum(one.members.values()) - here
    return total


def reference(there: list[HostRow], wanted: Demand, crowds: list[Crowd]) -> int | None:
    """Return the row to choose, the slow and obvious way."""
    fitting = [
        (strained(row, crowds), -min((has - wants) / all_of for has, wants, all_of in amounts), at)
        for at, row in enumerate(there)
        if (amounts := list(zip(row.free, wanted.room, row.total, strict=True)))
        and row.connected
        and row.schedulable
        and all(has >= wants for has, wants, _ in amounts)
        and wanted.host in (None, row.host)
        and wanted.rack in (None, row.rack)
        and wanted.zone in (None, row.zone)
        and not any(breaks(row, one) for one in crowds if one.rule.hard)
    ]
    return min(fitting)[2] if fitting else None


def built(given: list[tuple[Room, int, bool]]) -> tuple[Columns, list[HostRow]]:
    there = [a_host(at + 1, room, one, connected=open_) for at, (room, one, open_) in enumerate(given)]
    columns = Columns()
    for row in there:
        columns.put(row)
    return columns, there


@settings(deadline=None)
@given(given=rows, shape=shapes, pins=pins, all_of=st.lists(crowds(), max_size=3))
def test_the_choice_is_that_of_the_slow_and_obvious_way(
    given: list[tuple[Room, int, bool]], shape: Room, pins: dict[str, Place | HostId], all_of: list[Crowd]
) -> None:
    columns, there = built(given)
    wanted = demand(shape, **pins)
    choice = choose(columns, wanted, all_of)
    assert (choice.row if isinstance(choice, Choice) else None) == reference(there, wanted, all_of)
    if isinstance(choice, Refusal):
        assert choice.smallest_change
        assert all(0 < cost.hosts <= len(there) for cost in choice.costs)
        assert sum(cost.hosts for cost in choice.costs) >= len(there)


@settings(deadline=None)
@given(given=rows, shape=shapes, one=crowds())
def test_who_makes_the_change_that_is_named_has_it_fit(
    given: list[tuple[Room, int, bool]], shape: Room, one: Crowd
) -> None:
    columns, there = built(given)
    wanted = demand(shape)
    why = choose(columns, wanted, [one])
    if isinstance(why, Choice):
        return
    said = why.smallest_change
    number = int(re.findall(r"host h(\d+)", said)[0])
    row = there[number - 1]
    changes: dict[str, object] = {"connected": row.connected or f"bring host h{number} back" in said}
    free = list(row.free)
    for at, unit in enumerate(("vCPUs", "MiB of memory", "GiB of disk")):
        if lack := re.search(rf"(?:ask for|free) (\d+) {unit}", said):
            free[at] += int(lack[1])
    changes["free"] = Room(*free)
    if "of its own" in said:
        changes |= {"rack": rack(9), "zone": zone(9)}
    elif put := re.search(r"put host h\d+ into (?:rack|zone) (?:rack-|r|zone-|z)(\d+)", said):
        into = int(put[1])
        changes |= {"rack": rack(into), "zone": zone(into if "into rack" in said else 2 * into)}
    members = dict(one.members)
    if "delete its" in said:
        gone = list(members) if one.rule.policy == "affinity" else [place_of(row, one.rule.over)]
        members = {domain: count for domain, count in members.items() if domain not in gone}
    after = msgspec.structs.replace(row, **changes)
    assert reference([after], wanted, [msgspec.structs.replace(one, members=members)]) == 0


class Kept(msgspec.Struct):
    """Columns that live, and what they should be."""

    columns: Columns
    truth: dict[HostId, HostRow]


whats = st.sampled_from(["put", "put", "put", "drop", "choose", "choose"])
moves = st.lists(
    st.tuples(
        whats,
        st.integers(1, 6),
        rooms,
        st.integers(0, 4),
        shapes,
    ),
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(moves)
def test_scores_that_are_kept_are_those_that_would_be_computed(moves: list[tuple[str, int, Room, int, Room]]) -> None:
    kept = Kept(columns=Columns(), truth={})
    for what, number, room, in_rack, shape in moves:
        match what:
            case "put":
                row = a_host(number, room, in_rack, connected=room.vcpus != 3)
                kept.columns.put(row)
                kept.truth[row.host] = row
            case "drop":
                kept.columns.drop(host_id(number))
                kept.truth.pop(host_id(number), None)
            case _:
                there = [kept.truth[host] for host in kept.columns.hosts]
                assert {row.host for row in there} == set(kept.truth)
                assert [kept.columns.row(row.host) for row in there] == there
                choice = choose(kept.columns, demand(shape))
                assert (choice.row if isinstance(choice, Choice) else None) == reference(there, demand(shape), [])


def test_scores_stay_right_over_more_changes_and_shapes_than_are_remembered() -> None:
    columns, truth = Columns(), {}
    for number in range(1, 101):
        truth[host_id(number)] = a_host(number)
        columns.put(truth[host_id(number)])
    all_shapes = [Room(1 + n % 5, 64 * (n + 1), 1) for n in range(2 * SHAPES)]
    for turn in range(LOG_MOST + 100):
        number = 1 + (7 * turn) % 100
        row = a_host(number, Room(turn % 9, 8192 - turn, 100 - turn % 90))
        truth[row.host] = row
        columns.put(row)
        if turn % 37 == 0:
            wanted = demand(all_shapes[turn % len(all_shapes)])
            choice = choose(columns, wanted)
            there = [truth[host] for host in columns.hosts]
            assert (choice.row if isinstance(choice, Choice) else None) == reference(there, wanted, [])


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=6), st.sampled_from(["host", "rack", "zone"]), st.integers(1, 12)
)
def test_whatever_the_order_a_hard_rule_holds_and_no_place_is_left_out(racks: list[int], over: str, vms: int) -> None:
    columns = hosts(*racks)
    members: Counter[str] = Counter()
    for _ in range(vms):
        choice = choose(columns, demand(Room(0, 0, 0)), [crowd("anti-affinity", over, dict(members))])
        if isinstance(choice, Choice):
            members[columns.domain(choice.row, cast(Over, over)).id] += 1
    domains = {columns.domain(row, cast(Over, over)).id for row in range(len(columns))}
    assert set(members.values()) <= {1}
    assert len(members) == min(vms, len(domains))
