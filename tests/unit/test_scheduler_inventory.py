"""The hosts as columns: what the working set says, less what is chosen and not committed yet, and never twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.ids import HostId
from common.refusal import Refusal
from controller.scheduler.choose import Choice, Demand
from controller.scheduler.inventory import Inventory
from controller.store.rows import Gone, Placement, Put
from controller.store.working import WorkingSet
from tests.unit.rows import a_capacity, a_host, a_placement, connect, host_id, made_id, working_set


def cloud(**rooms: int) -> tuple[WorkingSet, Inventory]:
    """Return connected hosts (`h1=4`: host 1 sells 4 vCPUs and has room for anything else), and their columns."""
    numbers = {int(name[1:]): vcpus for name, vcpus in rooms.items()}
    rows = [(a_host(number), a_capacity(number, vcpus)) for number, vcpus in numbers.items()]
    seen = connect(working_set(*[row for pair in rows for row in pair]), *numbers)
    return seen, refreshed(Inventory(seen), *numbers)


def refreshed(inventory: Inventory, *numbers: int) -> Inventory:
    for number in numbers:
        inventory.refresh(host_id(number))
    return inventory


def wants(vm: int, vcpus: int = 1) -> Demand:
    """Return what a test's nth VM needs."""
    return Demand(owner=made_id("vm", vm), vcpus=vcpus, memory_mib=64, disk_gib=1)


def chosen(inventory: Inventory, demand: Demand) -> Choice:
    choice = inventory.choose(demand)
    assert isinstance(choice, Choice), choice
    return choice


def commit(seen: WorkingSet, inventory: Inventory, choice: Choice, demand: Demand) -> Placement:
    """Have the claim be committed, as the store's feed tells it: before whoever asked for it goes on."""
    claim = Placement(owner=demand.owner, host=choice.host, vcpus=demand.vcpus, memory_mib=64, disk_gib=1)
    seen.apply([Put(claim)])
    inventory.refresh(choice.host)
    return claim


# --- what counts as a host ----------------------------------------------------------------------------------------


def test_a_host_that_never_said_what_it_has_is_no_candidate() -> None:
    inventory = refreshed(Inventory(connect(working_set(a_host(1)), 1)), 1)
    refusal = inventory.choose(wants(1))
    assert isinstance(refusal, Refusal)
    assert refusal.hosts == 0


@pytest.mark.parametrize(
    ("change", "constraint"), [("silent", "connected"), ("closed", "schedulable"), ("sold", "vcpus")]
)
def test_what_changes_about_a_host_counts_from_the_refresh_on(change: str, constraint: str) -> None:
    seen, inventory = cloud(h1=4)
    match change:
        case "silent":
            seen.host(host_id(1)).connected = False
        case "closed":
            seen.apply([Put(a_host(1, schedulable=False, revision=2))])
        case _:
            seen.apply([Put(a_placement(9, 1, vcpus=4))])
    inventory.refresh(host_id(1))
    refusal = inventory.choose(wants(1))
    assert isinstance(refusal, Refusal)
    assert [cost.constraint for cost in refusal.costs] == [constraint]


def test_a_ratio_that_is_lowered_below_what_is_sold_takes_no_more_and_breaks_nothing() -> None:
    seen, inventory = cloud(h1=8, h2=1)
    seen.apply([Put(a_placement(9, 1, vcpus=6)), Put(a_capacity(1, 2))])
    inventory.refresh(host_id(1))
    assert chosen(inventory, wants(1)).host == host_id(2)
    refusal = inventory.choose(wants(2))
    assert isinstance(refusal, Refusal)
    assert refusal.costs[0].hosts == 2
    seen.apply([Gone(a_placement(9, 1, vcpus=6))])
    inventory.refresh(host_id(1))
    assert chosen(inventory, wants(2)).host == host_id(1)


@pytest.mark.parametrize("how", ["deleted", "gone"])
def test_a_host_that_goes_takes_no_other_hosts_row_along(how: str) -> None:
    seen, inventory = cloud(h1=1, h2=2, h3=4)
    going = a_host(2, deleted_at=5.0, revision=2)
    seen.apply([Put(going) if how == "deleted" else Gone(going)])
    refreshed(inventory, 2, 2)
    assert chosen(inventory, wants(1, vcpus=4)).host == host_id(3)
    assert chosen(inventory, wants(2)).host == host_id(1)
    assert isinstance(inventory.choose(wants(3)), Refusal)


# --- what is chosen and not committed yet -------------------------------------------------------------------------


def test_what_is_chosen_is_not_offered_again() -> None:
    _, inventory = cloud(h1=2)
    chosen(inventory, wants(1))
    chosen(inventory, wants(2))
    assert isinstance(inventory.choose(wants(3)), Refusal)


def test_two_choices_on_one_host_settle_apart() -> None:
    _, inventory = cloud(h1=4)
    one, other = chosen(inventory, wants(1)), chosen(inventory, wants(2, vcpus=2))
    inventory.settle(one, wants(1))
    assert isinstance(inventory.choose(wants(3, vcpus=3)), Refusal)
    inventory.settle(other, wants(2, vcpus=2))
    chosen(inventory, wants(4, vcpus=4))


def test_choices_that_wait_for_their_commit_spread_as_well() -> None:
    _, inventory = cloud(h1=4, h2=4, h3=4)
    assert {chosen(inventory, wants(vm)).host for vm in range(3)} == {host_id(1), host_id(2), host_id(3)}


def test_a_claim_that_was_refused_is_offered_again() -> None:
    _, inventory = cloud(h1=1)
    choice = chosen(inventory, wants(1))
    inventory.settle(choice, wants(1))
    chosen(inventory, wants(2))


def test_a_committed_claim_counts_once_also_before_it_is_settled() -> None:
    """Others choose between a commit and the moment its own turn hears of it: none may be refused for room there is."""
    seen, inventory = cloud(h1=2)
    first = chosen(inventory, wants(1))
    commit(seen, inventory, first, wants(1))
    second = chosen(inventory, wants(2))
    inventory.settle(first, wants(1))
    assert isinstance(inventory.choose(wants(3)), Refusal)
    commit(seen, inventory, second, wants(2))
    inventory.settle(second, wants(2))
    assert isinstance(inventory.choose(wants(3)), Refusal)


def test_settling_on_a_host_that_went_meanwhile_is_nothing_special() -> None:
    seen, inventory = cloud(h1=1)
    choice = chosen(inventory, wants(1))
    seen.apply([Gone(a_host(1))])
    inventory.refresh(host_id(1))
    inventory.settle(choice, wants(1))
    assert isinstance(inventory.choose(wants(2)), Refusal)


# --- properties ---------------------------------------------------------------------------------------------------

moves = st.lists(
    st.tuples(st.sampled_from(["choose", "choose", "commit", "settle", "release", "toggle"]), st.integers(0, 7)),
    min_size=5,
    max_size=50,
)


changes = st.tuples(st.integers(1, 3), st.sampled_from(["place", "free", "drop", "back", "less", "nothing"]))


@given(st.lists(changes, max_size=40))
def test_the_columns_are_always_what_the_working_set_says(changes: list[tuple[int, str]]) -> None:
    seen, inventory = cloud(h1=4, h2=4, h3=4)
    for vm, (number, what) in enumerate(changes):
        there = seen.placed_on(host_id(number))
        match what:
            case "place":
                seen.apply([Put(a_placement(vm, number))])
            case "free" if there:
                seen.apply([Gone(there[0])])
            case "drop":
                seen.apply([Put(a_host(number, deleted_at=1.0))])
            case "back":
                seen.apply([Put(a_host(number))])
            case "less":
                seen.apply([Put(a_capacity(number, 2))])
            case _:
                pass
        inventory.refresh(host_id(number))
    columns = inventory._columns
    assert set(columns.hosts) == {row.id for row in seen.of_kind("host") if row.deleted_at is None}
    for at, host in enumerate(columns.hosts):
        capacity = seen.capacity(host)
        assert capacity is not None
        assert columns.free[0, at] == capacity.vcpus - len(seen.placed_on(host))
        assert columns.total[0, at] == capacity.vcpus
        assert columns.names[at] == seen.name_of(host)


@given(rooms=st.lists(st.integers(0, 2), min_size=1, max_size=3), moves=moves)
def test_room_is_never_sold_twice_and_never_withheld(rooms: list[int], moves: list[tuple[str, int]]) -> None:
    """Whatever is under way: a choice fits beside all others, and a refusal means that it would not have."""
    seen, inventory = cloud(**{f"h{number}": room for number, room in enumerate(rooms, 1)})
    hosts = dict(zip(map(host_id, range(1, len(rooms) + 1)), rooms, strict=True))
    pending, committed = dict[int, Choice](), dict[int, HostId]()
    vm = 0

    def free(host: HostId) -> int:
        held = {**{one: choice.host for one, choice in pending.items()}, **committed}
        return hosts[host] - sum(on == host for on in held.values())

    for what, number in moves:
        match what:
            case "choose":
                vm += 1
                choice = inventory.choose(wants(vm))
                open_hosts = [host for host in hosts if seen.host(host).connected and free(host) > 0]
                if isinstance(choice, Choice):
                    assert choice.host in open_hosts
                    pending[vm] = choice
                else:
                    assert not open_hosts
            case "commit" if uncommitted := sorted(set(pending) - set(committed)):
                one = uncommitted[number % len(uncommitted)]
                commit(seen, inventory, pending[one], wants(one))
                committed[one] = pending[one].host
            case "settle" if pending:
                one = sorted(pending)[number % len(pending)]
                inventory.settle(pending.pop(one), wants(one))
            case "release" if settled := sorted(set(committed) - set(pending)):
                one = settled[number % len(settled)]
                claim = seen.placement(made_id("vm", one))
                assert claim is not None
                seen.apply([Gone(claim)])
                inventory.refresh(committed.pop(one))
            case "toggle":
                host = host_id(1 + number % len(hosts))
                seen.host(host).connected = not seen.host(host).connected
                inventory.refresh(host)
            case _:
                pass
