"""Choosing a host: what fits, how machines spread, and a refusal whose every number and way out is true."""

import re

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from common.ids import HostId
from common.refusal import Refusal
from controller.scheduler.choose import Choice, Demand, choose
from controller.scheduler.columns import Columns, HostRow, Place, Room
from tests.unit.rows import host_id, made_id

DEMAND = Demand(owner=made_id("vm", 1), vcpus=2, memory_mib=1024, disk_gib=10, size="small")
ROOM = (8, 8192, 100)


def hosts(
    *free: tuple[int, int, int],
    total: tuple[int, int, int] = ROOM,
    cut: tuple[int, ...] = (),
    closed: tuple[int, ...] = (),
    racks: tuple[str, ...] = (),
) -> Columns:
    """Return hosts h1, h2, … with this much free; `cut` are not connected, `closed` take no new machines.

    `racks` are the racks they stand in, in their order; rack `r1` is in zone `zr`. An empty one: none.
    """
    columns = Columns()
    for number, room in enumerate(free, 1):
        rack = racks[number - 1] if racks else ""
        columns.put(
            HostRow(
                host=host_id(number), name=f"h{number}", connected=number not in cut, schedulable=number not in closed,
                free=Room(*room), total=Room(*total), rack=a_rack(rack) if rack else None,
                zone=Place(f"zone-{rack[0]}", f"z{rack[0]}") if rack else None,
            )
        )  # fmt: skip
    return columns


def a_rack(name: str) -> Place:
    """Return a rack by its name."""
    return Place(f"rack-{name}", name)


def change(columns: Columns, name: str, **changes: object) -> None:
    """Change what is known of a host."""
    columns.put(msgspec.structs.replace(columns.row(columns.hosts[columns.names.index(name)]), **changes))


def take(columns: Columns, host: HostId, demand: Demand = DEMAND) -> None:
    """Sell what is demanded."""
    row = columns.row(host)
    left = Room(*(has - wants for has, wants in zip(row.free, demand.room, strict=True)))
    columns.put(msgspec.structs.replace(row, free=left))


def chosen(columns: Columns, demand: Demand = DEMAND) -> str:
    """Return the name of the host that is chosen."""
    choice = choose(columns, demand)
    assert isinstance(choice, Choice)
    assert columns.hosts[choice.row] == choice.host
    return columns.names[choice.row]


def refused(columns: Columns, demand: Demand = DEMAND) -> Refusal:
    """Return why none is chosen."""
    refusal = choose(columns, demand)
    assert isinstance(refusal, Refusal)
    return refusal


def counts(refusal: Refusal) -> dict[str, int]:
    """Return how many hosts each constraint rules out."""
    return {cost.constraint: cost.hosts for cost in refusal.costs}


# --- choosing -----------------------------------------------------------------------------------------------------


def test_the_emptiest_host_is_chosen() -> None:
    assert chosen(hosts((4, 4096, 50), (8, 8192, 100), (6, 6144, 75))) == "h2"


def test_the_scarcest_resource_counts_not_the_sum() -> None:
    assert chosen(hosts((8, 1100, 100), (5, 5000, 60))) == "h2"


def test_among_equals_the_first_is_chosen() -> None:
    assert chosen(hosts(ROOM, ROOM, ROOM)) == "h1"


def test_machines_spread_over_equal_hosts() -> None:
    columns = hosts(*[ROOM] * 5)
    for _ in range(5):
        choice = choose(columns, DEMAND)
        assert isinstance(choice, Choice)
        take(columns, choice.host)
    assert columns.free.T.tolist() == [[6, 7168, 90]] * 5


def test_a_host_that_is_left_with_nothing_fits() -> None:
    assert chosen(hosts((2, 1024, 10))) == "h1"


@pytest.mark.parametrize("barred", [{"cut": (1,)}, {"closed": (1,)}])
def test_a_host_that_is_silent_or_closed_is_passed_over(barred: dict[str, tuple[int, ...]]) -> None:
    assert chosen(hosts(ROOM, (2, 1024, 10), **barred)) == "h2"  # type: ignore[arg-type]


def test_only_the_pinned_host_will_do() -> None:
    pinned = Demand(owner=DEMAND.owner, vcpus=2, memory_mib=1024, disk_gib=10, host=host_id(2))
    assert chosen(hosts(ROOM, (2, 1024, 10), ROOM), pinned) == "h2"


# --- refusing -----------------------------------------------------------------------------------------------------


def test_every_constraint_says_how_many_hosts_it_rules_out() -> None:
    columns = hosts((1, 100, 1), (1, 8192, 100), ROOM, ROOM, cut=(3,), closed=(3, 4))
    refusal = refused(columns)
    assert refusal.summary == "none of 4 hosts fits"
    assert refusal.hosts == 4
    assert counts(refusal) == {"connected": 1, "schedulable": 2, "vcpus": 2, "memory": 1, "disk": 1}


def test_a_constraint_that_rules_out_nobody_is_not_named() -> None:
    assert counts(refused(hosts((1, 8192, 100)))) == {"vcpus": 1}


def test_what_is_short_is_told_beside_the_most_there_is() -> None:
    (cost,) = refused(hosts((8, 512, 100), (8, 700, 100))).costs
    assert cost.detail == "needs 1024 MiB of memory; the most that is free on one host is 700"


def test_a_host_sold_beyond_what_it_has_is_told_as_full() -> None:
    (cost,) = refused(hosts((-4, 8192, 100))).costs
    assert cost.detail == "needs 2 vCPUs; the most that is free on one host is 0"


def test_a_pin_counts_the_hosts_it_leaves_out() -> None:
    pinned = Demand(owner=DEMAND.owner, vcpus=2, memory_mib=1024, disk_gib=10, host=host_id(1))
    refusal = refused(hosts((0, 8192, 100), ROOM, ROOM), pinned)
    assert counts(refusal) == {"vcpus": 1, "pinned": 2}
    assert refusal.smallest_change == "free 2 vCPUs on host h1"


def test_without_any_host_the_way_out_is_to_let_one_join() -> None:
    refusal = refused(hosts())
    assert refusal.summary == "no host fits: none has said yet what it has"
    assert "let a host join (skerry host create NAME)" in refusal.smallest_change


def test_one_host_is_told_in_the_singular() -> None:
    assert refused(hosts((0, 0, 0))).summary == "none of 1 host fits"


# --- the smallest change ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "change"),
    [
        (hosts((1, 8192, 100)), "ask for 1 vCPUs less (size small has 2), or free as much on host h1"),
        (hosts((8, 1000, 100)), "ask for 24 MiB of memory less (size small has 1024), or free as much on host h1"),
        (hosts((8, 8192, 7)), "ask for 3 GiB of disk less (size small has 10), or free as much on host h1"),
        (hosts(ROOM, cut=(1,)), "bring host h1 back"),
        (hosts(ROOM, closed=(1,)), "open host h1 (skerry host set h1 --schedulable)"),
        (hosts((1, 100, 1), (1, 8192, 100)), "ask for 1 vCPUs less (size small has 2), or free as much on host h2"),
        (
            hosts((8, 512, 100), (8, 1000, 100)),
            "ask for 24 MiB of memory less (size small has 1024), or free as much on host h2",
        ),
        (
            hosts(ROOM, cut=(1,), closed=(1,)),
            "bring host h1 back and open host h1 (skerry host set h1 --schedulable)",
        ),
    ],
)
def test_the_smallest_change_is_named(columns: Columns, change: str) -> None:
    assert refused(columns).smallest_change == change


@pytest.mark.parametrize(("free", "lack"), [(0, 2), (-3, 5)])
def test_nobody_is_told_to_ask_for_nothing_at_all(free: int, lack: int) -> None:
    assert refused(hosts((free, 8192, 100))).smallest_change == f"free {lack} vCPUs on host h1"


def test_a_pin_to_a_host_that_never_joined_says_so() -> None:
    pinned = Demand(owner=DEMAND.owner, vcpus=2, memory_mib=1024, disk_gib=10, host=host_id(9))
    refusal = refused(hosts(ROOM), pinned)
    assert counts(refusal) == {"pinned": 1}
    assert refusal.smallest_change == "pin it to a host that has joined, or to none"


def test_a_machine_that_has_to_be_where_a_volume_lies_is_told_which_volume() -> None:
    here = Demand(owner=DEMAND.owner, vcpus=2, memory_mib=1024, disk_gib=10, host=host_id(1), beside="twin")
    refusal = refused(hosts((0, 8192, 100), ROOM), here)
    assert [cost.detail for cost in refusal.costs if cost.constraint == "pinned"] == [
        "hosts other than that of volume twin"
    ]
    gone = refused(
        hosts(ROOM), Demand(owner=DEMAND.owner, vcpus=2, memory_mib=1024, disk_gib=10, host=host_id(9), beside="twin")
    )
    assert gone.smallest_change.startswith("bring the host of volume twin back")


# --- properties ---------------------------------------------------------------------------------------------------

free = st.tuples(st.integers(-4, 12), st.integers(-512, 4096), st.integers(-5, 40))
numbers = st.sets(st.integers(1, 6)).map(tuple)
columns = st.builds(lambda free, cut, closed: hosts(*free, cut=cut, closed=closed), st.lists(free), numbers, numbers)
demands = st.builds(
    Demand,
    owner=st.just(DEMAND.owner),
    vcpus=st.integers(1, 10),
    memory_mib=st.integers(64, 4096),
    disk_gib=st.integers(1, 40),
    host=st.none() | st.integers(1, 7).map(host_id),
    size=st.sampled_from(["", "small"]),
)


def fitting(there: Columns, demand: Demand) -> list[int]:
    """Return the rows of the hosts that fit, the slow and obvious way."""
    need = (demand.vcpus, demand.memory_mib, demand.disk_gib)
    return [
        row
        for row, host in enumerate(there.hosts)
        if there.connected[row]
        and there.schedulable[row]
        and demand.host in (None, host)
        and all(has >= wants for has, wants in zip(there.free[:, row].tolist(), need, strict=True))
    ]


@given(there=columns, demand=demands)
def test_the_chosen_host_fits_and_none_is_refused_that_does(there: Columns, demand: Demand) -> None:
    choice, fits = choose(there, demand), fitting(there, demand)
    if isinstance(choice, Choice):
        assert choice.row in fits
        assert there.hosts[choice.row] == choice.host
    else:
        assert not fits


@given(there=columns, demand=demands)
def test_every_host_is_ruled_out_by_a_constraint_that_is_named(there: Columns, demand: Demand) -> None:
    refusal = choose(there, demand)
    assume(isinstance(refusal, Refusal) and there.hosts)
    assert isinstance(refusal, Refusal)
    assert all(0 < cost.hosts <= refusal.hosts == len(there.hosts) for cost in refusal.costs)
    assert sum(cost.hosts for cost in refusal.costs) >= refusal.hosts


@given(there=columns, demand=demands)
def test_who_makes_the_change_that_is_named_has_it_fit(there: Columns, demand: Demand) -> None:
    refusal = choose(there, demand)
    assume(isinstance(refusal, Refusal) and there.hosts and demand.host in (None, *there.hosts))
    assert isinstance(refusal, Refusal)
    said = refusal.smallest_change
    (name,) = set(re.findall(r"host (h\d+)", said))
    row = there.names.index(name)
    if f"bring host {name} back" in said:
        change(there, name, connected=True)
    if f"open host {name}" in said:
        change(there, name, schedulable=True)
    for column, unit in enumerate(("vCPUs", "MiB of memory", "GiB of disk")):
        if lack := re.search(rf"(?:ask for|free) (\d+) {unit}", said):
            free = list(there.row(there.hosts[row]).free)
            free[column] += int(lack[1])
            change(there, name, free=Room(*free))
    assert fitting(there, demand) == [row]


@given(there=columns, demand=demands)
def test_no_host_fits_after_fewer_changes(there: Columns, demand: Demand) -> None:
    refusal = choose(there, demand)
    assume(isinstance(refusal, Refusal) and there.hosts and demand.host is None)
    assert isinstance(refusal, Refusal)
    need = np.array([demand.vcpus, demand.memory_mib, demand.disk_gib])
    fewest = min(
        int((there.free[:, row] < need).sum()) + (not there.connected[row]) + (not there.schedulable[row])
        for row in range(len(there.hosts))
    )
    assert len(refusal.smallest_change.split(" and ")) == fewest
