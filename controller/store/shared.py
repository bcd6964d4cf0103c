"""The writer where several controllers share one PostgreSQL: one writes at a time, and each follows all the others.

A commit begins by taking a lock that all controllers take (released with the commit), so that the database is to them
what SQLite is to one: transactions run one after another, a revision is higher than all that were committed before,
nothing deadlocks, and what a unique constraint stops was decided on old knowledge and never on a race. Under the lock
it first reads what others committed since (the log of `controller.store.changes`), then runs the callers' functions,
each behind a savepoint, then writes its own line of the log. So the working set sees every commit of the cloud exactly
once and in order, its own ones too; a notification only says that there is something to read.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, TypeVar
from uuid import uuid4

import psycopg
import structlog
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import InterfaceError, OperationalError

from common.errors import Temporary
from common.ids import Id
from controller.store import changes
from controller.store.batch import Batch
from controller.store.changes import Commit, Gap
from controller.store.rows import Change
from controller.store.tx import Tx
from controller.store.writer import MOST_TOGETHER, Job, not_written, run_jobs

log = structlog.get_logger(__name__)

R = TypeVar("R")

CHANNEL = "skerry_change"
PATIENCE_S = 10.0
"""Transactions wait so long for a database that went away; then their callers are told."""

RETRY_S = 0.25
POLL_S = 1.0
"""Without a notification the log is read again after so long: none is lost for longer."""

_OPEN = """
SELECT pg_advisory_xact_lock(7598452121);
SELECT extract(epoch FROM clock_timestamp())::float8, (SELECT value FROM sequence WHERE name = 'revision');
SELECT seq, mark, body FROM change WHERE seq > {after} ORDER BY seq LIMIT {most};
"""
"""How a commit begins, in one round trip; each statement sees what was committed while the first one waited."""

_CLOSE = text(
    "WITH counted AS (UPDATE sequence SET value = :revision WHERE name = 'revision'), "
    "logged AS (INSERT INTO change (seq, at, mark, body) VALUES (:seq, :at, :mark, :body)) "
    "SELECT pg_notify(:channel, :said)"
)
"""How a commit that changed something ends, in another one."""

_NOW = text("SELECT extract(epoch FROM clock_timestamp())::float8")
_UNHURRIED = text("SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL statement_timeout = 0")
"""Reading everything takes its time, and holds nobody up."""


def database_time(at: float) -> float:
    """Return the moment of a transaction: by the database's clock, since controllers' own ones differ, and leases are
    compared by it."""
    return at


class _Opening(NamedTuple):
    """What is known once the lock is held."""

    now: float
    revision: int
    others: tuple[Commit, ...]
    """What other controllers committed since this one last looked."""


class Follower(Protocol):
    """Where the commits arrive, on the event loop and in their order."""

    def committed(self, changes: list[Change], poked: set[Id]) -> None:
        """Take over what a commit of this controller changed."""
        ...

    def followed(self, changes: list[Change], poked: set[Id]) -> None:
        """Take over what a commit of another controller changed."""
        ...

    def reloaded(self, changes: list[Change], poked: set[Id]) -> None:
        """Take over everything there is, each row as a Put: what is not among it is gone."""
        ...


class _Wake(NamedTuple):
    """A request to read the log."""


_WAKE = _Wake()


class SharedWriter:
    """A thread that owns the writing connection. An async context manager; `follow` is to be run beside it.

    `everything` notes every live row as put and returns the ids in the queue: it is run again where the log has a gap.
    """

    def __init__(
        self,
        engine: Engine,
        follower: Follower,
        everything: Callable[[Tx], set[Id]],
        now: Callable[[float], float] = database_time,
    ) -> None:
        self._engine = engine
        self._now = now
        self._follower = follower
        self._everything = everything
        self._jobs: queue.SimpleQueue[Job[Any] | _Wake | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="store-writer", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection: Connection | None = None
        self._cursor: int | None = None
        """The last commit that the follower was given; None before `load`: nothing is followed yet."""
        self._down_since: float | None = None
        self._ended = False
        self._abandoned = False

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    # --- for the store ----------------------------------------------------------------------------------------------

    async def submit(self, function: Callable[[Tx], R]) -> R:
        """Run a function in a transaction; returns when it is on disk, raises what it raised.

        It may be run more than once, where the database goes away before it has answered; it is kept once.
        Raises Temporary where the database stays away: then whether it was kept is not known.
        """
        assert self._loop is not None, "the writer is not running"
        if self._ended:
            raise Temporary("the controller is stopping", fix="try again in a moment")
        job: Job[R] = Job(function, self._loop.create_future())
        self._jobs.put(job)
        return await job.future

    async def read(self, function: Callable[[Tx], R]) -> R:
        """Run a function that only reads, beside the writing. Raises Temporary where the database is away."""
        try:
            return (await asyncio.to_thread(self._snapshot, function))[0]
        except (OperationalError, InterfaceError) as err:
            raise _away(err) from err

    async def load(self, function: Callable[[Tx], R]) -> R:
        """Run the function that fills the working set, and follow all that is committed after what it saw."""
        try:
            result, tx, cursor = await asyncio.to_thread(self._snapshot, function)
        except (OperationalError, InterfaceError) as err:
            raise _away(err) from err
        self._follower.committed(tx.changes, tx.poked)
        self._cursor = cursor
        return result

    async def follow(self) -> None:
        """Read the log whenever another controller says that it wrote, until cancelled."""
        while True:
            try:
                await self._listen()
            except (psycopg.OperationalError, psycopg.InterfaceError, OSError) as err:
                log.warning("notifications of the database lost", error=str(err).strip())
            except Exception:
                log.exception("notifications of the database lost")
            self._jobs.put(_WAKE)
            await asyncio.sleep(POLL_S)

    async def _listen(self) -> None:
        _, arguments = self._engine.dialect.create_connect_args(self._engine.url)
        connection = await psycopg.AsyncConnection.connect(**arguments, connect_timeout=5, autocommit=True)
        async with connection:
            await connection.execute(f"LISTEN {CHANNEL}".encode())
            while True:
                self._jobs.put(_WAKE)
                async for said in connection.notifies(timeout=POLL_S):
                    if int(said.payload) > (self._cursor or 0):
                        self._jobs.put(_WAKE)

    def abandon(self) -> None:
        """Stop as a killed process does: nothing more is written or said. For tests."""
        self._abandoned = self._ended = True
        self._jobs.put(None)

    # --- the thread -------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (jobs := self._next()) is not None and not self._abandoned:
            self._do(jobs)
        self._disconnect()

    def _next(self) -> list[Job[Any]] | None:
        """Wait for something to do, and return all that waits; empty: only the log is to be read. None: the end."""
        first = self._jobs.get()
        if first is None:
            return None
        jobs = [] if isinstance(first, _Wake) else [first]
        while len(jobs) < MOST_TOGETHER:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                self._jobs.put(None)
                break
            if not isinstance(job, _Wake):
                jobs.append(job)
        return jobs

    def _do(self, jobs: list[Job[Any]]) -> None:
        """Commit the jobs, or read the log, again until it works or patience ends."""
        mark = uuid4().hex
        while True:
            try:
                # After an absence without the lock, since there may be much to read.
                kept = (not jobs or self._connection is None) and self._catch_up(jobs, mark)
                if jobs and not kept:
                    self._commit(jobs, mark)
            except Gap:
                self._reload()
            except Exception as err:
                self._disconnect()  # a transaction that could not be ended goes with its connection
                if self._abandoned or not self._patient(err):
                    for job in jobs:
                        job.lose(not_written(err))
                    self._post(self._answer, jobs)
                    return
                time.sleep(RETRY_S)
            else:
                self._down_since = None
                return

    def _patient(self, err: Exception) -> bool:
        """Say whether to try again: deadlocks, failovers and full disks pass, a bug does not."""
        now, passing = time.monotonic(), _is_passing(err)
        if self._down_since is None or not passing:
            log.warning("commit failed", error=str(err).strip(), exc_info=not passing)
        self._down_since = now if self._down_since is None else self._down_since
        return passing and now - self._down_since < PATIENCE_S

    def _commit(self, jobs: list[Job[Any]], mark: str) -> None:
        """Run the jobs in one transaction."""
        connection = self._connected()
        with connection.begin():
            opening = self._open(connection)
            batch = Batch(connection, opening.revision)
            run_jobs(jobs, batch, lambda: opening.now)
            own = Commit(
                seq=self._last(connection, opening.others) + 1,
                mark=mark,
                changes=[change for job in jobs for change in job.changes],
                poked={one for job in jobs for one in job.poked},
            )
            said = bool(own.changes or own.poked or batch.revision > opening.revision)
            if said:
                self._close(connection, own, opening.now, batch.revision)
        self._deliver((*opening.others, own) if said else opening.others, mark, jobs)

    def _open(self, connection: Connection) -> _Opening:
        """Take the lock, and read what was committed until then."""
        after = self._cursor
        statements = _OPEN.format(after=after or 0, most=0 if after is None else changes.READ_TOGETHER)
        with _driver(connection).cursor() as cursor:
            cursor.execute(statements.encode())
            cursor.nextset()
            (now, revision) = cursor.fetchone() or (0.0, 0)
            cursor.nextset()
            others = changes.commits_from(cursor.fetchall(), after or 0)
        if len(others) == changes.READ_TOGETHER:
            others += changes.read(connection, others[-1].seq)
        return _Opening(self._now(float(now)), int(revision), tuple(others))

    def _close(self, connection: Connection, own: Commit, now: float, revision: int) -> None:
        """Write the log's line, and say so to the other controllers once it is committed."""
        values = {"seq": own.seq, "at": now, "mark": own.mark, "body": changes.encode(own.changes, own.poked)}
        connection.execute(_CLOSE, values | {"channel": CHANNEL, "said": str(own.seq), "revision": revision})

    def _last(self, connection: Connection, others: tuple[Commit, ...]) -> int:
        if others:
            return others[-1].seq
        return changes.head(connection) if self._cursor is None else self._cursor

    def _catch_up(self, jobs: list[Job[Any]], mark: str) -> bool:
        """Read the log. True: the jobs are in it, kept by an earlier try whose answer was lost."""
        if self._cursor is None:
            return False
        connection = self._connected()
        with connection.begin():
            commits = changes.read(connection, self._cursor)
        kept = any(commit.mark == mark for commit in commits)
        self._deliver(commits, mark, jobs if kept else [])
        return kept

    def _deliver(self, commits: tuple[Commit, ...], mark: str, jobs: list[Job[Any]]) -> None:
        if commits and self._cursor is not None:
            self._cursor = commits[-1].seq
        self._post(self._give, commits, mark, jobs)

    def _give(self, commits: tuple[Commit, ...], mark: str, jobs: list[Job[Any]]) -> None:
        """Tell the follower, then the callers. Runs on the event loop."""
        try:
            for commit in commits:
                if commit.mark == mark:
                    self._follower.committed(commit.changes, commit.poked)
                else:
                    self._follower.followed(commit.changes, commit.poked)
        finally:
            self._answer(jobs)

    def _answer(self, jobs: list[Job[Any]]) -> None:
        for job in jobs:
            job.answer()

    def _post(self, function: Callable[..., None], *args: Any) -> None:
        assert self._loop is not None
        if not self._abandoned:
            self._loop.call_soon_threadsafe(function, *args)

    def _reload(self) -> None:
        """Start again from all there is: what was committed since the cursor is not in the log any more."""
        log.warning("the log of changes has a gap: loading everything", after=self._cursor)
        poked, tx, self._cursor = self._snapshot(self._everything)
        self._post(self._follower.reloaded, tx.changes, poked)

    # --- connections ------------------------------------------------------------------------------------------------

    def _snapshot(self, function: Callable[[Tx], R]) -> tuple[R, Tx, int]:
        """Run a function on one state of the database, and say which commit was the last in it."""
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        with self._engine.connect().execution_options(**options) as connection, connection.begin():
            connection.execute(_UNHURRIED)
            tx = Tx(Batch(connection), self._now(float(connection.execute(_NOW).scalar_one())))
            return function(tx), tx, changes.head(connection)

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None


def _driver(connection: Connection) -> "psycopg.Connection[Any]":
    """Return the driver's own connection, for several statements in one round trip."""
    found: psycopg.Connection[Any] | None = connection.connection.driver_connection
    assert found is not None
    return found


def _is_passing(err: BaseException | None) -> bool:
    """Say whether the database, and not a bug, is what an error comes from. Undoing may have raised one over it."""
    while err is not None:
        if isinstance(err, OperationalError | InterfaceError | psycopg.OperationalError | psycopg.InterfaceError):
            return True
        err = err.__context__
    return False


def _away(err: OperationalError | InterfaceError) -> Temporary:
    return Temporary(
        f"the database can't be used: {str(err.orig).strip().partition(chr(10))[0]}",
        fix="try again; if it stays so, see that PostgreSQL runs and that [controller] database is its URL",
    )
