"""group: machines that belong together, or must not fail together."""

from typing import Annotated, Literal

import msgspec

from common.counters import GROUPS
from common.kinds.kind import Column, Kind, Scope, Spec, Status


class GroupSpec(Spec, frozen=True):
    """One rule for all its members."""

    policy: Annotated[
        Literal["affinity", "anti-affinity"],
        msgspec.Meta(
            description="affinity: all members in one place; anti-affinity: each in another", examples=["anti-affinity"]
        ),
    ]
    over: Annotated[
        Literal["host", "rack", "zone"], msgspec.Meta(description="what a place is: a host, a rack or a zone")
    ] = "host"
    hard: Annotated[
        bool,
        msgspec.Meta(
            description="whether a machine that would break the rule waits; else the rule is kept where it can be"
        ),
    ] = True


class GroupStatus(Status, frozen=True):
    """Where its members are."""

    members: int = 0
    """That have a place."""
    places: int = 0
    """In so many hosts, racks or zones."""


GROUP = Kind(
    name="group",
    plural="groups",
    prefix="grp",
    scope=Scope.PROJECT,
    spec=GroupSpec,
    status=GroupStatus,
    summary="Machines that must not fail together (anti-affinity), or belong in one place (affinity).",
    example="skerry group create db --policy anti-affinity --over rack",
    counters=(GROUPS,),
    columns=(
        Column(title="NAME", path="name"),
        Column(title="STATE", path="status.state"),
        Column(title="POLICY", path="spec.policy"),
        Column(title="OVER", path="spec.over"),
        Column(title="HARD", path="spec.hard"),
        Column(title="MEMBERS", path="status.members"),
        Column(title="PLACES", path="status.places"),
    ),
    change=None,
    fixed=frozenset({"policy", "over", "hard"}),
)
