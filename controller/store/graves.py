"""Graves: what is gone, and at which revision, for watchers that were away when it went. The newest are kept."""

import msgspec
from sqlalchemy import delete, func, insert, select

from common.kinds.kind import AnyResource
from controller.store import tables
from controller.store.prepared import Prepared
from controller.store.rows import GRAVES_KEPT, Grave
from controller.store.tx import Tx
from controller.store.working import home_of, is_public

_BURY = Prepared(insert(tables.grave))


def bury(tx: Tx, row: AnyResource) -> None:
    """Note that a resource is gone from this revision on, or that other projects don't see it any more."""
    grave = Grave(
        id=row.id,
        kind=row.kind,
        project=row.project,
        name=row.name,
        public=is_public(row),
        revision=tx.revision,
        domain=home_of(row),
    )
    tx.change(_BURY, **msgspec.structs.asdict(grave))
    tx.put(grave)


def load(tx: Tx) -> None:
    """Note every grave, in the order in which they were made."""
    c = tables.grave.c
    for row in tx.run(select(tables.grave).order_by(c.revision, c.id)).mappings():
        tx.put(Grave(**row))


def drop_old(tx: Tx) -> None:
    """Keep the newest. They are dropped only once twice as many have come together: see `WorkingSet.horizon`."""
    c = tables.grave.c
    if tx.run(select(func.count()).select_from(tables.grave)).scalar_one() <= 2 * GRAVES_KEPT:
        return
    edge = select(c.revision).order_by(c.revision.desc()).offset(GRAVES_KEPT - 1).limit(1).scalar_subquery()
    tx.run(delete(tables.grave).where(c.revision < edge))
