"""token: its hash is good from the transaction that makes it until it expires, or until the one that deletes it."""

from common.errors import FieldError, Invalid
from common.kinds.kind import AnyResource, Spec
from common.kinds.token import LONGEST_D, TokenStatus
from common.secret import Secret, digest_of
from controller.auth.caller import Caller
from controller.auth.rights import Permit, permits_of, spelt_out
from controller.kinds.giving import refuse_misspelt, refuse_more_in_project, with_role
from controller.kinds.outcome import Do, Done, Outcome
from controller.store.rows import Token
from controller.store.working import WorkingSet
from controller.store.writes import AnyWrite, Forget, PutToken, RemoveToken

REVEALS = "skt"

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def admit(row: AnyResource, _was: AnyResource | None, seen: WorkingSet, caller: Caller) -> Spec:
    """Let nobody give what they don't have, and no token last for ever."""
    spec = with_role(row, seen.domain_of(row.project) or "", seen)
    refuse_misspelt(row, row.spec.only, "only")
    if lasts_s(row.spec.expires_in) > LONGEST_D * _UNITS_S["d"]:
        raise Invalid(
            f"token {row.name}: {row.spec.expires_in} is more than the {LONGEST_D}d that a token may last",
            fix=f"ask for {LONGEST_D}d at most, and make a new one in time",
            errors=(FieldError(field="spec.expires_in", message=f"{LONGEST_D}d at most"),),
        )
    given = permits_of(row.spec.role, row.spec.custom_role, seen)
    refuse_more_in_project(caller, _both(given, spelt_out(row.spec.only)), row, row.project, seen)
    return spec


def _both(given: tuple[Permit, ...], only: tuple[Permit, ...]) -> tuple[Permit, ...]:
    """Return what a role gives as far as a token is for it."""
    if not only:
        return given
    return tuple(
        Permit(
            actions=one.actions & limit.actions,
            names=limit.names or one.names,
            labels=tuple(sorted({*one.labels, *limit.labels})),
        )
        for one in given
        for limit in only
    )


def lasts_s(text: str) -> int:
    """Return the seconds in `90d`, `12h`, `30m` or `10s`."""
    return int(text[:-1]) * _UNITS_S[text[-1]]


def reveal(row: AnyResource, secret: Secret, now: float) -> tuple[AnyWrite, ...]:
    """Make the token good, and one that was there before good for nothing."""
    token = Token(digest=digest_of(secret.reveal()), resource=row.id, expires_at=now + lasts_s(row.spec.expires_in))
    return (RemoveToken(resource=row.id), PutToken(token=token))


def plan(row: AnyResource, seen: WorkingSet, now: float) -> Outcome:
    """Show until when it is good. It is not deleted when it has expired: whoever still sends it is told why."""
    if row.deleted_at is not None:
        return Do(writes=(RemoveToken(resource=row.id), Forget(resource=row.id)), say="forgetting the token")
    ends = max((token.expires_at for token in seen.tokens_of(row.id)), default=0.0)
    state = "expired" if 0 < ends <= now else "active"
    return Done(status=TokenStatus(state=state, expires_at=ends))
