"""One commit of many transactions: what they share is read once for all of them, and written back once."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, select, update

from common.ids import Revision
from controller.store import tables
from controller.store.prepared import Driver, Prepared
from controller.store.rows import Head

_COUNTER = tables.sequence.c.name == bindparam("counter")
_READ_COUNTER = Prepared(select(tables.sequence.c.value).where(_COUNTER))
_WRITE_COUNTER = Prepared(update(tables.sequence).where(_COUNTER).values(value=bindparam("last")))
# Where writers run side by side, whoever holds the head is the next to append.
_READ_HEAD = Prepared(select(tables.chain.c.seq, tables.chain.c.hash).with_for_update())
_READ_LAST = Prepared(select(func.max(tables.event.c.seq)))
_WRITE_HEAD = Prepared(update(tables.chain).values(seq=bindparam("last"), hash=bindparam("digest")))
_WRITE_EVENT = Prepared(insert(tables.event))
_REVISION = {"counter": "revision"}


class Batch:
    """What is committed together: the revisions that were given, the chain as far as it was appended to.

    `revision`: the last one given, where that is known; whoever knows it also writes it back.
    """

    def __init__(self, connection: Connection, revision: int | None = None) -> None:
        self.connection = connection
        self.driver = Driver(connection)
        self._revision = revision
        self._written = revision
        self._counts = revision is None
        self._head: Head | None = None
        self._appended = False

    @property
    def revision(self) -> Revision:
        """Return the revision that was given last."""
        if self._revision is None:
            ((self._revision,),) = self.driver.rows(_READ_COUNTER, _REVISION)
            self._written = self._revision
        return Revision(self._revision)

    def next_revision(self) -> Revision:
        """Give a revision: higher than any before."""
        self._revision = self.revision + 1
        return Revision(self._revision)

    @property
    def head(self) -> Head:
        """Return the chain's head."""
        if self._head is None:
            ((seq, digest),) = self.driver.rows(_READ_HEAD, {})
            self._head = Head(seq=seq, hash=digest)
        return self._head

    def next_event(self) -> int:
        """Return the number of the next event: a row that was slipped in behind the head must not stop all work."""
        if self._appended:
            return self.head.seq + 1
        ((last,),) = self.driver.rows(_READ_LAST, {})
        return max(self.head.seq, last or 0) + 1

    def append(self, values: dict[str, Any]) -> None:
        """Write an event's row, which is the head from now on."""
        self.driver.change(_WRITE_EVENT, values)
        self._head = Head(seq=values["seq"], hash=values["hash"])
        self._appended = True

    def close(self) -> None:
        """Write back what is to be committed with the rest."""
        if self._appended:
            self.driver.change(_WRITE_HEAD, {"last": self.head.seq, "digest": self.head.hash})
        if self._counts and self._revision not in (None, self._written):
            self.driver.change(_WRITE_COUNTER, _REVISION | {"last": self._revision})

    @contextmanager
    def tried(self) -> Iterator[None]:
        """Know nothing of a transaction that failed: whoever runs it has the database undo it."""
        before = self._head, self._appended, self._revision
        try:
            yield
        except BaseException:
            self._head, self._appended, self._revision = before
            raise
