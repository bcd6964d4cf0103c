"""rack: hosts of one zone that share a switch and a power strip."""

from typing import Annotated

import msgspec

from common.kinds.kind import Column, Kind, Ref, Role, Scope, Spec, Status


class RackSpec(Spec, frozen=True):
    """Where it stands. A rack stays in its zone: its hosts' machines were placed by it."""

    zone: Annotated[str, Ref("zone"), msgspec.Meta(description="the zone it stands in", examples=["z1"])]
    description: Annotated[str, msgspec.Meta(max_length=255, description="where it is, for people")] = ""


RACK = Kind(
    name="rack",
    plural="racks",
    prefix="rack",
    scope=Scope.CLOUD,
    spec=RackSpec,
    status=Status,
    summary="Hosts of one zone that share a switch and a power strip.",
    example="skerry rack create r1 --zone z1",
    counters=(),
    columns=(
        Column(title="NAME", path="name"),
        Column(title="STATE", path="status.state"),
        Column(title="ZONE", path="spec.zone"),
        Column(title="DESCRIPTION", path="spec.description"),
    ),
    create=Role.ADMIN,
    change=Role.ADMIN,
    delete=Role.ADMIN,
    fixed=frozenset({"zone"}),
)
