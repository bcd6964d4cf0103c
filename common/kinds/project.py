"""project: what owns things and shares them with nobody."""

from typing import Annotated, Literal

import msgspec

from common.kinds.kind import Column, Extra, Kind, Quota, Ref, Role, Scope, Spec, Status


class ProjectSpec(Spec, frozen=True):
    """A tenant's space of names."""

    description: Annotated[str, msgspec.Meta(max_length=255, description="what it is for, for people")] = ""
    metadata_tokens: Annotated[
        Literal["optional", "required"],
        msgspec.Meta(description="whether the metadata service answers only who shows a session token (IMDSv2)"),
    ] = "optional"
    domain: Annotated[
        str, Ref("domain"), msgspec.Meta(description="the domain it belongs to; none: that of who makes it")
    ] = ""
    quota: Annotated[
        Quota,
        msgspec.Meta(
            description="limits of its own, by counter (null: none); for the others the controller's defaults hold",
            examples=[{"vms": 10, "vcpus": 40}],
        ),
    ] = msgspec.field(default_factory=dict)
    keep_deleted_s: Annotated[
        int,
        msgspec.Meta(
            ge=0,
            le=30 * 86400,
            description="seconds for which deleted machines are kept, stopped, so that they can be restored; they hold "
            "what they have reserved until then. 0: they go at once",
        ),
    ] = 3600


PROJECT = Kind(
    name="project",
    plural="projects",
    prefix="prj",
    scope=Scope.CLOUD,
    spec=ProjectSpec,
    status=Status,
    summary="A tenant's space: its machines, networks, images and tokens.",
    example="skerry project create shop --description 'the web shop'",
    counters=(),
    columns=(
        Column(title="NAME", path="name"),
        Column(title="STATE", path="status.state"),
        Column(title="DOMAIN", path="spec.domain"),
        Column(title="DESCRIPTION", path="spec.description"),
    ),
    extras=(Extra(name="quota", method="GET", summary="Show what it uses, and its limits.", role=Role.READER),),
    create=Role.ADMIN,
    change=Role.ADMIN,
    delete=Role.ADMIN,
    fixed=frozenset({"domain"}),
)
