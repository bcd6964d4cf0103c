"""Why a thing is not as wished: what it waits for, in the words of its planner and of its host. Pure."""

from collections.abc import Iterator, Sequence

import msgspec

from common.boots import FirstBoot
from common.clock import iso
from common.ids import HostId, Id
from common.kinds.kind import AnyResource
from common.kinds.vm import VmStatus
from common.kinds.volume import VOLUME
from common.refusal import Refusal
from controller.api.render import EventView, OperationView, event_view, operation_view
from controller.auth.caller import Caller, sees
from controller.store.rows import Document, Event
from controller.store.working import WorkingSet, references

EVENTS = 10
_AT_REST = frozenset({"active", "ready", "running", "stopped", "available", "cordoned", "attached", "detached"})
"""States in which a thing holds up nothing that uses it."""


class Why(msgspec.Struct, frozen=True, kw_only=True):
    """How a thing stands. `why` counts what each constraint cost, where no host fits; `steps` is what it waits for."""

    name: str
    state: str
    message: str
    why: Refusal | None
    first_boot: FirstBoot | None
    steps: tuple[str, ...]
    operations: tuple[OperationView, ...]
    events: tuple[EventView, ...]


def explain(row: AnyResource, seen: WorkingSet, caller: Caller, events: Sequence[Event]) -> Why:
    """Return how a thing stands and what it waits for; no steps: it is as wished."""
    operations = seen.open_operations(row.id)
    refusal = row.status.why or next((op.why for op in operations if op.why), None)
    return Why(
        name=row.name,
        state=row.status.state,
        message=row.status.message,
        why=refusal,
        first_boot=row.status.first_boot if isinstance(row.status, VmStatus) else None,
        steps=tuple(dict.fromkeys(_steps(row, seen, caller))),
        operations=tuple(operation_view(operation) for operation in operations),
        events=tuple(event_view(event) for event in events),
    )


def _steps(row: AnyResource, seen: WorkingSet, caller: Caller) -> Iterator[str]:
    holding = references(row, holding=True)
    for target in references(row):
        used = seen.get(target)
        if used is None:
            if target in holding:
                yield f"{target}, which it refers to, is gone"
        elif used.kind != "host" and sees(caller, seen, used) and used.status.state not in _AT_REST:
            yield _said(used)
    attached = (user for user in seen.users(row.id) if user.kind == VOLUME.name and user.spec.vm == row.id)
    for part in (*seen.children(row.id), *attached):
        if part.status.state not in _AT_REST:
            yield _said(part)
    for document in (*seen.owned_documents(row.id), *_of_children(row.id, seen)):
        if step := _of_host(document, seen):
            yield step


def _said(row: AnyResource) -> str:
    return f"{row.kind} {row.name} is {row.status.state}" + (f": {row.status.message}" if row.status.message else "")


def _of_children(owner: Id, seen: WorkingSet) -> Iterator[Document]:
    for child in seen.children(owner):
        yield from seen.owned_documents(child.id)


def _of_host(document: Document, seen: WorkingSet) -> str:
    """Say what a host still has to do about a document; empty: nothing."""
    name, view = seen.name_of(document.host), seen.host(document.host)
    subject = _subject(document, seen)
    doing = "destroy" if document.gone else "make"
    if not view.connected:
        since = f" since {iso(view.since)}" if view.since else ""
        return f"host {name}, which has to {doing} {subject}, is not connected{since}"
    report = seen.report(HostId(document.host), document.key)
    if report is None:
        return f"host {name} has not said anything of {subject} yet, which it has to {doing}"
    if report.done:
        return ""
    share = f" ({report.progress:.0%})" if report.progress is not None else ""
    return f"host {name}, {subject}: {report.problem or report.message or 'works on it'}{share}"


def _subject(document: Document, seen: WorkingSet) -> str:
    kind = document.key.partition("/")[0]
    return f"{kind} {seen.name_of(document.owner)}"
