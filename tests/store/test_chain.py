"""The chain of events: whatever is changed, removed, inserted or moved is found, at the first event that is bad."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, func, insert, literal, select, text, update
from sqlalchemy.exc import DBAPIError

from common.faults import Faults
from common.ids import Id, RequestId
from controller.store import chain, tables
from controller.store.database import migrate, open_database
from controller.store.rows import Event, Head, Verified
from controller.store.store import Feed, Store
from controller.store.writer import InlineWriter

EVENTS = 12
Tamper = Callable[[Connection], object]
event, c = tables.event, tables.event.c


class Book:
    """A store with events in it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._writer = InlineWriter(engine, lambda: 1.0, lambda _changes, _poked: None, Faults())
        self._store = Store(self._writer, Feed())

    def append(self, name: str) -> None:
        asyncio.run(self._store.append(_event(name)))

    def verify(self, noted: Head | None = None) -> Verified:
        return asyncio.run(self._store.verify(noted))

    def tamper(self, how: Tamper) -> None:
        """Change the table behind everybody's back."""
        with self.engine.begin() as connection:
            connection.execute(text("DROP TRIGGER IF EXISTS event_no_update"))
            connection.execute(text("DROP TRIGGER IF EXISTS event_no_delete"))
            how(connection)

    def close(self) -> None:
        self._writer.close()


def _event(name: str) -> Event:
    return Event(
        seq=0,
        at=1_800_000_000.125,
        actor="a/ci",
        request=RequestId("req-1"),
        action="vm.create",
        kind="vm",
        resource=Id("vm-0123456789ab"),
        project="a",
        name=name,
        message="größer",
        before=b"",
        after=b'{"x":1}',
        result="accepted",
    )


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    engine = open_database(f"sqlite:///{tmp_path / 'book.db'}")
    migrate(engine)
    made = Book(engine)
    for number in range(EVENTS):
        made.append(f"n{number}")
    yield made
    made.close()
    engine.dispose()


def removed(seq: int) -> Tamper:
    return lambda rows: rows.execute(event.delete().where(c.seq == seq))


def end_removed(rows: Connection) -> None:
    rows.execute(event.delete().where(c.seq > 5))


def end_removed_and_head_set_back(rows: Connection) -> None:
    end_removed(rows)
    rows.execute(update(tables.chain).values(seq=5, hash="ab"))


def emptied(rows: Connection) -> None:
    rows.execute(event.delete())


def changed(column: str) -> Tamper:
    return lambda rows: rows.execute(update(event).where(c.seq == 5).values({column: "other"}))


def moment_changed(rows: Connection) -> None:
    rows.execute(update(event).where(c.seq == 5).values(at=c.at + 0.001))


def swapped(rows: Connection) -> None:
    for before, after in ((5, -1), (6, 5), (-1, 6)):
        rows.execute(update(event).where(c.seq == before).values(seq=after))


def inserted_first(rows: Connection) -> None:
    _copy(rows, 0)


def inserted_in_between(rows: Connection) -> None:
    for seq in range(EVENTS, 4, -1):
        rows.execute(update(event).where(c.seq == seq).values(seq=seq + 1))
    _copy(rows, 5)


def inserted_behind(rows: Connection) -> None:
    _copy(rows, EVENTS + 1)


def inserted_behind_in_chain(rows: Connection) -> None:
    _copy(rows, EVENTS + 1)
    found = dict(rows.execute(select(event).where(c.seq == EVENTS + 1)).mappings().one())
    last = rows.execute(select(c.hash).where(c.seq == EVENTS)).scalar_one()
    rows.execute(update(event).where(c.seq == EVENTS + 1).values(hash=chain.link(last, found)))


def _copy(rows: Connection, seq: int) -> None:
    others = [column for column in event.columns if column.name != "seq"]
    copied = select(literal(seq), *others).where(c.seq == 3)
    rows.execute(insert(event).from_select(["seq", *(column.name for column in others)], copied))


COVERED = [name for name in (*chain.COVERED, "hash") if name not in ("seq", "at")]
TAMPERED: dict[str, tuple[Tamper, int]] = {
    "removed": (removed(5), 5),
    "first removed": (removed(1), 1),
    "last removed": (removed(EVENTS), EVENTS),
    "end removed": (end_removed, 6),
    "emptied": (emptied, 1),
    **{f"{name} changed": (changed(name), 5) for name in COVERED},
    "moment changed": (moment_changed, 5),
    "swapped": (swapped, 5),
    "inserted first": (inserted_first, 0),
    "inserted in between": (inserted_in_between, 5),
    "inserted behind": (inserted_behind, EVENTS + 1),
    "inserted behind, in the chain": (inserted_behind_in_chain, EVENTS + 1),
}


def test_an_untouched_history_is_intact_over_any_number_of_pages(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    for page in (1, 5, EVENTS, 1000):
        monkeypatch.setattr(chain, "PAGE", page)
        found = book.verify()

        assert (found.intact, found.events, found.first_bad) == (True, EVENTS, None)
        assert found.head.seq == EVENTS


@pytest.mark.parametrize("how", TAMPERED)
def test_tampering_is_found_at_its_first_event_and_stops_nobody(book: Book, how: str) -> None:
    tamper, bad = TAMPERED[how]
    book.tamper(tamper)
    found = book.verify()
    book.append("afterwards")
    later = book.verify()

    assert found.intact is later.intact is False
    assert (found.first_bad, later.first_bad) == (bad, bad)
    assert str(bad) in found.problem


def test_an_end_that_was_cut_off_together_with_the_head_is_found(book: Book) -> None:
    book.tamper(end_removed_and_head_set_back)

    assert book.verify().first_bad == 5


def test_a_rewritten_chain_is_found_by_a_head_that_was_noted(book: Book) -> None:
    noted = book.verify().head
    book.append("more")

    def rewrite(rows: Connection) -> None:
        rows.execute(update(event).where(c.seq == 5).values(actor="nobody"))
        head = chain.GENESIS
        for row in rows.execute(select(event).order_by(c.seq)).mappings().all():
            head = chain.link(head, row)
            rows.execute(update(event).where(c.seq == row["seq"]).values(hash=head))
        rows.execute(update(tables.chain).values(hash=head))

    assert book.verify(noted).intact
    book.tamper(rewrite)
    assert book.verify().intact
    assert book.verify(noted).first_bad == noted.seq
    assert book.verify(Head(seq=100, hash=noted.hash)).first_bad == EVENTS + 2


@pytest.mark.parametrize("how", [removed(5), changed("actor"), emptied], ids=["removed", "changed", "emptied"])
def test_the_table_itself_refuses_to_be_changed(book: Book, how: Tamper) -> None:
    with pytest.raises(DBAPIError, match="append-only"), book.engine.begin() as rows:
        how(rows)

    with book.engine.connect() as rows:
        assert rows.execute(select(func.count()).select_from(event)).scalar_one() == EVENTS
