"""What a host is to be found for, from a machine's spec: its share, its pins and the rules of its groups. Pure."""

from common.ids import HostId, Id
from common.kinds.kind import AnyResource
from controller.kinds.disks import data_volumes, lies_on
from controller.kinds.shape import Shape
from controller.scheduler.choose import Demand
from controller.scheduler.columns import Place
from controller.scheduler.rules import Rule
from controller.scheduler.survival import wanted_elsewhere
from controller.store.working import WorkingSet


def demand_of(vm: AnyResource, shape: Shape, seen: WorkingSet) -> Demand:
    """Return what is asked of the scheduler for a machine of this shape."""
    return Demand(
        owner=vm.id,
        vcpus=shape.vcpus,
        memory_mib=shape.memory_mib,
        disk_gib=shape.disk_gib,
        host=_host(vm, seen),
        rack=_place(vm.spec.rack, seen),
        zone=_place(vm.spec.zone, seen),
        groups=tuple(_rule(group) for one in vm.spec.groups if (group := seen.get(Id(one)))),
        survives=wanted_elsewhere(vm),
        size=shape.size,
    )


def _host(vm: AnyResource, seen: WorkingSet) -> HostId | None:
    """Return the only host that will do: the one it is pinned to, or else that of the volumes it is to have."""
    if vm.spec.host:
        return HostId(Id(vm.spec.host))
    beside = (seen.get(Id(vm.spec.beside)) if vm.spec.beside else None,)
    return next((found for one in (*beside, *data_volumes(vm, seen)) if one and (found := lies_on(one, seen))), None)


def _place(place: str | None, seen: WorkingSet) -> Place | None:
    return Place(place, seen.name_of(place)) if place else None


def _rule(group: AnyResource) -> Rule:
    return Rule(group=group.id, name=group.name, policy=group.spec.policy, over=group.spec.over, hard=group.spec.hard)
