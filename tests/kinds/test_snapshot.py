"""A snapshot's life: it claims its room beside its volume, is taken there, and dropped there."""

import pytest

from common.documents import DocKey, SnapshotDoc
from common.errors import Conflict, SkerryError
from common.ids import Id
from common.kinds.kind import AnyResource
from controller.kinds.outcome import Blocked, Done, Wait
from tests.kinds.bench import Bench
from tests.kinds.test_volume import Stage, attached, machine, say


async def test_a_snapshot_is_taken_beside_its_volume_and_dropped_there(bench: Bench) -> None:
    stage = await attached(bench)
    snapshot = await bench.create("snapshot", "shop", "before", volume="data")
    assert snapshot.spec.size_gib == 10
    waits = await bench.rest(snapshot)
    assert isinstance(waits, Wait)
    (doc,) = [one.doc for one in bench.documents(stage.host).values() if isinstance(one.doc, SnapshotDoc)]
    assert doc == SnapshotDoc(id=snapshot.id, volume=stage.volume.id)
    placement = bench.store.seen.placement(snapshot.id)
    assert placement is not None
    assert (placement.host, placement.vcpus, placement.memory_mib, placement.disk_gib) == (stage.host, 0, 0, 10)
    bench.report(stage.host, f"snapshot/{snapshot.id}")
    done = bench.plan(snapshot)
    assert isinstance(done, Done)
    assert done.status.state == "ready"

    await bench.change(stage.volume, vm=None)
    with pytest.raises(Conflict, match="used by snapshot before"):
        await bench.delete(stage.volume)
    await bench.delete(snapshot)
    await bench.buried([snapshot], [stage.host])
    assert bench.store.seen.placement(snapshot.id) is None


async def test_a_snapshot_that_finds_no_room_is_blocked_with_the_figures(bench: Bench) -> None:
    stage = await attached(bench, size_gib=50)
    snapshot = await bench.create("snapshot", "shop", "before", volume="data")
    blocked = await bench.rest(snapshot)
    assert isinstance(blocked, Blocked)
    assert "needs 50 GiB of disk more; 40 are free on host h1" in blocked.why.summary
    assert stage.volume.spec.size_gib == 50


async def test_a_snapshot_of_a_volume_that_never_got_a_host_says_so(bench: Bench) -> None:
    await machine(bench)
    volume = await bench.create("volume", "shop", "data", size_gib=10, vm="web")
    snapshot = await bench.create("snapshot", "shop", "before", volume="data")
    assert isinstance(bench.plan(snapshot), Wait)
    await bench.change(volume, vm=None)
    blocked = bench.plan(snapshot)
    assert isinstance(blocked, Blocked)
    assert blocked.why.summary == "volume data lies on no host yet"
    assert "skerry volume attach data" in blocked.why.smallest_change


async def test_what_can_not_be_kept_is_refused_with_the_way_out(bench: Bench) -> None:
    await attached(bench)
    await bench.create("volume", "shop", "blank", size_gib=1)
    with pytest.raises(Conflict, match="a disk of vm web"):
        await bench.create("snapshot", "shop", "no", volume="web")
    with pytest.raises(Conflict, match="holds nothing yet"):
        await bench.create("snapshot", "shop", "no", volume="blank")


async def reverting(bench: Bench) -> tuple[Stage, AnyResource]:
    """Have a volume on the way back to a snapshot."""
    stage = await attached(bench)
    snapshot = await bench.create("snapshot", "shop", "before", volume="data")
    await bench.rest(snapshot)
    bench.report(stage.host, f"snapshot/{snapshot.id}")
    await bench.seen_through(snapshot)
    await bench.change(stage.volume, vm=None)
    await say(bench, "volume", stage.volume, "revert", snapshot="before")
    return stage, snapshot


async def test_a_snapshot_stays_while_its_volume_is_on_the_way_back_to_it(bench: Bench) -> None:
    stage, snapshot = await reverting(bench)
    with pytest.raises(SkerryError, match="is being changed"):
        await bench.create("snapshot", "shop", "meanwhile", volume="data")
    assert bench.now(stage.volume).spec.revert_to == Id(snapshot.id)
    await bench.delete(snapshot)
    waits = await bench.rest(snapshot)
    assert isinstance(waits, Wait)
    assert "kept until volume data is reverted to it" in waits.message
    assert not bench.documents(stage.host)[DocKey(f"snapshot/{snapshot.id}")].gone
    await bench.rest(stage.volume)
    bench.report(stage.host, f"volume/{stage.volume.id}")
    await bench.rest(snapshot)
    assert bench.documents(stage.host)[DocKey(f"snapshot/{snapshot.id}")].gone
    bench.report(stage.host, f"snapshot/{snapshot.id}")


async def test_a_snapshot_goes_with_a_volume_that_never_came_back_to_it(bench: Bench) -> None:
    stage, snapshot = await reverting(bench)
    await bench.delete(snapshot)
    assert isinstance(await bench.rest(snapshot), Wait)
    await bench.delete(stage.volume)
    await bench.rest(snapshot)
    assert bench.documents(stage.host)[DocKey(f"snapshot/{snapshot.id}")].gone
