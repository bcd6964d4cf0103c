"""user: a person with a password. What one may do is said by one's role in the domain, and by bindings in projects."""

from typing import Annotated, Literal

import msgspec

from common.kinds.kind import Column, Extra, Kind, Ref, Role, Scope, Spec, Status
from common.kinds.role import CustomRole


class UserSpec(Spec, frozen=True):
    """A person."""

    description: Annotated[str, msgspec.Meta(max_length=255, description="who it is, for people")] = ""
    domain: Annotated[
        str, Ref("domain"), msgspec.Meta(description="the domain it belongs to; none: that of who makes it")
    ] = ""
    role: Annotated[
        Literal["none", "reader", "member", "admin", "custom"],
        msgspec.Meta(description="in all projects of the domain, and (admin) over them; none: what bindings give"),
    ] = "none"
    custom_role: CustomRole = None
    enabled: Annotated[bool, msgspec.Meta(description="whether one may log in; no: sessions end at once")] = True


USER = Kind(
    name="user",
    plural="users",
    prefix="usr",
    scope=Scope.CLOUD,
    spec=UserSpec,
    status=Status,
    summary="A person with a password. Creating one gives the first password.",
    example="skerry user create bob --description 'Bob of the web team'",
    counters=(),
    columns=(
        Column(title="NAME", path="name"),
        Column(title="STATE", path="status.state"),
        Column(title="DOMAIN", path="spec.domain"),
        Column(title="ROLE", path="spec.role"),
        Column(title="CUSTOM ROLE", path="spec.custom_role"),
        Column(title="DESCRIPTION", path="spec.description"),
    ),
    extras=(
        Extra(
            name="password",
            method="PUT",
            summary="Set the password. It ends the user's sessions.",
            role=Role.ADMIN,
            accepts="application/json",
        ),
    ),
    read=Role.ADMIN,
    create=Role.ADMIN,
    change=Role.ADMIN,
    delete=Role.ADMIN,
    fixed=frozenset({"domain"}),
    reveals="first password",
)
