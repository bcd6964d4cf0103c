"""The image cache: each image once per host, by digest, checked before it can be used, never changed afterwards.

`<hex>` is a disk image, `<hex>.d/` an unpacked kernel image, `<hex>.<format>.refused` says why these bytes are of no
use in that format (they will not get better, so they are not fetched again). `-part` is work in progress.
"""

import asyncio
import hashlib
import shutil
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from agent.drivers import files
from agent.drivers.place import BootFiles
from agent.drivers.shown import CachedImage
from common import names
from common.documents import ImageRef
from common.errors import Invalid, Temporary
from common.faults import Faults
from common.run import CommandFailed

Progress = Callable[[int], None]
"""Told the number of bytes that have arrived so far."""

Fetch = Callable[[str, Path, Progress], Awaitable[None]]
"""Brings the bytes of a digest (`sha256:…`) into a file that does not exist yet. Raises Temporary where it can't."""

MOST_AT_ONCE = 4
"""Fetches share the link, and each holds up a turn of the loop."""

ROOM_TO_LEAVE_BYTES = 256 << 20
KEEP_UNUSED_S = 3600.0

_MEMBERS = {"vmlinuz": 256 << 20, "initrd": 2 << 30, "cmdline": 2048}
"""What a kernel image may hold, and how large each may be in bytes."""


class CacheEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A file or directory in the cache."""

    name: str
    used_at: float


def evictable(
    entries: Iterable[CacheEntry], referenced: set[str], backing: set[str], building: set[str], now: float
) -> tuple[str, ...]:
    """Name the entries that may go: of no document, under no disk, not being built, and unused for an hour.

    `referenced` has digests as documents write them (`sha256:…`), `backing` and `building` their hex part.
    """
    kept = {digest.removeprefix("sha256:") for digest in referenced} | backing | building
    return tuple(
        entry.name for entry in entries if now - entry.used_at > KEEP_UNUSED_S and _hex(entry.name) not in kept
    )


def _hex(name: str) -> str:
    return name.removesuffix("-part").split(".")[0]


class ImageCache:
    """The images of one host."""

    def __init__(self, directory: Path, fetch: Fetch, faults: Faults) -> None:
        self._directory, self._fetch, self._faults = directory, fetch, faults
        self._building: dict[str, asyncio.Lock] = {}
        self._arrived: dict[str, int] = {}

    def path(self, image: ImageRef) -> Path:
        """Return where a disk image lies."""
        return self._directory / _digits(image)

    def look(self, image: ImageRef) -> CachedImage:
        """Return what the cache has of an image, and what it is about."""
        arrived = self._arrived.get(_digits(image))
        if arrived is not None:
            return CachedImage(arrived_bytes=arrived)
        found = self._on_disk(image)
        if found.ready or found.refused:
            return found
        return CachedImage(crowded=len(self._arrived) >= MOST_AT_ONCE)

    def _on_disk(self, image: ImageRef) -> CachedImage:
        try:
            return CachedImage(refused=self._refusal(image).read_text())
        except FileNotFoundError:
            pass
        try:
            match image.format:
                case "kernel":
                    return CachedImage(ready=self._unpacked(image).is_dir())
                case "raw":
                    return CachedImage(ready=True, disk_bytes=self.path(image).stat().st_size)
                case "qcow2":
                    header = files.qcow_header(files.read_head(self.path(image)))
                    return CachedImage(ready=True, disk_bytes=header.size_bytes)
        except FileNotFoundError:
            return CachedImage()

    def boot_files(self, image: ImageRef) -> BootFiles | None:
        """Return the parts of a kernel image, None where it is not here."""
        directory = self._unpacked(image)
        try:
            cmdline = (directory / "cmdline").read_text().strip()
        except FileNotFoundError:
            if not directory.is_dir():
                return None
            cmdline = ""
        return BootFiles(kernel=str(directory / "vmlinuz"), initrd=str(directory / "initrd"), cmdline=cmdline)

    def touch(self, image: ImageRef) -> None:
        """Note that the image was used just now."""
        for path in (self.path(image), self._unpacked(image)):
            if path.exists():
                path.touch()

    async def ensure(self, image: ImageRef, progress: Progress) -> None:
        """Have the image here, ready or refused. Who asks for one that is under way waits for it.

        Raises Temporary when it could not be fetched, arrived damaged, or there is no room for it.
        """
        async with self._alone(_digits(image)):
            found = await asyncio.to_thread(self._on_disk, image)
            if not found.ready and not found.refused:
                await self._bring(image, progress)

    @asynccontextmanager
    async def _alone(self, digits: str) -> AsyncIterator[None]:
        lock = self._building.setdefault(digits, asyncio.Lock())
        self._arrived.setdefault(digits, 0)
        try:
            async with lock:
                yield
        finally:
            self._arrived.pop(digits, None)
            if not lock.locked():
                self._building.pop(digits, None)

    async def _bring(self, image: ImageRef, progress: Progress) -> None:
        part = self.path(image).with_name(names.part(_digits(image)))
        await asyncio.to_thread(self._make_room, image, part)

        def tell(arrived: int) -> None:
            if arrived > image.size_bytes:
                raise Temporary(f"image {image.digest} is longer than its {image.size_bytes} bytes")
            self._arrived[_digits(image)] = arrived
            progress(arrived)

        await self._fetch(image.digest, part, tell)
        self._faults.reached("volume.image-fetched")
        await asyncio.to_thread(_verify, part, image)
        try:
            await self._accept(image, part)
        except Invalid as err:
            await asyncio.to_thread(self._refuse, image, part, err.detail)

    def _make_room(self, image: ImageRef, part: Path) -> None:
        files.remove(part)
        self._directory.mkdir(parents=True, exist_ok=True)
        needed = image.size_bytes * (2 if image.format == "kernel" else 1) + ROOM_TO_LEAVE_BYTES
        free = shutil.disk_usage(self._directory).free
        if free < needed:
            raise Temporary(
                f"image {image.digest[:19]}… needs {needed >> 20} MiB in {self._directory}, and {free >> 20} are free",
                fix="delete volumes on this host, or give its pool more room",
            )

    async def _accept(self, image: ImageRef, part: Path) -> None:
        """Check the form of verified bytes and give them their name. Raises Invalid where they are of no use."""
        match image.format:
            case "kernel":
                unpacked = self._unpacked(image)
                building = unpacked.with_name(names.part(unpacked.name))
                await asyncio.to_thread(_unpack, part, building)
                self._faults.reached("volume.image-unpacked")
                await asyncio.to_thread(files.publish, building, unpacked)
                await asyncio.to_thread(files.remove, part)
            case "qcow2":
                await _check_qcow2(part)
                await asyncio.to_thread(_publish_disk, part, self.path(image))
            case "raw":
                await asyncio.to_thread(_publish_disk, part, self.path(image))

    def _refuse(self, image: ImageRef, part: Path, why: str) -> None:
        note = self._refusal(image)
        building = note.with_name(names.part(note.name))
        building.write_text(f"image {image.digest[:19]}… can't be used as {image.format}: {why}")
        files.publish(building, note)
        files.remove(part)

    def _unpacked(self, image: ImageRef) -> Path:
        return self._directory / f"{_digits(image)}.d"

    def _refusal(self, image: ImageRef) -> Path:
        return self._directory / f"{_digits(image)}.{image.format}.refused"

    def list(self) -> tuple[CacheEntry, ...]:
        """Return all that lies in the cache."""
        return tuple(_entries(self._directory))

    async def evict(self, referenced: set[str], backing: set[str], now: float) -> None:
        """Remove what nobody needs any more: see `evictable`."""
        entries = await asyncio.to_thread(self.list)
        for name in evictable(entries, referenced, backing, set(self._building), now):
            self._faults.reached("volume.evict")
            await asyncio.to_thread(files.remove, self._directory / name)


def _digits(image: ImageRef) -> str:
    digits = image.digest.removeprefix("sha256:")
    if len(digits) != 64 or not set(digits) <= set("0123456789abcdef"):
        raise Invalid(f"{image.digest!r} is no image digest (sha256: and 64 hex digits)")
    return digits


def _entries(directory: Path) -> Iterator[CacheEntry]:
    for path in directory.glob("*"):
        try:
            yield CacheEntry(name=path.name, used_at=path.stat().st_mtime)
        except FileNotFoundError:
            continue


def _verify(part: Path, image: ImageRef) -> None:
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _digits(image):
        size = part.stat().st_size
        files.remove(part)
        raise Temporary(
            f"image {image.digest} arrived damaged: {size} of {image.size_bytes} bytes with digest sha256:{found}; "
            "it is fetched again"
        )


def _publish_disk(part: Path, final: Path) -> None:
    part.chmod(0o644)  # QEMU reads it as a backing file under its own user
    files.publish(part, final)


async def _check_qcow2(part: Path) -> None:
    """Raises Invalid for a qcow2 file that would have QEMU open other files of the host, or that can't be read."""
    header = await asyncio.to_thread(lambda: files.qcow_header(files.read_head(part)))
    if header.backing:
        raise Invalid(f"it is an overlay of {header.backing!r}; flatten it with `qemu-img convert -O qcow2` first")
    if header.external_data:
        raise Invalid("its content lies in an external data file; flatten it with `qemu-img convert -O qcow2` first")
    try:
        complaint = await files.probe_qcow2(part)
    except CommandFailed as err:
        if not isinstance(err.returncode, int):
            raise
        raise Invalid(f"qemu-img can't read it: {err.output.strip()}") from err
    if complaint:
        raise Invalid(complaint)


def _unpack(archive: Path, directory: Path) -> None:
    """Unpack a kernel image: only its three regular files, whatever else the tar tries.

    Raises Invalid where it is no plain tar, or lacks one, or one is too large.
    """
    files.remove(directory)
    directory.mkdir()
    try:
        with tarfile.open(archive, mode="r:") as tar:
            for member in tar:
                _unpack_member(tar, member, directory)
    except tarfile.TarError as err:
        raise Invalid(f"it is not a plain tar: {err}; make it with `tar -cf IMAGE vmlinuz initrd cmdline`") from err
    for name in ("vmlinuz", "initrd"):
        if not (directory / name).exists():
            raise Invalid(f"the tar holds no {name}; make it with `tar -cf IMAGE vmlinuz initrd cmdline`")
    try:
        (directory / "cmdline").read_text()
    except FileNotFoundError:
        pass
    except UnicodeDecodeError as err:
        raise Invalid("its cmdline is not UTF-8 text") from err
    directory.chmod(0o755)


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, directory: Path) -> None:
    name = member.name.removeprefix("./")
    if name not in _MEMBERS:
        return
    if not member.isreg():
        raise Invalid(f"{name} in the tar is not a regular file")
    if member.size > _MEMBERS[name]:
        raise Invalid(f"{name} in the tar has {member.size} bytes; {_MEMBERS[name]} is the most it may have")
    source = tar.extractfile(member)
    assert source is not None  # a regular file has content
    target = directory / name
    with source, target.open("wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
    target.chmod(0o644)
    files.sync_file(target)
