"""A migrated database for each test: SQLite on a disk; another one by `SKERRY_TEST_DATABASE=postgresql+psycopg://…`."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from controller.store.database import migrate, open_database
from controller.store.store import Feed, Store
from controller.store.writer import GroupWriter
from tests.store.desk import Clock, Desk


@pytest.fixture
def empty_database(tmp_path: Path) -> Iterator[Engine]:
    """Give a database without a schema."""
    url = os.environ.get("SKERRY_TEST_DATABASE", f"sqlite:///{tmp_path / 'skerry.db'}")
    engine = open_database(url)
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
    yield engine
    engine.dispose()


@pytest.fixture
def engine(empty_database: Engine) -> Engine:
    """Give a database with the newest schema."""
    migrate(empty_database)
    return empty_database


@pytest.fixture
def clock() -> Clock:
    """Give a clock that stands still until it is moved."""
    return Clock()


@pytest.fixture
async def store(engine: Engine, clock: Clock) -> AsyncIterator[Store]:
    """Give a store over the database, as the controller runs it."""
    feed = Feed()
    async with GroupWriter(engine, clock, feed.committed) as writer:
        opened = Store(writer, feed)
        await opened.load(alone=True)
        yield opened


@pytest.fixture
def desk(store: Store, clock: Clock) -> Desk:
    """Give what makes rows in the store by admission."""
    return Desk(store, clock)
