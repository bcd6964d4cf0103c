"""What a placed machine has reserved on its host, as it grows and shrinks.

It grows before anything else does, and shrinks after: so nothing is sold twice at any moment, whoever dies.
"""

import msgspec

from common.documents import DocKey, DomainDoc, DomainSeen
from common.errors import NoCapacity
from common.ids import HostId
from common.kinds.kind import AnyResource
from common.refusal import Cost, Refusal
from controller.kinds.disks import needed_gib
from controller.kinds.shape import Shape, shape_of
from controller.scheduler.choose import UNITS
from controller.store.rows import Placement
from controller.store.working import WorkingSet

_DIMENSIONS = ("vcpus", "memory_mib", "disk_gib")


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine is to have reserved now, and why it is not more where more is wished."""

    placement: Placement
    short: Refusal | None = None


def claim_of(vm: AnyResource, seen: WorkingSet, placement: Placement, shape: Shape) -> Claim:
    """Return what a machine is to have reserved: what it is wished to have, and what it may still run with.

    Where its host has not as much, it keeps what it has, as far as it needs that.
    """
    had = _may_run_with(vm, seen, placement)
    needed = msgspec.structs.replace(
        placement,
        vcpus=max(shape.vcpus, had[0]),
        memory_mib=max(shape.memory_mib, had[1]),
        disk_gib=needed_gib(vm, seen, shape),
    )
    short = short_of(vm, seen, needed)
    if short is None:
        return Claim(placement=needed)
    least = {name: min(getattr(needed, name), getattr(placement, name)) for name in _DIMENSIONS}
    return Claim(placement=msgspec.structs.replace(placement, **least), short=short)


def resting(vm: AnyResource, seen: WorkingSet, placement: Placement) -> Placement:
    """Return what a machine is to have reserved that is not to run: what its host may still run or start it with."""
    vcpus, memory_mib = _may_run_with(vm, seen, placement)
    return msgspec.structs.replace(
        placement, vcpus=min(placement.vcpus, vcpus), memory_mib=min(placement.memory_mib, memory_mib)
    )


def admit_growth(vm: AnyResource, was: AnyResource | None, seen: WorkingSet) -> None:
    """Refuse a wish that needs more than its host has. Raises NoCapacity with the figures."""
    placement, shape = seen.placement(vm.id), shape_of(vm, seen)
    if was is None or placement is None or shape is None:
        return
    if shape == shape_of(was, seen) and vm.spec.rescue_generation == was.spec.rescue_generation:
        return
    if short := claim_of(vm, seen, placement, shape).short:
        raise NoCapacity(short.summary, fix=short.smallest_change, refusal=short)


def _may_run_with(vm: AnyResource, seen: WorkingSet, placement: Placement) -> tuple[int, int]:
    """Return the vCPUs and the memory that its host may be running it with, or may start it with by what it was told.

    Only the host's word on its present document makes that less.
    """
    document = seen.document(placement.host, DocKey(f"domain/{vm.id}"))
    if document is None or not isinstance(document.doc, DomainDoc):
        return 0, 0
    report = seen.report(placement.host, document.key)
    told = document.doc.vcpus, document.doc.memory_mib
    if report is None or not report.done or not isinstance(report.seen, DomainSeen):
        return max(told[0], placement.vcpus), max(told[1], placement.memory_mib)
    runs = report.seen.state in ("running", "paused")
    if runs and not report.seen.vcpus:
        return max(told[0], placement.vcpus), max(told[1], placement.memory_mib)
    return max(told[0], report.seen.vcpus), max(told[1], report.seen.memory_mib)


def _pool_closed(host: HostId, seen: WorkingSet) -> str:
    row = seen.get(host)
    return str(row.status.pool_closed) if row else ""


def disk_claim(disk: AnyResource, host: HostId) -> Placement:
    """Return the claim of a volume or a snapshot: as much as it may come to take."""
    return Placement(owner=disk.id, host=host, vcpus=0, memory_mib=0, disk_gib=disk.spec.size_gib)


def short_of(row: AnyResource, seen: WorkingSet, needed: Placement) -> Refusal | None:
    """Say what a host has too little of for a thing to have so much of it; None: it has enough."""
    placement, where = seen.placement(row.id), needed.host
    capacity, used, host = seen.capacity(where), seen.used(where), seen.name_of(where)
    costs, less = [], []
    for dimension, (constraint, unit) in zip(_DIMENSIONS, UNITS, strict=True):
        more = getattr(needed, dimension) - (getattr(placement, dimension) if placement else 0)
        free = max(0, getattr(capacity, dimension) - getattr(used, dimension)) if capacity else 0
        if more > max(0, free):
            detail = f"needs {more} {unit} more; {free} {'is' if free == 1 else 'are'} free on host {host}"
            if dimension == "disk_gib" and (closed := _pool_closed(where, seen)):
                detail = f"{detail}: {closed}"
            costs.append(Cost(constraint=constraint, hosts=1, detail=detail))
            less.append(f"{more - free} {unit} less")
    if not costs:
        return None
    return Refusal(
        summary=f"{row.kind} {row.name} {'; '.join(cost.detail for cost in costs)}",
        hosts=1,
        costs=tuple(costs),
        smallest_change=f"ask for {' and '.join(less)}, or free as much on host {host}",
    )
