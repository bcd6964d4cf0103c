"""size: what a machine has of CPU, memory and disk, as the operator sells it."""

from typing import Annotated

import msgspec

from common.kinds.kind import Column, Kind, Role, Scope, Spec, Status


class SizeSpec(Spec, frozen=True):
    """One entry of the catalogue."""

    vcpus: Annotated[int, msgspec.Meta(ge=1, le=256, description="virtual CPUs")]
    memory_mib: Annotated[int, msgspec.Meta(ge=64, le=1 << 23, description="memory, MiB")]
    disk_gib: Annotated[int, msgspec.Meta(ge=1, le=65536, description="root disk, GiB")]


SIZE = Kind(
    name="size",
    plural="sizes",
    prefix="size",
    scope=Scope.CLOUD,
    spec=SizeSpec,
    status=Status,
    summary="An entry of the catalogue of machine sizes.",
    example="skerry size create small --vcpus 1 --memory-mib 512 --disk-gib 10",
    columns=(
        Column(title="NAME", path="name"),
        Column(title="VCPUS", path="spec.vcpus"),
        Column(title="MEMORY MIB", path="spec.memory_mib"),
        Column(title="DISK GIB", path="spec.disk_gib"),
    ),
    create=Role.ADMIN,
    change=None,
    delete=Role.ADMIN,
    fixed=frozenset({"vcpus", "memory_mib", "disk_gib"}),
)
