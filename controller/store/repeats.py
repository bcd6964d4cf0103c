"""Repeats: what was answered to a request that carried an Idempotency-Key, kept for a day.

The row is written in the transaction of the mutation itself, so that whoever repeats a request after a lost answer,
a crash or beside itself gets the first answer again, and the thing is done once. Secrets are not in it.
"""

from typing import Any

import msgspec
from sqlalchemy import bindparam, delete, select, text

from common.codec import to_json
from common.errors import Conflict, KeyReused
from controller.store import tables
from controller.store.prepared import Prepared
from controller.store.rows import Operation
from controller.store.tx import Tx, resource_from, resource_values
from controller.store.writes import First, Mutation, Once

KEPT_S = 24 * 3600.0
"""How long a key stands for its first request."""


_c = tables.repeat.c
_RECALL = Prepared(
    select(_c.fingerprint, _c.body).where(
        _c.caller == bindparam("of"), _c.key == bindparam("of_key"), _c.at > bindparam("since")
    )
)
_DROP = Prepared(
    delete(tables.repeat).where(
        _c.caller == bindparam("of"), _c.key == bindparam("of_key"), _c.at <= bindparam("before")
    )
)
_KEEP = Prepared(
    text(
        "INSERT INTO repeat (caller, key, fingerprint, at, body) VALUES (:caller, :key, :fingerprint, :at, :body) "
        "ON CONFLICT (caller, key) DO NOTHING"
    )
)


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    resource: dict[str, Any]
    operation: Operation
    revealed: bool


def recall(tx: Tx, once: Once) -> First | None:
    """Return what this request was answered with before; None: it is new.

    Raises KeyReused where the key stands for another request.
    """
    row = tx.row(_RECALL, of=once.caller, of_key=once.key, since=tx.now - KEPT_S)
    if row is None:
        return None
    fingerprint, body = row
    if fingerprint != once.fingerprint:
        raise KeyReused(
            f"Idempotency-Key {once.key} stands for another request of {once.caller} in the last 24 hours",
            fix="use a fresh key for each request; the same key only to repeat the same method, address and body",
        )
    kept = msgspec.json.decode(body, type=_Kept)
    return First(resource=resource_from(kept.resource), operation=kept.operation, revealed=kept.revealed)


def keep(tx: Tx, done: Mutation, once: Once) -> None:
    """Keep what this request is answered with. Raises Conflict where it is being carried out elsewhere as well."""
    kept = _Kept(resource=resource_values(done.resource), operation=done.operation, revealed=done.reveals)
    row = {
        "caller": once.caller,
        "key": once.key,
        "fingerprint": once.fingerprint,
        "at": tx.now,
        "body": to_json(kept).decode(),
    }
    tx.change(_DROP, of=once.caller, of_key=once.key, before=tx.now - KEPT_S)
    if not tx.change(_KEEP, **row):
        raise Conflict(f"Idempotency-Key {once.key} is in use by a request under way", fix="try again")


def drop_old(tx: Tx) -> None:
    """Drop the keys whose day is over."""
    tx.run(delete(tables.repeat).where(tables.repeat.c.at <= tx.now - KEPT_S))
