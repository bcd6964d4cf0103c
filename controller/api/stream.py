"""Server-sent events: one answer without an end, whose reader may leave, be slow, or lose its token meanwhile."""

import asyncio
from collections.abc import AsyncIterator

import structlog
from aiohttp import web
from aiohttp.client_exceptions import ClientConnectionResetError

from common.codec import to_json
from common.errors import SkerryError
from common.ids import RequestId

log = structlog.get_logger(__name__)

HEARTBEAT_S = 15.0
STALL_S = 60.0
"""A reader that takes not one byte for so long is cut off: it resumes where it was when it comes back."""


def frame(event: str, body: object, number: int | None = None) -> bytes:
    """Return one event; with a number, readers that come back resume behind it."""
    name = "".join(event.split())  # a host may have named it: no line of its own making
    head = b"" if number is None else f"id: {number}\n".encode()
    return head + f"event: {name}\n".encode() + b"data: " + to_json(body) + b"\n\n"


async def send_events(request: web.Request, identity: RequestId, chunks: AsyncIterator[bytes]) -> web.StreamResponse:
    """Send what comes until the reader leaves or there is no more. An error is told as the last event, `problem`."""
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store"}
    )
    await response.prepare(request)
    try:
        async for chunk in chunks:
            if not await _written(response, chunk):
                log.info("event stream's reader takes nothing, cut off", seconds=STALL_S)
                if request.transport is not None:
                    request.transport.abort()
                break
    except (ConnectionResetError, ClientConnectionResetError):
        log.debug("event stream's reader left")
    except SkerryError as err:
        await response.write(frame("problem", err.problem(identity)))
    return response


async def _written(response: web.StreamResponse, chunk: bytes) -> bool:
    """Send a chunk; say whether the reader took what came before it."""
    try:
        async with asyncio.timeout(STALL_S):
            await response.write(chunk)
    except TimeoutError:
        return False
    return True
