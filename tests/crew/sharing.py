"""A controller among several in the simulated world: the real parts, over a writer that shares its database."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

from sqlalchemy import Engine

from common.clock import Clock
from common.errors import Temporary
from common.faults import Faults
from controller.fleet.crew import BEAT_S, Crew
from controller.fleet.hosts import Hosts
from controller.fleet.sessions import Sessions
from controller.loop.loop import Loop
from controller.pki.authority import Authority
from controller.store import changes
from controller.store.batch import Batch
from controller.store.changes import Commit, Gap
from controller.store.rows import Controller as Row
from controller.store.store import Feed, Store, everything
from controller.store.tx import Tx
from controller.store.writer import in_our_words
from sim.process import Controller, SimAuthority

R = TypeVar("R")


class Newest:
    """What a database tells all that share it, as a notification would: the number of the newest commit."""

    seq = 0


class InlineSharedWriter:
    """What `SharedWriter` does, at once and in the caller's thread, where one thing happens at a time anyway."""

    def __init__(self, engine: Engine, newest: Newest, clock: Clock, feed: Feed, faults: Faults) -> None:
        self._connection = engine.connect()
        self._newest = newest
        self._clock = clock
        self._feed = feed
        self._faults = faults
        self._cursor: int | None = None
        self.cut_off = False
        """Whether the database can't be reached."""

    async def submit(self, function: Callable[[Tx], R]) -> R:
        """Run a function in a transaction of its own, after reading what others committed."""
        self._faults.reached("store.begin")
        if self.cut_off:
            raise Temporary("the database can't be used")
        if self._cursor is not None and self.behind():
            await self.catch_up()
        own: Commit | None = None
        with self._connection.begin():
            batch = Batch(self._connection)
            tx = Tx(batch, self._clock())
            try:
                result = function(tx)
                batch.close()
            except Exception as err:
                raise in_our_words(err) from err
            if tx.changes or tx.poked:
                own = Commit(seq=changes.head(self._connection) + 1, mark="", changes=tx.changes, poked=tx.poked)
                changes.append(self._connection, own, tx.now)
            self._faults.reached("store.commit")
        if own:
            self._newest.seq = own.seq
        self._faults.reached("store.committed")
        if own:
            self._cursor = own.seq if self._cursor is not None else None
            self._feed.committed(own.changes, own.poked)
        return result

    async def read(self, function: Callable[[Tx], R]) -> R:
        """Run a function that only reads."""
        with self._connection.begin():
            return function(Tx(Batch(self._connection), self._clock()))

    async def load(self, function: Callable[[Tx], R]) -> R:
        """Run the function that fills the working set."""
        with self._connection.begin():
            tx = Tx(Batch(self._connection), self._clock())
            result, self._cursor = function(tx), changes.head(self._connection)
        self._feed.committed(tx.changes, tx.poked)
        return result

    def behind(self) -> bool:
        """Say whether others committed what was not read yet."""
        return not self.cut_off and self._cursor is not None and self._newest.seq > self._cursor

    async def catch_up(self) -> None:
        """Read what others committed."""
        assert self._cursor is not None
        if self.cut_off:
            return
        try:
            with self._connection.begin():
                others = changes.read(self._connection, self._cursor)
        except Gap:
            with self._connection.begin():
                tx = Tx(Batch(self._connection), self._clock())
                poked, self._cursor = everything(tx), changes.head(self._connection)
            self._feed.reloaded(tx.changes, poked)
            return
        for commit in others:
            self._cursor = commit.seq
            self._feed.followed(commit.changes, commit.poked)

    def close(self) -> None:
        """Close the connection, as the death of a process would."""
        self._connection.close()


class SharingController(Controller):
    """One life of one of several controllers."""

    def __init__(
        self,
        engine: Engine,
        newest: Newest,
        authority: SimAuthority,
        *,
        clock: Clock,
        timer: Clock,
        faults: Faults,
        number: int,
        name: str,
    ) -> None:
        self.feed = Feed()
        self.writer = InlineSharedWriter(engine, newest, timer, self.feed, faults)
        self.store = Store(self.writer, self.feed, shared=True)
        self.name = name
        self.sessions = Sessions()
        self._authority = cast(Authority, authority)
        self._clock = clock
        self._timer = timer
        self._faults = faults
        self._number = number
        self.reads_at: float | None = None
        self.beats_at = timer()

    async def boot(self) -> None:
        """Load what the database holds, enter, and go on."""
        rows = await self.store.load(alone=False)
        me = Row(
            id=f"ctl-{self._number:012d}",
            url=f"https://{self.name}:8443",
            version="sim",
            since=self._clock(),
            alive=True,
        )
        self.loop = Loop(self.store, self._clock, self._faults, worker=me.id, timer=self._timer)
        self.crew = Crew(self.store, me, self.sessions, lambda: self.loop.busy, timer=self._timer)
        self.hosts = Hosts(
            self.store,
            self._authority,
            self.sessions,
            images=Path("/images"),
            version="sim",
            clock=self._clock,
            changed=self.loop.host_changed,
            poke=self.loop.poke,
            links=self.crew,
        )
        await self.crew.enter()
        self.loop.start(rows)

    async def work(self) -> int:
        """Do all that can be done at this moment."""
        if self._timer() >= self.beats_at:
            self.beats_at = self._timer() + BEAT_S
            await self.crew.beat()
        return await super().work()

    async def catch_up(self) -> None:
        """Read what the other controllers committed."""
        await self.writer.catch_up()

    @property
    def behind(self) -> bool:
        """Whether others committed what was not read yet."""
        return self.writer.behind()

    def close(self) -> None:
        """Let go of the database, as a dead process does."""
        self.writer.close()
