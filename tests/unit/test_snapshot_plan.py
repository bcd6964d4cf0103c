"""What a data volume and its snapshots need next: nothing lost is replaced, nothing is reverted twice."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.drivers.place import Place
from agent.kinds.unit import Mark, Settled, UnitKey, Wait, Wish
from agent.kinds.volume_plan import (
    MADE,
    DiskUser,
    DropSnapshot,
    GrowDisk,
    MakeDisk,
    RemoveDisk,
    RevertDisk,
    TakeSnapshot,
    needs_users,
    plan,
)
from agent.loop import DestroyedUnasked, guard_destruction
from common.documents import Desired, SnapshotDoc, VolumeDoc, key_of
from common.ids import Id, Revision
from common.run import run
from tests.unit.test_volume_plan import VOLUME, Source, _die_at, place, settle, source, step_of, view, volumes, wish

__all__ = ["place", "source"]

SNAP = Id("snap-0123456789ab")
LATER = Id("snap-zzzzzzzzzzzz")
VM = Id("vm-0123456789ab")
ON = (DiskUser(name=VM, active=True),)
OFF = (DiskUser(name=VM, active=False),)


def data(*snapshots: Id, gone: tuple[Id, ...] = (), marks: tuple[str, ...] = (MADE,), **changes: Any) -> Wish:
    """Return the wish for a data volume and its snapshots."""
    doc = msgspec.structs.replace(VolumeDoc(id=VOLUME, size_gib=4, image=None, data=True), **changes)
    found = [Desired(key=key_of(doc), revision=Revision(3), doc=doc)]
    for number, one in enumerate((*snapshots, *gone)):
        kept = SnapshotDoc(id=one, volume=VOLUME)
        found.append(Desired(key=key_of(kept), revision=Revision(4 + number), doc=kept, gone=one in gone))
    return Wish(unit=UnitKey(key_of(doc)), items={one.key: one for one in found}, marks=dict.fromkeys(marks, ""))


def test_a_data_volume_that_vanished_is_missed_and_not_made_anew() -> None:
    assert isinstance(step_of(plan(data(marks=()), view(), 0)), MakeDisk)
    assert plan(data(marks=()), view(4), 0) == Mark(name=MADE, value="")
    missed = plan(data(), view(), 0)
    assert isinstance(missed, Wait)
    assert "was here and is gone; bring its pool back" in missed.reports[0].problem


def test_a_snapshot_is_taken_once_and_missed_afterwards() -> None:
    taking = TakeSnapshot(volume=VOLUME, snapshot=SNAP, running_in=None)
    assert step_of(plan(data(SNAP), view(4), 0)) == taking
    assert step_of(plan(data(SNAP), view(4, users=OFF), 0)) == taking
    assert step_of(plan(data(SNAP), view(4, users=ON), 0)) == msgspec.structs.replace(taking, running_in=VM)
    assert plan(data(SNAP), view(4, snapshots=frozenset({SNAP})), 0) == Mark(name=f"taken {SNAP}", value="")
    marks = (MADE, f"taken {SNAP}")
    there = plan(data(SNAP, marks=marks), view(4, snapshots=frozenset({SNAP})), 0)
    assert isinstance(there, Settled)
    assert {report.key: report.done for report in there.reports} == {f"volume/{VOLUME}": True, f"snapshot/{SNAP}": True}
    lost = plan(data(SNAP, marks=marks), view(4), 0)
    assert isinstance(lost, Settled)
    assert (lost.reports[1].done, "is gone from the host's pool" in lost.reports[1].problem) == (False, True)


def test_a_snapshot_that_is_not_wanted_any_more_is_dropped_by_its_own_tombstone() -> None:
    wanted = data(gone=(SNAP,), marks=(MADE, f"taken {SNAP}"))
    step = step_of(plan(wanted, view(4, snapshots=frozenset({SNAP, LATER}), users=ON), 0))
    assert step == DropSnapshot(volume=VOLUME, snapshot=SNAP, running_in=VM)
    guard_destruction(wanted, step)
    with pytest.raises(DestroyedUnasked):
        guard_destruction(data(SNAP), step)
    with pytest.raises(DestroyedUnasked):
        guard_destruction(wanted, RemoveDisk(volume=VOLUME))
    assert plan(wanted, view(4), 0) == Mark(name=f"taken {SNAP}", value=None)
    assert isinstance(plan(data(gone=(SNAP,)), view(4), 0), Settled)


def test_the_snapshot_of_a_volume_that_nobody_speaks_of_is_dropped_alone() -> None:
    kept = SnapshotDoc(id=SNAP, volume=VOLUME)
    item = Desired(key=key_of(kept), revision=Revision(3), doc=kept, gone=True)
    orphan = Wish(unit=UnitKey(f"volume/{VOLUME}"), items={item.key: item}, marks={})
    assert isinstance(step_of(plan(orphan, view(4, snapshots=frozenset({SNAP})), 0)), DropSnapshot)
    assert isinstance(plan(orphan, view(4), 0), Settled)
    wanted = msgspec.structs.replace(orphan, items={item.key: msgspec.structs.replace(item, gone=False)})
    assert isinstance(plan(wanted, view(), 0), Wait)


def test_a_disk_is_reverted_once_and_only_while_nobody_runs_with_it() -> None:
    wanted = data(SNAP, reverts=2, revert_to=SNAP, marks=(MADE, f"taken {SNAP}"))
    kept = frozenset({SNAP})
    assert step_of(plan(wanted, view(4, snapshots=kept, reverts=1, users=OFF), 0)) == RevertDisk(
        volume=VOLUME, snapshot=SNAP, number=2
    )
    waiting = plan(wanted, view(4, snapshots=kept, reverts=1, users=ON), 0)
    assert isinstance(waiting, Wait)
    assert f"waiting for {VM} to be off" in waiting.message
    assert isinstance(plan(wanted, view(4, snapshots=kept, reverts=2, users=ON), 0), Settled)
    lost = plan(wanted, view(4, reverts=1), 0)
    assert isinstance(lost, Wait)
    assert f"has no snapshot {SNAP}" in lost.reports[0].problem


def test_what_was_asked_for_first_is_kept_before_a_revert_and_grows_after_it() -> None:
    wanted = data(SNAP, LATER, reverts=1, revert_to=SNAP, size_gib=8, marks=(MADE, f"taken {SNAP}"))
    assert isinstance(step_of(plan(wanted, view(4, snapshots=frozenset({SNAP})), 0)), TakeSnapshot)
    marked = msgspec.structs.replace(wanted, marks={**wanted.marks, f"taken {LATER}": ""})
    both = frozenset({SNAP, LATER})
    assert isinstance(step_of(plan(marked, view(4, snapshots=both), 0)), RevertDisk)
    assert isinstance(step_of(plan(marked, view(4, snapshots=both, reverts=1), 0)), GrowDisk)


def test_users_are_looked_for_where_the_plan_depends_on_them() -> None:
    held = view(4).held
    assert not needs_users(data(), held)
    assert needs_users(data(SNAP), held)
    assert needs_users(data(size_gib=8), held)
    assert needs_users(data(reverts=1), held)
    assert needs_users(data(gone=(SNAP,)), msgspec.structs.replace(held, snapshots=frozenset({SNAP})))
    assert needs_users(wish(gone=True), held)


# --- the unit ---


async def test_snapshots_keep_what_was_there_and_a_revert_brings_it_back_whoever_died(
    place: Place, source: Source
) -> None:
    disk = place.volumes / f"{VOLUME}.qcow2"
    marks = {MADE: "", f"taken {SNAP}": ""}
    for step in ("nothing", "take-snapshot.done", "revert-disk", "revert-disk.done", "drop-snapshot"):
        deadly = f"volume.{step}"
        unit, made = volumes(place, source), msgspec.structs.replace(data(), marks=marks)
        await settle(unit, data(marks=()))
        await _write(disk, b"first")
        wanted = data(SNAP, marks=())
        await _die_at(deadly, lambda faults, wanted=wanted: settle(volumes(place, source, faults=faults), wanted))  # type: ignore[misc]
        await settle(unit, wanted)
        await _write(disk, b"again")
        wanted = msgspec.structs.replace(data(SNAP, reverts=1, revert_to=SNAP), marks=marks)
        await _die_at(deadly, lambda faults, wanted=wanted: settle(volumes(place, source, faults=faults), wanted))  # type: ignore[misc]
        outcome = await settle(unit, wanted)
        assert isinstance(outcome, Settled)
        assert await _read(disk) == b"first"
        await _write(disk, b"since")
        assert isinstance(await settle(unit, wanted), Settled)
        assert await _read(disk) == b"since", "it is reverted once"
        assert {one.name for one in await unit.survey()} >= {VOLUME, SNAP}
        await settle(unit, msgspec.structs.replace(data(gone=(SNAP,), reverts=1, revert_to=SNAP), marks=made.marks))
        await settle(unit, wish(gone=True))
        assert list(place.volumes.iterdir()) == []


async def _write(disk: Path, text: bytes) -> None:
    await run(["qemu-io", "-f", "qcow2", "-c", f"write -s {_file(disk, text)} 0 512", str(disk)])


def _file(disk: Path, text: bytes) -> Path:
    content = disk.parent.parent / "content"
    content.write_bytes(text.ljust(512, b"\0"))
    return content


async def _read(disk: Path) -> bytes:
    flat = disk.parent.parent / "flat"
    await run(["qemu-img", "dd", "-f", "qcow2", "-O", "raw", "bs=512", "count=1", f"if={disk}", f"of={flat}"])
    return flat.read_bytes().rstrip(b"\0")
