"""Repeats: what was answered to a request that carried an Idempotency-Key, kept for a day.

The row is written in the transaction of the mutation itself, so that whoever repeats a request after a lost answer,
a crash or beside itself gets the first answer again, and the thing is done once. Secrets are not in it.
"""

from typing import Any

import msgspec
from sqlalchemy import delete, insert, select
from sqlalchemy.exc import IntegrityError

from common.codec import to_json
from common.errors import Conflict, KeyReused
from controller.store import tables
from controller.store.rows import Operation
from controller.store.tx import Tx, resource_from, resource_values
from controller.store.writes import First, Mutation, Once

KEPT_S = 24 * 3600.0
"""How long a key stands for its first request."""


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    resource: dict[str, Any]
    operation: Operation
    revealed: bool


def recall(tx: Tx, once: Once) -> First | None:
    """Return what this request was answered with before; None: it is new.

    Raises KeyReused where the key stands for another request.
    """
    c = tables.repeat.c
    where = (c.caller == once.caller, c.key == once.key, c.at > tx.now - KEPT_S)
    row = tx.run(select(c.fingerprint, c.body).where(*where)).one_or_none()
    if row is None:
        return None
    if row.fingerprint != once.fingerprint:
        raise KeyReused(
            f"Idempotency-Key {once.key} stands for another request of {once.caller} in the last 24 hours",
            fix="use a fresh key for each request; the same key only to repeat the same method, address and body",
        )
    kept = msgspec.json.decode(row.body, type=_Kept)
    return First(resource=resource_from(kept.resource), operation=kept.operation, revealed=kept.revealed)


def keep(tx: Tx, done: Mutation, once: Once) -> None:
    """Keep what this request is answered with. Raises Conflict where it is being carried out elsewhere as well."""
    table, c = tables.repeat, tables.repeat.c
    kept = _Kept(resource=resource_values(done.resource), operation=done.operation, revealed=done.reveals)
    row = {
        "caller": once.caller,
        "key": once.key,
        "fingerprint": once.fingerprint,
        "at": tx.now,
        "body": to_json(kept).decode(),
    }
    tx.run(delete(table).where(c.caller == once.caller, c.key == once.key, c.at <= tx.now - KEPT_S))
    try:
        with tx.connection.begin_nested():
            tx.run(insert(table).values(**row))
    except IntegrityError as err:
        raise Conflict(f"Idempotency-Key {once.key} is in use by a request under way", fix="try again") from err


def drop_old(tx: Tx) -> None:
    """Drop the keys whose day is over."""
    tx.run(delete(tables.repeat).where(tables.repeat.c.at <= tx.now - KEPT_S))
