"""What answers look like: rows to JSON, with the names behind every id that the caller may know of."""

from collections.abc import Iterable
from typing import Any

import msgspec
from aiohttp import web

from common.codec import to_json
from common.ids import Id, RequestId
from common.kinds.kind import AnyResource
from common.refusal import Refusal
from controller.auth.caller import Caller, sees
from controller.store.rows import Event, Operation, OperationState
from controller.store.working import WorkingSet, references


class OperationView(msgspec.Struct, frozen=True, kw_only=True):
    """A promise: what was asked for, and how it stands. `revision` counts its changes: give it as `seen` to wait."""

    id: Id
    verb: str
    kind: str
    resource: Id
    project: str
    name: str
    generation: int
    actor: str
    request: RequestId
    state: OperationState
    message: str
    progress: float
    why: Refusal | None
    created_at: float
    finished_at: float | None
    revision: int


class EventView(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the history: who did what to which thing, or what came about. `before` and `after` are specs."""

    seq: int
    at: float
    actor: str
    request: RequestId
    action: str
    kind: str
    resource: Id
    project: str
    name: str
    message: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class WhoAmI(msgspec.Struct, frozen=True, kw_only=True):
    """Whose token it is."""

    actor: str
    project: str
    role: str
    link_url: str
    """Where hosts join, for those who may make hosts; else empty."""


def resource_view(row: AnyResource) -> dict[str, Any]:
    """Return a resource as JSON shows it: every field, also those of the status that have their default."""
    return msgspec.structs.asdict(row) | {"status": msgspec.structs.asdict(row.status)}


def operation_view(operation: Operation) -> OperationView:
    """Return an operation as JSON shows it: without the spec kept for a cancel."""
    return OperationView(**{name: getattr(operation, name) for name in OperationView.__struct_fields__})


def event_view(event: Event) -> EventView:
    """Return an event as JSON shows it."""
    shown: dict[str, Any] = {name: getattr(event, name) for name in EventView.__struct_fields__}
    shown |= {"before": _spec(event.before), "after": _spec(event.after)}
    return EventView(**shown)


def _spec(raw: bytes) -> dict[str, Any] | None:
    return msgspec.json.decode(raw, type=dict[str, Any]) if raw else None


def names_of(rows: Iterable[AnyResource], seen: WorkingSet, caller: Caller) -> dict[str, str]:
    """Return the name behind every id in these rows, as far as the caller may know of the thing."""
    ids: set[Id] = set()
    for row in rows:
        ids.update((row.id, *references(row)))
        if row.owner:
            ids.add(row.owner)
    found = {one: seen.get(one) for one in ids}
    return {one: row.name for one, row in found.items() if row and sees(caller, row)}


def answer(body: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Return a JSON response."""
    return web.Response(body=to_json(body), status=status, content_type="application/json", headers=headers)


def etag(row: AnyResource) -> str:
    """Return a resource's ETag: its generation."""
    return f'"{row.generation}"'
