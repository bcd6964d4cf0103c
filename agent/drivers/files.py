"""The pool of qcow2 files: qemu-img, and the headers of its files read without it. Also durable renames."""

import asyncio
import fcntl
import os
import shutil
import struct
import tempfile
from pathlib import Path

import msgspec

from agent.drivers.shown import GIB, Disk
from common import names
from common.errors import Invalid, Temporary
from common.ids import Id
from common.run import run

_HEAD = struct.Struct(">4sIQIIQ")
"""magic, version, backing_file_offset, backing_file_size, cluster_bits, size (QEMU's docs/interop/qcow2.txt)."""

_TABLE = struct.Struct(">IQ")
"""nb_snapshots, snapshots_offset, at byte 60."""

_ENTRY = struct.Struct(">8x4xHH4x4x8x4xI")
"""Of a snapshot: id_str_size, name_size, extra_data_size; extra data, id and name follow, padded to 8 bytes."""

_EXTRA = struct.Struct(">8xQ")
"""Of its extra data: the disk's size then, bytes."""

_FICLONE = 0x40049409
"""linux/fs.h."""

COPY_TIMEOUT_S = 1750.0
"""Within the loop's limit for a step, so that the copying ends before the turn is cut off."""

_HEAD_BYTES = 4096
_EXTERNAL_DATA = 1 << 2
"""Bit of the incompatible features: the content lies in another file."""


class QcowHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What a qcow2 file says of itself in its first bytes."""

    size_bytes: int
    """Virtual."""
    backing: str
    """The file it is an overlay of; empty for none."""
    external_data: bool


def qcow_header(head: bytes) -> QcowHeader:
    """Read the first 4 KiB of a qcow2 file.

    Raises Invalid where they are none. Needed before qemu-img may look at a stranger's file, because that opens the
    external data file that a header names (CVE-2024-32498).
    """
    if len(head) < 72 or head[:4] != b"QFI\xfb":
        raise Invalid("it is not a qcow2 file: the first bytes are not QFI\\xfb")
    _, version, backing_at, backing_length, _, size = _HEAD.unpack_from(head)
    if version not in (2, 3):
        raise Invalid(f"it is a qcow file of version {version}; 2 and 3 can be used")
    features = struct.unpack_from(">Q", head, 72)[0] if version == 3 and len(head) >= 80 else 0
    backing = ""
    if backing_at:
        backing = head[backing_at : backing_at + min(backing_length, 1023)].decode(errors="replace") or "(far away)"
    return QcowHeader(size_bytes=size, backing=backing, external_data=bool(features & _EXTERNAL_DATA))


def read_head(path: Path) -> bytes:
    """Return the first bytes of a file, enough for `qcow_header`."""
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)


def sync_file(path: Path) -> None:
    """Have a file's content, or a directory's entries, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(part: Path, final: Path) -> None:
    """Give a finished part its name: its bytes are on the disk before the name, the name before this returns."""
    sync_file(part)
    part.rename(final)
    sync_file(final.parent)


def remove(path: Path) -> None:
    """Have no file, link or directory tree at `path`."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def takes_direct_io(directory: Path) -> bool:
    """Try whether files in this directory can be opened with O_DIRECT."""
    try:
        with tempfile.NamedTemporaryFile(dir=directory, prefix="direct-io-") as probe:
            os.close(os.open(probe.name, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def shares_blocks(directory: Path) -> bool:
    """Try whether files in this directory can share blocks until one is written (reflinks)."""
    with (
        tempfile.NamedTemporaryFile(dir=directory, prefix="reflink-") as source,
        tempfile.NamedTemporaryFile(dir=directory, prefix="reflink-") as clone,
    ):
        source.write(b"x" * 4096)
        source.flush()
        try:
            fcntl.ioctl(clone.fileno(), _FICLONE, source.fileno())
        except OSError:
            return False
    return True


def look(disk: Path) -> Disk | None:
    """Return what a pool's file is, None where there is none.

    Raises Invalid where the file is no qcow2 file.
    """
    try:
        head, stat = read_head(disk), disk.stat()
    except FileNotFoundError:
        return None
    header = qcow_header(head)
    return Disk(size_bytes=header.size_bytes, allocated_bytes=stat.st_blocks * 512, backing=header.backing)


def snapshots(disk: Path) -> dict[str, int]:
    """Return the names of the snapshots inside a qcow2 file, with the size of each in bytes; 0: it does not say.

    From its table of snapshots (QEMU's docs/interop/qcow2.txt).

    Raises Invalid where it is none.
    """
    head = read_head(disk)
    qcow_header(head)
    count, at = _TABLE.unpack_from(head, 60)
    found = {}
    with disk.open("rb") as file:
        for _ in range(count):
            file.seek(at)
            entry = file.read(_ENTRY.size)
            if len(entry) < _ENTRY.size:
                raise Invalid(f"its table of {count} snapshots ends early")
            id_length, name_length, extra = _ENTRY.unpack(entry)
            more = file.read(min(extra, _EXTRA.size))
            file.seek(at + _ENTRY.size + extra + id_length)
            name = file.read(name_length).decode(errors="replace")
            found[name] = _EXTRA.unpack(more)[0] if len(more) == _EXTRA.size else 0
            at += -(-(_ENTRY.size + extra + id_length + name_length) // 8) * 8
    return found


def anything_at(disk: Path) -> bool:
    """Say whether the disk, or a part of it, exists."""
    return disk.exists() or disk.with_name(names.part(disk.name)).exists()


def remove_disk(disk: Path) -> None:
    """Have neither the disk nor a part of it."""
    remove(disk.with_name(names.part(disk.name)))
    remove(disk)


async def make_disk(disk: Path, size_gib: int, backing: Path | None, backing_format: str) -> None:
    """Have a sparse disk of that size: an overlay of `backing`, else blank. A finished one is left alone.

    Raises CommandFailed when qemu-img can't.
    """
    if disk.exists():  # noqa: ASYNC240 (one stat)
        return
    part = disk.with_name(names.part(disk.name))
    remove(part)
    over = ["-b", str(backing), "-F", backing_format] if backing else []
    await run(["qemu-img", "create", "-q", "-f", "qcow2", *over, str(part), str(size_gib * GIB)])
    await asyncio.to_thread(_finish_disk, part, disk)


async def clone_snapshot(disk: Path, size_gib: int, source: Path, snapshot: str) -> None:
    """Have a disk at least that large that holds what a snapshot inside `source` holds. A finished one is left alone.

    A running guest may write to `source` meanwhile: what a snapshot refers to is never written to again, so it is read
    without QEMU's lock (`-U`). Raises Temporary where there is no such snapshot, or `source` is just being reverted to
    a smaller one; CommandFailed when qemu-img can't.
    """
    if disk.exists():  # noqa: ASYNC240 (one stat)
        return
    part = disk.with_name(names.part(disk.name))
    remove(part)
    kept = snapshots(source).get(snapshot)
    if kept is None:
        raise Temporary(f"there is no snapshot {snapshot} in {source.name}")
    base = msgspec.json.decode(
        await run(["qemu-img", "info", "-U", "-f", "qcow2", "--output=json", str(source)]), type=_Info
    )
    over = ["-B", base.backing, "-F", base.backing_format] if base.backing else []
    line = ["qemu-img", "convert", "-q", "-U", "-C", "-f", "qcow2", "-l", f"snapshot.name={snapshot}", "-O", "qcow2"]
    await run([*line, *over, str(source), str(part)], timeout_s=COPY_TIMEOUT_S)
    if qcow_header(read_head(part)).size_bytes < kept:
        raise Temporary(f"{source.name} was made smaller while it was read")
    await run(["qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", str(part), str(max(size_gib * GIB, kept))])
    await asyncio.to_thread(_finish_disk, part, disk)


def _finish_disk(part: Path, disk: Path) -> None:
    part.chmod(0o600)
    publish(part, disk)


async def grow_disk(disk: Path, size_gib: int) -> None:
    """Have a disk that nobody uses at least that large. Raises CommandFailed when qemu-img can't."""
    await run(["qemu-img", "resize", "-q", "-f", "qcow2", str(disk), str(size_gib * GIB)])


async def take_snapshot(disk: Path, name: str) -> None:
    """Keep what a disk that nobody uses holds now. Raises CommandFailed when qemu-img can't."""
    await run(["qemu-img", "snapshot", "-q", "-c", name, str(disk)])


async def drop_snapshot(disk: Path, name: str) -> None:
    """Forget what was kept of a disk that nobody uses. Raises CommandFailed when qemu-img can't."""
    await run(["qemu-img", "snapshot", "-q", "-d", name, str(disk)], timeout_s=300)


async def revert_to(disk: Path, name: str) -> None:
    """Have a disk that nobody uses hold what was kept. Raises CommandFailed when qemu-img can't."""
    await run(["qemu-img", "snapshot", "-q", "-a", name, str(disk)], timeout_s=300)


async def probe_qcow2(path: Path) -> str:
    """Have qemu-img read a qcow2 file whose header names no other file, and return its complaint, empty for none."""
    text = await run(["qemu-img", "info", "-f", "qcow2", "--output=json", str(path)], timeout_s=60)
    found = msgspec.json.decode(text, type=_Info)
    if found.backing is not None or found.data_file is not None:
        return "it refers to another file"
    return ""


class _Info(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of `qemu-img info`."""

    backing: str | None = msgspec.field(name="backing-filename", default=None)
    backing_format: str = msgspec.field(name="backing-filename-format", default="qcow2")
    data_file: str | None = msgspec.field(name="data-file", default=None)


def owner(path: Path) -> Id | None:
    """Return whose file this is, by its name; virtlogd's rotated logs (`….log.0`) belong to whom the log does."""
    stem, _, last = path.name.rpartition(".")
    return names.owner_of(stem if last.isdecimal() else path.name)
