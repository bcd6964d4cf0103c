"""Protection, the time for which a deleted VM is kept, and a time to live."""

import msgspec
import pytest

from common.errors import Conflict
from common.ids import HostId
from common.kinds import kind_named
from common.kinds.kind import AnyResource
from controller.kinds import admission
from controller.kinds.outcome import Do, Done, Wait
from controller.store.rows import EventQuery
from tests.kinds.bench import Bench
from tests.kinds.test_vm import document, running

HOUR = 3600.0


async def dropped(bench: Bench, vm: AnyResource) -> AnyResource:
    """Delete a VM as a request does, which keeps it where its project says so."""
    await bench.store.admit(admission.delete(bench.context, bench.now(vm), keep=True))
    return bench.now(vm)


async def said(bench: Bench, vm: AnyResource, verb: str) -> None:
    what = next(one for one in kind_named("vm").verbs if one.name == verb)
    await bench.store.admit(admission.verb(bench.context, bench.now(vm), what))


def power(bench: Bench, vm: AnyResource, host: HostId) -> str:
    return document(bench, vm, host).power


async def test_what_is_protected_is_not_deleted_until_that_is_taken_back(bench: Bench) -> None:
    vm, _ = await running(bench, protected=True)
    for keep in (True, False):
        with pytest.raises(Conflict, match="vm web is protected from deletion") as refused:
            admission.delete(bench.context, vm, keep=keep)
        assert refused.value.fix == "skerry vm set web --no-protected"
    await bench.change(vm, protected=False)
    assert (await dropped(bench, vm)).spec.kept_until > 0


async def test_a_deleted_vm_is_stopped_and_holds_all_it_has(bench: Bench) -> None:
    vm, host = await running(bench)
    await bench.rest(vm)
    placement, addresses = bench.store.seen.placement(vm.id), tuple(bench.store.seen.addresses(vm.id))
    kept = await dropped(bench, vm)
    assert kept.deleted_at is None
    assert kept.spec.kept_until == bench.clock.now + HOUR

    stopping = await bench.rest(vm)
    assert isinstance(stopping, Wait)
    assert (stopping.message, power(bench, vm, host)) == ("host h1 stops it", "stopped")
    bench.report(host, f"domain/{vm.id}")
    deleted = bench.plan(vm)

    assert isinstance(deleted, Done)
    assert deleted.status.state == "deleted"
    assert "skerry vm restore web" in deleted.status.message
    assert bench.store.seen.placement(vm.id) == placement
    assert tuple(bench.store.seen.addresses(vm.id)) == addresses


async def test_one_that_is_restored_runs_again_where_it_was(bench: Bench) -> None:
    vm, host = await running(bench)
    await bench.rest(vm)
    before = document(bench, vm, host)
    await dropped(bench, vm)
    await bench.rest(vm)
    await said(bench, vm, "restore")
    await bench.rest(vm)
    now = document(bench, vm, host)
    assert now.start_generation == before.start_generation + 1, "a host starts what is off for a new run only"
    assert msgspec.structs.replace(now, start_generation=before.start_generation) == before


async def test_it_goes_when_it_was_kept_for_long_enough_and_not_before(bench: Bench) -> None:
    vm, host = await running(bench)
    await dropped(bench, vm)
    await bench.rest(vm)
    bench.clock.now += HOUR - 1
    bench.report(host, f"domain/{vm.id}")
    almost = await bench.rest(vm)
    assert isinstance(almost, Done)
    assert almost.seconds == pytest.approx(1)
    bench.clock.now += 1
    await bench.buried([vm], [host])
    assert bench.store.seen.placement(vm.id) is None


async def test_what_is_deleted_can_only_be_restored_or_deleted(bench: Bench) -> None:
    vm, host = await running(bench)
    kept = await dropped(bench, vm)
    for verb in ("start", "stop", "reboot"):
        with pytest.raises(Conflict, match="vm web is deleted, and kept until"):
            await said(bench, vm, verb)
    with pytest.raises(Conflict, match="is deleted"):
        await bench.change(vm, protected=True)
    with pytest.raises(Conflict, match="web in project shop already, which is deleted and kept until"):
        await bench.create("vm", "shop", "web", image="tiny", size="small")
    assert (await dropped(bench, vm)).spec.kept_until == kept.spec.kept_until, "a second delete keeps it no longer"
    await bench.delete(vm)
    await bench.buried([vm], [host])


async def test_what_is_not_deleted_can_not_be_restored(bench: Bench) -> None:
    vm, _ = await running(bench)
    with pytest.raises(Conflict, match="vm web is not deleted"):
        await said(bench, vm, "restore")


async def test_a_project_that_keeps_nothing_frees_it_at_once(bench: Bench) -> None:
    vm, host = await running(bench)
    project = bench.named("project", "shop", "")
    await bench.change(project, keep_deleted_s=0)
    assert (await dropped(bench, vm)).deleted_at is not None
    await bench.buried([vm], [host])


async def test_one_that_was_never_placed_is_deleted_at_once_and_placed_when_restored(bench: Bench) -> None:
    await bench.furniture()
    vm = await bench.create("vm", "shop", "web", image="tiny", size="small")
    await dropped(bench, vm)
    kept = bench.plan(vm)
    assert isinstance(kept, Done)
    assert kept.status.state == "deleted"
    await said(bench, vm, "restore")
    host = await bench.connected_host("h1")
    await bench.rest(vm, host)
    assert power(bench, vm, host) == "running"


async def test_the_deletion_ends_though_the_host_is_away(bench: Bench) -> None:
    vm, host = await running(bench)
    await bench.rest(vm)
    await dropped(bench, vm)
    bench.store.seen.host(host).connected = False
    assert isinstance(await bench.rest(vm), Done)


async def test_when_its_time_is_over_it_is_stopped_and_can_be_given_more(bench: Bench) -> None:
    vm, host = await running(bench, ttl_s=600)
    await bench.rest(vm)
    assert bench.plan(vm).seconds <= 60  # type: ignore[union-attr]
    bench.clock.now += 599
    almost = bench.plan(vm)
    assert isinstance(almost, Done)
    assert almost.seconds == pytest.approx(1)

    bench.clock.now += 1
    await bench.rest(vm)
    bench.report(host, f"domain/{vm.id}")
    over = bench.plan(vm)
    assert isinstance(over, Done)
    assert power(bench, vm, host) == "stopped"
    assert over.status.message.endswith("skerry vm set web --ttl-s 0")

    await bench.change(vm, ttl_s=1200)
    await bench.rest(vm)
    assert power(bench, vm, host) == "running"


@pytest.mark.parametrize("keep_s", [0, 1800])
async def test_when_its_time_is_over_it_is_deleted_as_by_hand(bench: Bench, keep_s: int) -> None:
    vm, host = await running(bench, ttl_s=600, on_expiry="delete")
    project = bench.named("project", "shop", "")
    await bench.change(project, keep_deleted_s=keep_s)
    bench.clock.now += 600
    step = await bench.step(vm)
    assert isinstance(step, Do)
    assert step.say == "its time to live of 600 s is over"
    if keep_s:
        assert bench.now(vm).spec.kept_until == bench.clock.now + keep_s
        bench.clock.now += keep_s
        await bench.step(vm)
    assert bench.now(vm).deleted_at is not None
    await bench.buried([vm], [host])


async def test_what_skerry_decides_overtakes_nothing_that_somebody_changed_meanwhile(bench: Bench) -> None:
    vm, _ = await running(bench, ttl_s=600, on_expiry="delete")
    bench.clock.now += 600
    decided = bench.plan(vm)
    assert isinstance(decided, Do)
    await bench.change(vm, ttl_s=6000)
    await bench.write(*decided.writes)
    assert bench.now(vm).deleted_at is None
    assert bench.now(vm).spec.kept_until == 0


async def test_the_event_says_who_and_why(bench: Bench) -> None:
    vm, _ = await running(bench, ttl_s=600, on_expiry="delete", user_data="#!secret")
    bench.clock.now += 600
    await bench.step(vm)
    events = await bench.store.events(0, 10, EventQuery(action="vm.delete"))
    assert [(event.actor, event.message) for event in events] == [("skerry", "its time to live of 600 s is over")]
    assert msgspec.json.decode(events[0].before)["ttl_s"] == 600
    assert b"secret" not in events[0].before + events[0].after, "what is private is not in the history"
