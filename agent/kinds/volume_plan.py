"""What one volume and its snapshots need next: a pure function of the wish and of what is seen.

A unit is a volume's document and those of its snapshots. What can't be made anew without a lie, a data volume's disk
and a snapshot, has a mark once it was there: if it is missed afterwards, that is said, and nothing is put in its place.
"""

from typing import ClassVar

import msgspec

from agent.drivers.shown import GIB, CachedImage, Disk, Held
from agent.kinds.unit import Do, Mark, Settled, Wait, Wish
from common.documents import (
    Desired,
    DocKey,
    ImageRef,
    Report,
    SnapshotDoc,
    SnapshotRef,
    VolumeDoc,
    VolumeSeen,
    key_of,
)
from common.ids import Id, Revision

LOOK_AGAIN_S = 5.0
REFUSED_S = 600.0

MADE = "made"
"""The mark of a data volume whose disk was there; `taken <id>` is that of a snapshot."""


class FetchImage(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Have the image in the cache. Key and revision are those that progress is reported for."""

    image: ImageRef
    key: DocKey
    revision: Revision


class MakeDisk(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Make the disk: over the image, as a clone of the snapshot, or blank."""

    volume: Id
    size_gib: int
    over: ImageRef | SnapshotRef | None
    reverts: int = 0
    """What its reverts are counted from."""


class GrowDisk(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Make the disk larger, in the machine that is running with it where there is one."""

    volume: Id
    size_gib: int
    running_in: Id | None


class RemoveDisk(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Destroy the disk."""

    destroys: ClassVar[bool] = True
    volume: Id


class TakeSnapshot(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Keep what the disk holds now."""

    volume: Id
    snapshot: Id
    running_in: Id | None


class DropSnapshot(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Destroy a snapshot."""

    destroys: ClassVar[bool] = True
    volume: Id
    snapshot: Id
    running_in: Id | None

    @property
    def document(self) -> DocKey:
        """The one whose tombstone asks for it."""
        return key_of(SnapshotDoc(id=self.snapshot, volume=self.volume))


class RevertDisk(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Have the disk hold what a snapshot holds: its controller's revert of that number."""

    volume: Id
    snapshot: Id
    number: int


VolumeStep = FetchImage | MakeDisk | GrowDisk | RemoveDisk | TakeSnapshot | DropSnapshot | RevertDisk


class DiskUser(msgspec.Struct, frozen=True, kw_only=True):
    """A domain that has the disk in its definition."""

    name: str
    active: bool


class VolumeView(msgspec.Struct, frozen=True, kw_only=True):
    """All that a turn looks at."""

    held: Held
    image: CachedImage
    """Of the document's image, if it has one."""
    users: tuple[DiskUser, ...] = ()
    """Looked for only where it matters: before a disk is removed, grown or reverted, or a snapshot taken or dropped."""
    source: bool = False
    """Whether the snapshot is there that the disk is to be made from. Looked for only until it is made."""
    unreadable: str = ""
    """Why what has the disk's name can't be read as a disk."""

    @property
    def running_in(self) -> Id | None:
        """The machine that runs with the disk."""
        return next((Id(user.name) for user in self.users if user.active), None)


Outcome = Do[VolumeStep] | Mark | Wait | Settled


class _Snapshots(msgspec.Struct, frozen=True, kw_only=True):
    """The wishes for a volume's snapshots, in the order in which they came."""

    wanted: tuple[Desired, ...]
    gone: tuple[Desired, ...]


def volume_of(wish: Wish) -> Id:
    """Return the volume that a unit is about."""
    return Id(wish.unit.partition("/")[2])


def own_of(wish: Wish) -> Desired | None:
    """Return the wish for the volume itself; None: only snapshots are spoken of."""
    return wish.items.get(DocKey(wish.unit))


def _snapshots(wish: Wish) -> _Snapshots:
    found = [item for item in wish.items.values() if isinstance(item.doc, SnapshotDoc)]
    found.sort(key=lambda item: (item.revision, item.key))
    return _Snapshots(
        wanted=tuple(item for item in found if not item.gone), gone=tuple(item for item in found if item.gone)
    )


def _id_of(item: Desired) -> Id:
    assert isinstance(item.doc, SnapshotDoc)
    return item.doc.id


def needs_users(wish: Wish, held: Held) -> bool:
    """Say whether the plan depends on who uses the disk."""
    own, snapshots = own_of(wish), _snapshots(wish)
    if any(_id_of(item) in held.snapshots for item in snapshots.gone):
        return True
    if own is None or not held.anything:
        return False
    doc = own.doc
    assert isinstance(doc, VolumeDoc)
    if own.gone or held.disk is None:
        return own.gone
    changes = held.disk.size_bytes < doc.size_gib * GIB or held.disk.untold or held.reverts < doc.reverts
    return changes or any(_id_of(item) not in held.snapshots for item in snapshots.wanted)


def plan(wish: Wish, seen: VolumeView, _now: float) -> Outcome:
    """Decide the next step for one volume."""
    item, snapshots = own_of(wish), _snapshots(wish)
    if item is None:
        return _plan_snapshots_alone(wish, snapshots, seen)
    doc = item.doc
    assert isinstance(doc, VolumeDoc)
    if item.gone:
        return _plan_gone(item, doc, snapshots, seen)
    if seen.unreadable:
        return _stuck(item, doc, f"volume {doc.id}: {seen.unreadable}; restore the file, or delete the volume")
    if doc.image is not None and (waits := _plan_image(item, doc, doc.image, seen)):
        return waits
    disk = seen.held.disk
    if disk is None:
        return _plan_disk(item, doc, wish, seen)
    if doc.data and MADE not in wish.marks:
        return Mark(name=MADE, value="")
    if step := _plan_snapshots(wish, doc, snapshots, seen) or _plan_size(doc, disk, seen):
        return step
    return Settled(reports=(_report(item, doc, disk), *_reports(snapshots, seen.held)))


def _plan_image(item: Desired, doc: VolumeDoc, image: ImageRef, seen: VolumeView) -> Do[VolumeStep] | Wait | None:
    if seen.image.refused:
        return _stuck(item, doc, f"{seen.image.refused}; upload a good image and make the volume from that")
    if seen.image.arrived_bytes is not None or seen.image.crowded:
        return _wait_for_image(item, image, seen.image)
    if not seen.image.ready:
        return Do(FetchImage(image=image, key=item.key, revision=item.revision), "fetching the image")
    needed = -(-seen.image.disk_bytes // GIB)
    if seen.held.disk is None and needed > doc.size_gib:
        problem = f"volume {doc.id} is {doc.size_gib} GiB; its image needs {needed} GiB; create it with size ≥ {needed}"
        return _stuck(item, doc, problem)
    return None


def _plan_disk(item: Desired, doc: VolumeDoc, wish: Wish, seen: VolumeView) -> Do[VolumeStep] | Wait:
    if MADE in wish.marks:
        problem = (
            f"the disk of volume {doc.id} was here and is gone; bring its pool back (is its file system mounted, its "
            "volume group active?), restore it from a backup, or delete the volume"
        )
        return _stuck(item, doc, problem)
    if doc.snapshot is not None and not seen.source:
        message = f"waiting for snapshot {doc.snapshot.id} of volume {doc.snapshot.volume} on this host"
        return Wait(message=message, seconds=LOOK_AGAIN_S, reports=(_not_yet(item, message),))
    image = doc.image if doc.image is not None and doc.image.format != "kernel" else None
    step = MakeDisk(volume=doc.id, size_gib=doc.size_gib, over=doc.snapshot or image, reverts=doc.reverts)
    return Do(step, f"cloning snapshot {doc.snapshot.id}" if doc.snapshot else "making the disk")


def _plan_size(doc: VolumeDoc, disk: Disk, seen: VolumeView) -> Do[VolumeStep] | None:
    if disk.size_bytes >= doc.size_gib * GIB and not disk.untold:
        return None
    return Do(GrowDisk(volume=doc.id, size_gib=doc.size_gib, running_in=seen.running_in), "making the disk larger")


def _plan_snapshots(wish: Wish, doc: VolumeDoc, snapshots: _Snapshots, seen: VolumeView) -> Outcome | None:
    """Take what is wished before anything is reverted, and drop what is not before nothing is."""
    for item in snapshots.wanted:
        snapshot = _id_of(item)
        if (snapshot in seen.held.snapshots) and _taken(snapshot) not in wish.marks:
            return Mark(name=_taken(snapshot), value="")
        if snapshot not in seen.held.snapshots and _taken(snapshot) not in wish.marks:
            step = TakeSnapshot(volume=doc.id, snapshot=snapshot, running_in=seen.running_in)
            return Do(step, f"taking snapshot {snapshot}")
    if seen.held.reverts < doc.reverts:
        return _plan_revert(wish, doc, seen)
    return _plan_drop(doc.id, wish, snapshots, seen)


def _plan_drop(volume: Id, wish: Wish, snapshots: _Snapshots, seen: VolumeView) -> Do[VolumeStep] | Mark | None:
    for item in snapshots.gone:
        snapshot = _id_of(item)
        if snapshot in seen.held.snapshots:
            step = DropSnapshot(volume=volume, snapshot=snapshot, running_in=seen.running_in)
            return Do(step, f"dropping snapshot {snapshot}")
        if _taken(snapshot) in wish.marks:
            return Mark(name=_taken(snapshot), value=None)
    return None


def _plan_revert(wish: Wish, doc: VolumeDoc, seen: VolumeView) -> Do[VolumeStep] | Wait:
    item = own_of(wish)
    assert item is not None
    if doc.revert_to is None or doc.revert_to not in seen.held.snapshots:
        return _stuck(item, doc, f"volume {doc.id} can't be reverted: it has no snapshot {doc.revert_to} on this host")
    if seen.running_in:
        message = f"waiting for {seen.running_in} to be off, so that the disk can be reverted"
        return Wait(message=message, seconds=LOOK_AGAIN_S, reports=(_not_yet(item, message),))
    step = RevertDisk(volume=doc.id, snapshot=doc.revert_to, number=doc.reverts)
    return Do(step, f"reverting the disk to snapshot {doc.revert_to}")


def _plan_snapshots_alone(wish: Wish, snapshots: _Snapshots, seen: VolumeView) -> Outcome:
    """Drop what nobody wants of a volume that nobody speaks of."""
    if step := _plan_drop(volume_of(wish), wish, snapshots, seen):
        return step
    if not snapshots.wanted:
        return Settled(reports=_reports(snapshots, seen.held))
    message = f"waiting for volume {volume_of(wish)} on this host"
    return Wait(message=message, seconds=LOOK_AGAIN_S, reports=tuple(_not_yet(i, message) for i in snapshots.wanted))


def _plan_gone(item: Desired, doc: VolumeDoc, snapshots: _Snapshots, seen: VolumeView) -> Outcome:
    if not seen.held.anything:
        done = Report(key=item.key, revision=item.revision, done=True)
        lost = tuple(_not_yet(one, f"volume {doc.id} is gone") for one in snapshots.wanted)
        left = tuple(one for one in snapshots.gone if _id_of(one) in seen.held.snapshots)
        if left:
            step = DropSnapshot(volume=doc.id, snapshot=_id_of(left[0]), running_in=None)
            return Do(step, f"dropping snapshot {step.snapshot}")
        return Settled(reports=(done, *lost, *(_as_wished(one) for one in snapshots.gone)))
    if seen.users:
        message = f"waiting for {', '.join(user.name for user in seen.users)} to let go of it"
        return Wait(message=message, seconds=LOOK_AGAIN_S, reports=(_not_yet(item, message),))
    return Do(RemoveDisk(volume=doc.id), "removing the disk")


def _taken(snapshot: Id) -> str:
    return f"taken {snapshot}"


def _as_wished(item: Desired) -> Report:
    """Say that it is as wished: there, or (for a tombstone) gone."""
    return Report(key=item.key, revision=item.revision, done=True)


def _not_yet(item: Desired, message: str) -> Report:
    return Report(key=item.key, revision=item.revision, done=False, message=message)


def _reports(snapshots: _Snapshots, held: Held) -> tuple[Report, ...]:
    """Report on the snapshots of a volume that needs no step: each is there, lost, or gone as wished."""
    wanted = (
        _as_wished(item)
        if _id_of(item) in held.snapshots
        else Report(
            key=item.key,
            revision=item.revision,
            done=False,
            problem=f"snapshot {_id_of(item)} was here and is gone from the host's pool; delete it",
        )
        for item in snapshots.wanted
    )
    return (*wanted, *(_as_wished(item) for item in snapshots.gone))


def fetching(key: DocKey, revision: Revision, image: ImageRef, arrived: int) -> Report:
    """Report how far the fetch of an image is, in whole percent."""
    message = f"fetching the image: {arrived >> 20} of {image.size_bytes >> 20} MiB"
    progress = (100 * arrived // max(1, image.size_bytes)) / 100
    return Report(key=key, revision=revision, done=False, message=message, progress=progress)


def _wait_for_image(item: Desired, image: ImageRef, cached: CachedImage) -> Wait:
    """Let the turn go while others fetch: turns are few. The loop looks again when one of them is through."""
    if cached.arrived_bytes is None:
        message = "waiting for other images to be fetched first"
        return Wait(
            message=message,
            seconds=LOOK_AGAIN_S,
            reports=(Report(key=item.key, revision=item.revision, done=False, message=message),),
        )
    report = fetching(item.key, item.revision, image, cached.arrived_bytes)
    return Wait(message=report.message, seconds=1, reports=(report,))


def _stuck(item: Desired, doc: VolumeDoc, problem: str) -> Wait:
    """Say what is wrong; only another document or somebody's hand makes it right."""
    report = Report(key=key_of(doc), revision=item.revision, done=False, problem=problem)
    return Wait(message=problem, seconds=REFUSED_S, reports=(report,))


def _report(item: Desired, doc: VolumeDoc, disk: Disk) -> Report:
    size_gib = disk.size_bytes // GIB
    message = ""
    if size_gib > doc.size_gib:
        message = f"it is {size_gib} GiB and stays so: disks never shrink"
    seen = VolumeSeen(size_gib=size_gib, allocated_bytes=disk.allocated_bytes)
    return Report(key=item.key, revision=item.revision, done=True, message=message, seen=seen)
