"""What the API needs of the rest of the controller, as Protocols: it imports neither the store's I/O nor the fleet."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import msgspec

from common.ids import HostId, Id, RequestId
from common.protocol import AttachConsole, Order
from common.refusal import Refusal
from controller.kinds.admission import Admission
from controller.metrics.codec import Floats
from controller.metrics.history import Newest, Question
from controller.scheduler.choose import Choice, Demand
from controller.store.rows import Change, Event, EventQuery, Head, Standing, Verified
from controller.store.working import WorkingSet
from controller.store.writes import AnyWrite, First, Once, Rehearsal


class Watch(Protocol):
    """What commits change, from the moment it was opened."""

    async def next(self) -> tuple[Change, ...] | None:
        """Wait for the next batch. None: some were lost, since the watcher was slow; read again from its place."""
        ...


class Store(Protocol):
    """The database, and the working set in front of it."""

    @property
    def seen(self) -> WorkingSet:
        """Every live row, never older than the last answered write."""
        ...

    async def admit(self, mutation: Admission) -> Admission:
        """Commit an admission whole, and return it as stored.

        Raises Conflict where things changed, Repeated where it was carried out before, KeyReused where its key stands
        for another request.
        """
        ...

    async def rehearse(self, mutation: Admission, following: tuple[AnyWrite, ...]) -> Rehearsal:
        """Do all of `admit` and the step behind it, and take it back. Raises like `admit`."""
        ...

    async def recall(self, once: Once) -> First | None:
        """Return what a request was answered with before. Raises KeyReused where its key stands for another one."""
        ...

    async def events(
        self, after: int, limit: int, wanted: EventQuery | None = None, *, newest: bool = False
    ) -> tuple[Event, ...]:
        """Read events with a greater seq, in order; `newest`: the last ones instead of the first."""
        ...

    async def append(self, event: Event, *writes: AnyWrite) -> None:
        """Append an event, with what came with it. Raises Temporary where the store can't be written."""
        ...

    async def password(self, user: Id) -> str | None:
        """Return the hash of a user's password; None where there is none."""
        ...

    async def standings(self) -> tuple[Standing, ...]:
        """Return what every account uses by the books, and counted anew."""
        ...

    async def verify(self, noted: Head | None = None) -> Verified:
        """Walk the chain of all events; a head that was noted outside must still be in it."""
        ...

    def watch(self) -> AbstractContextManager[Watch]:
        """Open a watch; leaving it closes it."""
        ...


class Stream(Protocol):
    """Bytes to and from something on a host."""

    @property
    def ended(self) -> str | None:
        """Why it ended; None while it is open."""
        ...

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Give the bytes that come, until the other side ends."""
        ...

    async def write(self, data: bytes) -> None:
        """Send bytes, waiting for room. Raises Temporary where the stream has ended."""
        ...

    def close(self, reason: str = "") -> None:
        """End it. Twice is once."""
        ...


class Session(Protocol):
    """One connected host."""

    async def call(self, order: Order, request: RequestId) -> bytes:
        """Have the host do something now. Raises what the host says, Temporary where it can't, or is gone."""
        ...

    async def open_stream(self, order: AttachConsole, request: RequestId) -> Stream:
        """Open a stream by an order. Raises like `call`."""
        ...


class RepairPlan(Protocol):
    """What is to be done about the differences of one host."""

    @property
    def repairs(self) -> tuple[msgspec.Struct, ...]:
        """Each difference, with what is done about it and why."""
        ...

    @property
    def writes(self) -> tuple[AnyWrite, ...]:
        """What is committed."""
        ...

    @property
    def digest(self) -> str:
        """A name for this very plan."""
        ...


class Fleet(Protocol):
    """Who is connected."""

    def session(self, host: HostId) -> Session | None:
        """Return a host's session; None while it is not connected."""
        ...

    async def audit(self, host: HostId, request: RequestId) -> tuple[Any, ...]:
        """Compare wish and reality on a host. Raises Temporary where the host can't be asked."""
        ...

    def plan_repairs(self, host: HostId, differences: tuple[Any, ...], request: RequestId) -> RepairPlan:
        """Decide what is done about what an audit found."""
        ...


class Measured(Protocol):
    """The history of machines and hosts."""

    async def query(self, question: Question) -> Floats:
        """Return (metrics, buckets); NaN where nothing is known."""
        ...

    def newest(self, since: float) -> Iterable[Newest]:
        """Give the newest figures of everything that was heard of since a moment."""
        ...


Choose = Callable[[Demand], Choice | Refusal]
"""Says which host would be chosen as things are now; reserves nothing."""

Readiness = Callable[[], tuple[str, ...]]
"""Says why the controller is not ready to serve; empty: it is."""
