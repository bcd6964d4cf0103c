"""A store, opened: the database brought to the newest schema, and the writer that fits it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import Engine

from common.clock import Clock
from controller.store.database import is_shared, migrate, open_database
from controller.store.shared import SharedWriter
from controller.store.store import Feed, Store, everything
from controller.store.writer import GroupWriter


@asynccontextmanager
async def open_store(url: str, clock: Clock) -> AsyncIterator[Store]:
    """Open the store at a database URL until the block is left. It is empty until it is loaded.

    Raises Invalid for a URL of no known database, Temporary where it is away.
    """
    engine = open_database(url)
    try:
        await asyncio.to_thread(migrate, engine)
        async with run_store(engine, clock) as store:
            yield store
    finally:
        engine.dispose()


@asynccontextmanager
async def run_store(engine: Engine, clock: Clock) -> AsyncIterator[Store]:
    """Run a store on a database that has the newest schema."""
    feed = Feed()
    if not is_shared(engine):
        async with GroupWriter(engine, clock, feed.committed) as alone:
            yield Store(alone, feed)
        return
    tasks = asyncio.TaskGroup()
    async with SharedWriter(engine, feed, everything) as shared:
        await tasks.__aenter__()
        following = tasks.create_task(shared.follow(), name="follow")
        try:
            yield Store(shared, feed, shared=True)
        finally:
            following.cancel()
            await tasks.__aexit__(None, None, None)  # is not told what the block raises: it would wrap it in a group
