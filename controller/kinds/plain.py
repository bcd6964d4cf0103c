"""What planners of kinds share: waiting for the last user, and words about hosts."""

from collections.abc import Sequence

import msgspec

from common.clock import iso
from common.ids import HostId
from common.kinds.kind import AnyResource, Status
from controller.kinds.outcome import Blocked, Do, Done, Outcome, Wait
from controller.store.working import WorkingSet
from controller.store.writes import Forget

LOOK_AGAIN_S = 5.0
"""While it waits for another thing: not all that happens to one pokes those that wait for it."""


def plan_plain(row: AnyResource, seen: WorkingSet) -> Outcome:
    """Plan a kind that is a row and nothing else."""
    if row.deleted_at is None:
        return Done(status=Status(state="active"))
    return wait_for_users(row, seen) or Do(writes=(Forget(resource=row.id),), say=f"forgetting the {row.kind}")


def wait_for_users(row: AnyResource, seen: WorkingSet) -> Wait | None:
    """A deleted thing stays as long as things that are being deleted still use it."""
    users = seen.holders(row.id)
    if not users:
        return None
    message = f"used until {going(row, users)} is gone"
    return Wait(status=Status(state="deleting", message=message), message=message, seconds=LOOK_AGAIN_S)


def wait_behind(other: AnyResource, message: str, status: Status) -> Wait | Blocked:
    """Wait for what another thing has not got yet; where it can't get it, say so in its words.

    `status`: the waiting thing's, but for its state and message.
    """
    if why := other.status.why:
        return Blocked(status=msgspec.structs.replace(status, state="blocked"), why=why.behind(message))
    waiting = msgspec.structs.replace(status, state="waiting", message=message)
    return Wait(status=waiting, message=message, seconds=LOOK_AGAIN_S)


def going(row: AnyResource, users: Sequence[AnyResource]) -> str:
    """Name what a thing waits for. Its status is read by all who see the thing: other projects' names stay out."""
    own = [f"{user.kind} {user.name}" for user in users if user.project == row.project]
    others = len(users) - len(own)
    more = len(own) - 5
    parts = [
        *own[:5],
        *([f"{more} more"] if more > 0 else []),
        *([f"{others} of other projects" if row.project else f"{others} of projects"] if others else []),
    ]
    return ", ".join(parts)


def silence(seen: WorkingSet, host: HostId) -> str:
    """Say that a host is not connected and since when; empty where it is."""
    view = seen.host(host)
    if view.connected:
        return ""
    since = f" since {iso(view.since)}" if view.since else " since this controller started"
    return f"host {seen.name_of(host)} has not been connected{since}"
