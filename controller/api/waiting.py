"""The long answers (event streams, consoles, waits for an operation), which all end at once when the process stops."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import WSCloseCode, web


class Waiting:
    """What is open and would keep the process from stopping."""

    def __init__(self) -> None:
        self.stopping = False
        self._waits: set[asyncio.Timeout] = set()
        self._sockets: set[web.WebSocketResponse] = set()

    @asynccontextmanager
    async def at_most(self, seconds: float) -> AsyncIterator[None]:
        """Let a block run that long. Raises TimeoutError then, and at once when the process stops."""
        async with asyncio.timeout(0 if self.stopping else seconds) as limit:
            self._waits.add(limit)
            try:
                yield
            finally:
                self._waits.discard(limit)

    @asynccontextmanager
    async def socket(self, websocket: web.WebSocketResponse) -> AsyncIterator[None]:
        """Keep a websocket that is closed when the process stops."""
        self._sockets.add(websocket)
        try:
            yield
        finally:
            self._sockets.discard(websocket)

    async def stop(self, _app: web.Application | None = None) -> None:
        """End every wait and close every websocket, so that a graceful stop is a quick one."""
        self.stopping = True
        now = asyncio.get_running_loop().time()
        for limit in tuple(self._waits):
            limit.reschedule(now)
        for websocket in tuple(self._sockets):
            await websocket.close(code=WSCloseCode.GOING_AWAY, message=b"the controller is stopping")
