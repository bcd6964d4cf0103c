"""From an admission to its answer: committed, answered again as the first time, or (a dry run) rehearsed."""

import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import msgspec
import structlog
from aiohttp import web

from common.clock import Clock
from common.codec import to_json
from common.errors import Conflict, KeyReused, SkerryError
from common.kinds.kind import AnyResource
from common.secret import Secret
from controller.api.call import Call
from controller.api.ports import Choose, Store
from controller.api.preview import Intent, preview, quota_after
from controller.api.query import bad_header, flag
from controller.api.render import answer, etag, names_of, operation_view, resource_view
from controller.kinds.admission import Admission
from controller.kinds.outcome import Place
from controller.kinds.planners import planner_of
from controller.kinds.quotas import Standard
from controller.store.rows import Operation
from controller.store.writes import First, Once, Repeated

log = structlog.get_logger(__name__)

T = TypeVar("T")

TRIES = 5
"""A request that another one overtook between look and commit is admitted anew so often."""

KEY_HEADER = "Idempotency-Key"
KEYED = ("POST", "PATCH", "DELETE")
"""Methods that take a key. PUT needs none: the same bytes again are the same image."""

_KEY = re.compile(r"[\x21-\x7e]{1,255}")


MUTATION_PARAMETERS = {
    "dry_run": "true: check everything, to the books, and show what would come of it; nothing is kept (answer 200)",
}


class Committer:
    """Admits, commits and answers: again where another request came between, once only where a key says so."""

    def __init__(
        self, store: Store, choose: Choose, clock: Clock, authority_fingerprint: Callable[[], str], standard: Standard
    ) -> None:
        self._store = store
        self._choose = choose
        self._clock = clock
        self._fingerprint = authority_fingerprint
        self._standard = standard

    async def answer(
        self, call: Call, make: Callable[[], Admission], more: Mapping[str, object] | None = None
    ) -> web.Response:
        """Commit what `make` admits, and answer what came of it. `make` looks anew at every try, so that a Conflict
        that stays is one that the caller has to solve. What the same key asked for before is answered as it was then;
        a dry run does the same as far as the commit, and takes it back. `more` is shown beside the rest."""
        if flag(call.request.query, "dry_run"):
            return await self._again_where_overtaken(lambda: self._rehearsed(call, make(), more or {}))
        once = await once_of(call)
        try:
            done = await self._again_where_overtaken(
                lambda: self._store.admit(msgspec.structs.replace(make(), once=once))
            )
        except Repeated as again:
            return self._repeated(call, again.first)
        except KeyReused:
            raise
        except SkerryError:
            # What a repeated request asks for is done by now: its name is taken, its thing gone, its ETag old.
            if once and (first := await self._store.recall(once)):
                return self._repeated(call, first)
            raise
        return self._accepted(call, done, more or {})

    async def _again_where_overtaken(self, tried: Callable[[], Awaitable[T]]) -> T:
        for _ in range(TRIES - 1):
            attempt = tried()
            try:
                return await attempt
            except KeyReused:
                raise
            except Conflict as err:
                log.info("request overtaken, admitted anew", why=err.detail)
        return await tried()

    async def _rehearsed(self, call: Call, admitted: Admission, more: Mapping[str, object]) -> web.Response:
        intent = self._intent(admitted)
        found = await self._store.rehearse(admitted, intent.writes)
        seen = self._store.seen
        shown = preview(admitted, intent, (found.changes, found.problem), seen, call.caller)
        shown = msgspec.structs.replace(shown, quota=quota_after(admitted, seen, call.caller, self._standard))
        body = {
            "dry_run": True,
            "resource": resource_view(found.resource, seen, call.caller),
            "names": names_of([found.resource], seen, call.caller),
        }
        return answer(body | msgspec.structs.asdict(shown) | dict(more))

    def _intent(self, admitted: Admission) -> Intent:
        row = admitted.resource
        outcome = planner_of(row.kind).plan(row, self._store.seen, self._clock())
        choice = self._choose(outcome.demand) if isinstance(outcome, Place) else None
        return Intent(outcome=outcome, choice=choice, seen_at=self._store.seen.revision)

    def _accepted(self, call: Call, done: Admission, more: Mapping[str, object]) -> web.Response:
        shown = self._shown(done.resource, done.revealed)
        return self._accept(call, done.resource, done.operation, {**more, **({"revealed": shown} if shown else {})})

    def _repeated(self, call: Call, first: First) -> web.Response:
        log.info("request repeated, answered as before", operation=first.operation.id)
        more = {"revealed_before": _shown_before(first.resource)} if first.revealed else {}
        response = self._accept(call, first.resource, first.operation, more)
        response.headers["Idempotency-Replayed"] = "true"
        return response

    def _accept(self, call: Call, row: AnyResource, operation: Operation, more: Mapping[str, object]) -> web.Response:
        body = {
            "resource": resource_view(row, self._store.seen, call.caller),
            "operation": operation_view(operation),
            "names": names_of([row], self._store.seen, call.caller),
            **more,
        }
        headers = {"ETag": etag(row), "Location": f"/v1/operations/{operation.id}"}
        return answer(body, status=202, headers=headers)

    def _shown(self, row: AnyResource, secret: Secret | None) -> str:
        """A host's join token carries the authority's fingerprint, so that the host knows whom it may believe."""
        if secret is None:
            return ""
        return f"{secret.reveal()}.{self._fingerprint()}" if row.kind == "host" else secret.reveal()


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


def _shown_before(row: AnyResource) -> str:
    way_out = (
        f"for a new one: skerry host token {row.name}"
        if row.kind == "host"
        else f"delete {row.kind} {row.name} and make it again for a new one"
    )
    return f"the first answer showed the secret of {row.kind} {row.name}, which is not kept; {way_out}"
