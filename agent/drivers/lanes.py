"""Threads with a connection each, that take jobs from a queue: blocking calls that never block the loop.

A lane opens its connection when it needs one, and again when the other side was restarted; a call that does not come
back in time costs its lane, which is replaced.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import structlog

from common.errors import SkerryError, Temporary

log = structlog.get_logger(__name__)

T = TypeVar("T")

Connection = Any
"""It has `isAlive` and `close`; libvirt-python comes without types."""


class Source(NamedTuple):
    """Where connections come from, and what goes wrong with them."""

    open: Callable[[], Connection]
    error: type[Exception]
    translated: Callable[[Any], SkerryError]
    """Turns such an error into one of ours."""


class Lanes:
    """Some threads, each with a connection of its own, that take jobs from one queue."""

    def __init__(self, name: str, source: Source, count: int) -> None:
        self._name, self._source, self._count = name, source, count
        self._jobs: queue.SimpleQueue[Callable[[Callable[[], Connection]], bool] | None] = queue.SimpleQueue()
        self._open = False

    def open(self) -> None:
        self._open = True
        for _ in range(self._count):
            self._add()

    def close(self) -> None:
        self._open = False
        for _ in range(self._count):
            self._jobs.put(None)

    def _add(self) -> None:
        threading.Thread(target=self._work, name=f"libvirt-{self._name}", daemon=True).start()

    def _work(self) -> None:
        connection: Connection = None

        def connected() -> Connection:
            nonlocal connection
            if connection is None or not connection.isAlive():
                connection = self._source.open()
            return connection

        while (job := self._jobs.get()) is not None:
            if not job(connected):
                break
        if connection is not None:
            with contextlib.suppress(self._source.error):
                connection.close()

    async def call(self, work: Callable[[Connection], T], what: str, timeout_s: float) -> T:
        """Run `work` in a lane. Raises Temporary when it has not come back in time, and what `translated` makes."""
        if not self._open:
            raise Temporary(f"{what}: the libvirt driver is closed")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        late = threading.Event()
        begun = threading.Event()

        def job(connected: Callable[[], Connection]) -> bool:
            if late.is_set() or done.cancelled():
                return True
            begun.set()
            result: T | None = None
            error: BaseException | None = None
            try:
                result = work(connected())
            except BaseException as err:
                error = err
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_finish, done, result, error)
            return not late.is_set()

        self._jobs.put(job)
        try:
            return await asyncio.wait_for(done, timeout_s)
        except self._source.error as err:
            raise self._source.translated(err) from err
        except TimeoutError as err:
            late.set()
            if begun.is_set():
                log.warning("libvirt does not answer; its lane is replaced", what=what, timeout_s=timeout_s)
                self._add()
            raise Temporary(f"{what}: libvirt has not answered in {timeout_s:.0f} s") from err


def _finish(done: "asyncio.Future[Any]", result: Any, error: BaseException | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)
