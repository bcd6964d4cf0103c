"""token: a bearer token for one project and one role. The text is shown once; its SHA-256 is what is stored."""

from typing import Annotated, Literal

import msgspec

from common.counters import TOKENS
from common.kinds.kind import Column, Kind, Role, Scope, Spec, Status


class TokenSpec(Spec, frozen=True):
    """Who may call, and as what."""

    role: Annotated[
        Literal["reader", "member", "admin"],
        msgspec.Meta(description="reader sees, member makes and deletes, admin also manages tokens"),
    ] = "member"


TOKEN = Kind(
    name="token",
    plural="tokens",
    prefix="tok",
    scope=Scope.PROJECT,
    spec=TokenSpec,
    status=Status,
    summary="A bearer token of this project. Deleting it revokes it at once.",
    example="skerry token create ci --role member",
    counters=(TOKENS,),
    columns=(
        Column(title="NAME", path="name"),
        Column(title="ROLE", path="spec.role"),
        Column(title="STATE", path="status.state"),
        Column(title="CREATED", path="created_at"),
    ),
    read=Role.ADMIN,
    create=Role.ADMIN,
    change=None,
    delete=Role.ADMIN,
    fixed=frozenset({"role"}),
    reveals="token",
)
