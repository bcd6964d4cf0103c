"""What a planner says: the one next step, or why there is none. Planners are pure; `controller.loop` carries it out."""

import msgspec

from common.ids import Id, Revision
from common.kinds.kind import Status
from common.refusal import Refusal
from controller.scheduler.choose import Choice, Demand
from controller.store.rows import Placement, ZoneUse
from controller.store.writes import AnyWrite, TakePlacement

LOOK_AGAIN_S = 60.0
"""Every resource is looked at again after this long, whatever happened: drift is repaired, not only work resumed."""


class Do(msgspec.Struct, frozen=True, kw_only=True):
    """Commit these writes in one transaction, then look again."""

    writes: tuple[AnyWrite, ...]
    say: str


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Have the scheduler choose a host, and commit the claim with these writes. No host fits: like Blocked."""

    demand: Demand
    writes: tuple[AnyWrite, ...]
    status: Status
    """Shown while it can't be placed; the refusal is added."""

    def claim(self, choice: Choice, by: str, seen_at: Revision) -> TakePlacement:
        """Return the write that gives it the host that was chosen `by` a controller, from what was so `seen_at`."""
        demand = self.demand
        return TakePlacement(
            placement=Placement(
                owner=demand.owner,
                host=choice.host,
                vcpus=demand.vcpus,
                memory_mib=demand.memory_mib,
                disk_gib=demand.disk_gib,
            ),
            groups=tuple(rule.group for rule in demand.groups),
            use=ZoneUse(zone=choice.zone, controller=by, revision=seen_at) if choice.zone else None,
            within=tuple(Id(place.id) for place in (demand.rack, demand.zone) if place),
        )


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing to do until something moves: a report, another resource, or so many seconds."""

    status: Status
    message: str
    progress: float = 0.0
    seconds: float = LOOK_AGAIN_S


class Blocked(msgspec.Struct, frozen=True, kw_only=True):
    """It can't go on as things are; the wish stands and is tried again when capacity or another row changes."""

    status: Status
    why: Refusal


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """Reality is as wished: closes the operations of this generation."""

    status: Status
    seconds: float = LOOK_AGAIN_S
    """Looked at again after so long at the latest."""


Outcome = Do | Place | Wait | Blocked | Done
