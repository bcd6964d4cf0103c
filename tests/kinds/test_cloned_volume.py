"""A volume that is made from a snapshot: on its host, at least as large, and free of it once it is there."""

import pytest

from common.documents import DocKey, SnapshotRef, VolumeDoc, VolumeSeen
from common.errors import Conflict, Invalid
from common.kinds.kind import AnyResource
from controller.kinds.outcome import Blocked, Done, Place, Wait
from tests.kinds.bench import Bench
from tests.kinds.test_volume import Stage, attached, say


async def kept(bench: Bench, size_gib: int = 10) -> tuple[Stage, AnyResource]:
    """Return a volume that a machine has, and a snapshot of it."""
    stage = await attached(bench, size_gib)
    snapshot = await bench.create("snapshot", "shop", "before", volume="data")
    await bench.rest(snapshot)
    bench.report(stage.host, f"snapshot/{snapshot.id}")
    await bench.seen_through(snapshot)
    return stage, snapshot


async def made(bench: Bench, stage: Stage, clone: AnyResource) -> None:
    await bench.rest(clone)
    bench.report(stage.host, f"volume/{clone.id}", seen=VolumeSeen(size_gib=10, allocated_bytes=1))
    await bench.seen_through(clone)


async def test_a_clone_lies_where_its_snapshot_does_with_its_size_before_any_machine_has_it(bench: Bench) -> None:
    stage, snapshot = await kept(bench)
    await bench.connected_host("h2", "10.77.0.12")
    clone = await bench.create("volume", "shop", "twin", snapshot="before")
    assert clone.spec.size_gib == 10
    assert isinstance(await bench.rest(clone), Wait)
    placement = bench.store.seen.placement(clone.id)
    assert placement is not None
    assert (placement.host, placement.disk_gib) == (stage.host, 10)
    assert bench.documents(stage.host)[DocKey(f"volume/{clone.id}")].doc == VolumeDoc(
        id=clone.id, size_gib=10, image=None, data=True, snapshot=SnapshotRef(id=snapshot.id, volume=stage.volume.id)
    )
    await made(bench, stage, clone)
    assert bench.now(clone).status.state == "detached"


async def test_a_snapshot_stays_until_what_is_made_from_it_is_there_and_goes_alone_then(bench: Bench) -> None:
    stage, snapshot = await kept(bench)
    clone = await bench.create("volume", "shop", "twin", snapshot="before")
    await bench.delete(snapshot)
    for _ in range(2):
        waits = await bench.rest(snapshot)
        assert isinstance(waits, Wait)
        assert waits.message == "kept until volume twin is made from it, or is deleted"
        assert not bench.documents(stage.host)[DocKey(f"snapshot/{snapshot.id}")].gone
        await bench.rest(clone)
    await made(bench, stage, clone)
    told = bench.documents(stage.host)[DocKey(f"volume/{clone.id}")]
    await bench.buried([snapshot], [stage.host])
    assert isinstance(await bench.rest(clone), Done)
    assert bench.documents(stage.host)[DocKey(f"volume/{clone.id}")] == told, "its host hears nothing new"
    await bench.change(clone, protected=True)
    await bench.create("snapshot", "shop", "of-it", volume="twin")


async def test_a_snapshot_does_not_wait_for_a_clone_that_goes_too_or_finds_no_room(bench: Bench) -> None:
    stage, snapshot = await kept(bench)
    clone = await bench.create("volume", "shop", "twin", snapshot="before")
    huge = await bench.create("volume", "shop", "huge", snapshot="before", size_gib=1000)
    await bench.rest(clone)
    await bench.delete(clone)
    await bench.delete(snapshot)
    await bench.buried([clone, snapshot], [stage.host])
    blocked = await bench.rest(huge)
    assert isinstance(blocked, Blocked)
    assert "the snapshot that volume huge was to be made from is deleted" in blocked.why.summary
    assert "skerry volume delete huge" in blocked.why.smallest_change
    await bench.delete(huge)
    await bench.buried([huge], [stage.host])


async def test_a_clone_for_which_its_snapshots_host_has_no_room_says_whose_host_that_is(bench: Bench) -> None:
    await kept(bench, size_gib=40)
    clone = await bench.create("volume", "shop", "twin", snapshot="before")
    blocked = await bench.rest(clone)
    assert isinstance(blocked, Blocked)
    assert blocked.why.summary == (
        "volume twin needs 40 GiB of disk more; 10 are free on host h1, where snapshot before lies"
    )
    assert blocked.why.costs


async def test_a_clone_waits_for_a_snapshot_that_lies_nowhere_yet(bench: Bench) -> None:
    stage = await attached(bench, 40)
    await bench.create("volume", "shop", "more", size_gib=30, vm="web")
    snapshot = await bench.create("snapshot", "shop", "before", volume="data")
    clone = await bench.create("volume", "shop", "twin", snapshot="before")
    waits = bench.plan(clone)
    assert isinstance(waits, Wait)
    assert waits.message == "snapshot before has no host yet"
    await bench.rest(bench.named("volume", "more"))
    why = await bench.rest(snapshot)
    assert isinstance(why, Blocked)
    await bench.shown(snapshot, why)
    blocked = bench.plan(clone)
    assert isinstance(blocked, Blocked)
    assert blocked.why.summary.startswith("snapshot before has no host yet: snapshot before needs 40 GiB of disk more")
    assert stage.host


async def test_a_clone_and_its_machine_are_on_one_host(bench: Bench) -> None:
    stage, _ = await kept(bench)
    other = await bench.connected_host("h2", "10.77.0.12")
    far = await bench.create("vm", "shop", "far", image="tiny", size="small")
    await bench.step(far, other)
    with pytest.raises(Conflict, match="is made where snapshot before lies, on host h1, and vm far is on host h2"):
        await bench.create("volume", "shop", "twin", snapshot="before", vm="far")
    late = await bench.create("vm", "shop", "late", image="tiny", size="small")
    await bench.create("volume", "shop", "twin", snapshot="before", vm="late")
    placed = bench.plan(late)
    assert isinstance(placed, Place)
    assert (placed.demand.host, placed.demand.beside) == (stage.host, "twin")


async def test_what_can_not_be_cloned_is_refused_with_the_way_out(bench: Bench) -> None:
    stage, _ = await kept(bench)
    with pytest.raises(Invalid, match="volume twin is 9 GiB; snapshot before needs 10 GiB"):
        await bench.create("volume", "shop", "twin", snapshot="before", size_gib=9)
    with pytest.raises(Invalid, match="both of an image and of a snapshot"):
        await bench.create("volume", "shop", "twin", snapshot="before", image="tiny")
    with pytest.raises(Invalid, match="has no size") as refused:
        await bench.create("volume", "shop", "blank")
    assert "say how large" in refused.value.fix
    assert (await bench.create("volume", "shop", "of-image", image="tiny")).spec.size_gib == 2
    clone = await bench.create("volume", "shop", "larger", snapshot="before", size_gib=20)
    with pytest.raises(Invalid, match="snapshot can't change once it is made"):
        await bench.change(clone, snapshot="before")
    await made(bench, stage, clone)
    await bench.change(stage.volume, vm=None)
    with pytest.raises(Invalid, match="is one of volume data, not of larger"):
        await say(bench, "volume", clone, "revert", snapshot="before")
