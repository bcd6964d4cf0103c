"""Reading a JSON body: its type, its size, its form."""

from typing import Any, TypeVar

from aiohttp import web

from common.codec import from_json
from common.errors import Invalid, TooLarge, UnsupportedMedia

T = TypeVar("T")

MAX_BODY_BYTES = 1024 * 1024
"""Of a JSON body; a VM's user data, the largest field there is, has 64 KiB at most."""

JSON_TYPES = ("application/json", "application/merge-patch+json")


async def read_json(request: web.Request, of: type[T], what: str) -> T:
    """Read a request's body. Raises UnsupportedMedia, TooLarge or Invalid, each with what would be right."""
    if request.content_type not in JSON_TYPES:
        raise UnsupportedMedia(
            f"{what} came as {request.content_type}; it is read as application/json",
            fix="send the header Content-Type: application/json",
        )
    raw = await _read(request, what)
    if not raw.strip():
        raise Invalid(f"{what} is empty", fix="send a JSON object; /openapi.json shows its form")
    return from_json(raw, of, what)


async def read_fields(request: web.Request, what: str) -> dict[str, Any]:
    """Read a body that may be left out, as the fields of an object. Raises like `read_json`."""
    return await read_json(request, dict[str, Any], what) if (await _read(request, what)).strip() else {}


async def refuse_body(request: web.Request) -> None:
    """Raise Invalid where a body came that nobody would read (`{}` is as good as none)."""
    raw = await _read(request, "the body")
    if raw.strip() not in (b"", b"{}"):
        raise Invalid(f"{request.method} {request.path} takes no body", fix="send none")


async def _read(request: web.Request, what: str) -> bytes:
    if request.content_length is not None and request.content_length > MAX_BODY_BYTES:
        raise too_large(f"{what} has {request.content_length} bytes")
    return await request.read()


def too_large(what: str) -> TooLarge:
    """Return the error for a JSON body over the limit."""
    return TooLarge(f"{what}; a JSON body has {MAX_BODY_BYTES} at most", fix="send less; an image goes to …/content")
