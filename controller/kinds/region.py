"""region: a row that others refer to, and nothing else."""

from common.kinds.kind import AnyResource
from controller.kinds.outcome import Outcome
from controller.kinds.plain import plan_plain
from controller.store.working import WorkingSet


def plan(row: AnyResource, seen: WorkingSet, _now: float) -> Outcome:
    """It is there at once; a deleted one goes when nothing uses it any more."""
    return plan_plain(row, seen)
