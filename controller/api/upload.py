"""Taking in an image's bytes: streamed to disk, hashed and checked on the way, then written into the image's spec."""

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import msgspec
from aiohttp import HttpVersion11, web

from common.errors import Conflict, Invalid, UnsupportedMedia
from common.ids import Entropy, Id, new_id
from common.kinds.image import IMAGE, ImageSpec
from common.kinds.kind import AnyResource
from controller.api.call import Call, Contexts
from controller.api.commit import MUTATION_PARAMETERS, Committer
from controller.api.ports import Store
from controller.api.query import refuse_unknown
from controller.api.resources import own
from controller.kinds import admission
from controller.kinds.admission import Admission
from controller.store.blobs import Blob, Blobs
from controller.store.image_file import inspect

TYPES = ("application/octet-stream", "application/x-tar", "application/x-qemu-disk")


class Upload:
    """The handler of `PUT …/images/{name}/content`."""

    def __init__(
        self,
        store: Store,
        contexts: Contexts,
        committer: Committer,
        *,
        blobs: Blobs,
        limit_bytes: int,
        entropy: Entropy,
    ) -> None:
        self._store = store
        self._contexts = contexts
        self._committer = committer
        self._blobs = blobs
        self._limit_bytes = limit_bytes
        self._entropy = entropy

    async def receive(self, call: Call) -> web.Response:
        """Take an image's bytes. The same bytes again are welcome, others are a Conflict: bytes never change."""
        refuse_unknown(call.request.query, MUTATION_PARAMETERS)
        image = own(self._store.seen, call, IMAGE)
        self._refuse_early(call.request, image)
        await self._rehearse(call, image)
        await _go_on(call.request)
        async with self._blobs.receive(
            _bytes_of(call.request),
            name=new_id("up", self._entropy),
            limit_bytes=self._limit_bytes,
            inspect=partial(self._inspect, image.id),
        ) as blob:
            return await self._committer.answer(call, lambda: self._record(call, image.id, blob))

    def _refuse_early(self, request: web.Request, image: AnyResource) -> None:
        """Refuse what the headers show to be in vain, before a byte is sent."""
        if request.content_type not in TYPES:
            raise UnsupportedMedia(
                f"an image's bytes came as {request.content_type}", fix=f"send Content-Type: {TYPES[0]}"
            )
        if image.deleted_at is not None:
            raise Conflict(f"image {image.name} is being deleted", fix="make a new image")
        size = request.content_length
        if size is None:
            return
        self._blobs.refuse_oversize(size, self._limit_bytes)
        if image.spec.digest and size != image.spec.size_bytes:
            raise _other_bytes(image)

    async def _rehearse(self, call: Call, image: AnyResource) -> None:
        """Refuse what the quota has no room for before a byte is sent, where the headers say how much it is."""
        size = call.request.content_length
        if size is not None and not image.spec.digest:
            spec = msgspec.structs.replace(image.spec, size_bytes=size)
            await self._store.rehearse(admission.record(self._contexts.of(call.caller), image, spec, "content"), ())

    async def _inspect(self, image: Id, path: Path, digest: str) -> int:
        row = self._present(image)
        if row.spec.digest and row.spec.digest != digest:
            raise _other_bytes(row)
        return await inspect(path, row.spec.format)

    def _present(self, image: Id) -> AnyResource:
        row = self._store.seen.get(image)
        if row is None:
            raise Conflict(f"image {image} was deleted meanwhile", fix="make it again, then upload")
        return row

    def _record(self, call: Call, image: Id, blob: Blob) -> Admission:
        row = self._present(image)
        if row.spec.digest and row.spec.digest != blob.digest:
            raise _other_bytes(row)
        spec: ImageSpec = msgspec.structs.replace(
            row.spec, digest=blob.digest, size_bytes=blob.size_bytes, disk_gib=blob.disk_gib
        )
        return admission.record(self._contexts.of(call.caller), row, spec, "content")


def _other_bytes(image: AnyResource) -> Conflict:
    return Conflict(
        f"image {image.name} has its bytes already ({image.spec.digest}, {image.spec.size_bytes} bytes);"
        " these are others, and an image's bytes never change",
        fix="make a new image for them",
    )


async def hold_back(_request: web.Request) -> None:
    """Answer `Expect: 100-continue` later, when it is known that the bytes are wanted: see `_go_on`."""


async def _go_on(request: web.Request) -> None:
    if request.version == HttpVersion11 and request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0


async def _bytes_of(request: web.Request) -> AsyncIterator[bytes]:
    """Give a body's bytes. Raises Invalid where the connection ends before the body does."""
    try:
        async for data in request.content.iter_any():
            yield data
    except (web.RequestPayloadError, ConnectionError) as err:
        raise Invalid("the upload ended before all of it had come", fix="upload it again") from err
