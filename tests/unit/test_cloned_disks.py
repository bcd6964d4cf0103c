"""A disk that is made from a snapshot: it waits for that, holds what was kept whatever came later, and is free then."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.drivers import files
from agent.drivers.shown import GIB
from agent.kinds.unit import Mark, Settled, UnitKey, Wait, Wish
from agent.kinds.volume_plan import MADE, MakeDisk, plan
from common.documents import Desired, ImageRef, SnapshotRef, VolumeDoc, key_of
from common.errors import Temporary
from common.ids import Id, Revision
from common.run import run
from tests.unit.test_volume_plan import Source, _die_at, place, settle, source, step_of, view, volumes

__all__ = ["place", "source"]

ORIGIN, CLONE, SNAP = Id("vol-0123456789ab"), Id("vol-zzzzzzzzzzzz"), Id("snap-0123456789ab")
FROM = SnapshotRef(id=SNAP, volume=ORIGIN)
BLOCK = 64 << 10


def clone(size_gib: int = 1, *marks: str, gone: bool = False) -> Wish:
    """Return the wish for a volume that is made from a snapshot."""
    doc = VolumeDoc(id=CLONE, size_gib=size_gib, image=None, data=True, snapshot=FROM)
    item = Desired(key=key_of(doc), revision=Revision(9), doc=doc, gone=gone)
    return Wish(unit=UnitKey(item.key), items={item.key: item}, marks=dict.fromkeys(marks, ""))


def test_a_clone_waits_for_its_snapshot_and_is_never_made_blank() -> None:
    waits = plan(clone(), view(), 0)
    assert isinstance(waits, Wait)
    assert waits.reports[0].message == f"waiting for snapshot {SNAP} of volume {ORIGIN} on this host"
    assert step_of(plan(clone(), view(source=True), 0)) == MakeDisk(volume=CLONE, size_gib=1, over=FROM)
    assert plan(clone(), view(1), 0) == Mark(name=MADE, value="")
    assert isinstance(plan(clone(1, MADE), view(1), 0), Settled), "its snapshot may be gone by now"
    missed = plan(clone(1, MADE), view(source=True), 0)
    assert isinstance(missed, Wait)
    assert "was here and is gone" in missed.reports[0].problem


# --- in files -----------------------------------------------------------------------------------------------------


async def write(disk: Path, text: str, at: int = 0) -> None:
    content = disk.parent.parent / "content"
    content.write_bytes(text.encode().ljust(512, b"\0"))
    await run(["qemu-io", "-f", "qcow2", "-c", f"write -s {content} {at} 512", str(disk)])


async def read(disk: Path, at: int = 0) -> str:
    flat = disk.parent.parent / "flat"
    # qemu-img counts what it skips.
    words = ["bs=512", f"skip={at // 512}", f"count={at // 512 + 1}", f"if={disk}", f"of={flat}"]
    await run(["qemu-img", "dd", "-f", "qcow2", "-O", "raw", *words])
    return flat.read_bytes().rstrip(b"\0").decode()


def size_gib(disk: Path) -> int:
    found = files.look(disk)
    assert found is not None
    return found.size_bytes // GIB


async def origin(place: Any, source: Source, image: ImageRef | None = None) -> Path:
    """Have a disk of 1 GiB with a snapshot that keeps `first`, written over and grown since."""
    doc = VolumeDoc(id=ORIGIN, size_gib=1, image=image, data=True)
    item = Desired(key=key_of(doc), revision=Revision(3), doc=doc)
    await settle(volumes(place, source), Wish(unit=UnitKey(item.key), items={item.key: item}, marks={}))
    disk: Path = place.volume_file(ORIGIN)
    await write(disk, "first")
    await files.take_snapshot(disk, SNAP)
    await write(disk, "second")
    await write(disk, "more", BLOCK)
    await files.grow_disk(disk, 3)
    return disk


@pytest.mark.parametrize("wished_gib", [1, 2])
async def test_a_clone_holds_what_was_kept_and_is_as_large_as_wished(
    place: Any, source: Source, wished_gib: int
) -> None:
    disk, twin = await origin(place, source), place.volume_file(CLONE)
    assert isinstance(await settle(volumes(place, source), clone(wished_gib)), Settled)
    assert (await read(twin), await read(twin, BLOCK), size_gib(twin)) == ("first", "", wished_gib)
    assert files.snapshots(twin) == {}
    await write(twin, "its own")
    assert await read(disk) == "second"
    await files.drop_snapshot(disk, SNAP)
    files.remove(disk)
    assert await read(twin) == "its own"
    assert isinstance(await settle(volumes(place, source), clone(wished_gib, MADE)), Settled)


async def test_a_clone_of_what_came_from_an_image_lies_over_that_image_too(place: Any, source: Source) -> None:
    image = source.offer(os.urandom(2 * BLOCK) + b"of the image".ljust(BLOCK, b"\0"), "raw")
    disk, twin = await origin(place, source, image), place.volume_file(CLONE)
    await settle(volumes(place, source), clone())
    assert (await read(twin), await read(twin, 2 * BLOCK)) == ("first", "of the image")
    found, its = files.look(twin), files.look(disk)
    assert found is not None
    assert its is not None
    assert found.backing == its.backing != ""
    assert found.allocated_bytes < 10 * BLOCK, "the image was not copied"


@pytest.mark.parametrize("deadly", ["volume.make-disk", "volume.make-disk.done"])
async def test_a_clone_is_whole_whoever_died_in_its_making(place: Any, source: Source, deadly: str) -> None:
    await origin(place, source)
    part = place.volumes / f"{CLONE}.qcow2-part"
    part.write_bytes(b"half")
    await _die_at(deadly, lambda faults: settle(volumes(place, source, faults=faults), clone()))
    assert isinstance(await settle(volumes(place, source), clone()), Settled)
    assert await read(place.volume_file(CLONE)) == "first"
    assert not part.exists()


async def test_a_snapshot_that_is_not_there_or_is_being_cut_off_makes_no_disk(place: Any, source: Source) -> None:
    disk, twin = await origin(place, source), place.volume_file(CLONE)
    with pytest.raises(Temporary, match=r"no snapshot snap-zzzzzzzzzzzz in vol-0123456789ab\.qcow2"):
        await files.clone_snapshot(twin, 1, disk, "snap-zzzzzzzzzzzz")
    assert isinstance(await settle(volumes(place, source), Wish(**_missing())), Wait)
    await files.take_snapshot(disk, "of-three")
    await files.revert_to(disk, SNAP)
    with pytest.raises(Temporary, match="made smaller while it was read"):
        await files.clone_snapshot(twin, 3, disk, "of-three")
    assert not twin.exists()
    await files.grow_disk(disk, 3)
    await files.clone_snapshot(twin, 3, disk, "of-three")
    assert await read(twin, BLOCK) == "more"


def _missing() -> dict[str, Any]:
    """Return the wish for a clone of a snapshot that its host does not have."""
    wanted = clone()
    (item,) = wanted.items.values()
    doc = VolumeDoc(id=CLONE, size_gib=1, image=None, snapshot=SnapshotRef(id=Id("snap-zzzzzzzzzzzz"), volume=ORIGIN))
    return {"unit": wanted.unit, "marks": {}, "items": {item.key: Desired(key=item.key, revision=Revision(9), doc=doc)}}


WRITES = st.lists(st.tuples(st.integers(0, 15), st.sampled_from("abc")), max_size=6)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=WRITES, after=WRITES)
async def test_whatever_is_written_later_a_clone_holds_what_was_there(
    place: Any, before: list[tuple[int, str]], after: list[tuple[int, str]]
) -> None:
    disk, twin = place.volume_file(ORIGIN), place.volume_file(CLONE)
    files.remove(disk)
    files.remove(twin)
    await files.make_disk(disk, 1, None, "")
    held: dict[int, str] = {}
    await _fill(disk, before)
    held.update(before)
    await files.take_snapshot(disk, SNAP)
    await _fill(disk, after)
    await files.clone_snapshot(twin, 1, disk, SNAP)
    checks = [word for at, text in held.items() for word in ("-c", f"read -P {ord(text)} {at * 4096} 4096")]
    checks += [word for at in set(range(16)) - set(held) for word in ("-c", f"read -P 0 {at * 4096} 4096")]
    assert "Pattern verification failed" not in await run(["qemu-io", "-r", "-f", "qcow2", *checks, str(twin)])


async def _fill(disk: Path, writes: list[tuple[int, str]]) -> None:
    words = [word for at, text in writes for word in ("-c", f"write -P {ord(text)} {at * 4096} 4096")]
    if words:
        await run(["qemu-io", "-f", "qcow2", *words, str(disk)])
