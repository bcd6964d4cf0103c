"""size: what a machine has of CPU, memory and disk, as the operator sells it."""

from typing import Annotated

import msgspec

from common.kinds.kind import Column, Kind, Role, Scope, Spec, Status

Vcpus = Annotated[int, msgspec.Meta(ge=1, le=256)]
MemoryMib = Annotated[int, msgspec.Meta(ge=64, le=1 << 23)]
DiskGib = Annotated[int, msgspec.Meta(ge=1, le=65536)]


class SizeSpec(Spec, frozen=True):
    """One entry of the catalogue. With a `…_max` it is a custom one: machines choose between the two bounds."""

    vcpus: Annotated[Vcpus, msgspec.Meta(description="virtual CPUs; the least, where vcpus_max is given")]
    memory_mib: Annotated[MemoryMib, msgspec.Meta(description="memory, MiB; the least, where memory_mib_max is given")]
    disk_gib: Annotated[DiskGib, msgspec.Meta(description="root disk, GiB; the least, where disk_gib_max is given")]
    vcpus_max: Annotated[
        Vcpus | None, msgspec.Meta(description="the most virtual CPUs a machine may ask for; none: always vcpus")
    ] = None
    memory_mib_max: Annotated[
        MemoryMib | None, msgspec.Meta(description="the most memory a machine may ask for; none: always memory_mib")
    ] = None
    memory_mib_step: Annotated[
        int,
        msgspec.Meta(ge=1, le=1 << 20, description="what a machine asks for is memory_mib and so many more of these"),
    ] = 1
    disk_gib_max: Annotated[
        DiskGib | None, msgspec.Meta(description="the largest root disk a machine may ask for; none: always disk_gib")
    ] = None


SIZE = Kind(
    name="size",
    plural="sizes",
    prefix="size",
    scope=Scope.CLOUD,
    spec=SizeSpec,
    status=Status,
    summary="An entry of the catalogue of machine sizes.",
    example="skerry size create small --vcpus 1 --memory-mib 512 --disk-gib 10",
    counters=(),
    columns=(
        Column(title="NAME", path="name"),
        Column(title="VCPUS", path="spec.vcpus"),
        Column(title="MEMORY MIB", path="spec.memory_mib"),
        Column(title="DISK GIB", path="spec.disk_gib"),
    ),
    create=Role.ADMIN,
    change=None,
    delete=Role.ADMIN,
    fixed=frozenset(
        {"vcpus", "memory_mib", "disk_gib", "vcpus_max", "memory_mib_max", "memory_mib_step", "disk_gib_max"}
    ),
)
