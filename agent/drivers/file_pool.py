"""The pool of files: a qcow2 file for each volume, with its snapshots inside, cloned over cached images by reference.

`<volume>.qcow2` is the disk; `<volume>.reverts` beside it says how often it was reverted to a snapshot, where it ever
was. New files hold nothing, so that guests read zeros where they have not written.
"""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

from agent.drivers import files
from agent.drivers.hypervisor import Hypervisor
from agent.drivers.images import ImageCache
from agent.drivers.place import Place
from agent.drivers.shown import GIB, Held, PoolUse
from common import names
from common.documents import ImageRef, SnapshotRef
from common.errors import Invalid
from common.ids import Id
from common.protocol import Found

KEEP_PARTS_S = 3600.0


class FilePool:
    """The directory `place.volumes` (see `agent.drivers.pool.Pool` for what each verb promises)."""

    def __init__(self, place: Place, images: ImageCache, hypervisor: Hypervisor) -> None:
        self._place, self._images, self._hypervisor = place, images, hypervisor

    async def look(self, volume: Id) -> Held:
        """Return what there is of a volume. Raises Invalid where what has its name is no disk."""
        path = self._place.volume_file(volume)
        disk = files.look(path)
        return Held(
            disk=disk,
            anything=files.anything_at(path) or self._note(volume).exists(),
            snapshots=frozenset(Id(name) for name in files.snapshots(path)) if disk else frozenset(),
            reverts=self._reverts(volume),
        )

    async def is_ready(self, volume: Id, reverts: int) -> bool:
        """Say whether its disk is there, and was reverted at least so often."""
        return self._place.volume_file(volume).exists() and self._reverts(volume) >= reverts

    async def make(self, volume: Id, size_gib: int, over: ImageRef | SnapshotRef | None, reverts: int) -> None:
        """Have a sparse disk of that size: an overlay of an image that is in the cache, a snapshot's content, or blank.

        A snapshot's blocks are shared where the file system can do that (reflinks), else they are copied.
        """
        if reverts != self._reverts(volume):
            await asyncio.to_thread(self._write_note, volume, reverts)
        disk = self._place.volume_file(volume)
        match over:
            case SnapshotRef(id=snapshot, volume=source):
                await files.clone_snapshot(disk, size_gib, self._place.volume_file(source), snapshot)
            case ImageRef():
                self._images.touch(over)
                await files.make_disk(disk, size_gib, self._images.path(over), over.format)
            case None:
                await files.make_disk(disk, size_gib, None, "")

    async def grow(self, volume: Id, size_gib: int, running_in: Id | None) -> None:
        """Have a disk at least that large: QEMU itself grows the file that it has open."""
        path = self._place.volume_file(volume)
        if running_in is None:
            await files.grow_disk(path, size_gib)
        else:
            await self._hypervisor.grow_disk(running_in, str(path), size_gib * GIB)

    async def remove(self, volume: Id) -> None:
        """Have neither the disk, with its snapshots, nor a part of it."""
        await asyncio.to_thread(files.remove_disk, self._place.volume_file(volume))
        await asyncio.to_thread(files.remove, self._note(volume))

    async def take(self, volume: Id, snapshot: Id, running_in: Id | None) -> None:
        """Have a snapshot inside the file."""
        path = self._place.volume_file(volume)
        if snapshot in files.snapshots(path):
            return
        if running_in is None:
            await files.take_snapshot(path, snapshot)
        else:
            await self._hypervisor.snapshot_disk(running_in, str(path), snapshot)

    async def drop(self, volume: Id, snapshot: Id, running_in: Id | None) -> None:
        """Have no such snapshot inside the file."""
        path = self._place.volume_file(volume)
        if snapshot not in files.snapshots(path):
            return
        if running_in is None:
            await files.drop_snapshot(path, snapshot)
        else:
            await self._hypervisor.drop_disk_snapshot(running_in, str(path), snapshot)

    async def revert(self, volume: Id, snapshot: Id, number: int) -> None:
        """Revert first, write down that it was done last: nobody gets the disk in between, so twice is once."""
        await files.revert_to(self._place.volume_file(volume), snapshot)
        await asyncio.to_thread(self._write_note, volume, number)

    async def use(self) -> PoolUse:
        """Say how full its file system is."""
        usage = shutil.disk_usage(self._place.volumes)
        return PoolUse(size_bytes=usage.total, used_bytes=usage.total - usage.free)

    async def tidy(self, now: float) -> None:
        """Remove parts that nobody goes on with."""
        await asyncio.to_thread(self._remove_old_parts, now)

    def _remove_old_parts(self, now: float) -> None:
        for path in self._place.volumes.glob("*-part"):
            if now - path.stat().st_mtime > KEEP_PARTS_S:
                files.remove(path)

    async def origins(self) -> set[str]:
        """Return the names of the images that disks in the pool lie over."""
        return await asyncio.to_thread(self._backing)

    def _backing(self) -> set[str]:
        found = set()
        for path in self._place.volumes.glob("*.qcow2*"):
            try:
                disk = files.look(path)
            except Invalid:
                continue
            if disk is not None and disk.backing:
                found.add(disk.backing.rpartition("/")[2])
        return found

    async def survey(self) -> tuple[Found, ...]:
        """List every file in the pool, and the snapshots inside."""
        return await asyncio.to_thread(lambda: tuple(self._found()))

    def _found(self) -> Iterator[Found]:
        for path in sorted(self._place.volumes.glob("*")):
            owner = files.owner(path)
            if path.suffix != ".qcow2" or owner is None:
                yield Found(what="file", name=path.name, owner=owner, detail="in the pool")
                continue
            yield Found(what="disk", name=owner, owner=owner, detail=f"{path.name} in the pool")
            for name in _inside(path):
                yield Found(what="snapshot", name=name, owner=names.owner_of(name), detail=owner)

    # --- reverts ----------------------------------------------------------------------------------------------------

    def _note(self, volume: Id) -> Path:
        return self._place.volumes / names.revert_note(volume)

    def _reverts(self, volume: Id) -> int:
        try:
            return int(self._note(volume).read_text())
        except FileNotFoundError:
            return 0

    def _write_note(self, volume: Id, number: int) -> None:
        note = self._note(volume)
        part = note.with_name(names.part(note.name))
        part.write_text(f"{number}\n")
        files.publish(part, note)


def _inside(path: Path) -> tuple[str, ...]:
    try:
        return tuple(files.snapshots(path))
    except (Invalid, OSError):
        return ()
