"""token: its hash is good from the transaction that makes it, and good for nothing from the one that deletes it."""

from common.errors import Denied
from common.kinds.kind import AnyResource, Role, Spec, Status
from common.secret import Secret, digest_of
from controller.auth.caller import Caller
from controller.kinds.outcome import Do, Done, Outcome
from controller.store.rows import Token
from controller.store.working import WorkingSet
from controller.store.writes import AnyWrite, Forget, PutToken, RemoveToken

REVEALS = "skt"


def admit(row: AnyResource, _was: AnyResource | None, _seen: WorkingSet, caller: Caller) -> Spec:
    """Let nobody give a role that they don't have."""
    if not caller.operates and Role.named(row.spec.role) > caller.role:
        raise Denied(f"{caller.actor} is a {caller.role.name.lower()} and can't make a token that may do more")
    spec: Spec = row.spec
    return spec


def reveal(row: AnyResource, secret: Secret, _now: float) -> tuple[AnyWrite, ...]:
    """Make the token good."""
    token = Token(
        digest=digest_of(secret.reveal()), resource=row.id, project=row.project, role=Role.named(row.spec.role)
    )
    return (PutToken(token=token),)


def plan(row: AnyResource, _seen: WorkingSet, _now: float) -> Outcome:
    """Nothing is to be done but to forget it."""
    if row.deleted_at is None:
        return Done(status=Status(state="active"))
    return Do(writes=(RemoveToken(resource=row.id), Forget(resource=row.id)), say="forgetting the token")
