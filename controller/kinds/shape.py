"""What a machine has of CPU, memory and disk: the one place that says it, for placement, hosts and quotas alike."""

import msgspec

from common.ids import Id
from common.kinds.kind import AnyResource
from controller.store.working import WorkingSet


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A machine's share of a host."""

    vcpus: int
    memory_mib: int
    disk_gib: int
    size: str
    """The name it has in the catalogue."""


def shape_of(vm: AnyResource, seen: WorkingSet) -> Shape | None:
    """Return what a machine is to have by its spec; None where its size is gone."""
    size = seen.get(Id(vm.spec.size))
    if size is None:
        return None
    return Shape(vcpus=size.spec.vcpus, memory_mib=size.spec.memory_mib, disk_gib=size.spec.disk_gib, size=size.name)
