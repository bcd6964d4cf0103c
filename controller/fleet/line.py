"""What is done for one welcome host: sending what waits for it, taking in what it said, each by a task only while there
is something. Thousands of hosts are silent nearly all of the time.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from common.errors import SkerryError
from common.protocol import Metrics
from controller.fleet.sessions import Fleet, Session, Told

log = structlog.get_logger(__name__)

SEND_LIMIT_S = 10.0
"""A host that takes not one more byte for so long is shed."""

WAITING = 1024
"""Messages of one host that wait to be taken in; then the link stops reading until they are."""

SendBytes = Callable[[bytes], Awaitable[None]]


class Line:
    """The tasks of one session; all of them end with `stop`."""

    def __init__(self, fleet: Fleet, session: Session, group: asyncio.TaskGroup, send_bytes: SendBytes) -> None:
        self._fleet, self._session, self._group, self._send_bytes = fleet, session, group, send_bytes
        self._waiting: list[Told] = []
        self._sender: asyncio.Task[None] | None = None
        self._taker: asyncio.Task[None] | None = None

    def look(self, patience: asyncio.Timeout) -> None:
        """Send what there is to send; once the session has ended, end the patience of its reader."""
        if self._session.reason:
            if not patience.expired():
                patience.reschedule(asyncio.get_running_loop().time())
        elif self._sender is None:
            self._sender = self._group.create_task(self._send())

    async def put(self, message: Told) -> None:
        """Have a message taken in after those that came before; wait while too many wait."""
        if self._taker is None and isinstance(message, Metrics):
            return await self._take(message)  # most of what a host says, and put down at once: no task for that
        self._waiting.append(message)
        if self._taker is None:
            self._taker = self._group.create_task(self._take_in())
        if len(self._waiting) >= WAITING:
            await asyncio.wait([self._taker])
        return None

    def stop(self) -> None:
        """Stop sending and taking in."""
        for task in (self._sender, self._taker):
            if task is not None:
                task.cancel()

    async def _send(self) -> None:
        try:
            while (frame := self._session.next_frame()) is not None:
                async with asyncio.timeout(SEND_LIMIT_S):
                    await self._send_bytes(frame)
        except TimeoutError:
            self._session.close(f"too slow: it took nothing for {SEND_LIMIT_S:g} s")
        except OSError as err:
            self._session.close(f"the connection broke: {err}")
        finally:
            self._sender = None

    async def _take_in(self) -> None:
        try:
            while self._waiting:
                await self._take(self._waiting.pop(0))
        finally:
            self._taker = None

    async def _take(self, message: Told) -> None:
        host, what = self._session.host, type(message).__name__
        try:
            await self._fleet.received(self._session, message)
        except SkerryError as err:
            self._session.close(f"its {what} could not be taken in: {err.detail}")
        except Exception:
            log.exception("message of a host not taken in", host=host, message=what)
            self._session.close(f"the controller failed on its {what}: see the controller's log")
