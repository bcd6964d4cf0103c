"""The face of a pool: what volumes ask of it. `agent.drivers.file_pool` and `agent.drivers.lvm` have it.

A pool keeps disks and their snapshots by the ids of their owners. What exists under its name is finished: it is built
under a part's name and renamed last. Every verb states a result: repeated, it succeeds and changes nothing. All raise
Temporary (CommandFailed among them) where it could not be done now.
"""

from typing import Protocol

from agent.drivers.shown import Held, PoolUse
from common.documents import ImageRef, SnapshotRef
from common.ids import Id
from common.protocol import Found


class Pool(Protocol):
    """Where a host's volumes lie."""

    async def look(self, volume: Id) -> Held:
        """Return what there is of a volume. Raises Invalid where what has its name is no disk."""
        ...

    async def is_ready(self, volume: Id, reverts: int) -> bool:
        """Say whether its disk is there, and was reverted at least so often."""
        ...

    async def make(self, volume: Id, size_gib: int, over: ImageRef | SnapshotRef | None, reverts: int) -> None:
        """Have a disk of that size: a clone of an image that is in the cache, or of a snapshot that is in the pool, or
        zeros. `reverts`: what it counts from. A finished one is left alone, and needs no snapshot any more."""
        ...

    async def grow(self, volume: Id, size_gib: int, running_in: Id | None) -> None:
        """Have a disk at least that large, and the guest of the machine that runs with it know."""
        ...

    async def remove(self, volume: Id) -> None:
        """Have neither the disk nor a part of it."""
        ...

    async def take(self, volume: Id, snapshot: Id, running_in: Id | None) -> None:
        """Have a snapshot of what a disk holds, as of now where there is none."""
        ...

    async def drop(self, volume: Id, snapshot: Id, running_in: Id | None) -> None:
        """Have no such snapshot."""
        ...

    async def revert(self, volume: Id, snapshot: Id, number: int) -> None:
        """Have a disk that nobody uses hold what a snapshot holds, and say that it was reverted so often."""
        ...

    async def use(self) -> PoolUse:
        """Say how full it is."""
        ...

    async def tidy(self, now: float) -> None:
        """Remove parts that nobody goes on with, and clones' origins that no clone can be made of any more."""
        ...

    async def origins(self) -> set[str]:
        """Return the hex digests of the cached images that disks lie over."""
        ...

    async def survey(self) -> tuple[Found, ...]:
        """List all that lies in it, orphans included."""
        ...
