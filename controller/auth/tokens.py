"""From an Authorization header to a caller with the roles that it holds: pure, over the working set."""

import re

from common.clock import iso
from common.errors import Unauthenticated
from common.ids import RequestId
from common.kinds.kind import SYSTEM_PROJECT, AnyResource
from common.secret import digest_of
from controller.auth.caller import Caller
from controller.auth.rights import Held, held_in, permits_of, spelt_out
from controller.store.rows import Token
from controller.store.working import WorkingSet

_BEARER = re.compile(r"Bearer +(?P<token>sk[ts]_[0-9a-f]{64})", re.IGNORECASE)

SESSION = "sks"
"""The prefix of a session's token, as `skt` is that of a token's."""

HOW = "send the header `Authorization: Bearer skt_…`; an admin of the project makes tokens: skerry token create NAME"
HOW_USER = "log in: skerry login"


def digest_in(header: str | None) -> str:
    """Return the digest of the token in an Authorization header. Raises Unauthenticated where there is none."""
    if not header:
        raise Unauthenticated("the request carries no token", fix=HOW)
    form = _BEARER.fullmatch(header.strip())
    if form is None:
        raise Unauthenticated("the Authorization header holds no token of Skerry's form", fix=HOW)
    return digest_of(form["token"].lower())


def authenticate(header: str | None, seen: WorkingSet, request: RequestId, now: float) -> Caller:
    """Return who sends this Authorization header.

    Raises Unauthenticated, without saying which of unknown, revoked and misspelt it is; of one that has expired, when.
    """
    token = seen.token(digest_in(header))
    row = seen.get(token.resource) if token else None
    if token is None or row is None or (row.kind == "user" and not row.spec.enabled):
        raise Unauthenticated("the token is not known, or was revoked", fix=HOW)
    if token.expires_at and token.expires_at <= now:
        what = f"the session of user {row.name}" if row.kind == "user" else f"token {row.name} of project {row.project}"
        fix = HOW_USER if row.kind == "user" else f"make a new one: skerry token create NAME -p {row.project}"
        raise Unauthenticated(f"{what} has expired, at {iso(token.expires_at)}", fix=fix)
    return _user(row, token, seen, request) if row.kind == "user" else _token(row, token, seen, request)


def _token(row: AnyResource, token: Token, seen: WorkingSet, request: RequestId) -> Caller:
    held = held_in(row.project, row.spec.role, row.spec.custom_role, seen)
    return Caller(
        actor=f"{row.project}/{row.name}",
        request=request,
        held=(held,),
        only=spelt_out(row.spec.only),
        project=row.project,
        domain=held.domain,
        expires_at=token.expires_at,
    )


def _user(row: AnyResource, token: Token, seen: WorkingSet, request: RequestId) -> Caller:
    return Caller(
        actor=f"{row.name}@{seen.name_of(row.spec.domain)}",
        request=request,
        held=roles_of(row, seen),
        domain=row.spec.domain,
        user=row.id,
        expires_at=token.expires_at,
    )


def roles_of(user: AnyResource, seen: WorkingSet) -> tuple[Held, ...]:
    """Return the roles that a user holds: in the domain, and by bindings in projects."""
    spec, found = user.spec, []
    if permits := permits_of(spec.role, spec.custom_role, seen):
        name = seen.name_of(spec.custom_role) if spec.custom_role else spec.role
        found.append(Held(role=name, permits=permits, domain=spec.domain))
    found += [
        held_in(one.project, one.spec.role, one.spec.custom_role, seen)
        for one in seen.users(user.id)
        if one.kind == "binding" and one.deleted_at is None
    ]
    return tuple(found)


def place_of(project: str, seen: WorkingSet) -> tuple[str, str]:
    """Return a project and its domain as places where roles are held; both empty: the whole cloud."""
    return ("", "") if project == SYSTEM_PROJECT else (project, seen.domain_of(project) or "nowhere")
