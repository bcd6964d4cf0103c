"""Reading the event table."""

from sqlalchemy import ColumnElement, func, select

from controller.store import tables
from controller.store.rows import Event, EventQuery
from controller.store.tx import Tx, event_from


def read(tx: Tx, after: int, limit: int, wanted: EventQuery, *, newest: bool = False) -> tuple[Event, ...]:
    """Return up to `limit` events behind a sequence number, oldest first; `newest`: the last of them."""
    c = tables.event.c
    statement = select(tables.event).where(c.seq > after, *_conditions(wanted)).limit(limit)
    rows = tx.run(statement.order_by(c.seq.desc() if newest else c.seq)).mappings().all()
    return tuple(sorted((event_from(row) for row in rows), key=lambda event: event.seq))


def _conditions(wanted: EventQuery) -> list[ColumnElement[bool]]:
    c = tables.event.c
    found = [
        column == value
        for column, value in (
            (c.actor, wanted.actor),
            (c.kind, wanted.kind),
            (c.name, wanted.name),
            (c.request, wanted.request),
            (c.result, wanted.result),
        )
        if value
    ]
    if wanted.project is not None:
        found.append(c.project == wanted.project)
    if wanted.within is not None:
        found.append(c.project.in_(sorted(wanted.within)))
    if wanted.resource is not None:
        found.append(c.resource == wanted.resource)
    if wanted.since:
        found.append(c.at >= wanted.since)
    if wanted.action.endswith("*"):
        found.append(func.substr(c.action, 1, len(wanted.action) - 1) == wanted.action[:-1])
    elif wanted.action:
        found.append(c.action == wanted.action)
    return found
