"""Volumes as units: disks and their snapshots in a pool, cloned from the image cache in an instant."""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import msgspec

from agent.drivers import files
from agent.drivers.hypervisor import Hypervisor
from agent.drivers.images import ImageCache
from agent.drivers.place import Place
from agent.drivers.pool import Pool
from agent.drivers.shown import CachedImage, Held
from agent.kinds.unit import Do, Mark, Settled, Wait, Wish
from agent.kinds.volume_plan import (
    DiskUser,
    DropSnapshot,
    FetchImage,
    GrowDisk,
    MakeDisk,
    RemoveDisk,
    RevertDisk,
    TakeSnapshot,
    VolumeStep,
    VolumeView,
    fetching,
    needs_users,
    own_of,
    plan,
    volume_of,
)
from common.clock import Clock
from common.documents import Report, SnapshotRef, VolumeDoc
from common.errors import Invalid
from common.faults import Faults
from common.firmware import Firmware
from common.ids import Id
from common.protocol import Found

_STEP_NAMES: dict[type, str] = {
    FetchImage: "fetch-image",
    MakeDisk: "make-disk",
    GrowDisk: "grow-disk",
    RemoveDisk: "remove-disk",
    TakeSnapshot: "take-snapshot",
    DropSnapshot: "drop-snapshot",
    RevertDisk: "revert-disk",
}


class Volumes:
    """The unit kind `volume`. `report` is told of the progress of image fetches while a turn is under way."""

    name = "volume"

    def __init__(
        self,
        place: Place,
        pool: Pool,
        images: ImageCache,
        hypervisor: Hypervisor,
        *,
        report: Callable[[Report], None],
        clock: Clock,
        faults: Faults,
    ) -> None:
        self._place, self._pool, self._images, self._hypervisor = place, pool, images, hypervisor
        self._report, self._clock, self._faults = report, clock, faults

    async def observe(self, wish: Wish) -> VolumeView:
        """Look at the disk, the image cache, and where it matters at the domains that use the disk."""
        volume, item = volume_of(wish), own_of(wish)
        doc = item.doc if item is not None and not item.gone else None
        assert doc is None or isinstance(doc, VolumeDoc)
        held, unreadable = Held(anything=True), ""
        try:
            held = await self._pool.look(volume)
        except Invalid as err:
            unreadable = err.detail
        if self._variables(volume):
            held = msgspec.structs.replace(held, anything=True)
        users: tuple[DiskUser, ...] = ()
        if needs_users(wish, held):
            found = await self._hypervisor.users_of(self._place.disk(volume).path)
            users = tuple(DiskUser(name=user.name, active=user.active) for user in found)
        image = self._images.look(doc.image) if doc is not None and doc.image is not None else CachedImage()
        source = doc is not None and held.disk is None and await self._has(doc.snapshot)
        return VolumeView(held=held, image=image, users=users, unreadable=unreadable, source=source)

    def _variables(self, volume: Id) -> tuple[Path, ...]:
        """Return what UEFI keeps for the machine that boots from a volume."""
        files_of = (self._place.variables_file(volume, firmware) for firmware in get_args(Firmware))
        return tuple(path for path in files_of if path.exists())

    async def _has(self, snapshot: SnapshotRef | None) -> bool:
        """Say whether a snapshot is in the pool."""
        if snapshot is None:
            return False
        with contextlib.suppress(Invalid):
            return snapshot.id in (await self._pool.look(snapshot.volume)).snapshots
        return False

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
            case MakeDisk(volume=volume, size_gib=size_gib, over=over, reverts=reverts):
                await self._pool.make(volume, size_gib, over, reverts)
            case GrowDisk(volume=volume, size_gib=size_gib, running_in=vm):
                await self._pool.grow(volume, size_gib, vm)
            case RemoveDisk(volume=volume):
                for path in self._variables(volume):
                    files.remove(path)
                await self._pool.remove(volume)
            case TakeSnapshot(volume=volume, snapshot=snapshot, running_in=vm):
                await self._pool.take(volume, snapshot, vm)
            case DropSnapshot(volume=volume, snapshot=snapshot, running_in=vm):
                await self._pool.drop(volume, snapshot, vm)
            case RevertDisk(volume=volume, snapshot=snapshot, number=number):
                await self._pool.revert(volume, snapshot, number)
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
        await self._images.evict(referenced, await self._pool.origins(), now)
        await self._pool.tidy(now)

    async def empty(self) -> None:
        """Remove all that is kept for disks to come: images, the origins of clones, and parts."""
        await self._images.evict(set(), set(), math.inf)
        await self._pool.tidy(math.inf)

    async def survey(self) -> tuple[Found, ...]:
        """List all that lies in the pool and in the image cache, and what UEFI keeps."""
        cached = tuple(
            Found(what="image", name=entry.name, owner=None, detail="cached; removed when unused for an hour")
            for entry in self._images.list()
        )
        variables = tuple(
            Found(what="file", name=path.name, owner=files.owner(path), detail="UEFI's variables")
            for path in sorted(self._place.variables.glob("*"))
        )
        return (*await self._pool.survey(), *variables, *cached)
