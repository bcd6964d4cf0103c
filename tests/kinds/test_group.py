"""A group's life, and what its rule means for those on their way into it."""

import pytest

from common.errors import Conflict, Invalid
from common.ids import HostId, Revision
from common.kinds.group import GroupStatus
from common.kinds.kind import AnyResource
from controller.kinds.outcome import Do, Done, Place, Wait
from controller.scheduler.choose import Choice
from controller.scheduler.rules import Rule
from controller.store.writes import Forget
from tests.kinds.bench import Bench


async def placed(bench: Bench, **spec: str | bool) -> tuple[AnyResource, AnyResource, HostId]:
    """Return a group and its one member, on a host."""
    await bench.furniture()
    group = await bench.create("group", "shop", "db", **{"policy": "anti-affinity", **spec})
    host = await bench.connected_host("h1")
    vm = await bench.create("vm", "shop", "db1", image="tiny", size="small", groups=["db"])
    await bench.rest(vm, host)
    return group, vm, host


async def test_a_member_asks_for_its_groups_rules(bench: Bench) -> None:
    await bench.furniture()
    group = await bench.create("group", "shop", "db", policy="affinity", over="rack", hard=False)
    vm = await bench.create("vm", "shop", "db1", image="tiny", size="small", groups=["db"])
    outcome = bench.plan(vm)
    assert isinstance(outcome, Place)
    assert outcome.demand.groups == (Rule(group=group.id, name="db", policy="affinity", over="rack", hard=False),)
    assert outcome.claim(Choice(host=HostId(group.id), row=0), "", Revision(0)).groups == (group.id,)


async def test_it_shows_where_its_members_are(bench: Bench) -> None:
    group, vm, _ = await placed(bench)
    assert bench.plan(group) == Done(status=GroupStatus(state="active", members=1, places=1))
    await bench.delete(vm)
    await bench.buried([vm], [bench.named("host", "h1", "").id])  # type: ignore[list-item]
    assert bench.plan(group) == Done(status=GroupStatus(state="active"))


async def test_it_can_not_go_from_under_its_members(bench: Bench) -> None:
    group, vm, host = await placed(bench)
    with pytest.raises(Conflict, match="group db is used by vm db1"):
        await bench.delete(group)
    await bench.delete(vm)
    await bench.delete(group)
    assert isinstance(bench.plan(group), Wait)
    await bench.buried([vm], [host])
    assert bench.plan(group) == Do(writes=(Forget(resource=group.id),), say="forgetting the group")


async def test_its_rule_never_changes(bench: Bench) -> None:
    group, _, _ = await placed(bench)
    with pytest.raises(Invalid, match="policy can't change once it is made"):
        await bench.change(group, policy="affinity")


async def test_a_machine_names_a_group_once(bench: Bench) -> None:
    await placed(bench)
    with pytest.raises(Invalid, match="a group is named twice"):
        await bench.create("vm", "shop", "db2", image="tiny", size="small", groups=["db", "db"])


async def test_a_machine_made_anew_finds_its_place_free_again(bench: Bench) -> None:
    _, vm, host = await placed(bench)
    await bench.delete(vm)
    await bench.buried([vm], [host])
    again = await bench.create("vm", "shop", "db1", image="tiny", size="small", groups=["db"])
    await bench.rest(again, host)
    placement = bench.store.seen.placement(again.id)
    assert placement is not None
    assert placement.host == host


# --- hosts that move between racks ----------------------------------------------------------------------------------


async def racks(bench: Bench) -> None:
    """Have racks r1 and r2 in zone z1, and r3 in zone z2."""
    for zone in ("z1", "z2"):
        await bench.create("zone", "", zone)
    for rack, zone in (("r1", "z1"), ("r2", "z1"), ("r3", "z2")):
        await bench.create("rack", "", rack, zone=zone)


async def two_apart(bench: Bench, over: str, *, hard: bool = True, policy: str = "anti-affinity") -> AnyResource:
    """Return host h1 of rack r1; members are on it and on h2, in rack r2, or (affinity) r1."""
    await bench.furniture()
    await racks(bench)
    await bench.create("group", "shop", "db", policy=policy, over=over, hard=hard)
    for number, rack in ((1, "r1"), (2, "r2" if policy == "anti-affinity" else "r1")):
        host = await bench.connected_host(f"h{number}", f"10.77.0.1{number}")
        await bench.change(bench.named("host", f"h{number}", ""), rack=rack)
        vm = await bench.create("vm", "shop", f"db{number}", image="tiny", size="small", groups=["db"])
        await bench.rest(vm, host)
    return bench.named("host", "h1", "")


def where(bench: Bench, vm: str) -> str:
    """Return the name of the place that a member's group has it in."""
    found = bench.store.seen.membership(bench.named("group", "db").id, bench.named("vm", vm).id)
    assert found is not None
    return bench.store.seen.name_of(found.domain)


async def test_a_host_that_moves_takes_its_members_along(bench: Bench) -> None:
    host = await two_apart(bench, "rack")
    await bench.change(host, rack="r3")
    assert where(bench, "db1") == "r3"
    assert where(bench, "db2") == "r2"
    await bench.change(bench.named("host", "h2", ""), rack="r1")
    assert where(bench, "db2") == "r1"


async def test_a_host_may_not_move_to_where_another_member_is(bench: Bench) -> None:
    host = await two_apart(bench, "rack")
    with pytest.raises(Conflict, match=r"vm db1 .* is in group db, which has a machine in rack r2 already"):
        await bench.change(host, rack="r2")
    with pytest.raises(Conflict, match="whose members have to be in a rack"):
        await bench.change(host, rack=None)
    assert where(bench, "db1") == "r1"


async def test_a_soft_rule_holds_no_host(bench: Bench) -> None:
    host = await two_apart(bench, "rack", hard=False)
    await bench.change(host, rack="r2")
    assert where(bench, "db1") == where(bench, "db2") == "r2"


async def test_what_belongs_together_is_not_moved_apart(bench: Bench) -> None:
    host = await two_apart(bench, "rack", policy="affinity")
    with pytest.raises(Conflict, match="whose other machines are in rack r1"):
        await bench.change(host, rack="r2")


async def test_the_only_host_of_a_group_may_move(bench: Bench) -> None:
    host = await two_apart(bench, "zone", policy="affinity")
    db2 = bench.named("vm", "db2")
    await bench.delete(db2)
    await bench.buried([db2], [bench.store.seen.placement(db2.id).host])  # type: ignore[union-attr]
    await bench.change(host, rack="r3")
    assert where(bench, "db1") == "z2"


async def test_a_move_within_a_zone_is_none_to_a_rule_over_zones(bench: Bench) -> None:
    host = await two_apart(bench, "zone", policy="affinity")
    await bench.change(host, rack="r2")
    assert where(bench, "db1") == "z1"


async def test_a_pinned_machine_holds_its_host_where_it_is(bench: Bench) -> None:
    await bench.furniture()
    await racks(bench)
    host = await bench.connected_host("h1")
    await bench.change(bench.named("host", "h1", ""), rack="r1")
    vm = await bench.create("vm", "shop", "web", image="tiny", size="small", zone="z1")
    await bench.rest(vm, host)
    await bench.change(bench.named("host", "h1", ""), rack="r2")
    with pytest.raises(Conflict, match="vm web of project shop on it is pinned to zone z1"):
        await bench.change(bench.named("host", "h1", ""), rack="r3")


async def test_a_rack_says_its_hosts_zone(bench: Bench) -> None:
    await racks(bench)
    with pytest.raises(Invalid, match="rack r1 is in zone z1, not in z2"):
        await bench.create("host", "", "h1", rack="r1", zone="z2")
    host = await bench.create("host", "", "h1", rack="r3")
    done = bench.plan(host)
    assert isinstance(done, Done)
    assert (done.status.rack, done.status.zone) == ("r3", "z2")  # type: ignore[attr-defined]
