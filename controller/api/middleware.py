"""What every request passes: its id, its log line, and the one place where errors become problem documents."""

import re
import time
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware
from structlog.contextvars import bound_contextvars

from common.codec import to_json
from common.errors import (
    Conflict,
    Internal,
    Invalid,
    MethodNotAllowed,
    NotFound,
    RateLimited,
    SkerryError,
    Temporary,
    TooLarge,
    Unauthenticated,
    UnsupportedMedia,
)
from common.ids import Entropy, RequestId, new_request_id
from controller.api.body import MAX_BODY_BYTES
from controller.api.call import REQUEST_ID
from controller.api.metrics import Metrics

log = structlog.get_logger(__name__)

Next = Callable[[web.Request], Awaitable[web.StreamResponse]]

_GIVEN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_QUIET = ("/healthz", "/readyz", "/metrics")
_RETRY_AFTER_S = 2


def identify(entropy: Entropy, metrics: Metrics) -> Middleware:
    """Return the outermost middleware: it gives each request an id, binds it to the log, and logs the answer."""

    @web.middleware
    async def middleware(request: web.Request, handler: Next) -> web.StreamResponse:
        given = request.headers.get("X-Request-Id", "")
        identity = RequestId(given) if _GIVEN_ID.fullmatch(given) else new_request_id(entropy)
        request[REQUEST_ID] = identity
        began = time.perf_counter()
        with bound_contextvars(request=identity):
            response = await handler(request)
            seconds = time.perf_counter() - began
            if not _is_long(response):
                method = request.method if request.method in _METHODS else "other"
                metrics.answered(method, _route(request), response.status, seconds)
            say = log.debug if request.path in _QUIET else log.info
            say(
                "request answered",
                method=request.method,
                path=request.path,
                status=response.status,
                ms=round(seconds * 1000, 1),
                peer=request.remote,
            )
        return response

    return middleware


_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def _is_long(response: web.StreamResponse) -> bool:
    """Say whether an answer lasts as long as its reader likes: such a time says nothing of how quick the API is."""
    return isinstance(response, web.WebSocketResponse) or response.content_type == "text/event-stream"


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource else "unknown"


async def sign(request: web.Request, response: web.StreamResponse) -> None:
    """Put the headers of every answer on it, streams and websockets included, as it begins."""
    response.headers["X-Request-Id"] = request.get(REQUEST_ID) or RequestId("unknown")
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Server"] = "skerry"


@web.middleware
async def explain_errors(request: web.Request, handler: Next) -> web.StreamResponse:
    """Turn every error into its problem document. What nobody foresaw is logged, and told without its details."""
    try:
        return await handler(request)
    except web.HTTPException as err:
        return problem(request, _translated(request, err), err.headers.get("Allow", ""))
    except SkerryError as err:
        if err.status >= 500:
            log.warning("request not served", code=err.code, why=err.detail)
        return problem(request, err)
    except Exception:  # the one place where a bug becomes an answer
        log.exception("request failed by a bug", method=request.method, path=request.path)
        identity = request[REQUEST_ID]
        bug = Internal(
            f"Skerry failed at this request; its log has the cause under {identity}",
            fix="report it with this request id; trying again may help",
        )
        return problem(request, bug)


def problem(request: web.Request, err: SkerryError, allow: str = "") -> web.Response:
    """Return an error's problem document as an answer."""
    response = web.Response(
        body=to_json(err.problem(request[REQUEST_ID])), status=err.status, content_type="application/problem+json"
    )
    if isinstance(err, Unauthenticated):
        response.headers["WWW-Authenticate"] = 'Bearer realm="skerry"'
    if isinstance(err, RateLimited):
        response.headers["Retry-After"] = str(err.retry_after_s)
    if type(err) is Temporary:
        response.headers["Retry-After"] = str(_RETRY_AFTER_S)
    if allow:
        response.headers["Allow"] = allow
    return response


def _translated(request: web.Request, err: web.HTTPException) -> SkerryError:
    """Return our own error for one of aiohttp's."""
    where = f"{request.method} {request.path[:200]}"
    match err:
        case web.HTTPNotFound():
            return NotFound(f"there is no address {request.path[:200]}", fix="see /openapi.json for all there are")
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(err.allowed_methods))
            return MethodNotAllowed(f"{where}: this address takes {allowed}", fix=f"use one of {allowed}")
        case web.HTTPRequestEntityTooLarge():
            return TooLarge(f"{where}: the body has more than {MAX_BODY_BYTES} bytes, the limit", fix="send less")
        case web.HTTPUnsupportedMediaType():
            return UnsupportedMedia(f"{where}: this content type is not read here", fix="send application/json")
        case web.HTTPConflict():
            return Conflict(f"{where}: {err.reason}")
        case _ if err.status >= 500:
            return Internal(f"{where}: {err.reason}")
        case _:
            return Invalid(f"{where}: {err.reason}", fix="see /openapi.json for how it is asked")
