"""Mutations: what a caller's request commits, and what the loop writes back when it has looked."""

from collections.abc import Sequence
from typing import TypeVar
from zlib import crc32

import msgspec
from sqlalchemy import bindparam, delete, insert, literal_column, select, text, update

from common.codec import to_json
from common.errors import Conflict
from common.ids import Id, RequestId
from common.kinds.kind import AnyResource, Status
from common.refusal import Refusal
from controller.store import chain, graves, quota, tables, timeline
from controller.store.prepared import Prepared
from controller.store.rows import Event, EventResult, Operation, OperationState, OperationStep
from controller.store.tx import Tx, insert_resource
from controller.store.working import is_public, references, spec_told
from controller.store.writes import Amend, Mutation, Taken

FINISHED_KEPT = 10_000
"""Finished operations that are kept; older ones are in the event table."""

DROP_EVERY = 1000
"""Older ones are dropped with every so manieth operation, by chance of its id, and at start."""


M = TypeVar("M", bound=Mutation)

_POKE = Prepared(
    text(
        "INSERT INTO queue (resource, due_at, pokes, leased_by, leased_until) VALUES (:resource, 0, 1, NULL, 0) "
        "ON CONFLICT (resource) DO UPDATE SET due_at = 0, pokes = queue.pokes + 1"
    )
)
"""The same words mean the same to SQLite and to PostgreSQL, and SQLAlchemy has none of its own for both."""

_r, _o = tables.resource.c, tables.operation.c
_NAMED = Prepared(
    select(_r.id).where(
        _r.kind == bindparam("of_kind"), _r.project == bindparam("of_project"), _r.name == bindparam("of_name")
    )
)
_PROJECT = Prepared(
    select(_r.id).where(
        _r.kind == literal_column("'project'"), _r.project == literal_column("''"),
        _r.name == bindparam("of_name"), _r.deleted_at.is_(None),
    )
)  # fmt: skip
_WANTED = Prepared(select(_r.id).where(_r.id == bindparam("of"), _r.deleted_at.is_(None)))
_CHANGE = Prepared(
    update(tables.resource)
    .where(
        _r.id == bindparam("of"),
        _r.generation == bindparam("of_generation"),
        _r.counts == bindparam("of_counts"),
    )
    .values({name: bindparam(name) for name in ("spec", "labels", "counts", "generation", "deleted_at", "revision")})
)
_OBSERVE = Prepared(
    update(tables.resource)
    .where(_r.id == bindparam("of"))
    .values({name: bindparam(name) for name in ("status", "observed_generation", "revision")})
)
_OPEN = Prepared(insert(tables.operation))
_SAY = Prepared(
    update(tables.operation)
    .where(_o.id == bindparam("of"), _o.finished_at.is_(None))
    .values({name: bindparam(name) for name in ("body", "finished_at", "revision")})
)
_UNFINISHED = Prepared(select(_o.body).where(_o.resource == bindparam("of"), _o.finished_at.is_(None)))


def admit(tx: Tx, mutation: M) -> M:
    """Commit a mutation: resource, operation, event and queue row together.

    Raises Conflict where the name is taken, a reference went away, or the resource changed since it was read, and
    QuotaExceeded where its project or domain may not use so much.
    Returns the mutation with the rows as stored.
    """
    _refuse_gone_references(tx, mutation.resource)
    row = _insert(tx, mutation.resource) if mutation.was is None else _update(tx, mutation.resource, mutation.was)
    for closing in mutation.closes:
        _store_operation(tx, closing)
    operation = msgspec.structs.replace(mutation.operation, generation=row.generation, revision=tx.revision)
    tx.change(
        _OPEN,
        id=operation.id,
        resource=operation.resource,
        finished_at=None,
        body=to_json(operation).decode(),
        revision=operation.revision,
    )
    tx.put(operation)
    chain.append(tx, mutation.event)
    poke(tx, row.id)
    if crc32(operation.id.encode()) % DROP_EVERY == 0:
        drop_old_operations(tx)
    return msgspec.structs.replace(mutation, resource=row, operation=operation)


def _insert(tx: Tx, wanted: AnyResource) -> AnyResource:
    _refuse_gone_project(tx, wanted.project)
    row = msgspec.structs.replace(wanted, revision=tx.revision)
    if tx.row(_NAMED, of_kind=row.kind, of_project=row.project, of_name=row.name):
        raise Conflict(f"there is a {row.kind} {row.name} already", fix="choose another name")
    insert_resource(tx, row)
    quota.charge(tx, row.project, before={}, after=row.counts)
    return row


def _update(tx: Tx, wanted: AnyResource, was: AnyResource) -> AnyResource:
    row = _updated(tx, wanted, was)
    if row is None:
        raise Conflict(f"{was.kind} {was.name} changed meanwhile", fix="read it again, then repeat the request")
    return row


def amend(tx: Tx, wanted: Amend) -> None:
    """Commit a change that Skerry itself decided on; nothing where the thing changed since it was read."""
    was = wanted.row
    after = msgspec.structs.replace(
        was, spec=wanted.spec, generation=was.generation + 1, deleted_at=tx.now if wanted.delete else was.deleted_at
    )
    row = _updated(tx, after, was)
    if row is None:
        return
    poke(tx, row.id)
    if wanted.what:
        event = happened(tx, row, wanted.what, wanted.message, ())
        after_spec = b"" if wanted.delete else spec_told(row)
        chain.append(tx, msgspec.structs.replace(event, before=spec_told(was), after=after_spec))


def _updated(tx: Tx, wanted: AnyResource, was: AnyResource) -> AnyResource | None:
    """Write a thing as it is wanted; None where it is not any more as it was read."""
    there = tx.change(
        _CHANGE,
        of=was.id,
        of_generation=was.generation,
        of_counts=to_json(was.counts).decode(),
        spec=to_json(wanted.spec).decode(),
        labels=to_json(wanted.labels).decode(),
        counts=to_json(wanted.counts).decode(),
        generation=wanted.generation,
        deleted_at=wanted.deleted_at,
        revision=tx.revision,
    )
    row = tx.resource(was.id)
    if not there or row is None:
        return None
    quota.charge(tx, row.project, before=was.counts, after=row.counts)
    tx.put(row)
    if is_public(was) and not is_public(row):
        graves.bury(tx, was)
    return row


def _refuse_gone_references(tx: Tx, row: AnyResource) -> None:
    """The working set, from which references were resolved, may be a moment old: the database decides."""
    wanted = set(references(row, holding=True))
    if not wanted or row.deleted_at is not None:
        return
    if missing := sorted(one for one in wanted if not tx.row(_WANTED, of=one)):
        raise Conflict(f"{', '.join(missing)} was deleted meanwhile", fix="use another one")


def _refuse_gone_project(tx: Tx, name: str) -> None:
    """Nothing is made in a project that goes: nobody could name it, and so delete it, afterwards."""
    if name and not tx.row(_PROJECT, of_name=name):
        raise Conflict(f"project {name} was deleted meanwhile", fix="use another project")


def poke(tx: Tx, resource: Id) -> None:
    """Make a resource due now. A poke during its turn is not lost: the turn's end compares the counter."""
    tx.change(_POKE, resource=resource)
    tx.poked.add(resource)


class Conclusion(msgspec.Struct, frozen=True, kw_only=True):
    """What a turn found: the status for people, and how it stands with the open operations."""

    resource: AnyResource
    """As the turn read it."""
    status: Status
    state: OperationState
    message: str
    progress: float
    why: Refusal | None
    steps: tuple[OperationStep, ...] = ()
    """That hosts took meanwhile."""
    phase: OperationStep | None = None
    """What it waits for, where no host's step says it."""


def conclude(tx: Tx, found: Conclusion, open_operations: Sequence[Operation]) -> None:
    """Write back what a turn found, as far as it changed: status, operations and the event that it came true."""
    row = found.resource
    done = found.state == "done"
    observed = row.generation if done else row.observed_generation
    if found.status != row.status or observed != row.observed_generation:
        there = tx.change(
            _OBSERVE,
            of=row.id,
            status=to_json(found.status).decode(),
            observed_generation=observed,
            revision=tx.revision,
        )
        now = tx.resource(row.id) if there else None
        if now:
            tx.put(now)
    closed = []
    for operation in open_operations:
        after = _operation_after(tx, operation, found)
        if after != operation:
            closed.append(_store_operation(tx, after))
    if found.status.state != row.status.state:
        chain.append(tx, happened(tx, row, found.status.state, found.status.message, closed or open_operations))


def _operation_after(tx: Tx, operation: Operation, found: Conclusion) -> Operation:
    operation = timeline.with_steps(operation, found.steps, tx.now)
    if found.state == "done" and operation.generation <= found.resource.generation:
        return _finished(tx, operation, found.message)
    state: OperationState = "running" if found.state == "done" else found.state
    operation = timeline.with_phase(operation, found.phase, tx.now)
    return msgspec.structs.replace(
        operation, state=state, message=found.message, progress=round(found.progress, 3), why=found.why
    )


def _finished(tx: Tx, operation: Operation, message: str) -> Operation:
    done = timeline.ended(operation, tx.now)
    return msgspec.structs.replace(done, state="done", message=message, progress=1.0, why=None, finished_at=tx.now)


def progress(tx: Tx, operations: Sequence[Operation], message: str, taken: Taken) -> None:
    """Say on open operations what is being done, and note it in their timelines."""
    seconds = round(max(0.0, tx.now - taken.began), 3)
    step = OperationStep(at=taken.began, what=message, host=taken.host, seconds=seconds, retries=taken.retries)
    for operation in operations:
        after = timeline.with_steps(operation, (*taken.steps, step), tx.now)
        _store_operation(tx, msgspec.structs.replace(after, state="running", message=message, why=None))


def close_operations(tx: Tx, row: AnyResource, *, message: str) -> tuple[Operation, ...]:
    """Finish every open operation of a resource that is gone: its deletes are done, the rest is overtaken."""
    closed = []
    for (body,) in tx.rows(_UNFINISHED, of=row.id):
        operation = msgspec.json.decode(body, type=Operation)
        if operation.verb == "delete":
            after = _finished(tx, operation, message)
        else:
            after = timeline.ended(operation, tx.now)
            after = msgspec.structs.replace(after, state="cancelled", message=message, finished_at=tx.now)
        closed.append(_store_operation(tx, after))
    return tuple(closed)


def _store_operation(tx: Tx, operation: Operation) -> Operation:
    row = msgspec.structs.replace(operation, revision=tx.revision)
    if tx.change(_SAY, of=row.id, body=to_json(row).decode(), finished_at=row.finished_at, revision=row.revision):
        tx.put(row)
        if row.finished_at is not None:
            chain.append(tx, _end_of(tx, row))
    return row


def _end_of(tx: Tx, operation: Operation) -> Event:
    """Return the event that a mutation came to its end, under the request that asked for it."""
    result: EventResult = operation.state if operation.state in ("done", "failed", "cancelled") else ""
    return Event(
        seq=0,
        at=tx.now,
        actor="skerry",
        request=operation.request,
        action=f"operation.{operation.state}",
        kind=operation.kind,
        resource=operation.resource,
        project=operation.project,
        name=operation.name,
        message=f"{operation.verb}: {operation.message}",
        before=b"",
        after=b"",
        result=result,
    )


def happened(tx: Tx, row: AnyResource, what: str, message: str, operations: Sequence[Operation]) -> Event:
    """Return the event that something came about, under the request that asked for it (where one did)."""
    return Event(
        seq=0,
        at=tx.now,
        actor="skerry",
        request=operations[-1].request if operations else RequestId(""),
        action=f"{row.kind}.{what}",
        kind=row.kind,
        resource=row.id,
        project=row.project,
        name=row.name,
        message=message,
        before=b"",
        after=b"",
    )


def drop_old_operations(tx: Tx) -> None:
    """Keep the newest finished operations, drop the rest."""
    c = tables.operation.c
    edge = (
        select(c.finished_at)
        .where(c.finished_at.is_not(None))
        .order_by(c.finished_at.desc())
        .offset(FINISHED_KEPT)
        .limit(1)
        .scalar_subquery()
    )
    rows = tx.run(delete(tables.operation).where(c.finished_at <= edge).returning(c.body)).scalars().all()
    for body in rows:
        tx.gone(msgspec.json.decode(body, type=Operation))
