"""A two-way byte stream inside the link, with credit: a sender has at most one window of bytes under way.

Both sides use the same class; the link gives it a way to send frames and hands it those that come in (`take`).
`StreamEnd` ends both directions. What was received before it can still be read.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from common.errors import Temporary
from common.protocol import STREAM_WINDOW_BYTES, StreamCredit, StreamData, StreamEnd

Frame = StreamData | StreamCredit | StreamEnd
CHUNK_BYTES = 64 * 1024


class StreamBroken(Exception):
    """The peer broke the rules of credit. The link ends its session with these words."""


class StreamEnded(Temporary):
    """Nothing can be written any more: the stream has ended, and why."""


class Stream:
    """One end of a stream. `read` and `write` may be used by one task each."""

    def __init__(self, number: int, send: Callable[[Frame], None]) -> None:
        self.number = number
        self.ended: str | None = None
        """Why it ended; None while it is open."""
        self._send = send
        self._credit = STREAM_WINDOW_BYTES
        self._owed = 0
        self._taken = 0
        self._received: deque[bytes] = deque()
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()

    def take(self, frame: Frame) -> None:
        """Take in one frame from the peer. Raises StreamBroken where it exceeds its credit or gives too much."""
        match frame:
            case StreamData(data=data):
                self._owed += len(data)
                if self._owed > STREAM_WINDOW_BYTES:
                    raise StreamBroken(
                        f"stream {self.number} has {self._owed} bytes under way, its window is {STREAM_WINDOW_BYTES}"
                    )
                if data and self.ended is None:
                    self._received.append(data)
                    self._readable.set()
            case StreamCredit(bytes=granted):
                self._credit += granted
                if not 0 < granted <= STREAM_WINDOW_BYTES or self._credit > STREAM_WINDOW_BYTES:
                    raise StreamBroken(f"stream {self.number} was granted {granted} bytes that were never taken")
                self._writable.set()
            case StreamEnd(reason=reason):
                self.cut(reason or "the other side ended it")

    def cut(self, reason: str) -> None:
        """End it on this side without a word to the peer: the peer ended it, or the link is gone."""
        if self.ended is None:
            self.ended = reason
        self._readable.set()
        self._writable.set()

    def close(self, reason: str = "") -> None:
        """End it and tell the peer. Twice is once."""
        if self.ended is None:
            self.cut(reason or "closed")
            self._send(StreamEnd(stream=self.number, reason=reason))

    async def read(self) -> bytes:
        """Return the next bytes, or b"" after the end."""
        while not self._received:
            if self.ended is not None:
                return b""
            self._readable.clear()
            await self._readable.wait()
        data = self._received.popleft()
        self._taken += len(data)
        if self._taken >= STREAM_WINDOW_BYTES // 4 and self.ended is None:
            self._owed -= self._taken
            self._send(StreamCredit(stream=self.number, bytes=self._taken))
            self._taken = 0
        return data

    async def write(self, data: bytes) -> None:
        """Send bytes, waiting for credit. Raises StreamEnded when the stream is over before all are sent."""
        rest = memoryview(data)
        while rest:
            if self.ended is not None:
                raise StreamEnded(f"the stream has ended: {self.ended}")
            if self._credit <= 0:
                self._writable.clear()
                await self._writable.wait()
                continue
            size = min(len(rest), self._credit, CHUNK_BYTES)
            self._credit -= size
            self._send(StreamData(stream=self.number, data=bytes(rest[:size])))
            rest = rest[size:]

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over the bytes received, to the end."""
        return self._chunks()

    async def _chunks(self) -> AsyncIterator[bytes]:
        while data := await self.read():
            yield data
