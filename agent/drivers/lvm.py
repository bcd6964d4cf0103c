"""The thin pool of a volume group: a logical volume for each disk and each snapshot, cloned by thin snapshot.

Names are the owners' ids; tags say the rest, so that all can be found by `lvs` alone: `skerry.owner=ID`, of a snapshot
`skerry.volume=ID`, of a disk `skerry.reverts=N` and (it grew, and its guest may not know yet) `skerry.untold`. An image
is written once into `img-HEX`, whose thin snapshots are the clones. Making a logical volume with its tags is one change
of the group's metadata: what is there has its tags. Blocks are zeroed by the pool before they are given out anew.
"""

import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

import msgspec

from agent.drivers.hypervisor import Hypervisor
from agent.drivers.images import ImageCache
from agent.drivers.place import Place
from agent.drivers.shown import GIB, Disk, Held, PoolUse
from common import names
from common.documents import ImageRef, SnapshotRef
from common.errors import Invalid
from common.ids import Id
from common.protocol import Found
from common.run import run

LISTED_FOR_S = 1.0
"""A list is good for so long, unless something was changed meanwhile: a turn looks at many volumes."""

CLONE_TIMEOUT_S = 1800.0

IMAGE = "img-"
"""Begins the names of the volumes that hold images, followed by the digest."""

_COLUMNS = "lv_name,lv_size,data_percent,metadata_percent,pool_lv,lv_tags,zero"


class Run(Protocol):
    """Runs a command and returns what it printed: `common.run.run`."""

    def __call__(self, argv: list[str], *, timeout_s: float = 30) -> Awaitable[str]:
        """Raises CommandFailed for another end than 0."""
        ...


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """A logical volume as `lvs --reportformat json --units b --nosuffix` shows it; all its values are texts."""

    lv_name: str
    lv_size: str
    data_percent: str = ""
    metadata_percent: str = ""
    pool_lv: str = ""
    lv_tags: str = ""
    zero: str = ""

    @property
    def size_bytes(self) -> int:
        """Virtual."""
        return int(self.lv_size)

    @property
    def used_bytes(self) -> int:
        """What it takes of its pool; of a pool, what is taken."""
        return int(self.size_bytes * float(self.data_percent or 0) / 100)

    @property
    def tags(self) -> dict[str, str]:
        """Skerry's tags, without their prefix; those without a value have an empty one."""
        found = (tag.removeprefix("skerry.").partition("=") for tag in self.lv_tags.split(",") if tag[:7] == "skerry.")
        return {name: value for name, _, value in found}


class _Section(msgspec.Struct, frozen=True):
    lv: list[Volume]


class _Report(msgspec.Struct, frozen=True):
    report: list[_Section]


def parse_lvs(text: str) -> dict[str, Volume]:
    """Read the JSON report of `lvs`: logical volumes by name."""
    report = msgspec.json.decode(text, type=_Report)
    return {volume.lv_name: volume for section in report.report for volume in section.lv}


async def volumes(group: str, run: Run = run, *, timeout_s: float = 30) -> dict[str, Volume]:
    """List a group's logical volumes by name. Raises CommandFailed."""
    flags = ["--reportformat", "json", "--units", "b", "--nosuffix", "-o", _COLUMNS]
    return parse_lvs(await run(["lvs", *flags, group], timeout_s=timeout_s))


class LvmPool:
    """A thin pool (see `agent.drivers.pool.Pool` for what each verb promises)."""

    def __init__(  # noqa: PLR0917 - the last two are for tests
        self,
        place: Place,
        thin_pool: str,
        images: ImageCache,
        hypervisor: Hypervisor,
        run: Run = run,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._place, self._images, self._hypervisor, self._run, self._timer = place, images, hypervisor, run, timer
        self._group, self._thin = place.volume_group, thin_pool
        self._listed: tuple[float, dict[str, Volume]] | None = None

    async def prepare(self) -> None:
        """Look that the pool is there, and have it zero blocks. Raises Invalid with the way out, CommandFailed."""
        pool = (await self._list()).get(self._thin)
        if pool is None:
            raise Invalid(
                f"volume group {self._group} has no thin pool {self._thin}",
                fix=f"lvcreate --type thin-pool -l 90%FREE -n {self._thin} {self._group}, or name another one in "
                "[pool] thin_pool",
            )
        if pool.zero != "zero":
            await self._change(["lvchange", "--zero", "y", self._at(self._thin)])

    # --- looking ----------------------------------------------------------------------------------------------------

    async def _list(self) -> dict[str, Volume]:
        if self._listed is not None and 0 <= self._timer() - self._listed[0] < LISTED_FOR_S:
            return self._listed[1]
        found = await volumes(self._group, self._run)
        self._listed = self._timer(), found
        return found

    async def _change(self, argv: list[str], *, timeout_s: float = 60) -> None:
        try:
            await self._run(argv, timeout_s=timeout_s)
        finally:
            self._listed = None

    def _at(self, name: str) -> str:
        return f"{self._group}/{name}"

    async def look(self, volume: Id) -> Held:
        """Return what there is of a volume.

        While a revert was left between the old disk and the new one, the new one is shown, not reverted yet.
        """
        there, name = await self._list(), names.logical_volume(volume)
        disk, part = there.get(name), there.get(names.part(name))
        shown, reverts = disk, _reverts(disk)
        if disk is None and part is not None and _reverts(part):
            shown, reverts = part, _reverts(part) - 1
        return Held(
            disk=_disk(shown) if shown is not None else None,
            anything=disk is not None or part is not None,
            snapshots=frozenset(
                Id(one) for one, its in there.items() if its.tags.get("volume") == volume and one.startswith("snap-")
            ),
            reverts=reverts,
        )

    async def is_ready(self, volume: Id, reverts: int) -> bool:
        """Say whether its disk is there, and was reverted at least so often."""
        disk = (await self._list()).get(names.logical_volume(volume))
        return disk is not None and _reverts(disk) >= reverts

    async def use(self) -> PoolUse:
        """Say how full the pool is, and its metadata."""
        pool = (await self._list())[self._thin]
        return PoolUse(
            size_bytes=pool.size_bytes,
            used_bytes=pool.used_bytes,
            metadata_percent=float(pool.metadata_percent or 0),
        )

    async def origins(self) -> set[str]:
        """Name none: clones do not need the file that they were made from."""
        return set()

    async def survey(self) -> tuple[Found, ...]:
        """List all that lies in the pool, what is nobody's too. The volume group may hold others' volumes beside it."""
        there = await self._list()
        return tuple(self._found(one) for _, one in sorted(there.items()) if one.pool_lv == self._thin)

    def _found(self, one: Volume) -> Found:
        owner = names.owner_of(one.lv_name)
        if one.lv_name.startswith(IMAGE):
            return Found(what="image", name=one.lv_name, owner=None, detail="the origin of clones")
        if owner is None:
            fills = f"in thin pool {self._at(self._thin)}, of which it takes {one.used_bytes / GIB:.1f} GiB"
            return Found(what="logical-volume", name=self._at(one.lv_name), owner=None, detail=fills)
        if one.lv_name != owner:
            return Found(what="file", name=one.lv_name, owner=owner, detail="in the thin pool")
        if owner.startswith("snap-"):
            return Found(what="snapshot", name=owner, owner=owner, detail=one.tags.get("volume", ""))
        return Found(what="disk", name=owner, owner=owner, detail="in the thin pool")

    # --- acting -----------------------------------------------------------------------------------------------------

    async def make(self, volume: Id, size_gib: int, over: ImageRef | SnapshotRef | None, reverts: int) -> None:
        """Have a thin volume of that size: a clone of an image, or of a snapshot, or zeros."""
        name, there = names.logical_volume(volume), await self._list()
        if name in there:
            return
        part = names.part(name)
        await self._remove(part)
        tags = _tags(owner=volume, reverts=reverts)
        if over is None:
            await self._create(part, size_gib * GIB, tags)
        else:
            origin = names.logical_volume(over.id) if isinstance(over, SnapshotRef) else await self._have_image(over)
            await self._snap(origin, part, tags)
            await self._extend(part, size_gib)
        await self._change(["lvrename", self._group, part, name])

    async def grow(self, volume: Id, size_gib: int, running_in: Id | None) -> None:
        """Have it that large, and the guest know: until it does, a tag says so."""
        name = names.logical_volume(volume)
        await self._change(["lvchange", "--addtag", "skerry.untold", self._at(name)])
        await self._extend(name, size_gib)
        if running_in is not None:
            await self._hypervisor.grow_disk(running_in, self._place.disk(volume).path, size_gib * GIB)
        await self._change(["lvchange", "--deltag", "skerry.untold", self._at(name)])

    async def remove(self, volume: Id) -> None:
        """Have neither the disk nor a part of it. Its snapshots do not need it."""
        name = names.logical_volume(volume)
        await self._remove(names.part(name))
        await self._remove(name)

    async def take(self, volume: Id, snapshot: Id, running_in: Id | None) -> None:  # noqa: ARG002 (the pool does it)
        """Have a thin snapshot, which nobody can write to. A guest that runs with the disk is held for a moment."""
        name = names.logical_volume(snapshot)
        if name in await self._list():
            return
        tags = _tags(owner=snapshot, volume=volume)
        origin = self._at(names.logical_volume(volume))
        await self._change(["lvcreate", "-q", "-s", "-pr", "-ky", "-an", "-n", name, *tags, origin])

    async def drop(self, volume: Id, snapshot: Id, running_in: Id | None) -> None:  # noqa: ARG002 (the pool does it)
        """Have no such snapshot."""
        await self._remove(names.logical_volume(snapshot))

    async def revert(self, volume: Id, snapshot: Id, number: int) -> None:
        """Make the new disk beside the old one, as a snapshot of the snapshot, and only then put it in its place."""
        name, part = names.logical_volume(volume), names.part(names.logical_volume(volume))
        made = (await self._list()).get(part)
        if made is None or _reverts(made) != number:
            await self._remove(part)
            await self._snap(names.logical_volume(snapshot), part, _tags(owner=volume, reverts=number))
        await self._remove(name)
        await self._change(["lvrename", self._group, part, name])

    async def tidy(self, now: float) -> None:  # noqa: ARG002 (the cache says what is used)
        """Remove the images that the cache has no more."""
        cached = {f"{IMAGE}{entry.name}" for entry in self._images.list()}
        for name in sorted(await self._list()):
            if name.startswith(IMAGE) and name.removesuffix("-part") not in cached:
                await self._remove(name)

    async def _have_image(self, image: ImageRef) -> str:
        """Have the content of a cached image in a volume of its own, and return its name."""
        name = f"{IMAGE}{image.digest.removeprefix('sha256:')}"
        if name in await self._list():
            return name
        part = names.part(name)
        self._images.touch(image)
        await self._remove(part)
        await self._create(part, self._images.look(image).disk_bytes, ["--addtag", "skerry.image"])
        source, device = str(self._images.path(image)), f"/dev/{self._group}/{part}"
        convert = ["qemu-img", "convert", "-n", "--target-is-zero", "-f", image.format, "-O", "raw", source, device]
        await self._run(convert, timeout_s=CLONE_TIMEOUT_S)
        await self._change(["lvchange", "-an", self._at(part)])
        await self._change(["lvchange", "-pr", self._at(part)])
        await self._change(["lvrename", self._group, part, name])
        return name

    async def _create(self, name: str, size_bytes: int, tags: list[str]) -> None:
        size = ["-V", f"{size_bytes}b"]
        await self._change(["lvcreate", "-q", "-y", "-Wn", *size, "-T", self._at(self._thin), "-n", name, *tags])

    async def _snap(self, origin: str, name: str, tags: list[str]) -> None:
        await self._change(["lvcreate", "-q", "-s", "-prw", "-kn", "-ay", "-n", name, *tags, self._at(origin)])

    async def _extend(self, name: str, size_gib: int) -> None:
        there = (await self._list()).get(name)
        if there is not None and there.size_bytes < size_gib * GIB:
            await self._change(["lvextend", "-q", "-L", f"{size_gib * GIB}b", self._at(name)])

    async def _remove(self, name: str) -> None:
        if name in await self._list():
            await self._change(["lvremove", "-q", "-y", self._at(name)])


def _disk(of: Volume) -> Disk:
    return Disk(size_bytes=of.size_bytes, allocated_bytes=of.used_bytes, untold="untold" in of.tags)


def _reverts(of: Volume | None) -> int:
    said = of.tags.get("reverts", "") if of is not None else ""
    return int(said) if said.isdecimal() else 0


def _tags(**what: str | int) -> list[str]:
    """Return the flags that give a new volume these tags; 0 and empty ones are left out."""
    pairs: Iterable[tuple[str, str | int]] = what.items()
    return [word for name, value in pairs if value for word in ("--addtag", f"skerry.{name}={value}")]
