"""binding: that a user has a role in a project."""

from typing import Annotated

import msgspec

from common.kinds.kind import Column, Kind, Ref, Role, Scope, Spec, Status
from common.kinds.role import BuiltIn, CustomRole


class BindingSpec(Spec, frozen=True):
    """Who has which role here."""

    user: Annotated[str, Ref("user"), msgspec.Meta(description="who", examples=["bob"])]
    role: Annotated[BuiltIn, msgspec.Meta(description="what the user may do in this project")] = "member"
    custom_role: CustomRole = None


BINDING = Kind(
    name="binding",
    plural="bindings",
    prefix="bnd",
    scope=Scope.PROJECT,
    spec=BindingSpec,
    status=Status,
    summary="A user's role in this project. In project system: in the whole cloud.",
    example="skerry binding create bob --user bob --role member",
    counters=(),
    columns=(
        Column(title="NAME", path="name"),
        Column(title="USER", path="spec.user"),
        Column(title="ROLE", path="spec.role"),
        Column(title="CUSTOM ROLE", path="spec.custom_role"),
        Column(title="STATE", path="status.state"),
    ),
    read=Role.ADMIN,
    create=Role.ADMIN,
    change=Role.ADMIN,
    delete=Role.ADMIN,
    fixed=frozenset({"user"}),
)
