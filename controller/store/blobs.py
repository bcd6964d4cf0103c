"""Image bytes on the controller's disk: a file per digest, whole or not there at all, never changed."""

import asyncio
import errno
import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from functools import partial
from io import FileIO
from pathlib import Path
from typing import ParamSpec, TypeVar

import msgspec
import structlog

from common.errors import Invalid, OutOfSpace, Temporary, TooLarge
from common.names import part

log = structlog.get_logger(__name__)

CHUNK_BYTES = 1024 * 1024
"""Hashed and written at a time, in a thread."""

STALL_S = 60.0
"""An upload that gives no byte for so long is ended."""

_DIGEST = re.compile(r"sha256:(?P<hex>[0-9a-f]{64})")
_HEX = re.compile(r"[0-9a-f]{64}")

P = ParamSpec("P")
R = TypeVar("R")

Inspect = Callable[[Path, str], Awaitable[int]]
"""Looks at a finished file and its digest, and returns the GiB of disk it needs. What it raises refuses the file."""


class Blob(msgspec.Struct, frozen=True, kw_only=True):
    """One image file."""

    digest: str
    """`sha256:` and 64 hex digits."""
    size_bytes: int
    disk_gib: int


class Blobs:
    """The directory. Concurrent uploads are fine, also of the same bytes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._parts: set[str] = set()
        self._held: Counter[str] = Counter()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path_of(self, digest: str) -> Path | None:
        """Return the file with this digest, None where there is none."""
        form = _DIGEST.fullmatch(digest)
        path = self._directory / form["hex"] if form else None
        return path if path and path.is_file() else None

    @asynccontextmanager
    async def receive(
        self, stream: AsyncIterator[bytes], *, name: str, limit_bytes: int, inspect: Inspect
    ) -> AsyncIterator[Blob]:
        """Take bytes in, have them inspected, and keep them. A sweep spares them until the block ends, by when
        a row refers to them. `name` tells concurrent uploads apart.

        Raises TooLarge, OutOfSpace, Invalid (no bytes, or as `inspect` says), Temporary for an upload that stalls;
        then nothing of it is left.
        """
        path = self._directory / part(name)
        self._parts.add(path.name)
        try:
            digest, size_bytes = await _receive(stream, path, limit_bytes)
            disk_gib = await inspect(path, digest)
            held = digest.removeprefix("sha256:")
            self._held[held] += 1
            try:
                await _in_thread(_keep, path, self._directory / held)
                yield Blob(digest=digest, size_bytes=size_bytes, disk_gib=disk_gib)
            finally:
                self._held[held] -= 1
                self._held += Counter()
        finally:
            self._parts.discard(path.name)
            path.unlink(missing_ok=True)

    def refuse_oversize(self, size_bytes: int, limit_bytes: int) -> None:
        """Refuse an upload by the size it announces. Raises TooLarge or OutOfSpace."""
        if size_bytes > limit_bytes:
            raise _too_large(limit_bytes)
        free = shutil.disk_usage(self._directory).free
        if size_bytes > free:
            raise _full(f"the image has {size_bytes} bytes, its disk has {free} left")

    async def sweep(self, referenced: Callable[[], Collection[str]]) -> tuple[str, ...]:
        """Remove what no image refers to and no upload is making; returns the names.

        `referenced` gives the digests that images name. It is asked after the directory was read: an upload that
        ends in between is named by then, or still held.
        """
        paths = await _in_thread(lambda: sorted(self._directory.iterdir()))
        kept = {digest.removeprefix("sha256:") for digest in referenced()}
        removed = []
        for path in paths:
            stale = path.name.endswith(part("")) and path.name not in self._parts
            orphan = bool(_HEX.fullmatch(path.name)) and path.name not in kept and not self._held[path.name]
            if stale or orphan:
                path.unlink(missing_ok=True)
                removed.append(path.name)
                log.info("image bytes removed", file=path.name)
        return tuple(removed)


async def _receive(stream: AsyncIterator[bytes], path: Path, limit_bytes: int) -> tuple[str, int]:
    digest = hashlib.sha256()
    size = 0
    with _open_new(path) as file:
        async for chunk in _gathered(stream):
            size += len(chunk)
            if size > limit_bytes:
                raise _too_large(limit_bytes)
            await _in_thread(_append, file, digest, chunk)
        await _in_thread(_sync, file)
    if not size:
        raise Invalid("the upload has no bytes", fix="send the image's file as the body")
    return f"sha256:{digest.hexdigest()}", size


async def _gathered(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Give a stream's bytes in chunks that are worth a thread's while. Raises Temporary where none come for long."""
    gathered = bytearray()
    while True:
        try:
            async with asyncio.timeout(STALL_S):
                gathered += await anext(stream)
        except StopAsyncIteration:
            break
        except TimeoutError as err:
            raise Temporary(f"the upload gave no byte for {STALL_S:g} s", fix="upload it again") from err
        if len(gathered) >= CHUNK_BYTES:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


async def _in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function in a thread, to its end also when the caller is cancelled: else it would go on with a file
    that is closed by then."""
    future = asyncio.get_running_loop().run_in_executor(None, partial(function, *args, **kwargs))
    try:
        await asyncio.wait([future])
    except asyncio.CancelledError:
        await asyncio.wait([future])
        future.exception()
        raise
    return future.result()


def _open_new(path: Path) -> FileIO:
    path.unlink(missing_ok=True)
    return FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w")


def _append(file: FileIO, digest: "hashlib._Hash", chunk: bytes) -> None:
    digest.update(chunk)
    rest = memoryview(chunk)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as err:
        raise _written(err) from err


def _sync(file: FileIO) -> None:
    try:
        os.fsync(file.fileno())
    except OSError as err:
        raise _written(err) from err


def _keep(path: Path, final: Path) -> None:
    """Give a finished file its name, for good: the directory is synced too."""
    path.rename(final)
    directory = os.open(final.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _written(err: OSError) -> Exception:
    return _full("it was full before the upload's end") if err.errno in (errno.ENOSPC, errno.EDQUOT) else err


def _full(what: str) -> OutOfSpace:
    return OutOfSpace(
        f"the controller's disk has no room for this image: {what}",
        fix="delete images that nobody uses, or give the controller's state_dir a larger disk; then upload it again",
    )


def _too_large(limit_bytes: int) -> TooLarge:
    return TooLarge(
        f"the image has more than {limit_bytes >> 30} GiB, the limit",
        fix="make it smaller (qemu-img convert -c -O qcow2), or have the operator raise api.max_image_gib",
    )
