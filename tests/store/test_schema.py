"""The migrations make the schema that the code speaks of, and the database defends what must never change."""

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, insert, inspect, select, text, update
from sqlalchemy.exc import DatabaseError, IntegrityError

from common.errors import Invalid
from controller.store import tables
from controller.store.database import migrate, open_database
from controller.store.rows import EventQuery
from controller.store.store import Store
from tests.store.desk import Desk

MIGRATED = 1
"""The revision of what the migrations themselves make: the default domain."""


def test_an_empty_database_is_brought_to_the_newest_schema(empty_database: Engine) -> None:
    migrate(empty_database)
    assert {*tables.METADATA.tables, "alembic_version"} == set(inspect(empty_database).get_table_names())
    with empty_database.connect() as connection:
        assert connection.execute(select(tables.sequence.c.value)).scalar_one() == MIGRATED


def test_migrating_twice_changes_nothing(engine: Engine) -> None:
    migrate(engine)
    with engine.connect() as connection:
        assert connection.execute(select(tables.sequence.c.value)).scalar_one() == MIGRATED


def test_the_tables_are_those_that_the_migrations_make(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, tables.METADATA) == []


@pytest.mark.parametrize("statement", ["UPDATE event SET actor = 'nobody'", "DELETE FROM event"])
async def test_the_event_table_can_only_be_appended_to(desk: Desk, engine: Engine, statement: str) -> None:
    await desk.project()
    with pytest.raises(DatabaseError, match="append-only"), engine.begin() as connection:
        connection.execute(text(statement))
    assert len(await desk.store.events(0, 10, None)) == 1


async def test_events_are_numbered_without_reuse_and_read_in_order(desk: Desk) -> None:
    rows = [await desk.create("project", "", name) for name in ("a", "b", "c")]
    await desk.change(rows[0], description="new")
    events = await desk.store.events(0, 10, None)
    assert [one.seq for one in events] == sorted({one.seq for one in events})
    assert [one.action for one in events] == ["project.create"] * 3 + ["project.set"]
    later = await desk.store.events(events[1].seq, 1, None)
    assert [one.seq for one in later] == [events[2].seq]
    newest = await desk.store.events(0, 1, EventQuery(resource=rows[0].id), newest=True)
    assert [one.action for one in newest] == ["project.set"]
    assert b'"description":""' in newest[0].before
    assert b'"description":"new"' in newest[0].after


async def test_events_of_one_project_are_its_own(desk: Desk) -> None:
    await desk.project("shop")
    await desk.project("lab")
    await desk.create("network", "shop", "back")
    assert [one.name for one in await desk.store.events(0, 10, EventQuery(project="shop"))] == ["back"]
    assert await desk.store.events(0, 10, EventQuery(project="lab")) == ()


def test_the_database_itself_refuses_two_of_a_kind(engine: Engine) -> None:
    address = {"network": "n", "offset": 2, "address": "10.0.0.2", "vm": "v", "index": 0, "mac": "m"}
    for table, one, other in (
        (tables.vni, {"network": "a", "vni": 1}, {"network": "b", "vni": 1}),
        (tables.address, address, address | {"vm": "w"}),
        (tables.address, address | {"network": "p", "vm": "x"}, address | {"network": "q", "vm": "x"}),
    ):
        with engine.begin() as connection:
            connection.execute(insert(table).values(**one))
        with pytest.raises(IntegrityError), engine.begin() as connection:
            connection.execute(insert(table).values(**other))


async def test_what_is_answered_is_on_the_disk(store: Store, engine: Engine) -> None:
    if engine.dialect.name != "sqlite":
        pytest.skip("pragmas of SQLite")
    with engine.connect() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar_one() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar_one() == 2  # FULL


def test_an_unknown_database_is_refused_with_the_known_ones() -> None:
    with pytest.raises(Invalid, match="'mysql'") as refused:
        open_database("mysql://x")
    assert "sqlite:////" in refused.value.fix


def test_a_rollback_takes_the_revision_back(engine: Engine) -> None:
    bump = update(tables.sequence).values(value=tables.sequence.c.value + 1)
    with engine.connect() as connection:
        connection.execute(bump)
        connection.rollback()
        assert connection.execute(select(tables.sequence.c.value)).scalar_one() == MIGRATED
