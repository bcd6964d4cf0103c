"""domain: a row that projects, users and roles refer to. It goes when the last of them has gone."""

from common.errors import Conflict
from common.kinds.domain import DEFAULT_DOMAIN, DomainSpec
from common.kinds.kind import AnyResource, Spec, Status
from controller.auth.caller import Caller
from controller.kinds.outcome import Do, Done, Outcome
from controller.kinds.plain import wait_for_users
from controller.kinds.quotas import account_of, check_quota, over_limit
from controller.store.working import WorkingSet
from controller.store.writes import DropAccount, Forget


def admit(row: AnyResource, _was: AnyResource | None, _seen: WorkingSet, _caller: Caller) -> Spec:
    """Check that its quota names what is counted."""
    spec: DomainSpec = row.spec
    check_quota(row, spec.quota)
    return spec


def admit_delete(row: AnyResource, _seen: WorkingSet) -> None:
    """Refuse to take away the one that things without a domain belong to. What is in use is refused for all kinds."""
    if row.id == DEFAULT_DOMAIN:
        raise Conflict(f"domain {row.name} holds what belongs to no other, and stays")


def plan(row: AnyResource, seen: WorkingSet, _now: float) -> Outcome:
    """It is there at once; a deleted one goes when nothing is in it any more."""
    if row.deleted_at is None:
        return Done(status=Status(state="active", message=over_limit(row, seen)))
    writes = (Forget(resource=row.id), DropAccount(account=account_of(row)))
    return wait_for_users(row, seen) or Do(writes=writes, say="forgetting the domain")
