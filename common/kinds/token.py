"""token: a bearer token for one project. The text is shown once; its SHA-256 is what is stored."""

from typing import Annotated

import msgspec

from common.counters import TOKENS
from common.kinds.kind import Column, Kind, Role, Scope, Spec, Status
from common.kinds.role import BuiltIn, CustomRole, Grants

LONGEST_D = 366


class TokenSpec(Spec, frozen=True):
    """Who may call, as what, and until when."""

    role: Annotated[
        BuiltIn,
        msgspec.Meta(description="reader sees, member makes and deletes, admin also manages tokens and bindings"),
    ] = "member"
    custom_role: CustomRole = None
    only: Annotated[
        Grants, msgspec.Meta(description="of what the role may, only these actions on these things; none: all of it")
    ] = ()
    expires_in: Annotated[
        str,
        msgspec.Meta(
            pattern=r"^[1-9]\d{0,5}[smhd]$(?!\n)",
            description=f"how long it is good: seconds, minutes, hours or days, {LONGEST_D}d at most",
            examples=["12h"],
        ),
    ] = "90d"


class TokenStatus(Status, frozen=True):
    """Whether it is good."""

    expires_at: float = 0
    """0: never, which only tokens from before this was known have."""


TOKEN = Kind(
    name="token",
    plural="tokens",
    prefix="tok",
    scope=Scope.PROJECT,
    spec=TokenSpec,
    status=TokenStatus,
    summary="A bearer token of this project, for programs. Deleting it revokes it at once.",
    example="skerry token create ci --role member --expires-in 30d",
    counters=(TOKENS,),
    columns=(
        Column(title="NAME", path="name"),
        Column(title="ROLE", path="spec.role"),
        Column(title="CUSTOM ROLE", path="spec.custom_role"),
        Column(title="STATE", path="status.state"),
        Column(title="EXPIRES", path="status.expires_at"),
        Column(title="CREATED", path="created_at"),
    ),
    read=Role.ADMIN,
    create=Role.ADMIN,
    change=None,
    delete=Role.ADMIN,
    fixed=frozenset({"role", "custom_role", "only", "expires_in"}),
    reveals="token",
)
