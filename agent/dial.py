"""The connections this host opens to its controller: the websocket, image downloads, and certificate renewal."""

import asyncio
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import aiohttp
import msgspec
import structlog

from agent import join
from agent.join import Identity
from common.clock import Clock, system_clock
from common.errors import NotFound, Problem, SkerryError, Temporary
from common.joining import Vouched, VouchRequest
from common.protocol import MAX_MESSAGE_BYTES

log = structlog.get_logger(__name__)

CONNECT_LIMIT_S = 10.0
SILENCE_LIMIT_S = 30.0
"""Of an image download: so long without a byte, and it is given up."""

HEARTBEAT_S = 5.0
"""A ping after so long a silence, and half of it again for the pong: a dead controller is noticed within 7.5 s."""

RENEW_CHECK_S = 60.0
"""Looked at so often by the clock, which somebody may set."""

RENEW_AGAIN_S = 600.0
_CHUNK_BYTES = 1 << 20


class Dialer:
    """Dials a controller with this host's certificate. An async context manager; `identity` may change on renewal.

    A cloud may have several controllers, and any will do: `url` is the one to dial now, `turn` goes on to the next.
    """

    def __init__(self, identity: Identity, clock: Clock = system_clock) -> None:
        self.identity = identity
        self._urls: tuple[str, ...] = (identity.url,)
        self._at = 0
        self._clock = clock
        self._context = identity.context()
        self._renewing = asyncio.Lock()
        self._open: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(force_close=True, limit=32)
        timeout = aiohttp.ClientTimeout(sock_connect=CONNECT_LIMIT_S, sock_read=SILENCE_LIMIT_S)
        self._open = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()

    @property
    def _http(self) -> aiohttp.ClientSession:
        assert self._open is not None, "a Dialer is entered before it is used"
        return self._open

    @property
    def url(self) -> str:
        """The controller to dial now."""
        return self._urls[self._at % len(self._urls)]

    @property
    def urls(self) -> tuple[str, ...]:
        """Every controller that is known, the one that was joined among them: it may be the last that is left."""
        return self._urls

    def know(self, urls: Iterable[str]) -> None:
        """Know these controllers, and go on with the present one."""
        present = self.url
        self._urls = tuple(dict.fromkeys((*urls, self.identity.url)))
        self._at = self._urls.index(present) if present in self._urls else 0

    def turn(self, steps: int = 1) -> None:
        """Dial another one next, where there are several."""
        self._at = (self._at + steps) % len(self._urls)

    async def websocket(self) -> aiohttp.ClientWebSocketResponse:
        """Open the link's websocket. Raises Temporary with the controller's or the network's words."""
        try:
            async with asyncio.timeout(CONNECT_LIMIT_S):
                return await self._http.ws_connect(
                    f"{self.url}/link",
                    heartbeat=HEARTBEAT_S,
                    max_msg_size=MAX_MESSAGE_BYTES,
                    compress=0,
                    ssl=self._context,
                )
        except aiohttp.WSServerHandshakeError as err:
            raise Temporary(await self._refusal(err.status)) from err
        except TimeoutError as err:
            raise Temporary(f"{self.url} gave no answer in {CONNECT_LIMIT_S:g} s") from err
        except (aiohttp.ClientError, ssl.SSLError, OSError) as err:
            raise Temporary(f"{self.url} can't be reached: {join.network_words(err)}") from err

    async def _refusal(self, status: int) -> str:
        """Ask once more in plain HTTP, since a failed upgrade does not show the problem document."""
        try:
            async with (
                asyncio.timeout(CONNECT_LIMIT_S),
                self._http.get(f"{self.url}/link", ssl=self._context) as response,
            ):
                problem = msgspec.json.decode(await response.content.read(65536), type=Problem)
                return f"the controller refused: {problem.detail}" + (f"; {problem.fix}" if problem.fix else "")
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError):
            return f"the controller refused the link with status {status}"

    async def fetch(self, digest: str, destination: Path, progress: Callable[[int], None]) -> None:
        """Bring the bytes of an image (`sha256:…`) into a file; one that was begun is carried on where it ended.

        `progress` is told the bytes there are so far. Whether they are the right ones is the caller's to check.
        Raises NotFound where the controller has no such image for this host, Temporary for anything on the way.
        """
        with await asyncio.to_thread(destination.open, "ab") as file:
            try:
                await self._fetch(digest, file, progress)
            except TimeoutError as err:
                raise Temporary(f"image {digest}: no byte for {SILENCE_LIMIT_S:g} s") from err
            except (aiohttp.ClientError, OSError) as err:
                raise Temporary(f"image {digest} could not be fetched: {join.network_words(err)}") from err

    async def _fetch(self, digest: str, file: BinaryIO, progress: Callable[[int], None]) -> None:
        have = file.tell()
        headers = {"Range": f"bytes={have}-"} if have else {}
        url = f"{self.url}/images/{digest.removeprefix('sha256:')}"
        async with self._http.get(url, headers=headers, ssl=self._context) as response:
            if response.status == 416:  # as many bytes as there are, or more: the digest will tell
                progress(have)
                return
            if response.status == 404:
                raise NotFound(f"the controller has no image {digest} for this host")
            if response.status not in {200, 206}:
                raise Temporary(f"image {digest}: the controller answered with status {response.status}")
            if have and response.status == 200:
                have = 0
                file.truncate(0)
            async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                await asyncio.to_thread(file.write, chunk)
                have += len(chunk)
                progress(have)
            await asyncio.to_thread(file.flush)

    async def vouch(self, request: VouchRequest) -> Vouched:
        """Have the controller certify a key for machines on this host. Raises Temporary, or what it said."""
        return await join.vouch(self.identity, self.url, request)

    async def keep_certificate_fresh(self) -> None:
        """Renew the certificate when half of its life is over; try again until it works. Runs until cancelled."""
        while True:
            late = self._clock() >= self.identity.renew_at and not await self.renew()
            await asyncio.sleep(RENEW_AGAIN_S if late else RENEW_CHECK_S)

    async def renew(self) -> bool:
        """Fetch the next certificate, and whom to trust, for the connections from now on; say whether it worked."""
        async with self._renewing:
            try:
                self.identity = await join.renew(self.identity, self.url)
            except SkerryError as err:
                log.warning("certificate not renewed", problem=err.detail, fix=err.fix, again_in_s=RENEW_AGAIN_S)
                return False
        self._context = self.identity.context()
        log.info("certificate renewed", serial=self.identity.serial)
        return True
