"""The disks of a machine: which it has, which it is to have, and the one next step between the two.

Disks are volumes with ids of their own: the first root disk, one for each rebuild, one for each rescue. So none is ever
made into another, and what is not wanted any more is deleted like any volume: with a tombstone, once no domain has it.
"""

from collections.abc import Iterable

import msgspec

from common.documents import VolumeDoc, VolumeSeen, key_of
from common.ids import HostId, Id, child_id
from common.kinds.kind import AnyResource
from common.kinds.volume import VOLUME, VolumeSpec
from controller.kinds.shape import Shape
from controller.store.rows import Placement
from controller.store.working import WorkingSet
from controller.store.writes import AnyWrite, ChangeChild, CreateChild, DeleteChild


class Disks(msgspec.Struct, frozen=True, kw_only=True):
    """The volumes of one machine."""

    root: Id
    rescue: Id | None
    """Wished, while it is in rescue."""
    here: dict[Id, AnyResource]
    """Those that are there, deleted ones included."""

    @property
    def wanted(self) -> tuple[Id, ...]:
        """In the order in which the guest finds them."""
        return (self.rescue, self.root) if self.rescue else (self.root,)

    @property
    def missing(self) -> tuple[Id, ...]:
        """Those that have to be made, or made again once they are gone."""
        return tuple(one for one in self.wanted if one not in self.here or self.here[one].deleted_at is not None)

    @property
    def stale(self) -> tuple[AnyResource, ...]:
        """Those that have to go, or are going."""
        return tuple(row for row in self.here.values() if row.id not in self.wanted or row.deleted_at is not None)

    @property
    def attached(self) -> tuple[Id, ...]:
        """Those that the machine boots with now. None while one has to go before another one is made."""
        missing = self.missing
        if self.root in missing or (missing and self.stale):
            return ()
        return tuple(one for one in self.wanted if one not in missing)

    @property
    def boots_rescue(self) -> bool:
        """Whether it boots from its rescue disk now."""
        return self.rescue in self.attached


def disks_of(vm: AnyResource, seen: WorkingSet) -> Disks:
    """Return the disks of a machine."""
    rescue = child_id(vm.id, VOLUME.prefix, f"rescue {vm.spec.rescue_generation}") if vm.spec.rescue else None
    here = {child.id: child for child in seen.children(vm.id) if child.kind == VOLUME.name}
    return Disks(root=root_of(vm), rescue=rescue, here=here)


def data_volumes(vm: AnyResource, seen: WorkingSet) -> tuple[AnyResource, ...]:
    """Return the data volumes that a machine is to have, in the order in which its guest finds them at boot."""
    users = (user for user in seen.users(vm.id) if user.kind == VOLUME.name)
    return tuple(user for user in users if user.spec.vm == vm.id and user.deleted_at is None)


def lies_on(volume: AnyResource, seen: WorkingSet) -> HostId | None:
    """Return the host that has a volume; None: none yet."""
    if volume.spec.host:
        return HostId(Id(volume.spec.host))
    placement = seen.placement(volume.id)
    return placement.host if placement else None


def bound_to(volume: AnyResource, seen: WorkingSet) -> HostId | None:
    """Return the host that has a volume, or will: a clone is made where its snapshot lies. None: none yet."""
    if found := lies_on(volume, seen):
        return found
    source = seen.placement(Id(volume.spec.snapshot)) if volume.spec.snapshot else None
    return source.host if source else None


def root_of(vm: AnyResource) -> Id:
    """Return the id of a machine's root disk."""
    rebuilt = vm.spec.rebuild_generation
    return child_id(vm.id, VOLUME.prefix, f"root {rebuilt}" if rebuilt else "")


def held_gib(vm: AnyResource, seen: WorkingSet) -> int:
    """Return the size of the root disk that a machine has already, 0 where it has none."""
    root = seen.get(root_of(vm))
    size_gib: int = root.spec.size_gib if root else 0
    return size_gib


def needed_gib(vm: AnyResource, seen: WorkingSet, shape: Shape) -> int:
    """Return the room that a machine's disks need: those that are to be, or where those are more, those that are."""
    disks = disks_of(vm, seen)
    wished = max(shape.disk_gib, held_gib(vm, seen)) + (_rescue_gib(vm, seen) if disks.rescue else 0)
    here: int = sum(row.spec.size_gib for row in disks.here.values())
    return max(wished, here)


def _rescue_gib(vm: AnyResource, seen: WorkingSet) -> int:
    image = seen.get(Id(vm.spec.rescue))
    least: int = image.spec.disk_gib if image else 1
    return max(1, least)


def next_write(vm: AnyResource, seen: WorkingSet, shape: Shape, placement: Placement) -> tuple[AnyWrite, str] | None:
    """Return what to write next for a machine whose claim covers its disks, and how that is said."""
    disks = disks_of(vm, seen)
    if going := [row for row in disks.stale if row.deleted_at is None]:
        return DeleteChild(id=going[0].id), f"deleting its {'rescue' if _is_rescue(going[0], vm) else 'root'} disk"
    if disks.missing and not disks.stale:
        volume = disks.missing[0]
        rescue = volume == disks.rescue
        size_gib = _rescue_gib(vm, seen) if rescue else shape.disk_gib
        spec = VolumeSpec(size_gib=size_gib, image=vm.spec.rescue if rescue else vm.spec.image, host=placement.host)
        # A rescue disk is named by its id: another volume may have any name that a machine can have.
        taken = seen.named(VOLUME.name, vm.project, vm.name)
        name = volume if rescue or taken else vm.name
        write = CreateChild(id=volume, kind=VOLUME.name, project=vm.project, name=name, owner=vm.id, spec=spec)
        return write, f"making its {'rescue disk' if rescue else 'root volume'}"
    root = disks.here.get(disks.root)
    if root and root.deleted_at is None and root.spec.size_gib < shape.disk_gib:
        spec = msgspec.structs.replace(root.spec, size_gib=shape.disk_gib)
        return ChangeChild(id=root.id, spec=spec), f"growing its root disk to {shape.disk_gib} GiB"
    return None


def _is_rescue(volume: AnyResource, vm: AnyResource) -> bool:
    roots = (child_id(vm.id, VOLUME.prefix, f"root {number}" if number else "") for number in _rebuilds(vm))
    return volume.id not in roots


def _rebuilds(vm: AnyResource) -> range:
    return range(vm.spec.rebuild_generation + 1)


def lagging(vm: AnyResource, seen: WorkingSet, host: HostId) -> str:
    """Say what a machine's disks still wait for, where its domain is as wished; empty: nothing."""
    disks = disks_of(vm, seen)
    if disks.stale:
        return f"its {_names(disks.stale, vm)} goes"
    for row in (disks.here[one] for one in disks.attached):
        document = seen.document(host, key_of(VolumeDoc(id=row.id, size_gib=row.spec.size_gib, image=None)))
        report = seen.report(host, document.key) if document else None
        has = report.seen.size_gib if report and report.done and isinstance(report.seen, VolumeSeen) else 0
        if has < row.spec.size_gib:
            said = (report.problem or report.message) if report else ""
            doing = f"grows to {row.spec.size_gib} GiB" if row.observed_generation else "is being made"
            return f"its disk {doing}" + (f": {said}" if said else "")
    return ""


def _names(rows: Iterable[AnyResource], vm: AnyResource) -> str:
    return " and ".join(sorted("rescue disk" if _is_rescue(row, vm) else "old root disk" for row in rows))
