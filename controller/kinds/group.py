"""group: a rule for its members. It goes when the last of them is gone.

The rule itself is kept in the transaction that gives a member its host (controller/store/members.py).
"""

from common.kinds.group import GroupStatus
from common.kinds.kind import AnyResource
from controller.kinds.outcome import Done, Outcome
from controller.kinds.plain import plan_plain
from controller.store.working import WorkingSet


def plan(row: AnyResource, seen: WorkingSet, _now: float) -> Outcome:
    """It is there at once, and shows where its members are."""
    if row.deleted_at is not None:
        return plan_plain(row, seen)
    crowd = seen.crowd(row.id)
    return Done(status=GroupStatus(state="active", members=sum(crowd.values()), places=len(crowd)))
