"""What a host is to be found for, from a machine's spec: its share, its pins and the rules of its groups. Pure."""

from common.cpus import needs_of
from common.firmware import abilities
from common.ids import HostId, Id
from common.kinds.kind import AnyResource
from controller.kinds.disks import bound_to, data_volumes
from controller.kinds.shape import Shape
from controller.scheduler.choose import Demand
from controller.scheduler.columns import Offer, Place
from controller.scheduler.rules import Rule
from controller.scheduler.survival import wanted_elsewhere
from controller.store.working import WorkingSet


def demand_of(vm: AnyResource, shape: Shape, seen: WorkingSet) -> Demand:
    """Return what is asked of the scheduler for a machine of this shape."""
    volume = _beside(vm, seen)
    return Demand(
        owner=vm.id,
        vcpus=shape.vcpus,
        memory_mib=shape.memory_mib,
        disk_gib=shape.disk_gib,
        host=HostId(Id(vm.spec.host)) if vm.spec.host else bound_to(volume, seen) if volume else None,
        beside=volume.name if volume and not vm.spec.host else "",
        rack=_place(vm.spec.rack, seen),
        zone=_place(vm.spec.zone, seen),
        groups=tuple(_rule(group) for one in vm.spec.groups if (group := seen.get(Id(one)))),
        survives=wanted_elsewhere(vm),
        size=shape.size,
        needs=Offer(flags=needs_of(vm.spec.cpu), can=abilities(vm.spec.firmware, tpm=vm.spec.tpm)),
        cpu=vm.spec.cpu,
    )


def _beside(vm: AnyResource, seen: WorkingSet) -> AnyResource | None:
    """Return the volume that says where it is to be: the one it is to be beside, or one that it is to have."""
    beside = seen.get(Id(vm.spec.beside)) if vm.spec.beside else None
    return next((one for one in (beside, *data_volumes(vm, seen)) if one and bound_to(one, seen)), None)


def _place(place: str | None, seen: WorkingSet) -> Place | None:
    return Place(place, seen.name_of(place)) if place else None


def _rule(group: AnyResource) -> Rule:
    return Rule(group=group.id, name=group.name, policy=group.spec.policy, over=group.spec.over, hard=group.spec.hard)
