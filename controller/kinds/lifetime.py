"""How long a thing lives: protected from deletion, deleted but kept for a while, or over after a time. Pure."""

import msgspec

from common.clock import iso
from common.errors import Conflict
from common.kinds.kind import AnyResource, kept_until
from controller.kinds.outcome import LOOK_AGAIN_S, Do
from controller.store.working import WorkingSet
from controller.store.writes import Amend


def refuse_protected(row: AnyResource) -> None:
    """Raise Conflict where a thing is protected from deletion."""
    if getattr(row.spec, "protected", False):
        raise Conflict(
            f"{row.kind} {row.name} is protected from deletion",
            fix=f"skerry {row.kind} set {row.name} --no-protected",
        )


def refuse_kept(row: AnyResource) -> None:
    """Raise Conflict for a thing that is deleted and only kept to be restored."""
    if until := kept_until(row):
        raise Conflict(
            f"{row.kind} {row.name} is deleted, and kept until {iso(until)}",
            fix=f"skerry {row.kind} restore {row.name}",
        )


def kept_for(row: AnyResource, seen: WorkingSet) -> float:
    """Return how many seconds the project of a thing keeps what is deleted in it."""
    project = seen.named("project", "", row.project)
    return float(project.spec.keep_deleted_s) if project else 0.0


def expires_at(row: AnyResource) -> float:
    """Return when a thing's time is over; 0 for one that has no end."""
    return float(row.created_at + row.spec.ttl_s) if row.spec.ttl_s else 0.0


def is_over(row: AnyResource, now: float) -> bool:
    """Say whether a thing's time is over."""
    return bool(row.spec.ttl_s) and now >= expires_at(row)


def end(row: AnyResource, seen: WorkingSet, now: float) -> Do | None:
    """Return the step that deletes a thing whose time is over, or that was kept for long enough; None before that."""
    if until := kept_until(row):
        if now < until:
            return None
        gone = Amend(row=row, spec=row.spec, delete=True, what="delete", message="it was kept for long enough")
        return Do(writes=(gone,), say="freeing what was kept")
    if not is_over(row, now) or row.spec.on_expiry != "delete":
        return None
    keep_s, message = kept_for(row, seen), f"its time to live of {row.spec.ttl_s} s is over"
    spec = msgspec.structs.replace(row.spec, kept_until=now + keep_s) if keep_s else row.spec
    expired = Amend(row=row, spec=spec, delete=not keep_s, what="delete", message=message)
    return Do(writes=(expired,), say=message)


def rests(row: AnyResource, now: float) -> str:
    """Return why a thing is held stopped though it may be wished to run; empty where it is not."""
    if until := kept_until(row):
        return f"kept until {iso(until)}: skerry {row.kind} restore {row.name}"
    if is_over(row, now):
        return f"its time to live is over since {iso(expires_at(row))}: skerry {row.kind} set {row.name} --ttl-s 0"
    return ""


def look_again_s(row: AnyResource, now: float) -> float:
    """Return in how many seconds a thing must be looked at again at the latest."""
    ends = [end - now for end in (kept_until(row), expires_at(row)) if end > now]
    return max(0.0, min([LOOK_AGAIN_S, *ends]))
