"""Statements that are built once: run with any values, their errors like those of all others; what they share."""

import asyncio
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from common.errors import Conflict
from common.ids import Id, RequestId
from controller.store import chain, tables
from controller.store.batch import Batch
from controller.store.prepared import Prepared
from controller.store.rows import Event
from controller.store.store import Store
from controller.store.tx import Tx

fact = tables.fact
KEEP = Prepared(insert(fact))
FOUND = Prepared(select(fact.c.value).where(fact.c.name == bindparam("of")))
CHANGE = Prepared(update(fact).where(fact.c.name == bindparam("of")).values(value=bindparam("value")))


def event(name: str) -> Event:
    return Event(
        seq=0, at=1.0, actor="a", request=RequestId(""), action="vm.create", kind="vm", resource=Id("vm-1"),
        project="shop", name=name, message="", before=b"", after=b"",
    )  # fmt: skip


def test_a_statement_runs_with_other_values_each_time(engine: Engine) -> None:
    with engine.begin() as connection:
        tx = Tx(Batch(connection), 1.0)
        for name in ("a", "b%s", "c'"):
            assert tx.change(KEEP, name=name, value=f"{name}: ?") == 1
        changed = [tx.change(CHANGE, of=name, value="größer") for name in ("a", "nobody")]
        found = [tx.row(FOUND, of=name) for name in ("a", "b%s", "c'", "nobody")]

    assert changed == [1, 0]
    assert found == [("größer",), ("b%s: ?",), ("c': ?",), None]


def test_what_the_database_refuses_is_raised_as_by_every_other_statement(engine: Engine) -> None:
    with engine.begin() as connection:
        Tx(Batch(connection), 1.0).change(KEEP, name="a", value="1")
    with pytest.raises(IntegrityError) as twice, engine.begin() as connection:
        Tx(Batch(connection), 1.0).change(KEEP, name="a", value="secret")
    with pytest.raises((OperationalError, ProgrammingError)), engine.begin() as connection:
        Batch(connection).driver.say("no such words")

    assert "secret" not in str(twice.value)


def test_a_statement_with_a_value_of_its_own_is_refused(engine: Engine) -> None:
    fixed = Prepared(select(fact.c.value).where(fact.c.name == "a"))
    with engine.begin() as connection, pytest.raises(AssertionError, match="values of its own"):
        Tx(Batch(connection), 1.0).row(fixed)


async def test_a_transaction_that_fails_leaves_no_gap_in_the_chain(store: Store) -> None:
    """All are committed together, and share the chain's head and the revisions."""
    revisions: list[int] = []

    def write(name: str, *, fails: bool) -> Callable[[Tx], None]:
        def function(tx: Tx) -> None:
            revisions.append(tx.revision)
            chain.append(tx, event(name))
            if fails:
                raise Conflict("no")

        return function

    names = [(str(number), number % 3 == 1) for number in range(12)]
    jobs = [store._writer.submit(write(name, fails=fails)) for name, fails in names]
    answers = await asyncio.gather(*jobs, return_exceptions=True)
    kept = [one.name for one in await store.events(0, 100)]
    verified = await store.verify()

    assert [isinstance(one, Conflict) for one in answers] == [fails for _, fails in names]
    assert kept == [name for name, fails in names if not fails]
    assert (verified.intact, verified.events) == (True, len(kept))
    assert revisions == sorted(revisions)
    assert len(set(revisions)) == len(kept)
