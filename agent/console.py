"""Serial consoles: one reader per running domain, any number of watchers, and the logs that virtlogd writes."""

import asyncio
import os
import termios
import tty
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from agent.drivers.hypervisor import Hypervisor
from agent.drivers.place import Place
from common.errors import NotFound, Temporary
from common.ids import Id

log = structlog.get_logger(__name__)

MOST_KEPT_BYTES = 256 * 1024
"""Of a watcher that does not read as fast as its guest writes; the oldest are dropped, and it is told so."""

MOST_LOG_BYTES = 3 * 1024 * 1024
"""Of a log in one answer: it has to fit into one message of the link."""

WRITE_TIMEOUT_S = 10.0
_CHUNK_BYTES = 16 * 1024


class Watcher:
    """One reader's view of a console. Obtained from `Consoles.attach`."""

    def __init__(self, line: "_Line") -> None:
        self._line = line
        self._kept: deque[bytes] = deque()
        self._size = 0
        self._dropped = 0
        self._ended = False
        self._moved = asyncio.Event()

    async def read(self) -> bytes:
        """Return what the guest has written since the last read, waiting for the first byte; b"" at the end."""
        while not self._kept and not self._ended:
            self._moved.clear()
            await self._moved.wait()
        if not self._kept:
            return b""
        notice = f"\r\n[{self._dropped} bytes left out]\r\n".encode() if self._dropped else b""
        found = notice + b"".join(self._kept)
        self._kept.clear()
        self._size = self._dropped = 0
        return found

    async def write(self, data: bytes) -> None:
        """Type into the console. Raises Temporary where the guest does not take it, NotFound after the end."""
        await self._line.write(data)

    def feed(self, data: bytes) -> None:
        """Keep what the guest wrote."""
        self._kept.append(data)
        self._size += len(data)
        while self._size > MOST_KEPT_BYTES:
            oldest = self._kept.popleft()
            self._size -= len(oldest)
            self._dropped += len(oldest)
        self._moved.set()

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True
        self._moved.set()


class _Line:
    """An open pty: read once, for all its watchers."""

    def __init__(self, vm: Id, descriptor: int) -> None:
        self.vm = vm
        self.watchers: set[Watcher] = set()
        self.open = True
        self._descriptor = descriptor
        self._writing = asyncio.Lock()
        self._writable = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(descriptor, self._readable)

    def _readable(self) -> None:
        try:
            data = os.read(self._descriptor, _CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:  # EIO: QEMU has closed the other side
            data = b""
        if not data:
            self.close()
            return
        for watcher in self.watchers:
            watcher.feed(data)

    async def write(self, data: bytes) -> None:
        """Write all of `data`."""
        async with self._writing:
            try:
                async with asyncio.timeout(WRITE_TIMEOUT_S):
                    while data:
                        data = data[await self._write_some(data) :]
            except TimeoutError as err:
                raise Temporary(f"the console of {self.vm} takes no input: its guest does not read it") from err

    async def _write_some(self, data: bytes) -> int:
        if not self.open:
            raise NotFound(f"the console of {self.vm} has ended: it is not running")
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:
            await self._until_writable()
            return 0
        except OSError as err:
            self.close()
            raise NotFound(f"the console of {self.vm} has ended: it is not running") from err

    async def _until_writable(self) -> None:
        self._writable.clear()
        self._loop.add_writer(self._descriptor, self._writable.set)
        try:
            await self._writable.wait()
        finally:
            if self.open:
                self._loop.remove_writer(self._descriptor)

    def close(self) -> None:
        """Let go of the pty; every watcher reads its end."""
        if not self.open:
            return
        self.open = False
        self._loop.remove_reader(self._descriptor)
        self._loop.remove_writer(self._descriptor)
        os.close(self._descriptor)
        self._writable.set()
        for watcher in self.watchers:
            watcher.end()


class Consoles:
    """The serial consoles of one host's domains."""

    def __init__(self, place: Place, hypervisor: Hypervisor) -> None:
        self._place, self._hypervisor = place, hypervisor
        self._lines: dict[Id, _Line] = {}
        self._opening = asyncio.Lock()

    @asynccontextmanager
    async def attach(self, vm: Id) -> AsyncIterator[Watcher]:
        """Watch and type into a running domain's console, which ends when the domain stops.

        Raises NotFound where it is not running. What was written before is in the log (`read_log`).
        """
        line = await self._line(vm)
        watcher = Watcher(line)
        line.watchers.add(watcher)
        if not line.open:
            watcher.end()
        try:
            yield watcher
        finally:
            line.watchers.discard(watcher)
            if not line.watchers:
                line.close()
                if self._lines.get(vm) is line:
                    del self._lines[vm]

    async def _line(self, vm: Id) -> _Line:
        async with self._opening:
            line = self._lines.get(vm)
            if line is None or not line.open:
                path = await self._hypervisor.console_pty(vm)
                line = self._lines[vm] = _Line(vm, _open(path, vm))
            return line

    async def read_log(self, vm: Id, tail_bytes: int) -> bytes:
        """Return up to that many last bytes of the VM's serial log, over its rotated files; b"" without one."""
        wanted = max(0, min(tail_bytes, MOST_LOG_BYTES))
        return await asyncio.to_thread(_tail, self._place.serial_log(vm), wanted)


def _open(path: str, vm: Id) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as err:
        raise Temporary(f"the console of {vm} at {path} can't be opened: {err.strerror}") from err
    try:
        # Without this the line discipline would echo to the guest what the guest writes.
        tty.setraw(descriptor, termios.TCSANOW)
    except termios.error as err:
        os.close(descriptor)
        raise Temporary(f"the console of {vm} at {path} is no terminal") from err
    return descriptor


def _tail(newest: Path, wanted: int) -> bytes:
    """Read backwards: `<file>`, then `<file>.0`, `<file>.1`, … as virtlogd rotates them."""
    parts: list[bytes] = []
    for path in (newest, *(newest.with_name(f"{newest.name}.{i}") for i in range(10))):
        if wanted <= 0:
            break
        try:
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - wanted))
                found = file.read(wanted)
        except FileNotFoundError:
            if path == newest:
                continue
            break
        parts.append(found)
        wanted -= len(found)
    return b"".join(reversed(parts))
