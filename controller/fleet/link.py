"""The port that hosts dial: `GET /ca`, `POST /join`, `POST /renew`, `GET /images/{hex}`, and the websocket `GET /link`.

Everything but the first two needs a host's certificate of our CA that is not revoked. Whatever a host does wrong ends
its session with a reason in words, and is never more than that.
"""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from socket import AF_INET, AF_INET6, create_server, socket
from typing import Any, NamedTuple, cast

import msgspec
import structlog
from aiohttp import WebSocketError, WSCloseCode, WSMsgType, web

from common.clock import Clock, system_clock
from common.codec import from_json, to_json, to_pack
from common.errors import Denied, Invalid, NotFound, RateLimited, SkerryError, TooLarge
from common.ids import HostId
from common.joining import JoinRequest, NextAuthority, RenewRequest, VouchRequest
from common.protocol import (
    MAX_MESSAGE_BYTES,
    PROTOCOL,
    Down,
    Hello,
    HostEvent,
    Metrics,
    Refused,
    Reply,
    Reports,
    StreamCredit,
    StreamData,
    StreamEnd,
    Up,
    Welcome,
)
from common.tls import Peer, host_of, is_controller
from controller.fleet.lies import Lie
from controller.fleet.line import SEND_LIMIT_S, Line
from controller.fleet.reading import sparing
from controller.fleet.sessions import Fleet, Session, Sessions

log = structlog.get_logger(__name__)

HEARTBEAT_S = 5.0
"""A ping after so long a silence, and half of it again for the pong: a dead host is noticed within 7.5 s."""

HELLO_LIMIT_S = 10.0
FLOOD_PER_S = 2000.0
FLOOD_BURST = 20_000.0
"""Messages of one host: an agent of 1,000 guests sends a few dozen a second, a resync a few hundred at once."""

REQUEST_LIMIT_S = 15.0
"""A connection shows its certificate, and then its body, each within so long; it is without a request twice as long."""

LINGER_S = 2.0
"""What still comes of a refused request is read for so long, so that the refusal is read as well."""

DIALS_PER_S = 0.2
DIALS_BURST = 30.0
"""Connections of one host, most of which end at once: a controller that is restarted, or a host that flaps."""

_BODY_BYTES = 64 * 1024
_JOIN_ANEW = "if the machine is to come back: skerry host token NAME, then skerry-agent join --force URL TOKEN"
_HEX = re.compile(r"^[0-9a-f]{64}$")
_up = msgspec.msgpack.Decoder(Up)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Allowance:
    """How many messages may come: so many at once, and so many a second after that."""

    def __init__(self, *, burst: float = FLOOD_BURST, per_s: float = FLOOD_PER_S) -> None:
        self._left, self._burst, self._per_s, self._at = burst, burst, per_s, 0.0

    def spend(self, now: float) -> bool:
        """Count one message; say whether it was allowed. `now` never goes back."""
        if self._at:
            self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
        self._at = now
        self._left -= 1
        return self._left >= 0


class LinkServer:
    """The routes of the link's port, over one fleet."""

    def __init__(
        self,
        fleet: Fleet,
        sessions: Sessions,
        ca_pem: Callable[[], str],
        clock: Clock = system_clock,
        *,
        next_authority: Callable[[], NextAuthority | None] = lambda: None,
    ) -> None:
        self._fleet = fleet
        self._sessions = sessions
        self._ca_pem = ca_pem
        self._clock = clock
        self._next_authority = next_authority
        self._dials: dict[HostId, Allowance] = {}

    def app(self) -> web.Application:
        """Return the application."""
        app = web.Application(client_max_size=_BODY_BYTES, middlewares=[_errors])
        app.add_routes(
            [
                web.get("/ca", self._ca),
                web.post("/join", self._join),
                web.post("/renew", self._renew),
                web.post("/vouch", self._vouch),
                web.post("/leave", self._leave),
                web.get("/images/{hex}", self._image),
                web.get("/link", self._link),
                web.get("/authority/next", self._next),
            ]
        )
        app.on_shutdown.append(self._stopping)
        return app

    async def _stopping(self, _app: web.Application) -> None:
        await self._sessions.close_all("the controller is stopping")

    async def _ca(self, _request: web.Request) -> web.Response:
        return web.Response(text=self._ca_pem(), content_type="application/x-pem-file")

    async def _join(self, request: web.Request) -> web.Response:
        body = from_json(await _body(request), JoinRequest, "the join request")
        enrolled = await self._fleet.enrol(body.token, body.csr)
        log.info("host joined", host=enrolled.host_id, name=enrolled.host_name, remote=request.remote)
        return web.Response(body=to_json(enrolled), content_type="application/json")

    async def _renew(self, request: web.Request) -> web.Response:
        peer = self._admitted(request)
        body = from_json(await _body(request), RenewRequest, "the renewal request")
        enrolled = await self._fleet.renew(peer, body.csr)
        log.info("host certificate renewed", host=peer.host)
        return web.Response(body=to_json(enrolled), content_type="application/json")

    async def _vouch(self, request: web.Request) -> web.Response:
        peer = self._admitted(request)
        body = from_json(await _body(request), VouchRequest, "the request")
        return web.Response(body=to_json(await self._fleet.vouch(peer, body)), content_type="application/json")

    async def _leave(self, request: web.Request) -> web.Response:
        peer = self._admitted(request)
        await self._fleet.left(peer)
        log.info("host left", host=peer.host, remote=request.remote)
        return web.Response(status=204)

    async def _next(self, request: web.Request) -> web.Response:
        if not is_controller(_certificate(request), self._clock()):
            raise Denied("this is for other controllers of this cloud")
        if (found := self._next_authority()) is None:
            raise NotFound("no authority is to follow, or its key is not here")
        log.warning("next authority given to another controller", remote=request.remote)
        return web.Response(body=to_json(found), content_type="application/json")

    async def _image(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["hex"]
        digest = f"sha256:{name[:64]}"
        if is_controller(_certificate(request), self._clock()):
            path, where = self._fleet.image(digest) if _HEX.match(name) else None, "here"
        else:
            peer = self._admitted(request)
            path = self._fleet.may_fetch(peer.host, digest) if _HEX.match(name) else None
            where = f"in the documents of host {peer.host}"
        if path is None or not await asyncio.to_thread(path.is_file):
            raise NotFound(f"no image {digest} is {where}")
        return web.FileResponse(path, headers={"Content-Type": "application/octet-stream"})

    def _admitted(self, request: web.Request) -> Peer:
        peer = host_of(_certificate(request))
        if peer.expires_at < self._clock():
            day = datetime.fromtimestamp(peer.expires_at, UTC).strftime("%Y-%m-%d %H:%M")
            raise Denied(f"the certificate of host {peer.host} ran out on {day} UTC", fix=_JOIN_ANEW)
        if self._fleet.is_revoked(peer.host, peer.serial):
            raise Denied(
                f"the certificate {peer.serial} of host {peer.host} is revoked",
                fix=_JOIN_ANEW,
            )
        return peer

    async def _link(self, request: web.Request) -> web.StreamResponse:
        try:
            peer = self._admitted(request)
        except Denied as err:
            await self._note_denied(request, err)
            raise
        await self._refuse_flood(peer)
        ws = web.WebSocketResponse(
            heartbeat=HEARTBEAT_S, max_msg_size=MAX_MESSAGE_BYTES, compress=False, timeout=2.0, autoclose=True
        )
        await ws.prepare(request)
        session = Session(peer)
        try:
            hello = await _first(ws)
            problem = hello.reason if isinstance(hello, _End) else _misfit(hello, peer)
            if isinstance(hello, _End) or problem:
                await self._turn_away(ws, peer, problem)
            elif not await self._sessions.replace(session):
                await self._turn_away(ws, peer, "this host's last session has not ended yet; try again")
            else:
                await self._welcome(ws, session, hello)
        finally:
            self._sessions.remove(session)
            session.close("the link ended")
            session.end()
            if request.transport is not None:
                # What is still buffered for a peer that took no part in closing would otherwise keep the socket.
                with suppress(AttributeError):  # asyncio's TLS transport of Python 3.11, where it is closed already
                    request.transport.abort()
        return ws

    async def _note_denied(self, request: web.Request, err: Denied) -> None:
        """A certificate of ours that opens nothing any more still names its host."""
        certificate = _certificate(request)
        if certificate and not is_controller(certificate, 0.0):
            with suppress(Denied):
                await self._fleet.turned_away(host_of(certificate).host, err.detail)

    async def _refuse_flood(self, peer: Peer) -> None:
        """A host that dials again and again costs no more than a refusal, which sends it away for a while."""
        dials = self._dials.setdefault(peer.host, Allowance(burst=DIALS_BURST, per_s=DIALS_PER_S))
        if dials.spend(asyncio.get_running_loop().time()):
            return
        await self._note(peer.host, _End(f"dialled more than {DIALS_PER_S * 60:g} times a minute", "flood"))
        raise RateLimited(f"host {peer.host} dials too often", fix=f"wait {1 / DIALS_PER_S:g} s")

    async def _turn_away(self, ws: web.WebSocketResponse, peer: Peer, reason: str) -> None:
        log.warning("host turned away", host=peer.host, reason=reason)
        await self._fleet.turned_away(peer.host, reason)
        await _send_last(ws, Refused(reason=reason), reason)

    async def _welcome(self, ws: web.WebSocketResponse, session: Session, hello: Hello) -> None:
        answer = await self._ask(session, hello)
        if isinstance(answer, Refused):
            log.warning("host turned away", host=session.host, reason=answer.reason)
            await _send_last(ws, answer, answer.reason)
            return
        log.info("host connected", host=session.host, name=answer.host_name, agent=hello.agent_version)
        try:
            if await _sent(ws, answer):
                await self._serve(ws, session)
            session.close("it went away before it was welcome")
        finally:
            session.close("the connection was cut off")
            log.info("host disconnected", host=session.host, reason=session.reason)
            await self._fleet.disconnected(session, session.reason)
        await _close(ws, session.reason)

    async def _ask(self, session: Session, hello: Hello) -> Welcome | Refused:
        try:
            return await self._fleet.connected(session, hello)
        except SkerryError as err:
            return Refused(reason=err.detail)
        except Exception:
            log.exception("hello of a host not taken in", host=session.host)
            return Refused(reason="the controller failed on the hello: see the controller's log")

    async def _serve(self, ws: web.WebSocketResponse, session: Session) -> None:
        """Read, in this task, until the session ends; sending and taking in have tasks while they have work."""
        end = None
        async with asyncio.TaskGroup() as group:
            line = Line(self._fleet, session, group, ws.send_bytes)
            try:
                async with asyncio.timeout(max(0.0, session.peer.expires_at - self._clock())) as patience:
                    session.watch(partial(line.look, patience))
                    end = await self._read(ws, session, line)
            except TimeoutError:
                session.close("its certificate has expired")
            finally:
                session.watch(None)
                line.stop()
        if end is not None:
            await self._note(session.host, end)

    async def _read(self, ws: web.WebSocketResponse, session: Session, line: Line) -> "_End":
        """Read until something ends it; always end the session with that reason."""
        allowance = Allowance()
        now = asyncio.get_running_loop().time
        while True:
            message = await _next(ws)
            if not isinstance(message, _End) and not allowance.spend(now()):
                message = _End(f"flooded the link: more than {FLOOD_PER_S:g} messages a second", "flood")
            if isinstance(message, Hello):
                message = _End("broke the rules: a second hello")
            match message:
                case _End():
                    session.close(message.reason)
                    return message
                case Reports() | Metrics() | HostEvent():
                    await line.put(message)
                case Reply() | StreamData() | StreamCredit() | StreamEnd():
                    session.take(message)

    async def _note(self, host: HostId, end: "_End") -> None:
        if end.lie is None:
            return
        try:
            await self._fleet.lied(host, end.lie, end.reason)
        except SkerryError as err:
            log.warning("lie of a host not noted", host=host, lie=end.lie, error=err.detail)


def _certificate(request: web.Request) -> Mapping[str, Any] | None:
    """Return what the other end showed, verified; None: nothing."""
    found: Mapping[str, Any] | None = request.transport.get_extra_info("peercert") if request.transport else None
    return found


class _End(NamedTuple):
    """Why nothing more is read."""

    reason: str
    lie: Lie | None = None


async def _first(ws: web.WebSocketResponse) -> Hello | _End:
    """Return the hello, or why there is none."""
    try:
        async with asyncio.timeout(HELLO_LIMIT_S):
            message = await _next(ws)
    except TimeoutError:
        return _End(f"it said no hello within {HELLO_LIMIT_S:g} s")
    if isinstance(message, _End | Hello):
        return message
    return _End(f"it said {type(message).__name__} before its hello")


async def _next(ws: web.WebSocketResponse) -> Up | _End:
    """Return the next message, or in words why there is none."""
    try:
        frame = await ws.receive()
    except OSError as err:  # of the pong to a ping that came just before the connection broke
        return _End(f"the connection broke: {err}")
    if frame.type == WSMsgType.BINARY:
        try:
            return cast(Up, _up.decode(frame.data))
        except msgspec.DecodeError as err:
            return _End(f"sent what can't be read: {err}", "unreadable")
    if frame.type == WSMsgType.TEXT:
        return _End("sent text, where every message is binary", "unreadable")
    if isinstance(frame.data, WebSocketError) and frame.data.code == WSCloseCode.MESSAGE_TOO_BIG:
        return _End(f"sent a message over the limit of {MAX_MESSAGE_BYTES} bytes", "unreadable")
    cause = ws.exception()
    if isinstance(cause, TimeoutError):
        return _End(f"gave no sign of life for {1.5 * HEARTBEAT_S:g} s")
    if frame.type == WSMsgType.ERROR:
        return _End(f"the connection broke: {cause or frame.data}")
    return _End("the host closed the link" + (f": {frame.extra}" if frame.extra else ""))


def _misfit(hello: Hello, peer: Peer) -> str:
    """Return what is wrong with a hello; empty: nothing."""
    if hello.host != peer.host:
        return f"its certificate is of host {peer.host}, its hello says {hello.host}"
    if not PROTOCOL - 1 <= hello.protocol <= PROTOCOL:
        return (
            f"it speaks protocol {hello.protocol}, this controller {max(1, PROTOCOL - 1)} to {PROTOCOL}; "
            "upgrade whichever is the older: controller first, then agents"
        )
    return ""


async def _sent(ws: web.WebSocketResponse, message: Down) -> bool:
    """Send one message now; say whether it was taken."""
    try:
        async with asyncio.timeout(SEND_LIMIT_S):
            await ws.send_bytes(to_pack(message))
    except (TimeoutError, OSError):
        return False
    return True


async def _send_last(ws: web.WebSocketResponse, message: Down, reason: str) -> None:
    if await _sent(ws, message):
        await _close(ws, reason)


async def _close(ws: web.WebSocketResponse, reason: str) -> None:
    """Say goodbye, with as much of the reason as a close frame carries (RFC 6455: 123 bytes)."""
    short = reason.encode()[:120].decode(errors="ignore").encode()
    try:
        async with asyncio.timeout(3):
            await ws.close(code=WSCloseCode.POLICY_VIOLATION, message=short)
    except (TimeoutError, OSError):
        return


async def _body(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(REQUEST_LIMIT_S):
            return await request.read()
    except TimeoutError as err:
        raise Invalid(f"the body did not come within {REQUEST_LIMIT_S:g} s") from err
    except web.HTTPRequestEntityTooLarge as err:
        raise TooLarge(f"the body is over {_BODY_BYTES} bytes") from err


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except SkerryError as err:
        log.info("link request refused", path=request.path, remote=request.remote, problem=err.detail)
        return web.Response(body=to_json(err.problem()), status=err.status, content_type="application/problem+json")
    except web.HTTPException:
        raise
    except Exception:
        log.exception("link request failed", path=request.path)
        raise


@asynccontextmanager
async def serve(
    app: web.Application,
    context: ssl.SSLContext | None,
    *,
    listen: tuple[str, int] | None = None,
    sock: socket | None = None,
) -> AsyncIterator[web.AppRunner]:
    """Serve an application on an address, or on a socket that was handed over, until the block is left.

    `context` None: without TLS (the API on loopback).
    """
    patience = Patience()
    app.middlewares.insert(0, patience.middleware)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=5.0, lingering_time=LINGER_S)
    await runner.setup()
    bound = sock or _bound(listen or ("0.0.0.0", 8443))  # noqa: S104 - hosts are other machines
    limit_s = REQUEST_LIMIT_S if context else None
    server = await asyncio.get_running_loop().create_server(
        sparing(patience.over(runner)), sock=bound, ssl=context, backlog=1024, ssl_handshake_timeout=limit_s
    )
    try:
        yield runner
    finally:
        server.close()
        await runner.cleanup()


def _bound(listen: tuple[str, int]) -> socket:
    family = AF_INET6 if ":" in listen[0] else AF_INET
    return create_server(listen, family=family, backlog=1024)


class Patience:
    """Ends connections that don't come to a request: they would fill the table of open files, byte by byte."""

    def __init__(self) -> None:
        self._busy: set[int] = set()
        """The connections with a request, by their protocol's identity: uvloop's transports take no weak reference."""
        self._rested: set[int] = set()
        """Those that were without one at the last look."""

    def over(self, runner: web.AppRunner) -> Callable[[], asyncio.Protocol]:
        """Return what makes a connection's protocol."""
        server = runner.server
        assert server is not None, "the runner is set up"

        def connect() -> asyncio.Protocol:
            handler = server()
            self._look_later(handler)
            return handler

        return connect

    def _look_later(self, handler: asyncio.Protocol) -> None:
        asyncio.get_running_loop().call_later(REQUEST_LIMIT_S, self._look, handler)

    def _look(self, handler: asyncio.Protocol) -> None:
        transport: asyncio.WriteTransport | None = getattr(handler, "transport", None)
        if transport is None:
            self._busy.discard(id(handler))
            self._rested.discard(id(handler))
            return
        if id(handler) in self._busy:
            self._rested.discard(id(handler))
        elif id(handler) in self._rested:
            log.info("connection ended: no request came", peer=str(transport.get_extra_info("peername")))
            transport.abort()
        else:
            self._rested.add(id(handler))
        self._look_later(handler)

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Note that a request is being answered."""
        one = id(request.protocol)
        self._busy.add(one)
        self._rested.discard(one)
        try:
            return await handler(request)
        finally:
            self._busy.discard(one)
