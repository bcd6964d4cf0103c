"""From an admission to its answer: committed once, again where another request came between, repeated where asked."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import structlog
from aiohttp import web

from common.codec import to_json
from common.errors import Conflict, KeyReused, SkerryError
from common.kinds.kind import AnyResource
from common.secret import Secret
from controller.api.call import Call
from controller.api.ports import Store
from controller.api.query import bad_header
from controller.api.render import answer, etag, names_of, operation_view, resource_view
from controller.auth.caller import Caller
from controller.kinds.admission import Admission
from controller.store.rows import Operation
from controller.store.working import WorkingSet
from controller.store.writes import First, Once, Repeated

log = structlog.get_logger(__name__)

TRIES = 5
"""A request that another one overtook between look and commit is admitted anew so often."""

KEY_HEADER = "Idempotency-Key"
KEYED = ("POST", "PATCH", "DELETE")
"""Methods that take a key. PUT needs none: the same bytes again are the same image."""

_KEY = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(frozen=True, kw_only=True)
class Done:
    """A request that was carried out, now or before."""

    resource: AnyResource
    operation: Operation
    revealed: Secret | None = None
    again: bool = False
    """It was carried out before, under the same Idempotency-Key: this is the first answer."""
    revealed_before: bool = False
    """The first answer showed a secret."""


class Committer:
    """Admits and commits, again where another request came between, once only where a key says so."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def commit(self, call: Call, make: Callable[[], Admission]) -> Done:
        """Commit what `make` admits. `make` looks anew at every try, so that a Conflict that stays is one that the
        caller has to solve. What the same key asked for before is answered as it was then."""
        once = await once_of(call)
        try:
            done = await self._committed(make, once)
        except Repeated as again:
            return _again(again.first)
        except KeyReused:
            raise
        except SkerryError:
            # What a repeated request asks for is done by now: its name is taken, its thing gone, its ETag old.
            if once and (first := await self._store.recall(once)):
                return _again(first)
            raise
        return Done(resource=done.resource, operation=done.operation, revealed=done.revealed)

    async def _committed(self, make: Callable[[], Admission], once: Once | None) -> Admission:
        for _ in range(TRIES - 1):
            admitted = msgspec.structs.replace(make(), once=once)
            try:
                return await self._store.admit(admitted)
            except KeyReused:
                raise
            except Conflict as err:
                log.info("request overtaken, admitted anew", why=err.detail)
        return await self._store.admit(msgspec.structs.replace(make(), once=once))


def _again(first: First) -> Done:
    log.info("request repeated, answered as before", operation=first.operation.id)
    return Done(resource=first.resource, operation=first.operation, again=True, revealed_before=first.revealed)


async def once_of(call: Call) -> Once | None:
    """Return what makes a request known again; None where it carries no key. Raises Invalid for a bad key."""
    request = call.request
    key = request.headers.get(KEY_HEADER)
    if key is None or request.method not in KEYED:
        return None
    if not _KEY.fullmatch(key):
        raise bad_header(KEY_HEADER, f"{key[:80]!r} is no key", "send 1 to 255 visible ASCII characters, a UUID say")
    asked = f"{request.method} {request.rel_url.raw_path}\n".encode() + _canonical(await request.read())
    return Once(caller=call.caller.actor, key=key, fingerprint=hashlib.sha256(asked).hexdigest())


def _canonical(body: bytes) -> bytes:
    """Return a body so that the order of its fields and its blanks make no difference."""
    try:
        return to_json(msgspec.json.decode(body)) if body.strip() else b"{}"
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return body


def accepted(done: Done, seen: WorkingSet, caller: Caller, revealed: str = "") -> web.Response:
    """Answer 202: what it is now, and the operation to wait for."""
    body: dict[str, object] = {
        "resource": resource_view(done.resource),
        "operation": operation_view(done.operation),
        "names": names_of([done.resource], seen, caller),
    }
    if revealed:
        body["revealed"] = revealed
    if done.revealed_before:
        body["revealed_before"] = _shown_before(done.resource)
    headers = {"ETag": etag(done.resource), "Location": f"/v1/operations/{done.operation.id}"}
    if done.again:
        headers["Idempotency-Replayed"] = "true"
    return answer(body, status=202, headers=headers)


def _shown_before(row: AnyResource) -> str:
    way_out = (
        f"for a new one: skerry host token {row.name}"
        if row.kind == "host"
        else f"delete {row.kind} {row.name} and make it again for a new one"
    )
    return f"the first answer showed the secret of {row.kind} {row.name}, which is not kept; {way_out}"
