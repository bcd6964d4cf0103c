"""Takes SQLite's log over into the database beside the commits: within one, all wait that are in it or behind it.

A checkpoint copies a thousand pages and waits for the disk, some milliseconds each time. But the log is written from
its start again only once all of it was taken over, and one that grows makes each commit slower, since the file system
has to note that too. So most of it is taken over in a thread of its own while commits go on, and what they added
meanwhile, which is little, between two of them.
"""

import sqlite3
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import structlog
from sqlalchemy import Engine

log = structlog.get_logger(__name__)

EVERY = 2048
"""Transactions from one time to the next: a log of some tens of megabytes at most."""


class Checkpoints:
    """Those of one database, over a connection of their own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Any = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store-checkpoint")
        self._beside: Future[None] | None = None
        self._since = 0

    def open(self) -> None:
        """Connect."""
        self._connection = self._engine.raw_connection()

    def close(self) -> None:
        """Wait for the one that is under way, and disconnect."""
        self._thread.shutdown()
        if self._connection is not None:
            self._connection.close()

    def committed(self, transactions: int) -> None:
        """Begin or end one where it is time. Called after each commit, by the thread that commits; never raises for
        what the disk does: then the log stays, and SQLite itself takes it over when it is long."""
        self._since += transactions
        if self._beside is None:
            if self._since >= EVERY:
                self._beside = self._thread.submit(self._take_over)
        elif self._beside.done():
            self._take_over()
            self._beside, self._since = None, 0

    def _take_over(self) -> None:
        try:
            self._connection.cursor().execute("PRAGMA wal_checkpoint(PASSIVE)").close()
        except sqlite3.Error as err:
            log.warning("log not taken over", error=str(err))
