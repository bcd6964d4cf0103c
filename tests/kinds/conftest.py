"""A bench in memory for each test."""

from collections.abc import Iterator

import pytest

from common.faults import Faults
from controller.store.store import Feed, Store
from controller.store.writer import InlineWriter
from sim.database import memory_engine
from tests.kinds.bench import Bench
from tests.store.desk import Clock


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Give a bench over an empty store."""
    engine, feed, clock = memory_engine(), Feed(), Clock()
    writer = InlineWriter(engine, clock, feed.committed, Faults())
    yield Bench(Store(writer, feed), clock)
    writer.close()
    engine.dispose()
