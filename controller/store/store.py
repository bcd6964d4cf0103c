"""The store as the rest of the controller sees it: every method one transaction, the working set fed by each."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import select

from common.ids import HostId, Id, Revision
from controller.store import changes, crew, mutations, queue, steps, tables
from controller.store.load import load
from controller.store.mutations import Conclusion, M
from controller.store.queue import Finished
from controller.store.rows import Change, Controller, Enrolment, Event, Operation, QueueRow
from controller.store.tx import Tx, event_from
from controller.store.working import WorkingSet
from controller.store.writer import Writer
from controller.store.writes import AnyWrite

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

        def read(tx: Tx) -> tuple[QueueRow, ...]:
            load(tx)
            return queue.all_rows(tx)

        await self._writer.submit(tidy)
        return await self._writer.load(read)

    async def admit(self, mutation: M) -> M:
        """Commit an accepted request and return it as stored. Raises Conflict where it was overtaken."""

        def write(tx: Tx) -> M:
            done = mutations.admit(tx, mutation)
            steps.apply_writes(tx, mutation.writes)
            return done

        return await self._writer.submit(write)

    async def step(self, writes: tuple[AnyWrite, ...], operations: Sequence[Operation], say: str) -> None:
        """Commit one step of a planner. Raises Conflict or NoCapacity, and then nothing of it is kept."""

        def write(tx: Tx) -> None:
            steps.apply_writes(tx, writes)
            mutations.progress(tx, [op for op in operations if not _closed(tx, op)], say)

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

    async def use_join_token(self, digest: str, serial: str) -> Enrolment | None:
        """Use up a join token; None where it is no good."""
        return await self._writer.submit(lambda tx: steps.use_join_token(tx, digest, serial))

    async def note_endpoint(self, host: HostId, vtep: str, underlay_mtu: int) -> None:
        """Note what a host said at its hello of where others reach it."""
        await self._writer.submit(lambda tx: steps.note_endpoint(tx, host, vtep, underlay_mtu))

    async def renewed(self, host: HostId, shown: str, serial: str) -> Enrolment | None:
        """Note a host's next certificate; the one it showed stays good. None: it is not enrolled any more."""
        return await self._writer.submit(lambda tx: steps.renewed(tx, host, shown, serial))

    async def append(self, event: Event) -> None:
        """Append to the event table."""
        await self._writer.submit(lambda tx: tx.append(event))

    async def events(
        self, after: int, limit: int, project: str | None, resource: Id | None = None
    ) -> tuple[Event, ...]:
        """Return the events behind a sequence number, oldest first; of one project, or (None) of all.

        With `resource`, the newest `limit` events of it instead.
        """

        def read(tx: Tx) -> tuple[Event, ...]:
            c = tables.event.c
            statement = select(tables.event).where(c.seq > after).limit(limit)
            if project is not None:
                statement = statement.where(c.project == project)
            if resource is not None:
                statement = statement.where(c.resource == resource).order_by(c.seq.desc())
            else:
                statement = statement.order_by(c.seq)
            rows = [event_from(row) for row in tx.run(statement).mappings().all()]
            return tuple(sorted(rows, key=lambda event: event.seq))

        return await self._writer.read(read)

    async def catch_up(self) -> None:
        """Have `seen` be as new as the database is now. It always is where this controller is alone."""
        if self.shared:
            await self._writer.submit(lambda _: None)

    # --- controllers ------------------------------------------------------------------------------------------------

    async def require_authority(self, fingerprint: str) -> None:
        """Have all controllers sign with one authority. Raises Invalid where the others have another one."""
        await self._writer.submit(lambda tx: crew.require_authority(tx, fingerprint))

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


def everything(tx: Tx) -> set[Id]:
    """Note every live row as put, and return the ids in the queue."""
    load(tx)
    return {row.resource for row in queue.all_rows(tx)}


def _closed(tx: Tx, operation: Operation) -> bool:
    c = tables.operation.c
    return tx.run(select(c.finished_at).where(c.id == operation.id)).scalar_one_or_none() is not None
