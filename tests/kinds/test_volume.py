"""A volume's life: a document on its host, followed to its end."""

from typing import NamedTuple

import msgspec
import pytest

from common.documents import DataDisk, DocKey, DomainDoc, DomainSeen, VolumeDoc, VolumeSeen
from common.errors import Conflict, Invalid, NoCapacity
from common.ids import HostId, Id
from common.kinds import kind_named
from common.kinds.kind import AnyResource
from controller.kinds import admission
from controller.kinds.admission import NewResource
from controller.kinds.outcome import Do, Done, Place, Wait
from controller.store.writes import DeleteChild, PutDocument, Tombstone
from tests.kinds.bench import READY, RUNNING, Bench


async def made(bench: Bench) -> tuple[AnyResource, HostId]:
    """Return the root volume of a VM that was just placed, and its host."""
    await bench.furniture()
    host = await bench.connected_host("h1")
    vm = await bench.create("vm", "shop", "web", image="tiny", size="small")
    await bench.step(vm, host)
    await bench.step(vm)
    return bench.named("volume", "web"), host


async def test_the_life_of_a_volume_step_by_step(bench: Bench) -> None:
    volume, host = await made(bench)
    told = await bench.step(volume)
    assert isinstance(told, Do)
    (write,) = told.writes
    assert isinstance(write, PutDocument)
    assert isinstance(write.doc, VolumeDoc)
    assert (write.host, write.owner, write.doc.size_gib) == (host, volume.id, 10)
    assert write.doc.image is not None
    assert write.doc.image.digest == "sha256:" + "a" * 64
    key = f"volume/{volume.id}"
    waiting = bench.plan(volume)
    assert isinstance(waiting, Wait)
    assert (waiting.status.state, waiting.message) == ("creating", "host h1 makes it")
    bench.report(host, key, done=False, message="fetching the image: 1 of 2 MiB", progress=0.5)
    fetching = bench.plan(volume)
    assert isinstance(fetching, Wait)
    assert (fetching.message, fetching.progress) == ("fetching the image: 1 of 2 MiB", 0.5)
    bench.report(host, key, seen=READY)
    done = bench.plan(volume)
    assert isinstance(done, Done)
    assert (done.status.state, done.status.allocated_bytes) == ("ready", 4096)  # type: ignore[attr-defined]
    await bench.write(DeleteChild(id=volume.id))
    bury = await bench.step(volume)
    assert isinstance(bury, Do)
    assert bury.writes == (Tombstone(host=host, key=key),)  # type: ignore[arg-type]
    assert isinstance(bench.plan(volume), Wait)
    await bench.destroyed(host)
    last = await bench.step(volume)
    assert isinstance(last, Do)
    assert bench.store.seen.get(volume.id) is None


async def test_a_problem_on_the_host_is_shown(bench: Bench) -> None:
    volume, host = await made(bench)
    await bench.rest(volume)
    bench.report(host, f"volume/{volume.id}", done=False, message="making the disk", problem="no room")
    outcome = bench.plan(volume)
    assert isinstance(outcome, Wait)
    assert outcome.message == "no room"
    bench.store.seen.host(host).connected = False
    silent = bench.plan(volume)
    assert isinstance(silent, Wait)
    assert silent.message.startswith("host h1 has not been connected")


@pytest.mark.parametrize("steps", range(3))
async def test_delete_wins_from_every_state(bench: Bench, steps: int) -> None:
    volume, host = await made(bench)
    for _ in range(steps):
        await bench.step(volume)
    await bench.write(DeleteChild(id=volume.id))
    await bench.buried([volume], [host])
    assert not bench.documents(host)


async def test_a_root_disk_changes_with_its_machine_only(bench: Bench) -> None:
    volume, _ = await made(bench)
    kind = kind_named("volume")
    with pytest.raises(Invalid, match="host is set by Skerry"):
        admission.create(bench.context, kind, "shop", NewResource(name="x", spec={"size_gib": 1, "host": "h1"}))
    with pytest.raises(Conflict, match="belongs to vm web"):
        await bench.delete(volume)
    with pytest.raises(Conflict, match="is a disk of vm web"):
        await bench.change(volume, size_gib=20)
    with pytest.raises(Conflict, match="is a disk of vm web"):
        await say(bench, "volume", volume, "attach", vm="web")


# --- data volumes -------------------------------------------------------------------------------------------------


class Stage(NamedTuple):
    """A data volume that is attached to a machine that runs."""

    volume: AnyResource
    vm: AnyResource
    host: HostId


async def say(bench: Bench, kind: str, row: AnyResource, verb: str, **takes: str) -> None:
    """Ask for a verb."""
    what = next(one for one in kind_named(kind).verbs if one.name == verb)
    await bench.store.admit(admission.verb(bench.context, bench.now(row), what, takes))


def running(*volumes: Id, note: str = "") -> DomainSeen:
    return msgspec.structs.replace(RUNNING, data=volumes, data_note=note)


async def machine(bench: Bench) -> tuple[AnyResource, HostId]:
    """Return a machine that runs, and its host."""
    await bench.furniture()
    host = await bench.connected_host("h1")
    vm = await bench.create("vm", "shop", "web", image="tiny", size="small")
    await bench.rest(vm, host)
    bench.report(host, f"domain/{vm.id}", seen=RUNNING)
    await bench.rest(bench.named("volume", "web"))
    bench.report(host, f"volume/{bench.named('volume', 'web').id}", seen=READY)
    return vm, host


async def attached(bench: Bench, size_gib: int = 10) -> Stage:
    """Return a data volume that its machine has."""
    vm, host = await machine(bench)
    volume = await bench.create("volume", "shop", "data", size_gib=size_gib, vm="web")
    await bench.rest(volume)
    await bench.rest(vm)
    bench.report(host, f"volume/{volume.id}", seen=VolumeSeen(size_gib=size_gib, allocated_bytes=1))
    bench.report(host, f"domain/{vm.id}", seen=running(volume.id))
    await bench.seen_through(volume)
    assert bench.now(volume).status.state == "attached"
    return Stage(volume, vm, host)


def domain(bench: Bench, stage: Stage) -> DomainDoc:
    doc = bench.documents(stage.host)[DocKey(f"domain/{stage.vm.id}")].doc
    assert isinstance(doc, DomainDoc)
    return doc


async def test_a_volume_has_no_host_until_it_is_attached_and_keeps_it_then(bench: Bench) -> None:
    vm, host = await machine(bench)
    volume = await bench.create("volume", "shop", "data", size_gib=10)
    done = await bench.rest(volume)
    assert isinstance(done, Done)
    assert done.status.state == "detached"
    assert "skerry volume attach data" in done.status.message
    assert bench.store.seen.placement(volume.id) is None

    await say(bench, "volume", volume, "attach", vm="web")
    waits = await bench.rest(volume)
    assert isinstance(waits, Wait)
    placement = bench.store.seen.placement(volume.id)
    assert placement is not None
    assert (placement.host, placement.vcpus, placement.disk_gib) == (host, 0, 10)
    told = bench.documents(host)[DocKey(f"volume/{volume.id}")].doc
    assert told == VolumeDoc(id=volume.id, size_gib=10, image=None, data=True)
    await bench.rest(vm)
    stage = Stage(volume, vm, host)
    assert domain(bench, stage).data == (DataDisk(volume=volume.id),)
    assert domain(bench, stage).volumes == (bench.named("volume", "web").id,)

    bench.report(host, f"volume/{volume.id}", seen=READY)
    bench.report(host, f"domain/{vm.id}", seen=running(note="volume x can't be attached while it runs"))
    attaching = bench.plan(volume)
    assert isinstance(attaching, Wait)
    assert (attaching.status.state, attaching.message) == ("attaching", "volume x can't be attached while it runs")
    bench.report(host, f"domain/{vm.id}", seen=running(volume.id))
    done = bench.plan(volume)
    assert isinstance(done, Done)
    assert (done.status.state, done.status.vm, done.status.host) == ("attached", "web", "h1")  # type: ignore[attr-defined]


async def test_a_detached_volume_is_so_once_the_guest_has_let_go(bench: Bench) -> None:
    stage = await attached(bench)
    await say(bench, "volume", stage.volume, "detach")
    await bench.rest(stage.vm)
    assert domain(bench, stage).data == ()
    bench.report(stage.host, f"domain/{stage.vm.id}", seen=running(stage.volume.id, note="its guest has not let go"))
    waits = bench.plan(stage.volume)
    assert isinstance(waits, Wait)
    assert (waits.status.state, waits.message) == ("detaching", "its guest has not let go")
    bench.report(stage.host, f"domain/{stage.vm.id}", seen=running())
    done = bench.plan(stage.volume)
    assert isinstance(done, Done)
    assert done.status.state == "detached"
    assert bench.store.seen.placement(stage.volume.id) is not None, "its bytes are still there"


async def test_a_volume_on_another_host_is_refused_and_a_machine_can_be_made_beside_it(bench: Bench) -> None:
    stage = await attached(bench)
    await say(bench, "volume", stage.volume, "detach")
    other = await bench.connected_host("h2", "10.77.0.12")
    far = await bench.create("vm", "shop", "far", image="tiny", size="small")
    await bench.step(far, other)
    with pytest.raises(Conflict, match="lies on host h1, and vm far is on host h2") as refused:
        await say(bench, "volume", stage.volume, "attach", vm="far")
    assert "--beside data" in refused.value.fix
    near = await bench.create("vm", "shop", "near", image="tiny", size="small", beside="data")
    await bench.step(near, other)
    placement = bench.store.seen.placement(near.id)
    assert placement is not None
    assert placement.host == stage.host


async def test_a_machine_that_is_placed_later_goes_where_its_volumes_are(bench: Bench) -> None:
    stage = await attached(bench)
    await say(bench, "volume", stage.volume, "detach")
    await bench.connected_host("h2", "10.77.0.12")
    late = await bench.create("vm", "shop", "late", image="tiny", size="small")
    await say(bench, "volume", stage.volume, "attach", vm="late")
    placed = bench.plan(late)
    assert isinstance(placed, Place)
    assert placed.demand.host == stage.host


async def test_a_volume_grows_with_its_claim_and_never_shrinks(bench: Bench) -> None:
    stage = await attached(bench)
    with pytest.raises(Invalid, match="disks never shrink"):
        await bench.change(stage.volume, size_gib=9)
    with pytest.raises(NoCapacity, match="needs 990 GiB of disk more"):
        await bench.change(stage.volume, size_gib=1000)
    await bench.change(stage.volume, size_gib=20)
    await bench.rest(stage.volume)
    placement = bench.store.seen.placement(stage.volume.id)
    assert placement is not None
    assert placement.disk_gib == 20
    told = bench.documents(stage.host)[DocKey(f"volume/{stage.volume.id}")].doc
    assert isinstance(told, VolumeDoc)
    assert told.size_gib == 20


async def test_a_volume_is_let_go_of_when_its_machine_is_deleted_and_stays(bench: Bench) -> None:
    stage = await attached(bench)
    with pytest.raises(Conflict, match="attached to vm web") as refused:
        await bench.delete(stage.volume)
    assert "skerry volume detach data" in refused.value.fix
    await bench.delete(stage.vm)
    await bench.rest(stage.volume)
    assert bench.now(stage.volume).spec.vm is None
    await bench.buried([stage.vm], [stage.host])
    bench.store.seen.host(stage.host).reports.pop(DocKey(f"domain/{stage.vm.id}"))
    done = await bench.rest(stage.volume)
    assert isinstance(done, Done)
    assert done.status.state == "detached"
    await bench.delete(stage.volume)
    await bench.buried([stage.volume], [stage.host])
    assert bench.store.seen.placement(stage.volume.id) is None
    assert not [one for one in bench.documents(stage.host) if one.startswith("volume/")]


async def test_a_revert_needs_the_machine_stopped_and_is_told_to_disk_and_machine(bench: Bench) -> None:
    stage = await attached(bench)
    snapshot = await bench.create("snapshot", "shop", "before", volume="data")
    with pytest.raises(Conflict, match="snapshot before of volume data is still being made"):
        await say(bench, "volume", stage.volume, "revert", snapshot="before")
    await bench.rest(snapshot)
    bench.report(stage.host, f"snapshot/{snapshot.id}")
    await bench.seen_through(snapshot)
    with pytest.raises(Conflict, match="attached to vm web, which is not stopped") as refused:
        await say(bench, "volume", stage.volume, "revert", snapshot="before")
    assert "skerry vm stop web" in refused.value.fix
    await say(bench, "vm", stage.vm, "stop")
    await bench.rest(stage.vm)
    with pytest.raises(Conflict, match="which is not stopped"):
        await say(bench, "volume", stage.volume, "revert", snapshot="before")
    off = msgspec.structs.replace(running(stage.volume.id), state="stopped")
    bench.report(stage.host, f"domain/{stage.vm.id}", seen=off)
    await say(bench, "volume", stage.volume, "revert", snapshot="before")
    await bench.rest(stage.volume)
    told = bench.documents(stage.host)[DocKey(f"volume/{stage.volume.id}")].doc
    assert isinstance(told, VolumeDoc)
    assert (told.reverts, told.revert_to) == (1, snapshot.id)
    await bench.rest(stage.vm)
    assert domain(bench, stage).data == (DataDisk(volume=stage.volume.id, reverts=1),)


async def test_what_can_not_be_attached_is_refused_with_the_way_out(bench: Bench) -> None:
    stage = await attached(bench)
    await bench.create("vm", "shop", "db", image="tiny", size="small")
    with pytest.raises(Conflict, match="attached to vm web"):
        await say(bench, "volume", stage.volume, "attach", vm="db")
    for number in range(7):
        await bench.create("volume", "shop", f"more-{number}", size_gib=1, vm="web")
    with pytest.raises(Conflict, match="8 is the most"):
        await bench.create("volume", "shop", "one-more", size_gib=1, vm="web")
    with pytest.raises(Invalid, match="needs 2 GiB"):
        await bench.create("volume", "shop", "small", size_gib=1, image="tiny")


async def test_a_machine_whose_name_a_volume_has_gets_a_root_disk_of_another_name(bench: Bench) -> None:
    await bench.furniture()
    host = await bench.connected_host("h1")
    await bench.create("volume", "shop", "web", size_gib=1)
    vm = await bench.create("vm", "shop", "web", image="tiny", size="small")
    await bench.rest(vm, host)
    (root,) = bench.store.seen.children(vm.id)
    assert root.name == root.id
    bench.report(host, f"domain/{vm.id}", seen=RUNNING)
    assert "rescue" not in bench.plan(vm).status.message  # type: ignore[union-attr]
