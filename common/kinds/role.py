"""role: a list of what may be done to which things, given to users and tokens beside the built-in roles."""

from typing import Annotated, Literal

import msgspec

from common.kinds.kind import Column, Kind, Labels, Ref, Role, Scope, Spec, Status

ActionPattern = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(?:\*|[a-z]+)(?:\.(?:\*|[a-z]+))?$(?!\n)",
        max_length=64,
        description="an action such as `vm.start`, or a pattern: `vm.*`, `*.read`, `*`",
        examples=["vm.start"],
    ),
]


class Grant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Actions on things. Without names and labels: on all things there are where the role is held."""

    actions: Annotated[tuple[ActionPattern, ...], msgspec.Meta(min_length=1, max_length=64)]
    names: Annotated[
        tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=63)], ...],
        msgspec.Meta(max_length=64, description="only on things with one of these names"),
    ] = ()
    labels: Annotated[Labels, msgspec.Meta(description="only on things that have all these labels")] = {}


Grants = Annotated[tuple[Grant, ...], msgspec.Meta(max_length=32)]

BuiltIn = Literal["reader", "member", "admin", "custom"]

CustomRole = Annotated[
    str | None, Ref("role"), msgspec.Meta(description="a role of your own, in place of a built-in one")
]


class RoleSpec(Spec, frozen=True):
    """What it grants."""

    grants: Annotated[
        Grants,
        msgspec.Meta(
            examples=[[{"actions": ["vm.start"]}]],
            description='what may be done to what, each such as {"actions": ["vm.*"], "labels": {"env": "dev"}}',
        ),
    ]
    description: Annotated[str, msgspec.Meta(max_length=255, description="what it is for, for people")] = ""
    domain: Annotated[
        str,
        Ref("domain"),
        msgspec.Meta(
            description="the domain it belongs to; none: that of who makes it, an operator's is every domain's"
        ),
    ] = ""


ROLE = Kind(
    name="role",
    plural="roles",
    prefix="role",
    scope=Scope.CLOUD,
    spec=RoleSpec,
    status=Status,
    summary="A role of one's own: single actions on single things.",
    example="""skerry role create restarter --grant '{"actions": ["vm.*"], "labels": {"env": "dev"}}'""",
    counters=(),
    columns=(
        Column(title="NAME", path="name"),
        Column(title="DOMAIN", path="spec.domain"),
        Column(title="GRANTS", path="spec.grants"),
        Column(title="DESCRIPTION", path="spec.description"),
    ),
    create=Role.ADMIN,
    change=Role.ADMIN,
    delete=Role.ADMIN,
    fixed=frozenset({"domain"}),
)
