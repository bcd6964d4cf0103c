"""The hosts as columns: always what the working set says, less what is chosen and not committed yet."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from common.ids import HostId, Id, Revision
from common.kinds.host import HostSpec, HostStatus
from common.kinds.kind import Resource
from common.refusal import Refusal
from controller.scheduler.choose import Choice, Demand
from controller.scheduler.inventory import Inventory
from controller.store.rows import Capacity, Gone, Placement, Put
from controller.store.working import WorkingSet


def demand(vcpus: int = 1) -> Demand:
    return Demand(owner=Id("vm-1"), vcpus=vcpus, memory_mib=512, disk_gib=10)


def host_id(name: str) -> HostId:
    return HostId(Id(f"host-{name}"))


def host_row(name: str, *, schedulable: bool = True, deleted_at: float | None = None) -> Any:
    return Resource(
        id=Id(f"host-{name}"), kind="host", project="", name=name, labels={}, generation=1, observed_generation=1,
        spec=HostSpec(schedulable=schedulable), status=HostStatus(), owner=None, created_at=0, deleted_at=deleted_at,
        revision=Revision(1),
    )  # fmt: skip


class Fleet:
    """A working set with hosts of 4 vCPUs, and the inventory over it."""

    def __init__(self, *names: str) -> None:
        self.seen = WorkingSet()
        self.inventory = Inventory(self.seen)
        for name in names:
            capacity = Capacity(host=host_id(name), vcpus=4, memory_mib=4096, disk_gib=100)
            self.seen.apply([Put(host_row(name)), Put(capacity)])
            self.seen.host(host_id(name)).connected = True
            self.inventory.refresh(host_id(name))

    def chosen(self, vcpus: int = 1) -> Choice:
        choice = self.inventory.choose(demand(vcpus))
        assert isinstance(choice, Choice)
        return choice

    def refused(self, vcpus: int = 1) -> Refusal:
        refusal = self.inventory.choose(demand(vcpus))
        assert isinstance(refusal, Refusal)
        return refusal

    def commit(self, choice: Choice, vcpus: int) -> None:
        placement = Placement(owner=Id("vm-1"), host=choice.host, vcpus=vcpus, memory_mib=512, disk_gib=10)
        self.seen.apply([Put(placement)])
        self.inventory.settle(choice, demand(vcpus))


def test_what_is_chosen_and_not_committed_yet_is_taken_off() -> None:
    fleet = Fleet("a")
    choice = fleet.chosen(3)
    fleet.refused(3)
    fleet.inventory.settle(choice, demand(3))
    fleet.chosen(3)


def test_after_a_commit_only_the_claim_counts() -> None:
    fleet = Fleet("a")
    fleet.commit(fleet.chosen(3), 3)
    fleet.refused(2)
    fleet.chosen(1)


def test_two_choices_on_one_host_settle_apart() -> None:
    fleet = Fleet("a")
    one, other = fleet.chosen(1), fleet.chosen(2)
    fleet.inventory.settle(one, demand(1))
    fleet.refused(3)
    fleet.inventory.settle(other, demand(2))
    fleet.chosen(4)


def test_deleted_closed_and_silent_hosts_are_not_chosen() -> None:
    fleet = Fleet("a", "b", "c")
    fleet.seen.apply([Put(host_row("a", deleted_at=1.0)), Put(host_row("b", schedulable=False))])
    fleet.seen.host(host_id("c")).connected = False
    for name in "abc":
        fleet.inventory.refresh(host_id(name))
    assert {cost.constraint: cost.hosts for cost in fleet.refused().costs} == {"schedulable": 1, "connected": 1}


def test_a_host_that_goes_while_a_choice_of_it_is_under_way_is_settled_all_the_same() -> None:
    fleet = Fleet("a")
    choice = fleet.chosen()
    fleet.seen.apply([Gone(host_row("a"))])
    fleet.inventory.refresh(choice.host)
    fleet.inventory.settle(choice, demand())
    fleet.refused()


def test_a_host_that_has_less_than_it_sold_has_nothing_free() -> None:
    fleet = Fleet("a")
    fleet.commit(fleet.chosen(4), 4)
    fleet.seen.apply([Put(Capacity(host=host_id("a"), vcpus=2, memory_mib=4096, disk_gib=100))])
    fleet.inventory.refresh(host_id("a"))
    assert fleet.refused(1).smallest_change == "free 3 vCPUs on host a"


moves = st.tuples(st.sampled_from("abc"), st.sampled_from(["place", "free", "refresh", "drop", "back", "less"]))


@given(st.lists(moves, max_size=40))
def test_the_columns_are_always_what_the_working_set_says(moves: list[tuple[str, str]]) -> None:
    fleet = Fleet("a", "b", "c")
    for number, (name, what) in enumerate(moves):
        host = host_id(name)
        there = fleet.seen.placed_on(host)
        match what:
            case "place":
                placement = Placement(owner=Id(f"vm-{number}"), host=host, vcpus=1, memory_mib=1, disk_gib=1)
                fleet.seen.apply([Put(placement)])
            case "free" if there:
                fleet.seen.apply([Gone(there[0])])
            case "drop":
                fleet.seen.apply([Put(host_row(name, deleted_at=1.0))])
            case "back":
                fleet.seen.apply([Put(host_row(name))])
            case "less":
                fleet.seen.apply([Put(Capacity(host=host, vcpus=2, memory_mib=4096, disk_gib=100))])
            case _:
                pass
        fleet.inventory.refresh(host)
    columns = fleet.inventory._columns
    assert set(columns.hosts) == {row.id for row in fleet.seen.of_kind("host") if row.deleted_at is None}
    for at, host in enumerate(columns.hosts):
        capacity = fleet.seen.capacity(host)
        assert capacity is not None
        assert columns.free[at, 0] == capacity.vcpus - len(fleet.seen.placed_on(host))
        assert columns.total[at, 0] == capacity.vcpus
        assert columns.names[at] == fleet.seen.name_of(host)
