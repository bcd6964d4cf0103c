"""The shape of everything the agent keeps true on its host: a unit, observed, planned and applied on its own.

A unit is one domain, one volume, or one network together with its ports. `agent.loop` runs one turn at a time per
unit: observe, then `plan` (pure), then `apply` ONE step, again until the plan says Settled or Wait. A turn is due
when a document of the unit changes, when a driver says that something moved, when another unit settled that this
one waited for, and on a slow timer. All a turn knows is on the agent's disk or in the world: it may die at any line.
"""

from collections.abc import Mapping
from typing import Any, Generic, NewType, Protocol, TypeVar

import msgspec

from common.documents import Desired, DocKey, PortDoc, Report, SnapshotDoc
from common.protocol import Found

UnitKey = NewType("UnitKey", str)
"""`domain/vm-…`, `volume/vol-…` or `network/net-…`."""


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What the controller wants of one unit: every document of it on the agent's disk, tombstones included."""

    unit: UnitKey
    items: Mapping[DocKey, Desired]
    marks: Mapping[str, str]
    """What the agent itself wrote down about this unit (`stop-asked-at`, `stopped-by-guest`): see `Mark`."""


Step = TypeVar("Step")
Seen = TypeVar("Seen")


class Do(msgspec.Struct, Generic[Step], frozen=True):
    """Apply this step, then look again. `say` is shown to people while it runs.

    A step that destroys for good what it names (undefines a domain, deletes a volume) says so in its class:
    `destroys: ClassVar[bool] = True`. The loop lets it pass only where a tombstone names the unit, or that document of
    it which the step's `document` says.
    """

    step: Step
    say: str


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """Write a fact to the agent's disk that can't be looked at again; None wipes it. Then look again."""

    name: str
    value: str | None


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing to do until something moves, or for so many seconds. `reports` go to the controller as they are."""

    message: str
    seconds: float
    reports: tuple[Report, ...] = ()


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """Reality is as wished. One report per document; a tombstone that is done is dropped from disk after the
    controller has taken it back."""

    reports: tuple[Report, ...]


class UnitKind(Protocol[Seen, Step]):
    """One kind of unit. `plan` is a pure function of its arguments; the others touch the world through drivers."""

    name: str
    """`domain`, `volume` or `network`: the part of the unit key before the slash."""

    async def observe(self, wish: Wish) -> Seen:
        """Look at the world, as far as this unit goes."""
        ...

    def plan(self, wish: Wish, seen: Seen, now: float) -> Do[Step] | Mark | Wait | Settled:
        """Decide the next step. Pure."""
        ...

    async def apply(self, step: Step) -> None:
        """Carry out one step: idempotent. Raises Temporary (or CommandFailed) where it could not be done now."""
        ...

    async def survey(self) -> tuple[Found, ...]:
        """List all that exists on this host and could have been made by this kind, orphans included."""
        ...


AnyUnitKind = UnitKind[Any, Any]


def unit_of(key: DocKey, item: Desired) -> UnitKey:
    """Return the unit that a document belongs to: a port belongs to its network, a snapshot to its volume."""
    if isinstance(item.doc, PortDoc):
        return UnitKey(f"network/{item.doc.network}")
    if isinstance(item.doc, SnapshotDoc):
        return UnitKey(f"volume/{item.doc.volume}")
    return UnitKey(key)
