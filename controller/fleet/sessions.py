"""One connected host: what can be sent to it, asked of it and streamed with it, and the end of its session.

A session knows no websocket: `controller.fleet.link` moves its frames. What it does with the fleet's books is the
`Fleet` protocol, which the rest of the controller implements.
"""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import msgspec
import structlog

from common.batches import cut
from common.codec import to_pack
from common.documents import Desired
from common.errors import ERRORS, Temporary
from common.ids import HostId, RequestId
from common.joining import Enrolled, Vouched, VouchRequest
from common.protocol import (
    AttachConsole,
    Call,
    DesiredBatch,
    Down,
    Hello,
    HostEvent,
    Metrics,
    Order,
    Refused,
    Reply,
    Reports,
    StreamCredit,
    StreamData,
    StreamEnd,
    Welcome,
)
from common.stream import Stream, StreamBroken
from common.tls import Peer
from controller.fleet.lies import Lie

log = structlog.get_logger(__name__)

QUEUE_BYTES = 16 * 1024 * 1024
"""A host that lets more than this pile up is shed: it is too slow, or does not read."""

ROOM_BYTES = 1024 * 1024
"""`send_documents` waits until less than this is queued, so that a full list alone sheds nobody."""

ROOM_LIMIT_S = 30.0
CALL_LIMIT_S = 30.0
STREAMS = 64
"""Open streams of one host at a time."""

Told = Reports | Metrics | HostEvent
"""What a host says of its own accord; replies and streams are the session's own business."""


class Fleet(Protocol):
    """What the link needs of the controller. All may raise SkerryError; the host is told the words."""

    async def enrol(self, token: str, csr_pem: str) -> Enrolled:
        """Redeem a join token (its whole text). Raises Denied where it is unknown, used or expired."""
        ...

    async def renew(self, peer: Peer, csr_pem: str) -> Enrolled:
        """Give a connected host its next certificate."""
        ...

    async def vouch(self, peer: Peer, request: VouchRequest) -> Vouched:
        """Certify a host's key for the machines that are on it."""
        ...

    async def left(self, peer: Peer) -> None:
        """Let a host go that nothing should be on any more. Raises Conflict otherwise."""
        ...

    def is_revoked(self, host: HostId, serial: str) -> bool:
        """Say whether this certificate, or the host as such, is no longer let in. Asked at every connection."""
        ...

    async def connected(self, session: "Session", hello: Hello) -> Welcome | Refused:
        """Take a host in. What is sent on the session meanwhile waits for the welcome, so long lists are sent later."""
        ...

    async def received(self, session: "Session", message: Told) -> None:
        """Take in what a host said; called in order, one at a time per host."""
        ...

    async def disconnected(self, session: "Session", reason: str) -> None:
        """Take note that a session is over; called once for each that was welcomed, before the next one of the host."""
        ...

    async def lied(self, host: HostId, lie: Lie, detail: str) -> None:
        """Take note of what no host does."""
        ...

    async def turned_away(self, host: HostId, reason: str) -> None:
        """Take note that a host with a good certificate was not let in."""
        ...

    def image(self, digest: str) -> Path | None:
        """Return the file of an image (`sha256:…`), for another controller."""
        ...

    def may_fetch(self, host: HostId, digest: str) -> Path | None:
        """Return the file of an image (`sha256:…`) if it is in that host's documents."""
        ...


Look = Callable[[], None]
"""Called when there is something to send, and at the end."""


class Session:
    """The controller's end of one link. Most of them are silent, so what only some need is made when it is needed."""

    def __init__(self, peer: Peer) -> None:
        self.host = peer.host
        self.peer = peer
        self.heard = 0
        """The number of the last reports that were taken in."""
        self._over = False
        self._ended: asyncio.Event | None = None
        """There while somebody waits for the end, as `_room` is while somebody waits for room."""
        self._reason = ""
        self._look: Look | None = None
        self._queue: list[bytes] = []
        self._next_out: list[bytes] = []
        """The frames that go before those of `_queue`, the last one first."""
        self._queued_bytes = 0
        self._room: asyncio.Event | None = None
        self._calls: dict[int, asyncio.Future[Reply]] = {}
        self._streams: dict[int, Stream] = {}
        self._number = 0

    # --- for the controller -------------------------------------------------------------------------------------

    @property
    def reason(self) -> str:
        """Why it ended; empty while it lasts."""
        return self._reason

    def send(self, message: Down) -> None:
        """Queue a message. A host that lets too much pile up is shed; after the end it goes nowhere."""
        if self._reason:
            return
        frame = to_pack(message)
        self._queue.append(frame)
        self._queued_bytes += len(frame)
        if self._queued_bytes > QUEUE_BYTES:
            self.close(f"too slow: {self._queued_bytes} bytes wait for it, the limit is {QUEUE_BYTES}")
        elif self._look:
            self._look()

    async def send_documents(self, items: Iterable[Desired], *, full: bool = False) -> None:
        """Send documents in batches, waiting for room. `full`: these are all the controller knows.

        Raises Temporary when the session ends before all are queued.
        """
        groups = list(cut(items)) or [()]
        for index, group in enumerate(groups):
            await self._have_room()
            self.send(DesiredBatch(items=group, full=full, last=index == len(groups) - 1))

    async def call(self, order: Order, request: RequestId, *, limit_s: float = CALL_LIMIT_S) -> bytes:
        """Have the host carry out an order now, and return the body of its reply.

        Raises the error that the host named (NotFound, Temporary, …) with its words, and Temporary where the link
        ends or no reply comes in time.
        """
        if self._reason:
            raise Temporary(f"host {self.host} is not connected: {self._reason}", fix="try again once it is back")
        number = self._next()
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._calls[number] = future
        self.send(Call(call=number, order=order, request=request))
        try:
            async with asyncio.timeout(limit_s):
                reply = await future
        except TimeoutError as err:
            raise Temporary(f"host {self.host} gave no answer in {limit_s:g} s", fix="try again") from err
        finally:
            self._calls.pop(number, None)
        if reply.problem or reply.code:
            error = next((kind for kind in ERRORS if kind.code == reply.code), Temporary)
            raise error(reply.problem)
        return reply.body

    async def open_stream(self, order: AttachConsole, request: RequestId) -> Stream:
        """Have the host open a console, and return the stream of it (the order's stream number is set here)."""
        if len(self._streams) >= STREAMS:
            raise Temporary(f"host {self.host} has {STREAMS} open streams, the limit", fix="close a console")
        number = self._next()
        stream = Stream(number, self._send_frame)
        self._streams[number] = stream
        try:
            await self.call(msgspec.structs.replace(order, stream=number), request)
        except BaseException:
            stream.close("not opened")
            raise
        return stream

    def close(self, reason: str) -> None:
        """End the session. The first reason counts."""
        if self._reason:
            return
        self._reason = reason
        self._make_room()
        if self._look:
            self._look()
        for stream in self._streams.values():
            stream.cut(f"the link to the host ended: {reason}")
        self._streams.clear()
        for future in self._calls.values():
            if not future.done():
                future.set_exception(Temporary(f"the link to host {self.host} ended: {reason}", fix="try again"))
                # The caller may have left already; its error is no surprise to anybody then.
                future.exception()

    # --- for the link -------------------------------------------------------------------------------------------

    def watch(self, look: Look | None) -> None:
        """Have `look` called from now on: at once, if there is something to send already or it has ended."""
        self._look = look
        if look and (self._queue or self._reason):
            look()

    def next_frame(self) -> bytes | None:
        """Return the next frame to send; None where there is none."""
        if not self._next_out:
            self._next_out, self._queue = self._queue[::-1], []
        if not self._next_out:
            return None
        frame = self._next_out.pop()
        self._queued_bytes -= len(frame)
        if self._queued_bytes < ROOM_BYTES:
            self._make_room()
        return frame

    @property
    def over(self) -> bool:
        """Say whether all is over, the fleet's part included."""
        return self._over

    def end(self) -> None:
        """Note that all is over."""
        self._over = True
        if self._ended:
            self._ended.set()

    async def wait_over(self) -> None:
        """Wait until all is over."""
        if not self._over:
            self._ended = self._ended or asyncio.Event()
            await self._ended.wait()

    def take(self, message: Reply | StreamData | StreamCredit | StreamEnd) -> None:
        """Take in a reply or a stream's frame. Ends the session where the host breaks a stream's rules."""
        if isinstance(message, Reply):
            future = self._calls.get(message.call)
            if future is not None and not future.done():
                future.set_result(message)
            return
        stream = self._streams.get(message.stream)
        if stream is None:
            return  # ended here a moment ago: what is still under way for it means nothing
        try:
            stream.take(message)
        except StreamBroken as err:
            self.close(f"broke the rules: {err}")
        if isinstance(message, StreamEnd):
            self._streams.pop(message.stream, None)

    # ------------------------------------------------------------------------------------------------------------

    def _send_frame(self, frame: StreamData | StreamCredit | StreamEnd) -> None:
        if isinstance(frame, StreamEnd):
            self._streams.pop(frame.stream, None)
        self.send(frame)

    async def _have_room(self) -> None:
        try:
            async with asyncio.timeout(ROOM_LIMIT_S):
                while self._queued_bytes >= ROOM_BYTES and not self._reason:
                    self._room = self._room or asyncio.Event()
                    await self._room.wait()
        except TimeoutError:
            self.close(f"too slow: it took less than {ROOM_BYTES} bytes in {ROOM_LIMIT_S:g} s")
        if self._reason:
            raise Temporary(f"the link to host {self.host} ended: {self._reason}")

    def _make_room(self) -> None:
        if self._room:
            self._room.set()
            self._room = None

    def _next(self) -> int:
        self._number += 1
        return self._number


class Sessions:
    """The sessions there are: one per host, the newest."""

    def __init__(self) -> None:
        self._by_host: dict[HostId, Session] = {}

    def get(self, host: HostId) -> Session | None:
        """Return a host's session, None while it is not connected."""
        found = self._by_host.get(host)
        return None if found is None or found.reason else found

    def all(self) -> tuple[Session, ...]:
        """Return every session."""
        return tuple(self._by_host.values())

    async def replace(self, session: Session, *, limit_s: float = 10.0) -> bool:
        """Let a session take its host's place, after an older one was ended. False: the older one did not end."""
        while (older := self._by_host.get(session.host)) is not None:
            older.close("the host connected anew")
            try:
                async with asyncio.timeout(limit_s):
                    await older.wait_over()
            except TimeoutError:
                return False
            if self._by_host.get(session.host) is older:
                del self._by_host[session.host]
        self._by_host[session.host] = session
        return True

    def remove(self, session: Session) -> None:
        """Take a session out, unless a newer one has its place."""
        if self._by_host.get(session.host) is session:
            del self._by_host[session.host]

    async def close_all(self, reason: str, *, limit_s: float = 10.0) -> None:
        """End every session, and wait until the fleet knows."""
        sessions = self.all()
        for session in sessions:
            session.close(reason)
        try:
            async with asyncio.timeout(limit_s):
                for session in sessions:
                    await session.wait_over()
        except TimeoutError:
            log.warning("sessions did not end in time", count=sum(not s.over for s in sessions))
