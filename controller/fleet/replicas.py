"""Image bytes on every controller: what was uploaded to one is fetched by the others, so that none of them is needed.

A host downloads from the controller it is connected to. A fetch goes over the link's port, where this controller shows
its certificate; the bytes are kept only where their digest is the one that the image names.
"""

import asyncio
import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path

import aiohttp
import structlog

from common.errors import Invalid, SkerryError, Temporary
from common.ids import new_id
from common.kinds.image import ImageSpec
from controller.store.blobs import Blobs
from controller.store.rows import Change, Put
from controller.store.store import Store

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 30.0
CONNECT_LIMIT_S = 3.0
SILENCE_LIMIT_S = 30.0


class Replicas:
    """Fetches what this controller lacks. `me` is its id."""

    def __init__(self, store: Store, blobs: Blobs, me: str, context: Callable[[], ssl.SSLContext]) -> None:
        self._store = store
        self._seen = store.seen
        self._blobs = blobs
        self._me = me
        self._context = context

    async def run(self) -> None:
        """Fetch when an image gets its bytes, and look now and then, until cancelled."""
        with self._store.watch() as watch:
            while True:
                await self.fetch_missing()
                try:
                    async with asyncio.timeout(LOOK_EVERY_S):
                        while not _concerns_images(await watch.next()):
                            pass
                except TimeoutError:
                    continue

    async def fetch_missing(self) -> None:
        """Fetch every image that is not here from a controller that has it."""
        for row in list(self._seen.of_kind("image")):
            spec: ImageSpec = row.spec
            if spec.digest and row.deleted_at is None and self._blobs.path_of(spec.digest) is None:
                await self._fetch(spec)

    async def _fetch(self, spec: ImageSpec) -> None:
        for one in self._seen.controllers():
            if one.id == self._me or not one.alive:
                continue
            try:
                await self._fetch_from(one.url, spec)
            except (SkerryError, aiohttp.ClientError, TimeoutError, OSError) as err:
                log.info("image not fetched", digest=spec.digest, url=one.url, error=str(err) or type(err).__name__)
                continue
            log.info("image fetched", digest=spec.digest, url=one.url)
            return

    async def _fetch_from(self, url: str, spec: ImageSpec) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_LIMIT_S, sock_read=SILENCE_LIMIT_S)
        connector = aiohttp.TCPConnector(ssl=self._context(), force_close=True)
        target = f"{url}/images/{spec.digest.removeprefix('sha256:')}"
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as http,
            http.get(target) as answer,
        ):
            if answer.status != 200:
                raise Temporary(f"it answered with status {answer.status}")
            async with self._blobs.receive(
                answer.content.iter_any(),
                name=new_id("rep"),
                limit_bytes=spec.size_bytes,
                inspect=partial(_inspect, spec),
            ):
                return


async def _inspect(spec: ImageSpec, _path: Path, digest: str) -> int:
    if digest != spec.digest:
        raise Invalid(f"these bytes are {digest}")
    return spec.disk_gib


def _concerns_images(changes: tuple[Change, ...] | None) -> bool:
    """Say whether an image may have got its bytes; None: something was missed."""
    if changes is None:
        return True
    return any(isinstance(one, Put) and getattr(one.row, "kind", "") == "image" for one in changes)
