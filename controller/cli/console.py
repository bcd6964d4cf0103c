"""The serial console in a terminal: raw mode, Ctrl-] detaches, and a broken link is told and tried again."""

import asyncio
import base64
import os
import select
import sys
import termios
import tty
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import aiohttp
import click
import msgspec

from common.errors import Problem
from controller.cli.client import Client, unreachable
from controller.cli.failures import Failure, Refused, Unreachable

DETACH = b"\x1d"
"""Ctrl-], as telnet and virsh have it."""
READ_BYTES = 4096
HEARTBEAT_S = 15.0
RETRIES_S = (1.0, 2.0, 5.0, 10.0)
"""Pauses before a lost console is tried again; after the last it is given up."""

Keys = asyncio.Queue[bytes | None]
"""What is typed; None: the input has ended."""


class Heard:
    """That something came from the machine, and that this side leaves."""

    def __init__(self) -> None:
        self._came = asyncio.Event()
        self.leaving = False
        """Set before the socket is closed: what was under way from the machine may still come first."""

    def something(self) -> None:
        """Note that something came."""
        self._came.set()

    async def quiet(self, seconds: float) -> None:
        """Wait until nothing has come for so long."""
        while True:
            self._came.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._came.wait()
            except TimeoutError:
                return


@dataclass(frozen=True)
class Ended:
    """One side ended it."""

    why: str


@dataclass(frozen=True)
class Lost:
    """The connection broke."""


End = Ended | Lost | Failure
DETACHED = Ended("detached")


async def attach(client: Client, path: str, vm: str, *, linger_s: float) -> None:
    """Attach standard input and output to a console until one side ends it.

    On a terminal a lost connection is tried again; in a script it is a failure. Raises Failure.
    """
    terminal = sys.stdin.isatty()
    keys: Keys = asyncio.Queue(maxsize=64)
    with _raw(terminal):
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(_read_keys(keys))
            failure = await _sessions(client, path, vm, keys, linger_s=None if terminal else linger_s)
            reader.cancel()
    if failure:
        raise failure


async def _sessions(client: Client, path: str, vm: str, keys: Keys, *, linger_s: float | None) -> Failure | None:
    """Keep the console attached; return why it could not be."""
    tries = iter(RETRIES_S)
    while True:
        lost = f"the connection to the console of vm {vm} broke"
        try:
            async with await _connect(client, path) as socket:
                _tell(f"console of vm {vm}" + ("; Ctrl-] detaches" if linger_s is None else ""))
                tries = iter(RETRIES_S)
                end = await _pump(socket, keys, linger_s)
            match end:
                case Ended():
                    _tell(end.why)
                    return None
                case Failure():
                    return end
                case Lost():
                    pass
        except Unreachable as err:
            lost = err.detail
        except Failure as err:
            return err
        pause = next(tries, None) if linger_s is None else None
        if pause is None:
            return Unreachable(lost, fix=f"skerry console {vm} attaches again")
        _tell(f"{lost}; trying again in {pause:g} s, Ctrl-] gives up")
        if await _gives_up(keys, pause):
            return None


async def _connect(client: Client, path: str) -> aiohttp.ClientWebSocketResponse:
    try:
        return await client.http.ws_connect(client.url(path), heartbeat=HEARTBEAT_S)
    except aiohttp.WSServerHandshakeError as err:
        raise await _why_refused(client, path, err) from err
    except (aiohttp.ClientError, OSError, TimeoutError) as err:
        raise unreachable(client.connection, err) from err


async def _why_refused(client: Client, path: str, err: aiohttp.WSServerHandshakeError) -> Failure:
    """Ask once more by hand: the body of a websocket's refusal is not shown by aiohttp."""
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
    }
    try:
        async with client.open("GET", path, headers=upgrade):
            return Failure(f"the console was refused with {err.status} {err.message}")
    except Failure as failure:
        return failure


async def _pump(socket: aiohttp.ClientWebSocketResponse, keys: Keys, linger_s: float | None) -> End:
    """Carry bytes both ways until one side ends it."""
    heard = Heard()
    async with asyncio.TaskGroup() as group:
        typing = group.create_task(_type(socket, keys, heard, linger_s))
        end = await _show(socket, heard)
        if end != DETACHED:
            typing.cancel()
    return end


async def _show(socket: aiohttp.ClientWebSocketResponse, heard: Heard) -> End:
    """Print what comes, and return how it ended."""
    while True:
        message = await socket.receive()
        heard.something()
        match message.type:
            case aiohttp.WSMsgType.BINARY:
                sys.stdout.buffer.write(message.data)
                sys.stdout.buffer.flush()
            case aiohttp.WSMsgType.TEXT:
                if failure := _problem(message.data):
                    return failure
                _tell(message.data)
            case aiohttp.WSMsgType.CLOSE if message.data == aiohttp.WSCloseCode.OK:
                return Ended(f"the console was closed: {message.extra}" if message.extra else "the console was closed")
            case _:
                return DETACHED if heard.leaving else Lost()


def _problem(text: str) -> Failure | None:
    try:
        return Refused(msgspec.json.decode(text, type=Problem))
    except msgspec.DecodeError:
        return None


async def _type(socket: aiohttp.ClientWebSocketResponse, keys: Keys, heard: Heard, linger_s: float | None) -> None:
    """Send what is typed. Ends, and closes the socket, at Ctrl-]; in a script at the input's end and some quiet."""
    with suppress(aiohttp.ClientError, ConnectionError):  # the link broke: `_show` sees it too, and says so
        while (typed := await keys.get()) is not None:
            before, detach, _ = typed.partition(DETACH) if linger_s is None else (typed, b"", b"")
            if before:
                await socket.send_bytes(before)
            if detach:
                break
        await heard.quiet(linger_s or 0)
        heard.leaving = True
    await socket.close()


async def _gives_up(keys: Keys, pause_s: float) -> bool:
    """Wait before the next try; say whether Ctrl-] was typed meanwhile. Other keys are dropped: nobody heard them."""
    try:
        async with asyncio.timeout(pause_s):
            while (typed := await keys.get()) is not None:
                if DETACH in typed:
                    return True
    except TimeoutError:
        return False
    return True


async def _read_keys(keys: Keys) -> None:
    """Put what comes on standard input into the queue, None at its end."""
    async for typed in _input(sys.stdin.fileno()):
        await keys.put(typed)
    await keys.put(None)


async def _input(fd: int) -> AsyncIterator[bytes]:
    """Give the bytes of a file descriptor. A regular file is always ready and can't be watched: it is just read."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        loop.add_reader(fd, ready.set)
    except PermissionError:
        while typed := os.read(fd, READ_BYTES):
            yield typed
        return
    try:
        while True:
            await ready.wait()
            ready.clear()
            # The loop may have said so once more before what it meant was read: that must not end in a read that waits.
            if not select.select([fd], [], [], 0)[0]:
                continue
            if not (typed := os.read(fd, READ_BYTES)):
                return
            yield typed
    finally:
        loop.remove_reader(fd)


@contextmanager
def _raw(terminal: bool) -> Iterator[None]:
    """Have a terminal hand on every key as it is typed; it is as before afterwards."""
    if not terminal:
        yield
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _tell(text: str) -> None:
    """Say something that is not the machine's: on standard error, in a line of its own also in raw mode."""
    click.echo(f"\r\n[{text}]\r" if sys.stdin.isatty() else f"[{text}]", err=True)
