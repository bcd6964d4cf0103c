"""A migrated database for each test, of either kind: SQLite on a disk, and a real PostgreSQL."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from controller.store.database import is_shared, migrate, open_database
from controller.store.shared import SharedWriter
from controller.store.store import Feed, Store, everything
from controller.store.writer import GroupWriter
from tests.postgres import Cluster
from tests.store.desk import Clock, Desk

DATABASES = ("sqlite", "postgresql")


@pytest.fixture(params=DATABASES)
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """Give a database without a schema."""
    if request.param == "postgresql":
        cluster: Cluster = request.getfixturevalue("cluster")
        url = cluster.database()
    else:
        url = f"sqlite:///{tmp_path / 'skerry.db'}"
    engine = open_database(url)
    yield engine
    engine.dispose()


@pytest.fixture(params=DATABASES)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """Give a database with the newest schema."""
    if request.param == "postgresql":
        engine = open_database(request.getfixturevalue("postgres_url"))
    else:
        engine = open_database(f"sqlite:///{tmp_path / 'skerry.db'}")
        migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def clock() -> Clock:
    """Give a clock that stands still until it is moved."""
    return Clock()


@pytest.fixture
async def store(engine: Engine, clock: Clock) -> AsyncIterator[Store]:
    """Give a store over the database, with the writer that the controller uses for it."""
    feed = Feed()
    if is_shared(engine):
        async with SharedWriter(engine, feed, everything, now=lambda _: clock()) as shared:
            opened = Store(shared, feed)
            await opened.load(alone=False)
            yield opened
        return
    async with GroupWriter(engine, clock, feed.committed) as writer:
        opened = Store(writer, feed)
        await opened.load(alone=True)
        yield opened


@pytest.fixture
def desk(store: Store, clock: Clock) -> Desk:
    """Give what makes rows in the store by admission."""
    return Desk(store, clock)
