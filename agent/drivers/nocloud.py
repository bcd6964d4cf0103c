"""NoCloud disks: what cloud-init reads where it has no metadata service. genisoimage, and the labels of its files."""

import asyncio
import hashlib
import os
from pathlib import Path

from agent.drivers import files
from common import names
from common.codec import to_json
from common.documents import GuestMetadata
from common.run import run

_APPLICATION = slice(32768 + 574, 32768 + 574 + 128)
"""Where an ISO 9660 image's primary descriptor has its application identifier (ECMA-119, 8.4.20)."""


def contents(metadata: GuestMetadata) -> dict[str, bytes]:
    """Return the disk's files by name: meta-data in YAML, one key a line, since small guests read it with sed."""
    meta = {
        "instance-id": metadata.instance_id,
        "local-hostname": metadata.hostname,
        "public-keys": [key for _, key in metadata.public_keys],
    }
    # JSON's texts and lists are YAML's, too.
    lines = b"".join(f"{key}: ".encode() + to_json(value) + b"\n" for key, value in meta.items())
    return {"meta-data": lines, "user-data": metadata.user_data.encode()}


def digest(metadata: GuestMetadata) -> str:
    """Return the digest of what the disk should hold. The disk carries it as its application identifier."""
    return hashlib.sha256(b"\0".join(contents(metadata).values())).hexdigest().upper()


def found_digest(disk: Path) -> str:
    """Return the digest that a disk carries, empty where there is no disk."""
    try:
        with disk.open("rb") as file:
            file.seek(_APPLICATION.start)
            return file.read(128).decode(errors="replace").strip()
    except FileNotFoundError:
        return ""


async def make_seed(disk: Path, metadata: GuestMetadata) -> None:
    """Have the disk hold this. User data may be secret: nobody else can read the files while they are made.

    Raises CommandFailed when genisoimage can't.
    """
    source = disk.with_name(names.part(disk.stem))
    built = disk.with_name(names.part(disk.name))
    await asyncio.to_thread(_write, source, contents(metadata))
    image = source / "seed"
    paths = [f"{name}={source / name}" for name in contents(metadata)]
    options = ["-volid", "cidata", "-joliet", "-rock", "-appid", digest(metadata), "-graft-points"]
    await run(["genisoimage", "-quiet", "-output", str(image), *options, *paths])
    await asyncio.to_thread(_finish, image, built, disk)


def _write(source: Path, parts: dict[str, bytes]) -> None:
    files.remove(source)
    source.mkdir(mode=0o700)
    for name, content in parts.items():
        descriptor = os.open(source / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(content)


def _finish(image: Path, built: Path, disk: Path) -> None:
    image.chmod(0o600)
    image.rename(built)
    files.publish(built, disk)
    files.remove(image.parent)


def leftovers(disk: Path) -> tuple[Path, ...]:
    """Return the disk and its parts, as far as they exist."""
    paths = (disk, disk.with_name(names.part(disk.name)), disk.with_name(names.part(disk.stem)))
    return tuple(path for path in paths if path.exists())
