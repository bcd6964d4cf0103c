"""domain: a row that projects, users and roles refer to. It goes when the last of them has gone."""

from common.errors import Conflict
from common.kinds.domain import DEFAULT_DOMAIN
from common.kinds.kind import AnyResource
from controller.kinds.outcome import Outcome
from controller.kinds.plain import plan_plain
from controller.store.working import WorkingSet


def admit_delete(row: AnyResource, _seen: WorkingSet) -> None:
    """Refuse to take away the one that things without a domain belong to. What is in use is refused for all kinds."""
    if row.id == DEFAULT_DOMAIN:
        raise Conflict(f"domain {row.name} holds what belongs to no other, and stays")


def plan(row: AnyResource, seen: WorkingSet, _now: float) -> Outcome:
    """It is there at once; a deleted one goes when nothing is in it any more."""
    return plan_plain(row, seen)
