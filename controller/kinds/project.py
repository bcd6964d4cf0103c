"""project: a row and nothing else. It goes when nothing of it is left."""

import msgspec

from common.errors import Conflict
from common.ids import Id
from common.kinds.domain import DEFAULT_DOMAIN
from common.kinds.kind import SYSTEM_PROJECT, AnyResource, Spec, Status
from common.kinds.project import ProjectSpec
from controller.auth.caller import Caller
from controller.kinds.outcome import Do, Done, Outcome, Wait
from controller.kinds.quotas import account_of, check_quota, over_limit
from controller.store.working import WorkingSet
from controller.store.writes import DropAccount, Forget


def admit(row: AnyResource, _was: AnyResource | None, _seen: WorkingSet, caller: Caller) -> Spec:
    """Put it into the maker's domain where it names none; check that its quota names what is counted."""
    spec: ProjectSpec = row.spec
    check_quota(row, spec.quota)
    return spec if spec.domain else msgspec.structs.replace(spec, domain=caller.domain or DEFAULT_DOMAIN)


def admit_delete(row: AnyResource, seen: WorkingSet) -> None:
    """Refuse while things are in it: deleting a project never deletes what is in it by surprise."""
    if row.name == SYSTEM_PROJECT:
        raise Conflict(f"project {SYSTEM_PROJECT} holds the operators' tokens and stays")
    if wanted := seen.wanted(_within(row, seen)):
        named = ", ".join(sorted(f"{one.kind} {one.name}" for one in wanted)[:5])
        more = f" and {len(wanted) - 5} more" if len(wanted) > 5 else ""
        raise Conflict(f"project {row.name} still has {named}{more}", fix="delete those first")


def plan(row: AnyResource, seen: WorkingSet, _now: float) -> Outcome:
    """A project is there at once; a deleted one goes when the last thing in it has gone."""
    if row.deleted_at is None:
        return Done(status=Status(state="active", message=over_limit(row, seen)))
    if left := _within(row, seen):
        message = f"{len(left)} things of it are still being deleted"
        return Wait(status=Status(state="deleting", message=message), message=message, seconds=5)
    writes = (Forget(resource=row.id), DropAccount(account=account_of(row)))
    return Do(writes=writes, say="forgetting the project")


def _within(row: AnyResource, seen: WorkingSet) -> list[AnyResource]:
    return [one for one in seen if one.project == row.name and one.id != Id(row.id)]
