"""What only the controller with a host's link can answer (consoles, logs, audits), asked of another one.

The other one passes the request on, unchanged, over the link's port of the one that can, where it shows a controller's
certificate; that one admits the caller itself, by the same token. A request is passed on once.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import aiohttp
import msgspec
import structlog
from aiohttp import WSCloseCode, WSMsgType, web
from aiohttp.typedefs import Middleware

from common.clock import system_clock
from common.errors import Denied, Temporary
from common.ids import Id
from common.kinds.kind import AnyResource
from common.tls import is_controller
from controller.api.call import Call, Handler
from controller.api.console import HEARTBEAT_S, MAX_FRAME_BYTES
from controller.api.middleware import Next
from controller.api.ports import Store
from controller.api.waiting import Waiting
from controller.kinds.affinity import host_of

log = structlog.get_logger(__name__)

A = TypeVar("A")

PREFIX = "/controller"
"""Below it, the link's port serves the API to other controllers."""

RELAYED = "Skerry-Relayed"
CONNECT_LIMIT_S = 3.0
ANSWER_LIMIT_S = 65.0
"""A little more than the longest that the other one takes by itself."""

_PASSED = ("Authorization", "Accept", "X-Request-Id", "Idempotency-Key", "If-Match")


class Relay:
    """Passes requests on to the controllers that can answer them. `me` is this one's id."""

    def __init__(self, store: Store, me: str, context: Callable[[], ssl.SSLContext]) -> None:
        self._store = store
        self._me = me
        self._context = context

    def wrap(self, handler: Handler, kind: str, waiting: Waiting) -> Handler:
        """Return a handler that answers what can be answered here, and passes on what can't."""

        async def relayed(call: Call) -> web.StreamResponse:
            url = None if call.request.headers.get(RELAYED) else self._elsewhere(call, kind)
            if url is None:
                return await handler(call)
            if call.request.headers.get("Upgrade", "").lower() == "websocket":
                return await self._pass_websocket(call, url, waiting)
            return await self._pass(call, url)

        return relayed

    async def ask_all(self, call: Call) -> dict[str, bytes | None]:
        """Ask all other controllers what this one was asked; None where one gave no answer that means anything.

        What was passed on by one of them is answered here alone.
        """
        if call.request.headers.get(RELAYED):
            return {}
        urls = [one.url for one in self._store.seen.controllers() if one.id != self._me and one.alive]
        return dict(zip(urls, await asyncio.gather(*(self._ask(call, url) for url in urls)), strict=True))

    async def _ask(self, call: Call, url: str) -> bytes | None:
        try:
            found = await self._pass(call, url)
        except Temporary as err:
            log.warning("another controller not asked", url=url, problem=err.detail)
            return None
        return bytes(found.body) if found.status == 200 and isinstance(found.body, bytes) else None

    def _elsewhere(self, call: Call, kind: str) -> str | None:
        """Return the address of another controller that has the link of a thing's host; None: it is asked here."""
        seen = self._store.seen
        row: AnyResource | None = seen.named(kind, call.project, call.name) or seen.get(Id(call.name))
        if row is None or row.kind != kind or (call.project and row.project != call.project):
            return None
        host = host_of(row, seen)
        link = seen.link(host) if host else None
        if link is None or link.controller == self._me:
            return None
        return next((one.url for one in seen.controllers() if one.id == link.controller and one.alive), None)

    async def _pass(self, call: Call, url: str) -> web.Response:
        limit = aiohttp.ClientTimeout(total=ANSWER_LIMIT_S, sock_connect=CONNECT_LIMIT_S)
        asked, headers = call.request.method, _headers(call)
        async with self._asking(url, limit) as http, http.request(asked, _target(call, url), headers=headers) as answer:
            body = await answer.read()
            content_type = answer.headers.get("Content-Type", "application/octet-stream")
            return web.Response(body=body, status=answer.status, headers={"Content-Type": content_type})

    async def _pass_websocket(self, call: Call, url: str, waiting: Waiting) -> web.StreamResponse:
        limit = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_LIMIT_S)
        async with self._asking(url, limit) as http:
            try:
                far = await http.ws_connect(
                    _target(call, url), headers=_headers(call), heartbeat=HEARTBEAT_S, max_msg_size=0, compress=0
                )
            except aiohttp.WSServerHandshakeError:
                return await self._pass(call, url)  # which gives the refusal in words
            near = web.WebSocketResponse(heartbeat=HEARTBEAT_S, max_msg_size=MAX_FRAME_BYTES, compress=False)
            async with far:
                await near.prepare(call.request)
                async with waiting.socket(near):
                    await _both_ways(near, far)
            return near

    @asynccontextmanager
    async def _asking(self, url: str, limit: aiohttp.ClientTimeout) -> AsyncIterator[aiohttp.ClientSession]:
        connector = aiohttp.TCPConnector(ssl=self._context(), force_close=True)
        try:
            async with aiohttp.ClientSession(connector=connector, timeout=limit) as http:
                yield http
        except (aiohttp.ClientError, TimeoutError, OSError) as err:
            raise Temporary(
                f"the controller at {url}, where the host is connected, gave no answer: {type(err).__name__}",
                fix="try again: the host connects to another one soon",
            ) from err


async def from_others(relay: Relay | None, call: Call, of: type[A]) -> tuple[list[A], tuple[str, ...]]:
    """Return what the other controllers answer to the same question, and which gave no answer."""
    if relay is None:
        return [], ()
    answers = await relay.ask_all(call)
    heard = [msgspec.json.decode(raw, type=of) for raw in answers.values() if raw is not None]
    return heard, tuple(sorted(url for url, raw in answers.items() if raw is None))


def only_controllers() -> Middleware:
    """Return the middleware of what the link's port serves below PREFIX. Lets controllers in, and nobody else."""

    @web.middleware
    async def middleware(request: web.Request, handler: Next) -> web.StreamResponse:
        transport = request.transport
        certificate = transport.get_extra_info("peercert") if transport is not None else None
        if not is_controller(certificate, system_clock()):
            raise Denied("this is for other controllers of this cloud", fix="use the API's own address")
        return await handler(request)

    return middleware


def _target(call: Call, url: str) -> str:
    return f"{url}{PREFIX}{call.request.path_qs}"


def _headers(call: Call) -> dict[str, str]:
    given = call.request.headers
    passed = {name: given[name] for name in _PASSED if name in given}
    return passed | {RELAYED: "1", "X-Request-Id": call.caller.request}


async def _both_ways(near: web.WebSocketResponse, far: aiohttp.ClientWebSocketResponse) -> None:
    """Carry frames until either side ends; the other one is ended with the same words."""

    async def up() -> None:
        async for message in near:
            await _carry(message, far)
        await far.close()

    async def down() -> None:
        async for message in far:
            await _carry(message, near)
        code = far.close_code or WSCloseCode.GOING_AWAY
        await near.close(code=code if code != 1006 else WSCloseCode.GOING_AWAY, message=b"the console ended")

    try:
        async with asyncio.TaskGroup() as group:
            upward = group.create_task(up())
            await down()
            upward.cancel()
    except* (ConnectionResetError, aiohttp.ClientError):
        log.debug("a relayed console's caller left")


async def _carry(message: aiohttp.WSMessage, to: web.WebSocketResponse | aiohttp.ClientWebSocketResponse) -> None:
    if message.type is WSMsgType.BINARY:
        await to.send_bytes(message.data)
    elif message.type is WSMsgType.TEXT:
        await to.send_str(message.data)
