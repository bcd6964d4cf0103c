"""What one volume needs next: a pure function of the wish and of what is seen."""

from typing import ClassVar

import msgspec

from agent.drivers.shown import GIB, CachedImage, Disk
from agent.kinds.unit import Do, Mark, Settled, Wait, Wish
from common.documents import Desired, DocKey, ImageRef, Report, VolumeDoc, VolumeSeen, key_of
from common.ids import Id, Revision

LOOK_AGAIN_S = 5.0
REFUSED_S = 600.0


class FetchImage(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Have the image in the cache. Key and revision are those that progress is reported for."""

    image: ImageRef
    key: DocKey
    revision: Revision


class MakeDisk(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Make the disk: over the image, or blank."""

    volume: Id
    size_gib: int
    over: ImageRef | None


class GrowDisk(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Make the disk larger, in the machine that is running with it where there is one."""

    volume: Id
    size_gib: int
    running_in: Id | None


class RemoveDisk(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Destroy the disk."""

    destroys: ClassVar[bool] = True
    volume: Id


VolumeStep = FetchImage | MakeDisk | GrowDisk | RemoveDisk


class DiskUser(msgspec.Struct, frozen=True, kw_only=True):
    """A domain that has the disk in its definition."""

    name: str
    active: bool


class VolumeView(msgspec.Struct, frozen=True, kw_only=True):
    """All that a turn looks at."""

    disk: Disk | None
    anything: bool
    """Whether the disk or a part of it exists."""
    image: CachedImage
    """Of the document's image, if it has one."""
    users: tuple[DiskUser, ...] = ()
    """Looked for only where it matters: before a disk is removed or grown."""
    unreadable: str = ""
    """Why the file under the disk's name can't be read as a disk."""


Outcome = Do[VolumeStep] | Mark | Wait | Settled


def needs_users(wish: Wish, disk: Disk | None, *, anything: bool) -> bool:
    """Say whether the plan depends on who uses the disk."""
    (item,) = wish.items.values()
    doc = item.doc
    assert isinstance(doc, VolumeDoc)
    return anything and (item.gone or (disk is not None and disk.size_bytes < doc.size_gib * GIB))


def plan(wish: Wish, seen: VolumeView, _now: float) -> Outcome:
    """Decide the next step for one volume."""
    (item,) = wish.items.values()
    doc = item.doc
    assert isinstance(doc, VolumeDoc)
    if item.gone:
        return _plan_gone(item, doc, seen)
    if seen.unreadable:
        return _stuck(item, doc, f"volume {doc.id}: {seen.unreadable}; restore the file, or delete the volume")
    if doc.image is not None:
        if seen.image.refused:
            return _stuck(item, doc, f"{seen.image.refused}; upload a good image and make the volume from that")
        if seen.image.arrived_bytes is not None or seen.image.crowded:
            return _wait_for_image(item, doc.image, seen.image)
        if not seen.image.ready:
            return Do(FetchImage(image=doc.image, key=item.key, revision=item.revision), "fetching the image")
        needed = -(-seen.image.disk_bytes // GIB)
        if seen.disk is None and needed > doc.size_gib:
            return _stuck(
                item,
                doc,
                f"volume {doc.id} is {doc.size_gib} GiB; its image needs {needed} GiB; create it with size ≥ {needed}",
            )
    if seen.disk is None:
        over = doc.image if doc.image is not None and doc.image.format != "kernel" else None
        return Do(MakeDisk(volume=doc.id, size_gib=doc.size_gib, over=over), "making the disk")
    if seen.disk.size_bytes < doc.size_gib * GIB:
        running = next((Id(user.name) for user in seen.users if user.active), None)
        return Do(GrowDisk(volume=doc.id, size_gib=doc.size_gib, running_in=running), "making the disk larger")
    return Settled(reports=(_report(item, doc, seen.disk),))


def _plan_gone(item: Desired, doc: VolumeDoc, seen: VolumeView) -> Outcome:
    if not seen.anything:
        return Settled(reports=(Report(key=item.key, revision=item.revision, done=True),))
    if seen.users:
        message = f"waiting for {', '.join(user.name for user in seen.users)} to let go of it"
        return Wait(
            message=message,
            seconds=LOOK_AGAIN_S,
            reports=(Report(key=item.key, revision=item.revision, done=False, message=message),),
        )
    return Do(RemoveDisk(volume=doc.id), "removing the disk")


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
