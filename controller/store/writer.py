"""The one writer: many waiting transactions, one commit and one fsync.

SQLite allows one writer at a time, and a commit that must be on disk costs about a millisecond: so callers' functions
are run one after another inside one database transaction, each behind a savepoint, and everyone's answer is given
once it is committed. A function that raises undoes its own savepoint only.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

import structlog
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DataError, IntegrityError, InterfaceError, OperationalError

from common.clock import Clock
from common.errors import Conflict, Invalid, OutOfSpace, Temporary
from common.faults import Faults
from common.ids import Id
from controller.store.batch import Batch
from controller.store.checkpoints import Checkpoints
from controller.store.rows import Change
from controller.store.tx import Tx

log = structlog.get_logger(__name__)

R = TypeVar("R")

MOST_TOGETHER = 256
"""Transactions in one commit."""

SLICE_S = 0.005
"""A slice of the event loop's time: what waits longer is in the next commit."""

Committed = Callable[[list[Change], set[Id]], None]
"""Told after each commit, in commit order and before any caller gets its answer: what changed, who was poked."""


class Writer(Protocol):
    """Runs functions that take a transaction."""

    async def submit(self, function: Callable[[Tx], R]) -> R:
        """Run a function in a transaction; returns when it is committed, raises what it raised."""
        ...

    async def read(self, function: Callable[[Tx], R]) -> R:
        """Run a function that only reads: it sees at least what was committed when it was asked for."""
        ...

    async def load(self, function: Callable[[Tx], R]) -> R:
        """Run the function that fills the working set, before anything else is submitted."""
        ...


class Job(Generic[R]):
    """One waiting function."""

    def __init__(self, function: Callable[[Tx], R], future: asyncio.Future[R]) -> None:
        self.function = function
        self.future = future
        self.changes: list[Change] = []
        self.poked: set[Id] = set()
        self.result: R | None = None
        self.error: BaseException | None = None

    def attempt(self, tx: Tx) -> bool:
        """Run it, and say whether it went well; else whoever asked for it undoes what it did.

        Raises OperationalError where the database can't go on with the transaction. On a full disk SQLite undoes all of
        it, savepoints too: whoever came after would be committed alone, unnoticed.
        """
        self.changes, self.poked, self.error = [], set(), None
        try:
            with tx.batch.tried():
                self.result = self.function(tx)
        except (OperationalError, InterfaceError):
            raise
        except Exception as err:  # the caller's: it gets it back
            if tx.connection.invalidated:
                raise  # it comes from a connection that broke, and is nobody's
            self.error = in_our_words(err)
            return False
        self.changes, self.poked = tx.changes, tx.poked
        return True

    def lose(self, error: Exception) -> None:
        """The transaction was not committed."""
        self.changes, self.poked, self.error = [], set(), error

    def answer(self) -> None:
        """Give the caller what came of it."""
        if self.future.cancelled():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)  # type: ignore[arg-type]


def run_jobs(jobs: Iterable[Job[Any]], batch: Batch, now: Clock) -> None:
    """Run jobs for one commit, each behind a savepoint: what one that fails has done is undone, and nothing else."""
    say, words = batch.driver.say, ["SAVEPOINT job"]
    for job in jobs:
        say(*words)
        went_well = job.attempt(Tx(batch, now()))
        words = ["RELEASE SAVEPOINT job", "SAVEPOINT job"] if went_well else ["ROLLBACK TO SAVEPOINT job"]
    if words[0].startswith("ROLLBACK"):
        say(*words)
    batch.close()


def in_our_words(err: Exception) -> Exception:
    """Return what the database refused as an error that says who has to act; any other error as it is.

    A unique constraint stopped it: somebody else was first, and whoever decided looks again.
    """
    if isinstance(err, IntegrityError):
        ours: Exception = Conflict(f"somebody else was first: {_first_line(err.orig)}", fix="look again, then repeat")
    elif isinstance(err, DataError):
        ours = Invalid(f"a value does not fit into the database: {_first_line(err.orig)}")
    else:
        return err
    ours.__cause__ = err
    return ours


def _first_line(err: BaseException | None) -> str:
    return str(err).partition("\n")[0]


class GroupWriter:
    """Runs what waits on the event loop, a slice at a time, and commits it in a thread of its own: a statement takes
    microseconds, and to hand each of them to a thread costs more, while a commit waits for the disk. An async context
    manager.
    """

    def __init__(self, engine: Engine, clock: Clock, committed: Committed) -> None:
        self._engine = engine
        self._clock = clock
        self._committed = committed
        self._jobs: deque[Job[Any]] = deque()
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store-writer")
        self._connection: Connection | None = None
        self._checkpoints = Checkpoints(engine)
        self._idle = asyncio.Event()
        self._ended = False

    async def __aenter__(self) -> "GroupWriter":
        self._connection = self._engine.connect()
        self._checkpoints.open()
        self._idle.set()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ended = True
        await self._idle.wait()
        self._disk.shutdown()
        self._checkpoints.close()
        if self._connection is not None:
            self._connection.close()

    async def submit(self, function: Callable[[Tx], R]) -> R:
        """Run a function in a transaction; returns when it is on disk, raises what it raised.

        Raises Temporary where nothing could be committed (OutOfSpace: a full disk): then nothing of it is kept.
        """
        assert self._connection is not None, "the writer is not running"
        if self._ended:
            raise Temporary("the controller is stopping", fix="try again in a moment")
        loop = asyncio.get_running_loop()
        job: Job[R] = Job(function, loop.create_future())
        self._jobs.append(job)
        if self._idle.is_set():
            self._idle.clear()
            loop.call_soon(self._turn, loop)
        return await job.future

    async def read(self, function: Callable[[Tx], R]) -> R:
        """Run a function that only reads, after all that was submitted before."""
        return await self.submit(function)

    async def load(self, function: Callable[[Tx], R]) -> R:
        """Run the function that fills the working set."""
        return await self.submit(function)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run what waits, as far as a slice goes, and have it committed."""
        jobs: list[Job[Any]] = []
        try:
            assert self._connection is not None
            self._connection.begin()
            run_jobs(self._slice(jobs), Batch(self._connection), self._clock)
        except Exception as err:
            self._lose(jobs, err)
            self._next(loop, jobs)
            return
        loop.run_in_executor(self._disk, self._commit, jobs).add_done_callback(lambda _: self._next(loop, jobs))

    def _slice(self, jobs: list[Job[Any]]) -> Iterator[Job[Any]]:
        until = time.perf_counter() + SLICE_S
        while self._jobs and len(jobs) < MOST_TOGETHER and (not jobs or time.perf_counter() < until):
            jobs.append(self._jobs.popleft())
            yield jobs[-1]

    def _commit(self, jobs: list[Job[Any]]) -> None:
        assert self._connection is not None
        try:
            self._connection.commit()
        except Exception as err:
            self._lose(jobs, err)
            return
        self._checkpoints.committed(len(jobs))

    def _lose(self, jobs: list[Job[Any]], err: Exception) -> None:
        assert self._connection is not None
        log.warning("commit failed", error=str(err), exc_info=not isinstance(err, OperationalError))
        self._connection.invalidate()  # a transaction that could not be ended goes with its connection
        self._connection.rollback()
        for job in jobs:
            job.lose(not_written(err))

    def _next(self, loop: asyncio.AbstractEventLoop, jobs: list[Job[Any]]) -> None:
        try:
            self._deliver(jobs)
        finally:
            if self._jobs:
                loop.call_soon(self._turn, loop)
            else:
                self._idle.set()

    def _deliver(self, jobs: list[Job[Any]]) -> None:
        changes = [change for job in jobs for change in job.changes]
        poked = {one for job in jobs for one in job.poked}
        try:
            if changes or poked:
                self._committed(changes, poked)
        finally:
            for job in jobs:
                job.answer()


def not_written(err: Exception) -> Temporary:
    """Return what callers are told of a commit that failed."""
    cause: object = err
    chain: BaseException | None = err
    while chain is not None:  # the first error is behind those of undoing what it had undone itself
        cause, chain = getattr(chain, "orig", None) or chain, chain.__context__
    if getattr(cause, "sqlite_errorname", "") == "SQLITE_FULL" or getattr(cause, "sqlstate", "") == "53100":
        return OutOfSpace(f"the store can't be written: {cause}", fix="free space on the disk that holds the database")
    return Temporary(f"the store can't be written: {cause}", fix="see the controller's log; try again")


class InlineWriter:
    """Runs each function at once in the caller's thread: for the simulator, whose crash points it also has."""

    def __init__(self, engine: Engine, clock: Clock, committed: Committed, faults: Faults) -> None:
        self._connection = engine.connect()
        self._clock = clock
        self._committed = committed
        self._faults = faults

    async def submit(self, function: Callable[[Tx], R]) -> R:
        """Run a function in a transaction of its own. A planted death before the commit leaves nothing of it."""
        self._faults.reached("store.begin")
        with self._connection.begin():
            batch = Batch(self._connection)
            tx = Tx(batch, self._clock())
            try:
                result = function(tx)
                batch.close()
            except (IntegrityError, DataError) as err:
                raise in_our_words(err) from err
            self._faults.reached("store.commit")
        self._faults.reached("store.committed")
        self._committed(tx.changes, tx.poked)
        return result

    async def read(self, function: Callable[[Tx], R]) -> R:
        """Run a function that only reads."""
        return await self.submit(function)

    async def load(self, function: Callable[[Tx], R]) -> R:
        """Run the function that fills the working set."""
        return await self.submit(function)

    def close(self) -> None:
        """Close the connection, as the death of a process would."""
        self._connection.close()
