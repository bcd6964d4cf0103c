"""The controllers on one database: which of them live, and which hosts each is connected to.

A controller that is not heard of for `ALIVE_S` is buried by any other: its hosts' links and its leases are free then.
One that was buried by mistake (it was cut off, or slow) notices at its next beat, and enters anew.
"""

from collections.abc import Collection

from sqlalchemy import delete, insert, select, update

from common.ids import HostId, Id
from controller.store import tables
from controller.store.queue import LEASE_S
from controller.store.rows import Controller, Fact, Link
from controller.store.tx import Tx

ALIVE_S = 6.0
"""A controller is taken to be alive so long after each beat."""

REMEMBERED_S = 7 * 24 * 3600.0
"""Hosts are told the address of a controller that is gone for so long: it may come back."""


def enter(tx: Tx, me: Controller) -> None:
    """Note that a controller lives. One that had its address before can't any more: its place is taken."""
    c = tables.controller.c
    for before in tx.run(select(c.id).where(c.url == me.url, c.id != me.id)).scalars().all():
        bury(tx, before)
        _forget(tx, before)
    tx.run(delete(tables.controller).where(c.id == me.id))
    values = {name: getattr(me, name) for name in me.__struct_fields__}
    tx.run(insert(tables.controller).values(**values, alive_until=tx.now + ALIVE_S))
    tx.put(me)


def beat(tx: Tx, me: Controller, busy: Collection[Id]) -> bool:
    """Say that a controller lives and works on these resources still. False: it had been buried, and enters anew."""
    c, q = tables.controller.c, tables.queue.c
    there = tx.run(
        update(tables.controller).where(c.id == me.id, c.alive).values(alive_until=tx.now + ALIVE_S)
    ).rowcount
    if not there:
        enter(tx, me)
    if busy:
        tx.run(
            update(tables.queue)
            .where(q.leased_by == me.id, q.resource.in_(list(busy)))
            .values(leased_until=tx.now + LEASE_S)
        )
    return bool(there)


def reap(tx: Tx, me: Controller) -> tuple[str, ...]:
    """Bury the controllers that were not heard of in time, forget those long dead. Returns the ids of the buried."""
    c = tables.controller.c
    silent = tx.run(select(c.id).where(c.alive, c.alive_until < tx.now, c.id != me.id)).scalars().all()
    for one in silent:
        bury(tx, one)
    old = tx.run(select(c.id).where(c.alive.is_(False), c.alive_until < tx.now - REMEMBERED_S)).scalars().all()
    for one in old:
        _forget(tx, one)
    return tuple(silent)


def bury(tx: Tx, controller: str) -> None:
    """Free all that a controller held. What it worked on is due for the others now."""
    table, link = tables.controller, tables.link
    row = (
        tx.run(update(table).where(table.c.id == controller, table.c.alive).values(alive=False).returning(*table.c))
        .mappings()
        .one_or_none()
    )
    if row:
        tx.put(_controller(row))
    links = tx.run(delete(link).where(link.c.controller == controller).returning(link.c.host)).scalars().all()
    for host in links:
        tx.gone(Link(host=HostId(Id(host)), controller=controller, since=tx.now))
    q = tables.queue.c
    leased = tx.run(
        update(tables.queue).where(q.leased_by == controller).values(leased_by=None, due_at=0.0).returning(q.resource)
    ).scalars()
    tx.poked.update(Id(resource) for resource in leased.all())


def _forget(tx: Tx, controller: str) -> None:
    table = tables.controller
    for row in tx.run(delete(table).where(table.c.id == controller).returning(*table.c)).mappings().all():
        tx.gone(_controller(row))


def _controller(row: object) -> Controller:
    return Controller(**{name: row[name] for name in Controller.__struct_fields__})  # type: ignore[index]


def take_link(tx: Tx, host: HostId, controller: str) -> None:
    """Note that a host is connected to a controller, and to no other any more."""
    c = tables.link.c
    values = {"controller": controller, "since": tx.now}
    if not tx.run(update(tables.link).where(c.host == host).values(**values)).rowcount:
        tx.run(insert(tables.link).values(host=host, **values))
    tx.put(Link(host=host, controller=controller, since=tx.now))


def leave_link(tx: Tx, host: HostId, controller: str) -> None:
    """Note that a host's link to this controller ended. One that it has to another by now stays."""
    c = tables.link.c
    if tx.run(delete(tables.link).where(c.host == host, c.controller == controller)).rowcount:
        tx.gone(Link(host=host, controller=controller, since=tx.now))


def put_fact(tx: Tx, name: str, value: str) -> None:
    """Have something be so for the whole cloud."""
    c = tables.fact.c
    if not tx.run(update(tables.fact).where(c.name == name).values(value=value)).rowcount:
        tx.run(insert(tables.fact).values(name=name, value=value))
    tx.put(Fact(name=name, value=value))


def ensure_fact(tx: Tx, name: str, value: str) -> str:
    """Return what all controllers hold true; the first one to say it decides."""
    c = tables.fact.c
    there = tx.run(select(c.value).where(c.name == name)).scalar_one_or_none()
    if there is None:
        put_fact(tx, name, value)
        return value
    return str(there)


def swap_fact(tx: Tx, name: str, before: str, after: str) -> bool:
    """Change what is so for the whole cloud, if it is still as it was seen; say whether it was."""
    c = tables.fact.c
    there = tx.run(select(c.value).where(c.name == name)).scalar_one_or_none() or ""
    if there != before:
        return False
    put_fact(tx, name, after)
    return True
