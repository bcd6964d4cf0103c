"""The agent's end of the link: hello, resync by digest, documents to the memory and the loop, orders, streams.

It dials for as long as the agent lives. Nothing that comes or fails to come over the link keeps the host from
running on: the loop works from the memory, and the link only brings it news and takes its reports away.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Protocol, cast

import aiohttp
import msgspec
import structlog
from aiohttp import WSMsgType

from agent.dial import HEARTBEAT_S, Dialer
from agent.loop import Loop
from agent.memory import EPOCH, Memory
from agent.outbox import Outbox
from common.codec import to_pack
from common.documents import Report
from common.errors import SkerryError, Temporary
from common.ids import Id
from common.protocol import (
    MAX_MESSAGE_BYTES,
    PROTOCOL,
    AttachConsole,
    Call,
    Controllers,
    DesiredBatch,
    Down,
    Found,
    Hello,
    Inventory,
    Metrics,
    ReadSerialLog,
    Refused,
    Renew,
    Reply,
    StreamCredit,
    StreamData,
    StreamEnd,
    Survey,
    Welcome,
)
from common.stream import Stream, StreamBroken

log = structlog.get_logger(__name__)

HELLO_LIMIT_S = 15.0
SEND_LIMIT_S = 10.0
LOOK_LIMIT_S = 2.0
"""The first hello waits so long for the first look at every unit, so that it can say what it sees."""

FIRST_PAUSE_S = 0.2
PAUSE_GROWTH = 1.5
PAUSE_CAP_S = 15.0
REFUSED_PAUSE_S = 5.0
"""What a disk or a controller refuses now it refuses in a second, too."""

CLOSE_BYTES = 123
"""So long may the reason in a close frame be (RFC 6455, section 5.5)."""

RENEW_WITHIN_S = 3600.0

CONTROLLERS = "controllers"
"""The fact that names the addresses of a cloud's controllers, where it has several."""

CALLS = 64
"""Orders and consoles under way at a time."""

CONSOLE_PAUSE_S = 0.005
"""Between two frames of a console, times the consoles open: a guest's output comes a few bytes at a time."""

_down = msgspec.msgpack.Decoder(Down)


class Console(Protocol):
    """A guest's serial console, attached."""

    async def read(self) -> bytes:
        """Return what the guest wrote, b"" at the end."""
        ...

    async def write(self, data: bytes) -> None:
        """Type."""
        ...


class Orders(Protocol):
    """What the host can be asked to do at once. All may raise SkerryError; its words become the reply."""

    def attach(self, vm: Id) -> AbstractAsyncContextManager[Console]:
        """Attach to a guest's console."""
        ...

    async def read_log(self, vm: Id, tail_bytes: int) -> bytes:
        """Return the end of a guest's serial log."""
        ...

    async def survey(self) -> tuple[Found, ...]:
        """List everything on the host that Skerry could have made."""
        ...


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """What the link says of the host, and does for the controller."""

    version: str
    inventory: Callable[[], Awaitable[Inventory]]
    metrics: Callable[[], Awaitable[Metrics]]
    orders: Orders


def pause_s(attempt: int, chance: float) -> float:
    """Return the pause before a dial, after that many that failed: anything (full jitter) up to a growing ceiling.

    It grows slowly, so that a controller that was restarted has its hosts back about a second later; and by chance
    from near zero, so that all hosts of a cloud do not come at once.
    """
    return max(0.05, min(PAUSE_CAP_S, FIRST_PAUSE_S * PAUSE_GROWTH ** min(attempt, 32)) * chance)


class _TurnedAway(Exception):
    """The controller does not want this host."""


class _Unsaved(Exception):
    """What the controller sent could not be saved."""


class Link:
    """Keeps the link up. `run` ends only by cancellation."""

    def __init__(
        self,
        *,
        dialer: Dialer,
        memory: Memory,
        loop: Loop,
        outbox: Outbox,
        host: Host,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._dialer = dialer
        self._memory = memory
        self._loop = loop
        self._outbox = outbox
        self._host = host
        self._chance = chance

    async def run(self) -> None:
        """Dial, serve the link until it ends, pause, dial again."""
        if known := self._memory.fact(CONTROLLERS).split():
            self._dialer.know(known)
            self._dialer.turn(int(self._chance() * len(known)))  # so that hosts spread
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_LIMIT_S):
                await self._loop.looked.wait()
        attempt, last = 0, ""
        while True:
            lasted, reason, pause = False, "", 0.0
            try:
                lasted, reason = await self._once()
            except _TurnedAway as err:
                reason, pause = f"the controller turned this host away: {err}", REFUSED_PAUSE_S * (1 + self._chance())
            except _Unsaved as err:
                reason, pause = str(err), REFUSED_PAUSE_S * (1 + self._chance())
            except SkerryError as err:
                reason = err.detail
            except Exception as err:
                log.exception("link failed unexpectedly")
                reason = f"{type(err).__name__}: {err}"
            if lasted or reason != last:
                log.warning("no link to the controller", reason=reason, url=self._dialer.url)
            attempt, last = (0, reason) if lasted else (attempt + 1, reason)
            self._dialer.turn()
            await asyncio.sleep(max(pause, pause_s(attempt // len(self._dialer.urls), self._chance())))

    async def _once(self) -> tuple[bool, str]:
        """Serve one connection; return whether it was welcomed, and why it ended."""
        inventory = await self._host.inventory()
        ws, reason = await self._dialer.websocket(), ""
        try:
            welcome = await self._greet(ws, inventory)
            session = _Session(
                ws,
                memory=self._memory,
                loop=self._loop,
                outbox=self._outbox,
                host=self._host,
                renew=self._renew,
                know=self._know,
            )
            reason = await session.serve(welcome)
            if session.unsaved:
                raise _Unsaved(reason)
            return True, reason
        finally:
            await _close(ws, reason)

    async def _know(self, urls: tuple[str, ...]) -> None:
        """Know these controllers from now on, and after a restart."""
        self._dialer.know(urls)
        await self._memory.write_fact(CONTROLLERS, " ".join(urls))

    async def _renew(self, within_s: float) -> bool:
        """Fetch the next certificate at some moment; say whether it worked."""
        await asyncio.sleep(min(max(within_s, 0.0), RENEW_WITHIN_S) * self._chance())
        return await self._dialer.renew()

    async def _greet(self, ws: aiohttp.ClientWebSocketResponse, inventory: Inventory) -> Welcome:
        """Say hello, hear the welcome, and put together what the controller lacks."""
        self._outbox.new_session()
        hello = Hello(
            protocol=PROTOCOL,
            agent_version=self._host.version,
            host=self._dialer.identity.host,
            inventory=inventory,
            desired_digest=self._memory.digest(),
            observed_digest=self._loop.observed_digest(),
            epoch=self._memory.fact(EPOCH),
            newest=self._memory.newest(),
        )
        try:
            async with asyncio.timeout(HELLO_LIMIT_S):
                await ws.send_bytes(to_pack(hello))
                answer = await _next(ws)
        except TimeoutError as err:
            raise Temporary(f"the controller did not answer the hello within {HELLO_LIMIT_S:g} s") from err
        except OSError as err:
            raise Temporary(f"the connection broke: {err}") from err
        match answer:
            case Welcome():
                log.info("link up", url=self._dialer.url, controller=answer.controller_version)
                await self._memory.write_fact("host_name", answer.host_name)
                if answer.urls:
                    await self._know(answer.urls)
                self._outbox.resync(await resume(answer, self._memory, self._loop), full=answer.send_reports)
                return answer
            case Refused(reason=reason):
                raise _TurnedAway(reason)
            case str(reason):
                raise Temporary(reason)
            case _:
                raise Temporary(f"the controller said {type(answer).__name__} before its welcome")


async def resume(welcome: Welcome, memory: Memory, loop: Loop) -> tuple[Report, ...]:
    """Go on with a controller that welcomed this host; return the reports that it lacks."""
    if welcome.anew:
        if memory.items:
            log.warning("the controller's database has another past: its documents are newer now", epoch=welcome.epoch)
        await memory.begin_anew(welcome.epoch)
        loop.begin_anew()
    return loop.reports() if welcome.send_reports else loop.last_words()


class _Session:
    """One connection, from its welcome to its end."""

    def __init__(
        self,
        ws: aiohttp.ClientWebSocketResponse,
        *,
        memory: Memory,
        loop: Loop,
        outbox: Outbox,
        host: Host,
        renew: Callable[[float], Awaitable[bool]],
        know: Callable[[tuple[str, ...]], Awaitable[None]],
    ) -> None:
        self._ws = ws
        self._renewed = renew
        self._know = know
        self._memory = memory
        self._loop = loop
        self._outbox = outbox
        self._host = host
        self._batches: asyncio.Queue[DesiredBatch | None] = asyncio.Queue(64)
        self._streams: dict[int, Stream] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._ending = asyncio.Event()
        self._reason = ""
        self.unsaved = False
        """It ended because something could not be saved."""

    def _end(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._ending.set()

    async def serve(self, welcome: Welcome) -> str:
        """Work until something ends it, and return its reason."""
        async with asyncio.TaskGroup() as group:
            documents = group.create_task(self._take_documents())
            tasks = [
                group.create_task(self._read(group)),
                group.create_task(self._write()),
                group.create_task(self._measure(welcome.metrics_every_s)),
            ]
            await self._ending.wait()
            for stream in self._streams.values():
                stream.cut(f"the link ended: {self._reason}")
            for task in (*tasks, *self._calls):
                task.cancel()
            # What was received is still saved: no document is on the disk without its unit having been looked at.
            await self._batches.put(None)
            await documents
        return self._reason

    async def _read(self, group: asyncio.TaskGroup) -> None:
        while True:
            message = await _next(self._ws)
            match message:
                case str(reason):
                    return self._end(reason)
                case DesiredBatch():
                    await self._batches.put(message)
                case Call():
                    self._start(group, message)
                case Renew(within_s=within_s):
                    self._own(group.create_task(self._renew(within_s), name="renewal"))
                case Controllers(urls=urls):
                    await self._learn(urls)
                case StreamData() | StreamCredit() | StreamEnd():
                    self._take_frame(message)
                case Refused(reason=reason):
                    return self._end(f"the controller ended it: {reason}")
                case Welcome():
                    return self._end("the controller broke the rules: a second welcome")

    async def _write(self) -> None:
        while True:
            parcel = await self._outbox.next()
            raw = to_pack(parcel.message)
            if len(raw) > MAX_MESSAGE_BYTES:
                log.error("message dropped: over the limit", message=type(parcel.message).__name__, size_bytes=len(raw))
                continue
            try:
                async with asyncio.timeout(SEND_LIMIT_S):
                    await self._ws.send_bytes(raw)
            except (TimeoutError, OSError) as err:
                return self._end(f"the controller took nothing for {SEND_LIMIT_S:g} s: {type(err).__name__} {err}")
            try:
                await self._loop.delivered(parcel.reports)
            except SkerryError as err:
                return self._end(f"what is gone could not be forgotten: {err.detail}")  # it is said at the next hello

    async def _take_documents(self) -> None:
        while (batch := await self._batches.get()) is not None:
            try:
                changed = await self._memory.apply(batch)
            except SkerryError as err:
                # Without this session the digests are compared anew, and what could not be saved is sent again.
                log.warning("documents not saved", error=err.detail, fix=err.fix)
                self.unsaved = True
                self._end(f"documents could not be saved: {err.detail}")
                continue
            self._loop.changed(changed)

    async def _measure(self, every_s: float) -> None:
        problem = ""
        while True:
            try:
                self._outbox.metrics(await self._host.metrics())
                problem = ""
            except SkerryError as err:
                if err.detail != problem:
                    log.warning("metrics not taken", problem=err.detail)
                problem = err.detail
            except Exception:
                log.exception("metrics not taken")
            await asyncio.sleep(every_s)

    async def _learn(self, urls: tuple[str, ...]) -> None:
        """Know the controllers there are now. What can't be saved is said again in the next welcome."""
        try:
            await self._know(urls)
        except SkerryError as err:
            log.warning("controllers not saved", error=err.detail, fix=err.fix)
            self.unsaved = True
            self._end(f"the controllers' addresses could not be saved: {err.detail}")

    # --- orders and streams -------------------------------------------------------------------------------------

    def _start(self, group: asyncio.TaskGroup, call: Call) -> None:
        if len(self._calls) >= CALLS:
            self._refuse(call, Temporary(f"the host carries out {CALLS} orders already, its limit"))
            return
        self._own(group.create_task(self._carry_out(call), name=f"call {call.call}"))

    def _own(self, task: asyncio.Task[None]) -> None:
        """Have a task end with the session."""
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _renew(self, within_s: float) -> None:
        """Dial again with the next certificate, once there is one."""
        if await self._renewed(within_s):
            self._end("the certificate was renewed, as the controller asked")

    async def _carry_out(self, call: Call) -> None:
        structlog.contextvars.bind_contextvars(request=call.request)
        log.info("order received", order=type(call.order).__name__)
        try:
            match call.order:
                case AttachConsole():
                    await self._console(call, call.order)
                case ReadSerialLog(vm=vm, tail_bytes=tail_bytes):
                    body = await self._host.orders.read_log(vm, tail_bytes)
                    self._outbox.frame(Reply(call=call.call, body=body))
                case Survey():
                    body = to_pack(await self._host.orders.survey())
                    self._outbox.frame(Reply(call=call.call, body=body))
        except SkerryError as err:
            self._refuse(call, err)
        except Exception as err:
            log.exception("order failed unexpectedly", order=type(call.order).__name__)
            self._refuse(call, Temporary(f"the agent failed on it ({type(err).__name__}): see the agent's log"))

    def _refuse(self, call: Call, error: SkerryError) -> None:
        words = error.detail + (f"; {error.fix}" if error.fix else "")
        self._outbox.frame(Reply(call=call.call, problem=words, code=error.code))

    def _take_frame(self, frame: StreamData | StreamCredit | StreamEnd) -> None:
        stream = self._streams.get(frame.stream)
        if stream is None:
            return  # ended here a moment ago
        try:
            stream.take(frame)
        except StreamBroken as err:
            self._end(f"the controller broke the rules: {err}")

    async def _console(self, call: Call, order: AttachConsole) -> None:
        stream = Stream(order.stream, self._outbox.frame)
        self._streams[order.stream] = stream
        try:
            async with self._host.orders.attach(order.vm) as console:
                self._outbox.frame(Reply(call=call.call))
                reason = await self._pump(console, stream)
                stream.close(reason)
        except SkerryError as err:
            stream.cut(err.detail)
            raise
        finally:
            stream.close("the agent ended it")
            self._streams.pop(order.stream, None)

    async def _pump(self, console: Console, stream: Stream) -> str:
        """Move bytes both ways until either side ends; return why."""

        async def out() -> str:
            while data := await console.read():
                await stream.write(data)
                await asyncio.sleep(CONSOLE_PAUSE_S * len(self._streams))
            return "the machine's console ended"

        async def into() -> str:
            async for data in stream:
                await console.write(data)
            return "detached"

        async with asyncio.TaskGroup() as group:
            ways = [group.create_task(_words(out())), group.create_task(_words(into()))]
            done, rest = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for task in rest:
                task.cancel()
        return done.pop().result()


async def _words(way: Awaitable[str]) -> str:
    """Return why one way of a console ended, an error's words included."""
    try:
        return await way
    except SkerryError as err:
        return err.detail


async def _next(ws: aiohttp.ClientWebSocketResponse) -> Down | str:
    """Return the next message, or in words why there is none."""
    try:
        frame = await ws.receive()
    except OSError as err:  # of the pong to a ping that came just before the connection broke
        return f"the connection broke: {err}"
    if frame.type == WSMsgType.BINARY:
        try:
            return cast(Down, _down.decode(frame.data))
        except msgspec.DecodeError as err:
            return f"the controller sent what can't be read: {err}"
    cause = ws.exception()
    if isinstance(cause, TimeoutError):
        return f"the controller gave no sign of life for {1.5 * HEARTBEAT_S:g} s"
    if frame.type == WSMsgType.ERROR:
        return f"the connection broke: {cause or frame.data}"
    return "the controller closed the link" + (f": {frame.extra}" if frame.extra else "")


async def _close(ws: aiohttp.ClientWebSocketResponse, reason: str) -> None:
    with suppress(TimeoutError, OSError, aiohttp.ClientError):
        async with asyncio.timeout(2):
            await ws.close(message=reason.encode()[:CLOSE_BYTES].decode(errors="ignore").encode())
