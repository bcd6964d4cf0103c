"""Volumes as units: files in a pool, cloned from the image cache in an instant."""

import asyncio
from collections.abc import Callable, Iterator

from agent.drivers import files
from agent.drivers.hypervisor import Hypervisor
from agent.drivers.images import ImageCache
from agent.drivers.place import Place
from agent.drivers.shown import GIB, CachedImage
from agent.kinds.unit import Do, Mark, Settled, Wait, Wish
from agent.kinds.volume_plan import (
    DiskUser,
    FetchImage,
    GrowDisk,
    MakeDisk,
    RemoveDisk,
    VolumeStep,
    VolumeView,
    fetching,
    needs_users,
    plan,
)
from common.clock import Clock
from common.documents import Report, VolumeDoc
from common.errors import Invalid
from common.faults import Faults
from common.protocol import Found

KEEP_PARTS_S = 3600.0

_STEP_NAMES: dict[type, str] = {
    FetchImage: "fetch-image",
    MakeDisk: "make-disk",
    GrowDisk: "grow-disk",
    RemoveDisk: "remove-disk",
}


class Volumes:
    """The unit kind `volume`. `report` is told of the progress of image fetches while a turn is under way."""

    name = "volume"

    def __init__(
        self,
        place: Place,
        images: ImageCache,
        hypervisor: Hypervisor,
        *,
        report: Callable[[Report], None],
        clock: Clock,
        faults: Faults,
    ) -> None:
        self._place, self._images, self._hypervisor = place, images, hypervisor
        self._report, self._clock, self._faults = report, clock, faults

    async def observe(self, wish: Wish) -> VolumeView:
        """Look at the file, the image cache, and where it matters at the domains that use the file."""
        (item,) = wish.items.values()
        doc = item.doc
        assert isinstance(doc, VolumeDoc)
        path = self._place.volume_file(doc.id)
        disk, unreadable = None, ""
        try:
            disk = files.look(path)
        except Invalid as err:
            unreadable = err.detail
        anything = files.anything_at(path)
        users: tuple[DiskUser, ...] = ()
        if needs_users(wish, disk, anything=anything):
            found = await self._hypervisor.users_of(str(path))
            users = tuple(DiskUser(name=user.name, active=user.active) for user in found)
        image = self._images.look(doc.image) if doc.image is not None and not item.gone else CachedImage()
        return VolumeView(disk=disk, anything=anything, image=image, users=users, unreadable=unreadable)

    def plan(self, wish: Wish, seen: VolumeView, now: float) -> Do[VolumeStep] | Mark | Wait | Settled:
        """Decide the next step: see `agent.kinds.volume_plan`."""
        return plan(wish, seen, now)

    async def apply(self, step: VolumeStep) -> None:
        """Carry out one step. Fetching an image may take long; it holds up this unit only."""
        point = f"volume.{_STEP_NAMES[type(step)]}"
        self._faults.reached(point)
        match step:
            case FetchImage():
                await self._images.ensure(step.image, self._progress(step))
            case MakeDisk(volume=volume, size_gib=size_gib, over=None):
                await files.make_disk(self._place.volume_file(volume), size_gib, None, "")
            case MakeDisk(volume=volume, size_gib=size_gib, over=over):
                assert over is not None
                self._images.touch(over)
                await files.make_disk(self._place.volume_file(volume), size_gib, self._images.path(over), over.format)
            case GrowDisk(volume=volume, size_gib=size_gib, running_in=None):
                await files.grow_disk(self._place.volume_file(volume), size_gib)
            case GrowDisk(volume=volume, size_gib=size_gib, running_in=vm):
                assert vm is not None
                path = str(self._place.volume_file(volume))
                await self._hypervisor.grow_disk(vm, path, size_gib * GIB)
            case RemoveDisk(volume=volume):
                await asyncio.to_thread(files.remove_disk, self._place.volume_file(volume))
        self._faults.reached(f"{point}.done")

    def _progress(self, step: FetchImage) -> Callable[[int], None]:
        """Return what reports progress for a fetch: at most once per percent."""
        shown = -1

        def tell(arrived: int) -> None:
            nonlocal shown
            percent = 100 * arrived // max(1, step.image.size_bytes)
            if percent == shown:
                return
            shown = percent
            self._report(fetching(step.key, step.revision, step.image, arrived))

        return tell

    async def evict(self, referenced: set[str]) -> None:
        """Remove images that no document names (`sha256:…`) and no disk lies over, and parts that nobody finishes."""
        now = self._clock()
        backing = await asyncio.to_thread(self._backing)
        await self._images.evict(referenced, backing, now)
        await asyncio.to_thread(self._remove_old_parts, now)

    def _backing(self) -> set[str]:
        """Return the names of the images that disks in the pool lie over."""
        found = set()
        for path in self._place.volumes.glob("*.qcow2*"):
            try:
                disk = files.look(path)
            except Invalid:
                continue
            if disk is not None and disk.backing:
                found.add(disk.backing.rpartition("/")[2])
        return found

    def _remove_old_parts(self, now: float) -> None:
        for path in self._place.volumes.glob("*-part"):
            if now - path.stat().st_mtime > KEEP_PARTS_S:
                files.remove(path)

    async def survey(self) -> tuple[Found, ...]:
        """List every file in the pool and in the image cache."""
        return await asyncio.to_thread(lambda: tuple(self._found()))

    def _found(self) -> Iterator[Found]:
        for path in sorted(self._place.volumes.glob("*")):
            what = "disk" if path.suffix == ".qcow2" else "file"
            yield Found(what=what, name=path.name, owner=files.owner(path), detail="in the pool")
        for entry in self._images.list():
            yield Found(what="image", name=entry.name, owner=None, detail="cached; removed when unused for an hour")
