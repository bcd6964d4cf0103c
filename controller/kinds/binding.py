"""binding: a row that gives a user a role in its project, from its commit until it is deleted."""

from common.errors import NotFound
from common.ids import Id
from common.kinds.kind import AnyResource, Spec, Status
from controller.auth.caller import Caller
from controller.auth.rights import permits_of
from controller.kinds.giving import refuse_more_in_project, with_role
from controller.kinds.outcome import Do, Done, Outcome
from controller.store.working import WorkingSet
from controller.store.writes import Forget


def admit(row: AnyResource, _was: AnyResource | None, seen: WorkingSet, caller: Caller) -> Spec:
    """Let nobody give what they don't have. Users of other domains are bound by operators only."""
    domain = seen.domain_of(row.project) or ""
    user = seen.get(Id(row.spec.user))
    if user is not None and user.spec.domain != domain and not caller.operates:
        raise NotFound(f"there is no user {user.name} in this domain", fix="skerry user list")
    spec = with_role(row, domain, seen)
    given = permits_of(row.spec.role, row.spec.custom_role, seen)
    refuse_more_in_project(caller, given, row, row.project, seen)
    return spec


def plan(row: AnyResource, _seen: WorkingSet, _now: float) -> Outcome:
    """Nothing is to be done but to forget it."""
    if row.deleted_at is not None:
        return Do(writes=(Forget(resource=row.id),), say="forgetting the binding")
    return Done(status=Status(state="active"))
