"""region: zones that are near each other."""

from typing import Annotated

import msgspec

from common.kinds.kind import Column, Kind, Role, Scope, Spec, Status


class RegionSpec(Spec, frozen=True):
    """A name for zones that belong together."""

    description: Annotated[str, msgspec.Meta(max_length=255, description="where it is, for people")] = ""


REGION = Kind(
    name="region",
    plural="regions",
    prefix="reg",
    scope=Scope.CLOUD,
    spec=RegionSpec,
    status=Status,
    summary="Zones that are near each other.",
    example="skerry region create north --description 'Oslo and Bergen'",
    counters=(),
    columns=(
        Column(title="NAME", path="name"),
        Column(title="STATE", path="status.state"),
        Column(title="DESCRIPTION", path="spec.description"),
    ),
    create=Role.ADMIN,
    change=Role.ADMIN,
    delete=Role.ADMIN,
)
