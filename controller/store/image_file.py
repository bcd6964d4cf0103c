"""Whether an uploaded file is what its image says: a qcow2 or raw disk, or a tar with a kernel. Nothing it says of
itself is followed: a disk that points at another file (CVE-2024-4467) is refused before any tool opens it."""

import asyncio
import struct
import tarfile
from pathlib import Path
from typing import BinaryIO

import msgspec

from common.errors import Invalid, Temporary
from common.kinds.image import ImageFormat
from common.run import CommandFailed, run

GIB = 1 << 30
MOST_GIB = 65536
"""The largest disk a size can have."""

QCOW2_MAGIC = b"QFI\xfb"
_QCOW2_HEADER = struct.Struct(">4sIQIIQI")
"""magic, version, backing file's offset and size, cluster bits, virtual size, encryption: QEMU's docs/interop/qcow2."""
_INCOMPATIBLE = struct.Struct(">Q")
_INCOMPATIBLE_AT = 72
_CORRUPT, _DATA_FILE = 1 << 1, 1 << 2
_KNOWN_FEATURES = 0b11111

_OTHERS = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip",
    b"KDMV": "VMDK",
    b"vhdxfile": "VHDX",
    b"conectix": "VHD",
}

KERNEL_MEMBERS = {"vmlinuz": 256 << 20, "initrd": 2 << 30, "cmdline": 4096}
"""The files a kernel's tar may have, and how large each may be."""
_REQUIRED = ("vmlinuz", "initrd")
_HOW_TO_TAR = "make it with: tar -cf image.tar vmlinuz initrd cmdline"
_HEADER_MOST = 1 << 16
"""Bytes a tar's header may make its reader take in at once."""


class QemuInfo(msgspec.Struct, frozen=True, rename="kebab"):
    """What `qemu-img info --output=json` says, as far as it is read here."""

    format: str
    virtual_size: int
    backing_filename: str = ""


async def inspect(path: Path, wanted: ImageFormat) -> int:
    """Return the smallest disk, in GiB, that an image fits on (0 for a kernel).

    Raises Invalid where the file is something else, or is not whole.
    """
    match wanted:
        case "qcow2":
            return await _inspect_qcow2(path)
        case "raw":
            return await asyncio.to_thread(_inspect_raw, path)
        case "kernel":
            await asyncio.to_thread(_inspect_kernel, path)
            return 0


async def _inspect_qcow2(path: Path) -> int:
    await asyncio.to_thread(_check_qcow2_header, path)
    try:
        said = await run(["qemu-img", "info", "--output=json", "-f", "qcow2", str(path)], timeout_s=60)
    except CommandFailed as err:
        if not isinstance(err.returncode, int):
            raise Temporary(f"the image can't be checked: {err.detail}", fix="is qemu-utils installed?") from err
        reason = err.output.strip().rpartition(": ")[2][:200]
        raise Invalid(
            f"the file is no sound qcow2 image: {reason}", fix="check it with: qemu-img check FILE; upload it again"
        ) from err
    info = msgspec.json.decode(said, type=QemuInfo)
    if info.format != "qcow2" or info.backing_filename:
        raise Invalid("the file is no qcow2 image that stands for itself", fix=_flatten())
    return _disk_gib(info.virtual_size)


def _check_qcow2_header(path: Path) -> None:
    with path.open("rb") as file:
        raw = file.read(_INCOMPATIBLE_AT + _INCOMPATIBLE.size)
    if len(raw) < _INCOMPATIBLE_AT or raw[:4] != QCOW2_MAGIC:
        raise Invalid(
            f"the file is not a qcow2 image{_looks_like(raw)}",
            fix="convert it: qemu-img convert -O qcow2 FILE image.qcow2; or make the image with format raw",
        )
    _, version, backing, _, _, _, encryption = _QCOW2_HEADER.unpack_from(raw)
    if version not in (2, 3):
        raise Invalid(f"the file is qcow2 version {version}; 2 and 3 are known", fix=_flatten())
    features = _INCOMPATIBLE.unpack_from(raw, _INCOMPATIBLE_AT)[0] if version == 3 else 0
    if backing:
        raise Invalid("the qcow2 image has a backing file: it is only the changes to another image", fix=_flatten())
    if features & _DATA_FILE:
        raise Invalid("the qcow2 image keeps its data in another file", fix=_flatten())
    if encryption:
        raise Invalid("the qcow2 image is encrypted", fix=_flatten())
    if features & _CORRUPT:
        raise Invalid("the qcow2 image is marked as corrupt", fix="repair it: qemu-img check -r all FILE")
    if features & ~_KNOWN_FEATURES:
        raise Invalid("the qcow2 image uses features that are not known here", fix=_flatten())


def _flatten() -> str:
    return "write a plain copy: qemu-img convert -O qcow2 FILE image.qcow2"


def _inspect_raw(path: Path) -> int:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith(QCOW2_MAGIC):
        raise Invalid("the file is a qcow2 image, not a raw one", fix="make the image with format qcow2")
    if looks := _looks_like(start):
        raise Invalid(f"the file is no raw disk{looks}", fix="unpack or convert it, then upload it again")
    if size % 512:
        raise Invalid(
            f"the file has {size} bytes; a raw disk has a multiple of 512", fix="is it whole, and a disk's image?"
        )
    return _disk_gib(size)


def _looks_like(start: bytes) -> str:
    found = next((name for magic, name in _OTHERS.items() if start.startswith(magic)), "")
    return f": it looks like {found}" if found else ""


def _disk_gib(size_bytes: int) -> int:
    gib = max(1, -(-size_bytes // GIB))
    if gib > MOST_GIB:
        raise Invalid(f"the image is a disk of {gib} GiB; {MOST_GIB} is the limit", fix="make it smaller")
    return gib


class _Frugal:
    """A file from which no header can have more than a little read at once: a tar may claim any length."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.tell, self.seek = file.tell, file.seek

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _HEADER_MOST:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


def _inspect_kernel(path: Path) -> None:
    seen: set[str] = set()
    try:
        with path.open("rb") as file, tarfile.open(fileobj=_Frugal(file), mode="r:") as tar:  # type: ignore[call-overload]
            for member in tar:
                _check_member(member, seen)
                seen.add(member.name)
    except (tarfile.TarError, ValueError, OverflowError) as err:
        raise Invalid(f"the file is no whole, uncompressed tar: {err}", fix=_HOW_TO_TAR) from err
    if missing := [name for name in _REQUIRED if name not in seen]:
        raise Invalid(f"the tar has no {' and no '.join(missing)}", fix=_HOW_TO_TAR)


def _check_member(member: tarfile.TarInfo, seen: set[str]) -> None:
    name = member.name[:80]
    if member.name not in KERNEL_MEMBERS:
        allowed = ", ".join(KERNEL_MEMBERS)
        raise Invalid(f"the tar has {name!r}; it may have {allowed} and nothing else", fix=_HOW_TO_TAR)
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        raise Invalid(f"{name} in the tar is not a plain file", fix=_HOW_TO_TAR)
    if member.name in seen:
        raise Invalid(f"the tar has {name} twice", fix=_HOW_TO_TAR)
    if not member.size and member.name in _REQUIRED:
        raise Invalid(f"{name} in the tar is empty", fix=_HOW_TO_TAR)
    if member.size > KERNEL_MEMBERS[member.name]:
        raise Invalid(
            f"{name} in the tar has {member.size} bytes; {KERNEL_MEMBERS[member.name]} is the limit",
            fix="make it smaller",
        )
