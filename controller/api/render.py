"""What answers look like: rows to JSON, with the names behind every id that the caller may know of."""

from collections.abc import Collection
from functools import cache
from typing import Any

import msgspec
from aiohttp import web
from msgspec.structs import asdict, replace

from common.codec import to_json
from common.ids import Id, RequestId
from common.kinds import KINDS, kind_named
from common.kinds.kind import AnyResource, fields
from common.refusal import Refusal
from controller.auth.caller import Caller, Past, sees
from controller.auth.rights import subject_of
from controller.store import timeline
from controller.store.rows import Event, EventResult, Operation, OperationState
from controller.store.working import OF_A_DOMAIN, WorkingSet, references


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


class StepView(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was done for an operation, or (`phase`) that it waited for."""

    at: float
    what: str
    host: str
    """Where, or for which hosts; empty: it concerned the controller only."""
    seconds: float | None
    """None: it is not over."""
    retries: int
    cause: str
    """Why the last try failed, or why no host fits."""
    phase: bool


class OperationOne(OperationView, frozen=True, kw_only=True):
    """An operation with its timeline, by the moment at which each step began."""

    steps: tuple[StepView, ...]
    steps_dropped: int
    """Steps that are not kept any more, from the middle."""


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
    result: EventResult
    """Of a mutation: accepted, denied or conflict as it was answered; done, failed or cancelled as it ended."""
    hash: str
    """Of this event and the hash before it: see `/v1/audit/verify`."""


class RoleHeld(msgspec.Struct, frozen=True, kw_only=True):
    """A role, and where it is held: in a project, in a domain, or (neither) in the whole cloud."""

    role: str
    project: str
    domain: str


class WhoAmI(msgspec.Struct, frozen=True, kw_only=True):
    """Who calls, as what, and until when."""

    actor: str
    project: str
    """A token's own; empty for a user."""
    domain: str
    role: str
    """The roles, for people."""
    roles: tuple[RoleHeld, ...]
    limited: bool
    """Whether the token is for some actions of its role only."""
    expires_at: float | None
    """None: it does not expire."""
    link_url: str
    """Where hosts join, for those who may make hosts; else empty."""


def resource_view(row: AnyResource, seen: WorkingSet, caller: Caller) -> AnyResource:
    """Return a resource as JSON shows it: every field, also those of the status that have their default, but what is
    private only to those who may change the thing; and next to nothing to those who may do something to it unread.

    Its status, and where something is private its spec, are mappings here: it is for an encoder and nobody else.
    """
    subject = subject_of(row, seen)
    if not caller.may(f"{row.kind}.read", subject):
        return replace(row, spec={}, labels={}, status={"state": row.status.state})
    spec, status = _private(row.kind)
    if not (spec or status) or caller.may(f"{row.kind}.change", subject):
        return replace(row, status=asdict(row.status))
    return replace(
        row,
        spec={name: value for name, value in asdict(row.spec).items() if name not in spec},
        status={name: value for name, value in asdict(row.status).items() if name not in status},
    )


@cache
def _private(kind: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names of a kind's private fields, of its spec and of its status."""
    found = kind_named(kind)
    spec, status = (fields(one) for one in (found.spec, found.status))
    return tuple(frozenset(field.name for field in some if field.private) for some in (spec, status))  # type: ignore[return-value]


def operation_view(operation: Operation) -> OperationView:
    """Return an operation as JSON shows it: without the spec kept for a cancel."""
    return OperationView(**{name: getattr(operation, name) for name in OperationView.__struct_fields__})


def operation_one(operation: Operation) -> OperationOne:
    """Return an operation with its timeline."""
    shown = {name: getattr(operation, name) for name in OperationView.__struct_fields__}
    steps = tuple(
        StepView(**{name: getattr(step, name) for name in StepView.__struct_fields__})
        for step in timeline.in_order(operation)
    )
    return OperationOne(**shown, steps=steps, steps_dropped=operation.steps_dropped)


def event_view(event: Event) -> EventView:
    """Return an event as JSON shows it."""
    shown: dict[str, Any] = {name: getattr(event, name) for name in EventView.__struct_fields__}
    shown |= {"before": _spec(event.before, event.kind), "after": _spec(event.after, event.kind)}
    return EventView(**shown)


def _domain_told(event: Event) -> str:
    """Return the domain of the thing that an event is about, as its spec has it; empty: none is known."""
    raw = event.after or event.before
    if event.kind not in OF_A_DOMAIN or not raw:
        return ""
    return str(msgspec.json.decode(raw, type=dict[str, Any]).get("domain", ""))


def past_of(event: Event) -> Past:
    """Return an event as it matters who may see it."""
    return Past(
        kind=event.kind,
        project=event.project,
        domain=_domain_told(event),
        name=event.name,
        id=event.resource,
        at=event.at,
    )


def _spec(raw: bytes, kind: str) -> dict[str, Any] | None:
    """Return a spec as an event has it. Events from before private fields were known may have some."""
    if not raw:
        return None
    private, _ = _private(kind) if kind in _KINDS else (frozenset[str](), None)
    spec = msgspec.json.decode(raw, type=dict[str, Any])
    return {name: value for name, value in spec.items() if name not in private}


_KINDS = frozenset(kind.name for kind in KINDS)


def names_of(rows: Collection[AnyResource], seen: WorkingSet, caller: Caller) -> dict[str, str]:
    """Return the name behind every id in these rows, which the caller sees, as far as they may know of the thing."""
    names: dict[str, str] = {row.id: row.name for row in rows}
    ids: set[Id] = set()
    for row in rows:
        ids.update(references(row))
        if row.owner:
            ids.add(row.owner)
    found = {one: seen.get(one) for one in ids if one not in names}
    return names | {one: row.name for one, row in found.items() if row and sees(caller, seen, row)}


def answer(body: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Return a JSON response."""
    return web.Response(body=to_json(body), status=status, content_type="application/json", headers=headers)


def etag(row: AnyResource) -> str:
    """Return a resource's ETag: its generation."""
    return f'"{row.generation}"'
