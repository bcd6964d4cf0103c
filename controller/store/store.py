"""The store as the rest of the controller sees it: every method one transaction, the working set fed by each."""

import asyncio
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from common.errors import SkerryError
from common.ids import HostId, Id, Revision
from controller.store import chain, changes, crew, graves, history, mutations, queue, quota, repeats, steps
from controller.store.chain import Walk
from controller.store.load import load
from controller.store.mutations import Conclusion, M
from controller.store.queue import Finished
from controller.store.rows import (
    EPOCH,
    Change,
    Controller,
    Enrolment,
    Event,
    EventQuery,
    Given,
    Head,
    Operation,
    QueueRow,
    Standing,
    Verified,
)
from controller.store.tx import Tx
from controller.store.working import WorkingSet
from controller.store.writer import Writer
from controller.store.writes import AnyWrite, First, Mutation, Once, Rehearsal, Repeated, Taken

WATCH_BATCHES = 1024
"""Batches of changes a watcher may be behind before it is told to start again."""


class Watch:
    """One watcher's view of the changes since it began."""

    def __init__(self) -> None:
        self._batches: deque[tuple[Change, ...]] = deque()
        self._wake = asyncio.Event()
        self._lost = False

    def offer(self, changes: tuple[Change, ...]) -> None:
        """Take a batch; a watcher too far behind loses all of them, and is told."""
        if len(self._batches) >= WATCH_BATCHES:
            self.lose()
        self._batches.append(changes)
        self._wake.set()

    def lose(self) -> None:
        """Have the watcher told that something was missed."""
        self._batches.clear()
        self._lost = True
        self._wake.set()

    async def next(self) -> tuple[Change, ...] | None:
        """Wait for the next batch. None: some were lost, start again from what the store holds."""
        while not self._batches and not self._lost:
            self._wake.clear()
            await self._wake.wait()
        if self._lost:
            self._lost = False
            self._batches.clear()
            return None
        return self._batches.popleft()


Listener = Callable[[Sequence[Change], set[Id]], None]
"""Told what a commit changed, and which resources it made due."""


class Feed:
    """Where every commit arrives, in order: the working set first, then the listeners, then the watchers."""

    def __init__(self) -> None:
        self.seen = WorkingSet()
        self._listeners: list[Listener] = []
        self._others: list[Listener] = []
        self._watches: set[Watch] = set()

    def committed(self, changes: list[Change], poked: set[Id]) -> None:
        """Take over what a commit of this controller changed."""
        self._tell(self._listeners, changes, poked)

    def followed(self, changes: list[Change], poked: set[Id]) -> None:
        """Take over what a commit of another controller changed."""
        self._tell(self._others, changes, poked)

    def reloaded(self, changes: list[Change], poked: set[Id]) -> None:
        """Take over everything there is, each row as a Put, where some commits were missed. Watchers begin anew."""
        for watch in self._watches:
            watch.lose()
        self._tell(self._others, self.seen.difference(change.row for change in changes), poked)

    def _tell(self, listeners: Sequence[Listener], changes: list[Change], poked: set[Id]) -> None:
        self.seen.apply(changes)
        for listener in listeners:
            listener(changes, poked)
        if changes and self._watches:
            batch = tuple(changes)
            for watch in self._watches:
                watch.offer(batch)

    def listen(self, listener: Listener, *, others: Listener | None = None) -> None:
        """Have a function called with every commit, on the event loop, before the committer goes on.

        `others` is called in its place with what other controllers on the same database commit.
        """
        self._listeners.append(listener)
        self._others.append(others or listener)

    @contextmanager
    def watch(self) -> Iterator[Watch]:
        """Follow the changes from now on."""
        watch = Watch()
        self._watches.add(watch)
        try:
            yield watch
        finally:
            self._watches.discard(watch)


class Store:
    """The transactions. Reading is done from `seen`, which is never older than the last answered write."""

    def __init__(self, writer: Writer, feed: Feed, *, shared: bool = False) -> None:
        self.shared = shared
        """Whether other controllers may use the database at the same time."""
        self._writer = writer
        self._feed = feed
        self.seen = feed.seen
        self.watch = feed.watch
        self.listen = feed.listen

    async def load(self, *, alone: bool) -> tuple[QueueRow, ...]:
        """Fill the working set from the database and return the queue.

        alone: no other controller runs on this database, so leases are a dead process's and are dropped.
        """

        def tidy(tx: Tx) -> None:
            if alone:
                queue.drop_leases(tx)
            mutations.drop_old_operations(tx)
            crew.ensure_fact(tx, EPOCH, secrets.token_hex(8))

        def read(tx: Tx) -> tuple[tuple[QueueRow, ...], Revision]:
            load(tx)
            return queue.all_rows(tx), tx.batch.revision

        await self._writer.submit(tidy)
        rows, revision = await self._writer.load(read)
        self.seen.revision = max(self.seen.revision, revision)
        return rows

    async def admit(self, mutation: M) -> M:
        """Commit an accepted request and return it as stored.

        Raises Conflict where it was overtaken, QuotaExceeded where it asks for too much, Repeated where it was carried
        out before, KeyReused where its key stands for another one.
        """
        return await self._writer.submit(lambda tx: _admit(tx, mutation))

    async def rehearse(self, mutation: Mutation, following: tuple[AnyWrite, ...]) -> Rehearsal:
        """Do all of `admit`, and the step that would follow, and take all of it back. Raises like `admit`; what stops
        only the step is in the result."""

        def write(tx: Tx) -> None:
            raise _TakenBack(_rehearse(tx, mutation, following))

        try:
            await self._writer.submit(write)
        except _TakenBack as end:
            return end.found
        raise AssertionError("a rehearsal is never committed")

    async def recall(self, once: Once) -> First | None:
        """Return what a request was answered with before. Raises KeyReused where its key stands for another one."""
        return await self._writer.submit(lambda tx: repeats.recall(tx, once))

    async def tidy(self) -> None:
        """Drop what has been kept long enough: finished operations, answers to repeat."""

        def write(tx: Tx) -> None:
            mutations.drop_old_operations(tx)
            repeats.drop_old(tx)
            graves.drop_old(tx)
            steps.drop_expired(tx)

        await self._writer.submit(write)

    async def step(
        self,
        writes: tuple[AnyWrite, ...],
        operations: Sequence[Operation],
        say: str,
        taken: Taken | None = None,
    ) -> None:
        """Commit one step of a planner. Raises Conflict or NoCapacity, and then nothing of it is kept."""

        def write(tx: Tx) -> None:
            mutations.progress(tx, operations, say, taken or Taken(began=tx.now))
            steps.apply_writes(tx, writes)

        await self._writer.submit(write)

    async def conclude(self, found: Conclusion, operations: Sequence[Operation], finished: Finished) -> float | None:
        """Write back what a turn found, and give its lease back. Returns when it is due again, None: it is gone."""

        def write(tx: Tx) -> float | None:
            mutations.conclude(tx, found, operations)
            return queue.finish(tx, finished)

        return await self._writer.submit(write)

    async def take(self, worker: str, resources: Sequence[Id], own: Sequence[Id] = ()) -> tuple[QueueRow, ...]:
        """Lease queue rows; those of `own` whoever has them."""
        return await self._writer.submit(lambda tx: queue.take(tx, worker, resources, own))

    async def hand_over(self, worker: str, resource: Id) -> None:
        """Give a lease back in the middle of a turn, and have whichever controller it is for now go on with it."""
        await self._writer.submit(lambda tx: queue.hand_over(tx, worker, resource))

    async def acknowledge(self, host: HostId, gone: Iterable[tuple[str, Revision]]) -> tuple[Id, ...]:
        """Drop tombstones that a host reported done. Returns the owners."""
        pairs = tuple(gone)
        return await self._writer.submit(lambda tx: steps.acknowledge(tx, host, pairs))

    async def use_join_token(self, digest: str, given: Given) -> Enrolment | None:
        """Use up a join token; None where it is no good."""
        return await self._writer.submit(lambda tx: steps.use_join_token(tx, digest, given))

    async def note_endpoint(self, host: HostId, vtep: str, underlay_mtu: int) -> None:
        """Note what a host said at its hello of where others reach it."""
        await self._writer.submit(lambda tx: steps.note_endpoint(tx, host, vtep, underlay_mtu))

    async def renewed(self, host: HostId, shown: str, given: Given) -> Enrolment | None:
        """Note a host's next certificate; the one it showed stays good. None: it is not enrolled any more."""
        return await self._writer.submit(lambda tx: steps.renewed(tx, host, shown, given))

    async def confirm(self, host: HostId, serial: str) -> None:
        """Note that a host has shown the certificate that it was last given."""
        await self._writer.submit(lambda tx: steps.confirm(tx, host, serial))

    async def append(self, event: Event, *writes: AnyWrite) -> None:
        """Append to the event table, and write what came with it."""

        def write(tx: Tx) -> None:
            steps.apply_writes(tx, writes)
            chain.append(tx, event)

        await self._writer.submit(write)

    async def password(self, user: Id) -> str | None:
        """Return the hash of a user's password; None where there is none."""
        return await self._writer.submit(lambda tx: steps.password_of(tx, user))

    async def events(
        self, after: int, limit: int, wanted: EventQuery | None = None, *, newest: bool = False
    ) -> tuple[Event, ...]:
        """Return the events behind a sequence number, oldest first; `newest`: the last ones instead of the first."""
        return await self._writer.submit(
            lambda tx: history.read(tx, after, limit, wanted or EventQuery(), newest=newest)
        )

    async def standings(self) -> tuple[Standing, ...]:
        """Return what every account uses up by the books, and counted anew: of one state of the database."""
        return await self._writer.read(quota.standings)

    async def verify(self, noted: Head | None = None) -> Verified:
        """Walk the whole chain of events. `noted`: a head written down outside, which must still be in it."""
        walk = Walk(noted)
        while True:
            if found := await self._writer.submit(walk.page):
                return found

    async def begin_epoch(self) -> str:
        """Say that this database is an older one than hosts know, and return the name of the past it has from now on.

        Hosts take its documents then for newer than all they have. What it does not know stays on them.
        """
        epoch = secrets.token_hex(8)
        await self._writer.submit(lambda tx: crew.put_fact(tx, EPOCH, epoch))
        return epoch

    async def catch_up(self) -> None:
        """Have `seen` be as new as the database is now. It always is where this controller is alone."""
        if self.shared:
            await self._writer.submit(lambda _: None)

    # --- controllers ------------------------------------------------------------------------------------------------

    async def swap_fact(self, name: str, before: str, after: str) -> bool:
        """Have something be so for the whole cloud, if it is still as it was seen. Empty: it was never said."""
        return await self._writer.submit(lambda tx: crew.swap_fact(tx, name, before, after))

    async def enter(self, me: Controller) -> None:
        """Note that a controller lives."""
        await self._writer.submit(lambda tx: crew.enter(tx, me))

    async def beat(self, me: Controller, busy: frozenset[Id]) -> bool:
        """Say that a controller lives, and renew its leases on these. False: it had been taken for dead."""
        return await self._writer.submit(lambda tx: crew.beat(tx, me, busy))

    async def reap(self, me: Controller) -> tuple[str, ...]:
        """Free what controllers held that are not heard of any more. Returns their ids."""
        return await self._writer.submit(lambda tx: crew.reap(tx, me))

    async def prune(self) -> None:
        """Drop what every controller that lives has long read from the log."""
        await self._writer.submit(changes.prune)

    async def bury(self, controller: str) -> None:
        """Free all that a controller holds."""
        await self._writer.submit(lambda tx: crew.bury(tx, controller))

    async def take_link(self, host: HostId, controller: str) -> None:
        """Note that a host is connected to a controller. `seen` is then at least as new as any other's was before."""
        await self._writer.submit(lambda tx: crew.take_link(tx, host, controller))

    async def leave_link(self, host: HostId, controller: str) -> None:
        """Note that a host's link to a controller ended."""
        await self._writer.submit(lambda tx: crew.leave_link(tx, host, controller))


class _TakenBack(Exception):
    """Ends the transaction of a rehearsal, so that nothing of it is kept."""

    def __init__(self, found: Rehearsal) -> None:
        super().__init__("taken back")
        self.found = found


def _rehearse(tx: Tx, mutation: Mutation, following: tuple[AnyWrite, ...]) -> Rehearsal:
    done = _admit(tx, mutation)
    before = len(tx.changes)
    problem: SkerryError | None = None
    try:
        with tx.connection.begin_nested():
            steps.apply_writes(tx, following)
    except SkerryError as err:
        problem = err
    changes = () if problem else tuple(tx.changes[before:])
    return Rehearsal(resource=done.resource, changes=changes, problem=problem)


def _admit(tx: Tx, mutation: M) -> M:
    once = mutation.once
    if once and (first := repeats.recall(tx, once)):
        raise Repeated(first)
    done = mutations.admit(tx, mutation)
    steps.apply_writes(tx, mutation.writes)
    if once:
        repeats.keep(tx, done, once)
    return done


def everything(tx: Tx) -> set[Id]:
    """Note every live row as put, and return the ids in the queue."""
    load(tx)
    return {row.resource for row in queue.all_rows(tx)}
