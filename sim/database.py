"""Fresh databases in an instant: migrated once, copied from then on."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from sqlalchemy import Engine

from common.clock import Clock
from common.faults import Faults
from controller.store.database import migrate, open_database
from controller.store.store import Feed, Store
from controller.store.writer import InlineWriter

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@cache
def _template() -> bytes:
    engine = open_database("sqlite://")
    try:
        migrate(engine)
        with engine.connect() as connection:
            raw = connection.connection.driver_connection
            assert raw is not None
            image: bytes = raw.serialize()
            return image
    finally:
        engine.dispose()


def memory_engine() -> Engine:
    """Return a database in memory with the newest schema. It lasts until the engine is disposed."""
    engine = open_database("sqlite://")
    with engine.connect() as connection:
        raw = connection.connection.driver_connection
        assert raw is not None
        connection.rollback()
        raw.deserialize(_template())
    return engine


@contextmanager
def inline_store(clock: Clock = lambda: 1_800_000_000.0) -> Iterator[tuple[Store, Run, Engine]]:
    """Give a store in memory, what runs its coroutines, and its database."""
    engine, feed, loop = memory_engine(), Feed(), asyncio.new_event_loop()
    writer = InlineWriter(engine, clock, feed.committed, Faults())
    try:
        store = Store(writer, feed)
        loop.run_until_complete(store.load(alone=True))
        yield store, loop.run_until_complete, engine
    finally:
        writer.close()
        engine.dispose()
        loop.close()
