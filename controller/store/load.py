"""Filling the working set at start: every live row, as if it had just been committed."""

import msgspec
from sqlalchemy import select

from controller.store import claims, graves, tables
from controller.store.rows import (
    Address,
    Controller,
    Enrolment,
    Fact,
    Link,
    Membership,
    Operation,
    Placement,
    Token,
    Vni,
    ZoneUse,
)
from controller.store.tx import Tx, document_from, resource_from


def load(tx: Tx) -> None:
    """Note every live row as put, and every grave."""
    graves.load(tx)
    for row in tx.run(select(tables.resource)).mappings():
        tx.put(resource_from(row))
    _load_claims(tx)
    for row in tx.run(select(tables.document)).mappings():
        tx.put(document_from(row))
    for body in tx.run(select(tables.operation.c.body)).scalars():
        tx.put(msgspec.json.decode(body, type=Operation))
    for row in tx.run(select(tables.token)).mappings():
        tx.put(Token(**row))
    for body in tx.run(select(tables.enrolment.c.body)).scalars():
        tx.put(msgspec.json.decode(body, type=Enrolment))
    k = tables.controller.c
    for row in tx.run(select(k.id, k.url, k.version, k.since, k.alive)).mappings():
        tx.put(Controller(**row))
    for row in tx.run(select(tables.link)).mappings():
        tx.put(Link(**row))
    for row in tx.run(select(tables.fact)).mappings():
        tx.put(Fact(**row))


def _load_claims(tx: Tx) -> None:
    for row in tx.run(select(tables.placement)).mappings():
        tx.put(Placement(**row))
    m = tables.membership.c
    for row in tx.run(select(m.group_id.label("group"), m.owner, m.domain)).mappings():
        tx.put(Membership(**row))
    for row in tx.run(select(tables.zone_use)).mappings():
        tx.put(ZoneUse(**row))
    for row in tx.run(select(*claims.CAPACITY)).mappings():
        tx.put(claims.capacity_row(row))
    a = tables.address.c
    for row in tx.run(select(a.network, a.address, a.vm, a.index, a.mac)).mappings():
        tx.put(Address(**row))
    for row in tx.run(select(tables.vni)).mappings():
        tx.put(Vni(**row))
