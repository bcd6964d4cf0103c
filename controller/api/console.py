"""The serial console: a websocket's binary frames to and from a stream on the machine's host.

Text frames carry problems, as the same JSON document that an error answer has. Errors before the upgrade are plain
error answers.
"""

import asyncio

import structlog
from aiohttp import WSCloseCode, WSMsgType, web

from common.codec import to_json
from common.errors import Invalid, SkerryError
from common.kinds.kind import AnyResource
from controller.api.call import Call, Door
from controller.api.ports import Stream
from controller.api.waiting import Waiting

log = structlog.get_logger(__name__)

HEARTBEAT_S = 20.0
MAX_FRAME_BYTES = 64 * 1024
"""Of what a caller types at once."""

_REASON_BYTES = 120
"""A close frame has 125 bytes, two of them the code."""


def require_upgrade(request: web.Request) -> None:
    """Raise Invalid for a request that is no websocket's."""
    if request.headers.get("Upgrade", "").lower() != "websocket":
        raise Invalid(
            f"{request.path} is a websocket", fix="open it with a websocket client, or with: skerry console NAME"
        )


async def bridge(call: Call, row: AnyResource, door: Door, waiting: Waiting, stream: Stream) -> web.WebSocketResponse:
    """Carry bytes both ways until one side ends, the token is revoked, or the process stops."""
    websocket = web.WebSocketResponse(heartbeat=HEARTBEAT_S, max_msg_size=MAX_FRAME_BYTES, compress=False)
    try:
        await websocket.prepare(call.request)
        async with waiting.socket(websocket):
            await _both_ways(call, row, door, websocket, stream)
    finally:
        stream.close("detached")
    return websocket


async def _both_ways(
    call: Call, row: AnyResource, door: Door, websocket: web.WebSocketResponse, stream: Stream
) -> None:
    """The caller's side is read here, the host's in a task of its own; whichever ends first ends the other. A third one
    stands by for the end of the caller's rights."""
    async with asyncio.TaskGroup() as group:
        output = group.create_task(_show(call, door, websocket, stream))
        watchman = group.create_task(_cut(call, row, door, websocket))
        try:
            async for message in websocket:
                if message.type is WSMsgType.BINARY:
                    door.caller(call.request)
                    await stream.write(message.data)
                elif message.type is WSMsgType.TEXT:
                    await _tell(call, websocket, Invalid("a console takes binary frames only", fix="send bytes"))
        except SkerryError as err:
            await _end(call, websocket, err)
        except ConnectionResetError:
            log.debug("console's caller left")
        finally:
            output.cancel()
            watchman.cancel()


async def _show(call: Call, door: Door, websocket: web.WebSocketResponse, stream: Stream) -> None:
    try:
        async for data in stream:
            door.caller(call.request)
            await websocket.send_bytes(data)
        reason = f"the console ended: {stream.ended or 'the host closed it'}"
        await websocket.close(code=WSCloseCode.OK, message=_short(reason))
    except SkerryError as err:
        await _end(call, websocket, err)
    except ConnectionResetError:
        log.debug("console's caller left")


async def _cut(call: Call, row: AnyResource, door: Door, websocket: web.WebSocketResponse) -> None:
    try:
        await door.stand_by(call, row)
    except SkerryError as err:
        await _end(call, websocket, err)


async def _end(call: Call, websocket: web.WebSocketResponse, err: SkerryError) -> None:
    await _tell(call, websocket, err)
    await websocket.close(code=WSCloseCode.INTERNAL_ERROR, message=_short(err.detail))


async def _tell(call: Call, websocket: web.WebSocketResponse, err: SkerryError) -> None:
    if not websocket.closed:
        await websocket.send_str(to_json(err.problem(call.caller.request)).decode())


def _short(text: str) -> bytes:
    return text.encode()[:_REASON_BYTES].decode(errors="ignore").encode()
