"""From an Authorization header to a caller: pure, over the working set."""

import re

from common.errors import Unauthenticated
from common.ids import RequestId
from common.secret import digest_of
from controller.auth.caller import Caller
from controller.store.working import WorkingSet

_BEARER = re.compile(r"Bearer +(?P<token>skt_[0-9a-f]{64})", re.IGNORECASE)

HOW = "send the header `Authorization: Bearer skt_…`; an admin of the project makes tokens: skerry token create NAME"


def authenticate(header: str | None, seen: WorkingSet, request: RequestId) -> Caller:
    """Return who sends this Authorization header.

    Raises Unauthenticated, without saying which of unknown, revoked and misspelt it is.
    """
    if not header:
        raise Unauthenticated("the request carries no token", fix=HOW)
    form = _BEARER.fullmatch(header.strip())
    if form is None:
        raise Unauthenticated("the Authorization header holds no token of Skerry's form", fix=HOW)
    token = seen.token(digest_of(form["token"].lower()))
    if token is None:
        raise Unauthenticated("the token is not known, or was revoked", fix=HOW)
    return Caller(
        actor=f"{token.project}/{seen.name_of(token.resource)}",
        project=token.project,
        role=token.role,
        request=request,
    )
