"""project: what owns things and shares them with nobody."""

from typing import Annotated

import msgspec

from common.kinds.kind import Column, Kind, Role, Scope, Spec, Status


class ProjectSpec(Spec, frozen=True):
    """A tenant's space of names."""

    description: Annotated[str, msgspec.Meta(max_length=255, description="what it is for, for people")] = ""


PROJECT = Kind(
    name="project",
    plural="projects",
    prefix="prj",
    scope=Scope.CLOUD,
    spec=ProjectSpec,
    status=Status,
    summary="A tenant's space: its machines, networks, images and tokens.",
    example="skerry project create shop --description 'the web shop'",
    columns=(
        Column(title="NAME", path="name"),
        Column(title="STATE", path="status.state"),
        Column(title="DESCRIPTION", path="spec.description"),
    ),
    create=Role.ADMIN,
    change=Role.ADMIN,
    delete=Role.ADMIN,
)
