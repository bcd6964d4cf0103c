"""A bench in memory for each test."""

from collections.abc import AsyncIterator

import pytest

from common.faults import Faults
from controller.store.store import Feed, Store
from controller.store.writer import InlineWriter
from sim.database import memory_engine
from tests.kinds.bench import Bench
from tests.store.desk import Clock


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """Give a bench over a store with nothing in it but the default domain."""
    engine, feed, clock = memory_engine(), Feed(), Clock()
    writer = InlineWriter(engine, clock, feed.committed, Faults())
    store = Store(writer, feed)
    await store.load(alone=True)
    yield Bench(store, clock)
    writer.close()
    engine.dispose()
