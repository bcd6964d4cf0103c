"""The chain of events: each row's hash covers the row and the hash before it, so that history can't be changed unseen.

`hash = sha256(hash before + canonical row)`, computed in the transaction that appends, in commit order; the chain's
head is a row of its own, read and written once a commit. Whoever changes, removes, inserts or swaps rows breaks the
chain at the first of them. Who rewrites everything from there on, head included, is found by a head that was noted
outside.
"""

import hashlib
from typing import Any

import msgspec
from sqlalchemy import RowMapping, select

from common.codec import to_json
from controller.store import tables
from controller.store.rows import Event, Head, Verified
from controller.store.tx import Tx

GENESIS = "0" * 64
"""Stands before the first event."""

COVERED = (
    "seq", "at", "actor", "request", "action", "kind", "resource", "project", "name", "message", "result", "before",
    "after",
)  # fmt: skip
"""The columns that a hash covers, in this order, as a JSON array."""

PAGE = 1000
"""Rows that are verified in one transaction."""


def link(before: str, row: RowMapping | dict[str, Any]) -> str:
    """Return the hash of a row of the event table that stands behind the hash `before`."""
    return hashlib.sha256(before.encode() + to_json([row[name] for name in COVERED])).hexdigest()


def append(tx: Tx, event: Event) -> None:
    """Append a line to the event table, as the chain's new head."""
    head = tx.batch.head
    values: dict[str, Any] = {name: getattr(event, name) for name in COVERED}
    # A host may have worded it, and PostgreSQL's text knows no NUL.
    values["message"] = event.message.replace("\0", "\ufffd")
    values |= {"at": float(event.at), "before": event.before.decode(), "after": event.after.decode()}
    values["seq"] = tx.batch.next_event()
    values["hash"] = link(head.hash, values)
    tx.batch.append(values)
    tx.put(msgspec.structs.replace(event, seq=values["seq"], hash=values["hash"], message=values["message"]))


class Walk:
    """A verification on its way through the table, a page a transaction, so that writers get their turns."""

    def __init__(self, noted: Head | None) -> None:
        self._noted = noted
        self._last = self._before_last = Head(seq=0, hash=GENESIS)
        self._count = 0

    def page(self, tx: Tx) -> Verified | None:
        """Verify the next page. Returns the result once it is known; None: there is more."""
        table = tables.event
        below = table.c.seq > self._last.seq if self._count else table.c.seq > -(2**62)
        rows = tx.run(select(table).where(below).order_by(table.c.seq).limit(PAGE)).mappings().all()
        for row in rows:
            if problem := self._step(row):
                return self._bad(tx, problem)
        return None if len(rows) == PAGE else self._end(tx)

    def _step(self, row: RowMapping) -> tuple[int, str] | None:
        """Check one row. Returns the first bad seq and why."""
        seq, expected = row["seq"], self._last.seq + 1
        if seq < 1:
            return seq, f"event {seq} was inserted: the first is 1"
        if row["hash"] != link(self._last.hash, row):
            if row["hash"] == link(self._before_last.hash, row):
                return self._last.seq, f"event {self._last.seq} was inserted: {seq} follows {self._before_last.seq}"
            if seq > expected:
                last = f" to {seq - 1}" if seq - 1 > expected else ""
                return expected, f"event {expected}{last} is missing: {seq} does not follow {self._last.seq}"
            return seq, f"event {seq} is not as it was written, or not in its place"
        self._before_last, self._last = self._last, Head(seq=seq, hash=row["hash"])
        self._count += 1
        if self._noted and self._noted.seq == seq and self._noted.hash != row["hash"]:
            return seq, f"event {seq} has another hash than was noted: the chain was rewritten up to it"
        return None

    def _end(self, tx: Tx) -> Verified:
        head, last = tx.batch.head, self._last
        if last.seq < head.seq:
            return self._bad(tx, (last.seq + 1, f"events {last.seq + 1} to {head.seq} are missing at the end"))
        if last.seq > head.seq:
            return self._bad(tx, (head.seq + 1, f"event {head.seq + 1} was inserted: the chain ends before it"))
        if last.hash != head.hash:
            return self._bad(tx, (max(1, last.seq), f"event {last.seq} is not the one that the chain ended with"))
        if self._noted and self._noted.seq > last.seq:
            return self._bad(tx, (last.seq + 1, f"the chain ends at {last.seq}; noted was {self._noted.seq}"))
        return Verified(intact=True, events=self._count, head=head, first_bad=None, problem="")

    def _bad(self, tx: Tx, found: tuple[int, str]) -> Verified:
        seq, problem = found
        return Verified(intact=False, events=self._count, head=tx.batch.head, first_bad=seq, problem=problem)
