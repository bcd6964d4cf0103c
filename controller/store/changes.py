"""The log of changes: what each commit changed, in commit order, for the other controllers on the same database.

One row a commit, written by the commit itself, numbered without gaps by whoever holds the writers' lock: a reader that
knows number n asks for what is behind n, and misses nothing. Old rows are pruned; a reader that was away for so long
sees the gap and starts again from a full load. A database with one controller has no log.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import msgspec
from sqlalchemy import Connection, delete, func, insert, select

from common.codec import from_json, to_json
from common.ids import Id, Revision
from common.kinds import kind_named
from common.kinds.kind import AnyResource, Resource
from controller.store import tables
from controller.store.rows import (
    Address,
    AnyRow,
    Capacity,
    Change,
    Controller,
    Document,
    Enrolment,
    Event,
    Fact,
    Gone,
    Grave,
    Link,
    Membership,
    Operation,
    Placement,
    Put,
    Token,
    Vni,
    ZoneUse,
)
from controller.store.tx import Tx

KEPT_S = 600.0
"""A controller that was cut off for longer loads everything anew."""

READ_TOGETHER = 512
"""Commits that are read at a time."""

_TYPED = (
    Placement,
    Membership,
    ZoneUse,
    Capacity,
    Address,
    Vni,
    Document,
    Operation,
    Event,
    Token,
    Enrolment,
    Grave,
    Controller,
    Link,
    Fact,
)
_TYPES: dict[str, Any] = {one.__name__: one for one in _TYPED}
_RESOURCE = "Resource"


class Gap(Exception):
    """What the reader knows was pruned behind it: it has to load everything."""


class Commit(msgspec.Struct, frozen=True, kw_only=True):
    """What one commit changed."""

    seq: int
    mark: str
    """Chosen by the committer, who finds its commit again by it when the answer was lost."""
    changes: list[Change]
    poked: set[Id]


class _Line(msgspec.Struct, frozen=True, array_like=True):
    """One change: whether the row is there afterwards, its type, the row itself."""

    there: bool
    type: str
    row: msgspec.Raw


class _Body(msgspec.Struct, frozen=True):
    changes: tuple[_Line, ...]
    poked: tuple[Id, ...]


class _PlainResource(msgspec.Struct, frozen=True, kw_only=True):
    """A resource whose kind is not looked up yet."""

    id: Id
    kind: str
    project: str
    name: str
    labels: dict[str, str]
    generation: int
    observed_generation: int
    spec: msgspec.Raw
    status: msgspec.Raw
    owner: Id | None
    created_at: float
    deleted_at: float | None
    revision: Revision
    counts: dict[str, int] = {}


def encode(changes: Sequence[Change], poked: Iterable[Id]) -> str:
    """Return what a commit changed as JSON text."""
    lines = tuple(
        _Line(isinstance(change, Put), type(change.row).__name__, msgspec.Raw(to_json(change.row)))
        for change in changes
    )
    return to_json(_Body(lines, tuple(sorted(poked)))).decode()


def decode(text: str) -> tuple[list[Change], set[Id]]:
    """Return what `encode` was given. Raises Invalid for anything else."""
    body = from_json(text, _Body, "a commit in the log")
    return [Put(_row(line)) if line.there else Gone(_row(line)) for line in body.changes], set(body.poked)


def _row(line: _Line) -> AnyRow | AnyResource:
    if line.type != _RESOURCE:
        row: AnyRow = _decoder(line.type).decode(line.row)
        return row
    plain: _PlainResource = _decoder(_RESOURCE).decode(line.row)
    kind = kind_named(plain.kind)
    values = {name: getattr(plain, name) for name in plain.__struct_fields__}
    what = f"{plain.kind} {plain.id} in the log"
    values["spec"] = from_json(bytes(plain.spec), kind.spec, what)
    values["status"] = from_json(bytes(plain.status), kind.status, what)
    return Resource(**values)


@cache
def _decoder(name: str) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(_PlainResource if name == _RESOURCE else _TYPES[name])


def head(connection: Connection) -> int:
    """Return the number of the last commit."""
    return int(connection.execute(select(func.coalesce(func.max(tables.change.c.seq), 0))).scalar_one())


def read(connection: Connection, after: int) -> tuple[Commit, ...]:
    """Return every commit behind a number, in order. Raises Gap where some of them were pruned."""
    c = tables.change.c
    found: list[Commit] = []
    while True:
        last = found[-1].seq if found else after
        rows = connection.execute(
            select(c.seq, c.mark, c.body).where(c.seq > last).order_by(c.seq).limit(READ_TOGETHER)
        ).all()
        found += commits_from(((row.seq, row.mark, row.body) for row in rows), last)
        if len(rows) < READ_TOGETHER:
            return tuple(found)


def commits_from(rows: Iterable[tuple[int, str, str]], after: int) -> list[Commit]:
    """Return the commits of rows (seq, mark, body) in order, the first of which is behind a number. Raises Gap."""
    found = []
    for seq, mark, body in rows:
        if seq != after + 1:
            raise Gap
        changes, poked = decode(body)
        found.append(Commit(seq=seq, mark=mark, changes=changes, poked=poked))
        after = seq
    return found


def append(connection: Connection, commit: Commit, at: float) -> None:
    """Write what the transaction changes. The number is the one after `head`, and the caller holds the lock."""
    connection.execute(
        insert(tables.change).values(seq=commit.seq, at=at, mark=commit.mark, body=encode(commit.changes, commit.poked))
    )


def prune(tx: Tx) -> None:
    """Drop what is old. The last one stays: by it the next number is known."""
    c = tables.change.c
    last = select(func.max(c.seq)).scalar_subquery()
    tx.run(delete(tables.change).where(c.at < tx.now - KEPT_S, c.seq < last))
