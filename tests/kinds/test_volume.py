"""A volume's life: a document on its host, followed to its end."""

import pytest

from common.documents import VolumeDoc
from common.errors import Denied
from common.ids import HostId
from common.kinds import kind_named
from common.kinds.kind import AnyResource
from controller.auth.caller import authorise
from controller.auth.rights import subject_of
from controller.kinds import admission
from controller.kinds.admission import NewResource
from controller.kinds.outcome import Do, Done, Wait
from controller.store.writes import DeleteChild, PutDocument, Tombstone
from tests.kinds.bench import READY, Bench


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


async def test_users_neither_make_nor_delete_volumes(bench: Bench) -> None:
    volume, _ = await made(bench)
    kind = kind_named("volume")
    assert (kind.create, kind.change, kind.delete) == (None, None, None)
    with pytest.raises(Denied, match=r"nobody has volume\.delete"):
        authorise(bench.context.caller, "volume.delete", subject_of(volume, bench.store.seen))
    with pytest.raises(Exception, match="host is set by Skerry"):
        admission.create(bench.context, kind, "shop", NewResource(name="x", spec={"size_gib": 1, "host": "h1"}))
    with pytest.raises(Exception, match="belongs to vm web"):
        await bench.delete(volume)
