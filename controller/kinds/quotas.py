"""Quotas as planners and the API see them: what a thing counts, which limits hold, how much is used. Pure."""

from collections.abc import Mapping

import msgspec

from common.errors import FieldError, Invalid
from common.ids import Id
from common.kinds import COUNTERS, kind_named
from common.kinds.kind import SYSTEM_PROJECT, AnyResource
from controller.kinds.planners import planner_of
from controller.store.rows import domain_account, project_account
from controller.store.working import WorkingSet
from controller.store.writes import SetLimits

Standard = Mapping[str, int]
"""Limits, by counter, of projects that have none of their own."""

ACCOUNTS = ("project", "domain")
"""The kinds whose things have a quota."""

_NAMES = frozenset(counter.name for counter in COUNTERS)


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """How one counter of a project or domain stands."""

    counter: str
    used: int
    limit: int | None
    """None: there is none."""
    source: str
    """Where the limit comes from: `project` or `domain`, or `default`: the controller's configuration."""


def counts_of(row: AnyResource, seen: WorkingSet) -> dict[str, int]:
    """Return what a thing uses up of its project's quota. What belongs to another thing counts with that one."""
    if row.owner is not None or not kind_named(row.kind).counters:
        return {}
    found = planner_of(row.kind).counts(row, seen)
    return {counter.name: amount for counter, amount in found.items() if amount}


def account_of(row: AnyResource) -> str:
    """Return the account of a project or of a domain."""
    return domain_account(Id(row.id)) if row.kind == "domain" else project_account(row.name)


def set_limits(row: AnyResource, was: AnyResource | None, standard: Standard) -> tuple[SetLimits, ...]:
    """Return the write that sets the limits of a project or domain; none where they stay as they are."""
    if row.kind not in ACCOUNTS:
        return ()
    if was is not None and was.spec.quota == row.spec.quota:
        return ()
    parent = domain_account(Id(row.spec.domain)) if row.kind == "project" else ""
    return (SetLimits(account=account_of(row), limits=limits_of(row, standard), parent=parent),)


def check_quota(row: AnyResource, quota: Mapping[str, int | None]) -> None:
    """Refuse limits of what nothing counts: they would hold nothing back."""
    if unknown := sorted(set(quota) - _NAMES):
        raise Invalid(
            f"{row.kind} {row.name}: nothing counts {', '.join(unknown)}",
            fix=f"limit one of {', '.join(counter.name for counter in COUNTERS)}",
            errors=tuple(FieldError(field=f"spec.quota.{name}", message="is no counter") for name in unknown),
        )


def limits_of(row: AnyResource, standard: Standard) -> dict[str, int | None]:
    """Return the limit of each counter: a project's own or the default; the operators' project and domains have none
    by default."""
    own: Mapping[str, int | None] = row.spec.quota
    default: Standard = standard if row.kind == "project" and row.name != SYSTEM_PROJECT else {}
    return {
        counter.name: own[counter.name] if counter.name in own else default.get(counter.name) for counter in COUNTERS
    }


def counted(row: AnyResource, seen: WorkingSet) -> Mapping[str, int]:
    """Return what a project uses up, or all projects of a domain together."""
    if row.kind == "project":
        return seen.counted(row.name)
    total: dict[str, int] = {}
    for project in seen.of_kind("project"):
        if project.spec.domain == row.id:
            for name, amount in seen.counted(project.name).items():
                total[name] = total.get(name, 0) + amount
    return total


def uses_of(row: AnyResource, seen: WorkingSet, standard: Standard) -> tuple[Use, ...]:
    """Return how every counter of a project or domain stands."""
    used = counted(row, seen)
    return tuple(
        Use(
            counter=name,
            used=used.get(name, 0),
            limit=limit,
            source=row.kind if name in row.spec.quota else "default",
        )
        for name, limit in limits_of(row, standard).items()
    )


def over_limit(row: AnyResource, seen: WorkingSet) -> str:
    """Say of what more is used than a project's or domain's own limits: they were lowered. Empty: of nothing."""
    over = [one for one in uses_of(row, seen, {}) if one.limit is not None and one.used > one.limit]
    said = ", ".join(f"{one.counter} {one.used} of {one.limit}" for one in over)
    return f"over its quota ({said}): what is there stays, nothing new is made" if over else ""
