"""The durable queue: one row per resource, which says when it must be looked at again."""

from collections.abc import Sequence

import msgspec
from sqlalchemy import bindparam, null, or_, select, update

from common.ids import Id
from controller.store import tables
from controller.store.prepared import Prepared
from controller.store.rows import QueueRow
from controller.store.tx import Tx

LEASE_S = 15.0
"""A turn under way renews it; without, the row is anybody's again after so long."""


_q = tables.queue.c
_GIVE_BACK = update(tables.queue).values(due_at=bindparam("due_at"), leased_by=null())
_FINISH = Prepared(_GIVE_BACK.where(_q.resource == bindparam("of"), _q.pokes == bindparam("seen")))
_FINISH_POKED = Prepared(_GIVE_BACK.where(_q.resource == bindparam("of")))


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a turn: look again at `due_at`, or at once where it was poked meanwhile."""

    resource: Id
    pokes: int
    due_at: float


def take(tx: Tx, worker: str, resources: Sequence[Id], own: Sequence[Id] = ()) -> tuple[QueueRow, ...]:
    """Lease these queue rows, as far as no other worker holds them. A locked one is passed over, not waited for.

    `own` are those that are this worker's and nobody else's by now: it takes them from whoever had them before.
    """
    c = tables.queue.c
    free = or_(c.leased_by.is_(None), c.leased_by == worker, c.leased_until < tx.now, c.resource.in_(list(own)))
    wanted = select(c.resource).where(c.resource.in_(list(resources)), free).with_for_update(skip_locked=True)
    rows = tx.run(
        update(tables.queue)
        .where(c.resource.in_(wanted))
        .values(leased_by=worker, leased_until=tx.now + LEASE_S)
        .returning(c.resource, c.due_at, c.pokes)
    ).mappings()
    return tuple(QueueRow(**row) for row in rows.all())


def finish(tx: Tx, done: Finished) -> float | None:
    """Give a lease back. Returns when the row is due: compare-and-set, a poke during the turn makes it due now.

    None: the resource is gone.
    """
    if tx.change(_FINISH, of=done.resource, seen=done.pokes, due_at=done.due_at):
        return done.due_at
    return 0.0 if tx.change(_FINISH_POKED, of=done.resource, due_at=0.0) else None


def hand_over(tx: Tx, worker: str, resource: Id) -> None:
    """Give a lease back with the row due now, and tell everybody."""
    c = tables.queue.c
    mine = (c.resource == resource, c.leased_by == worker)
    tx.run(update(tables.queue).where(*mine).values(due_at=0.0, leased_by=None))
    tx.poked.add(resource)


def all_rows(tx: Tx) -> tuple[QueueRow, ...]:
    """Return the whole queue."""
    c = tables.queue.c
    return tuple(QueueRow(**row) for row in tx.run(select(c.resource, c.due_at, c.pokes)).mappings().all())


def drop_leases(tx: Tx, worker: str | None = None) -> None:
    """Free what a worker that is gone had leased; None: every lease, right where only one controller can run."""
    c = tables.queue.c
    statement = update(tables.queue).values(leased_by=None)
    tx.run(statement if worker is None else statement.where(c.leased_by == worker))
