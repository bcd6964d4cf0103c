"""zone: hosts that fail together at worst. Machines are pinned to one, or spread over them."""

from typing import Annotated

import msgspec

from common.kinds.kind import Column, Kind, Ref, Role, Scope, Spec, Status


class ZoneSpec(Spec, frozen=True):
    """Where it is, and what it has to survive."""

    region: Annotated[str | None, Ref("region"), msgspec.Meta(description="the region it belongs to")] = None
    n_minus_one: Annotated[
        bool,
        msgspec.Meta(
            description="whether machines are refused that would leave too little room to start those of one lost host "
            "elsewhere in the zone"
        ),
    ] = False
    description: Annotated[str, msgspec.Meta(max_length=255, description="where it is, for people")] = ""


ZONE = Kind(
    name="zone",
    plural="zones",
    prefix="zone",
    scope=Scope.CLOUD,
    spec=ZoneSpec,
    status=Status,
    summary="Hosts that fail together at worst: a building, a power feed.",
    example="skerry zone create z1 --region north",
    counters=(),
    columns=(
        Column(title="NAME", path="name"),
        Column(title="STATE", path="status.state"),
        Column(title="REGION", path="spec.region"),
        Column(title="N-1", path="spec.n_minus_one"),
        Column(title="DESCRIPTION", path="spec.description"),
    ),
    create=Role.ADMIN,
    change=Role.ADMIN,
    delete=Role.ADMIN,
)
