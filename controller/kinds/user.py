"""user: a row, the hash of a password beside it, and sessions."""

import msgspec

from common.kinds.domain import DEFAULT_DOMAIN
from common.kinds.kind import AnyResource, Spec, Status
from common.secret import Secret
from controller.auth.caller import Caller
from controller.auth.passwords import first_hash
from controller.auth.rights import permits_of
from controller.auth.tokens import roles_of
from controller.kinds.giving import refuse_more, with_role
from controller.kinds.outcome import Do, Done, Outcome
from controller.kinds.plain import wait_for_users
from controller.store.working import WorkingSet
from controller.store.writes import AnyWrite, Forget, PutPassword, RemovePassword, RemoveToken

REVEALS = "skp"


def admit(row: AnyResource, was: AnyResource | None, seen: WorkingSet, caller: Caller) -> Spec:
    """Put it into the maker's domain where it names none, and let nobody give what they don't have."""
    domain = row.spec.domain or caller.domain or DEFAULT_DOMAIN
    spec = msgspec.structs.replace(with_role(row, domain, seen), domain=domain)
    refuse_more(caller, permits_of(row.spec.role, row.spec.custom_role, seen), row, "", domain)
    if was is not None:
        refuse_stronger(caller, was, seen)
    return spec


def refuse_stronger(caller: Caller, user: AnyResource, seen: WorkingSet) -> None:
    """Raise Denied where somebody would get hold of a user who may do more than they."""
    if caller.user == user.id:
        return
    for held in roles_of(user, seen):
        refuse_more(caller, held.permits, user, held.project, held.domain)


def reveal(row: AnyResource, secret: Secret, _now: float) -> tuple[AnyWrite, ...]:
    """Make the first password good."""
    return (PutPassword(user=row.id, hash=Secret(first_hash(secret))),)


def plan(row: AnyResource, seen: WorkingSet, _now: float) -> Outcome:
    """It is there at once; a deleted one can do nothing from the commit that says so."""
    if row.deleted_at is None:
        return Done(status=Status(state="active" if row.spec.enabled else "disabled"))
    writes = (RemoveToken(resource=row.id), RemovePassword(user=row.id), Forget(resource=row.id))
    return wait_for_users(row, seen) or Do(writes=writes, say="forgetting the user")
