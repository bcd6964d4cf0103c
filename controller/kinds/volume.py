"""volume: one document on one host, from the step that makes it to the host's word that it is gone.

A root disk belongs to its machine, which makes it and says where it lies. A data volume gets a host with the first
machine that it is attached to: local disks do not move, so there is no sense in choosing one before that. The clone of
a snapshot gets that of the snapshot. From then on it has a claim of its own there, attached or not.
"""

from typing import NamedTuple, TypeGuard

import msgspec

from common.counters import DISK_GIB, VOLUMES, Counter
from common.documents import DomainDoc, DomainSeen, ImageRef, SnapshotRef, VolumeDoc, VolumeSeen, key_of
from common.errors import Conflict, FieldError, Invalid, NoCapacity
from common.ids import HostId, Id
from common.kinds.kind import AnyResource, Spec, kept_until
from common.kinds.volume import MOST_ATTACHED, VolumeSpec, VolumeStatus
from common.refusal import Refusal
from controller.auth.caller import Caller
from controller.kinds.claim import disk_claim, short_of
from controller.kinds.disks import bound_to, data_volumes, lies_on
from controller.kinds.outcome import Blocked, Do, Done, Outcome, Wait
from controller.kinds.plain import LOOK_AGAIN_S, silence, wait_behind, wait_for_users
from controller.store.rows import Placement
from controller.store.working import WorkingSet
from controller.store.writes import (
    Amend,
    AnyWrite,
    Forget,
    Poke,
    PutDocument,
    ReleasePlacement,
    ResizePlacement,
    TakePlacement,
    Tombstone,
)

# --- wishes -------------------------------------------------------------------------------------------------------


def admit(row: AnyResource, was: AnyResource | None, seen: WorkingSet, _caller: Caller) -> Spec:
    """Check that it holds its source, only grows, and is attached and reverted only where that can be done."""
    if row.owner is not None:
        owner = seen.name_of(row.owner)
        raise Conflict(
            f"volume {row.name} is a disk of vm {owner}, and changes with that",
            fix=f"skerry vm resize {owner} --disk-gib {row.spec.size_gib} for a larger one",
        )
    spec = _made_from(row, seen) if was is None else row.spec
    row = msgspec.structs.replace(row, spec=spec)
    if was is not None:
        _admit_growth(row, was, seen)
    if spec.vm and (was is None or spec.vm != was.spec.vm):
        _admit_attach(row, was, seen)
    if was is not None and spec.revert_generation > was.spec.revert_generation:
        _admit_revert(row, was, seen)
    return spec


def _made_from(row: AnyResource, seen: WorkingSet) -> VolumeSpec:
    """Return the spec with the size that was not said, which is that of what it is cloned from. Raises Invalid."""
    spec: VolumeSpec = row.spec
    if spec.image and spec.snapshot:
        raise Invalid(f"volume {row.name} can't be both of an image and of a snapshot", fix="name one of them")
    image = seen.get(Id(spec.image)) if spec.image else None
    snapshot = seen.get(Id(spec.snapshot)) if spec.snapshot else None
    source, least = image or snapshot, 0
    if source is not None:
        least = source.spec.size_gib if source is snapshot else source.spec.disk_gib
    size_gib = spec.size_gib or least
    if not size_gib:
        empty = f": image {image.name} has no content yet" if image else ""
        raise Invalid(
            f"volume {row.name} has no size{empty}",
            fix="say how large it is to be, GiB",
            errors=(FieldError(field="spec.size_gib", message="must be ≥ 1"),),
        )
    if source is not None and size_gib < least:
        raise Invalid(
            f"volume {row.name} is {size_gib} GiB; {source.kind} {source.name} needs {least} GiB",
            fix=f"ask for {least} GiB or more",
            errors=(FieldError(field="spec.size_gib", message=f"must be ≥ {least}"),),
        )
    return msgspec.structs.replace(spec, size_gib=size_gib, snapshot_of=snapshot.spec.volume if snapshot else "")


def _admit_growth(row: AnyResource, was: AnyResource, seen: WorkingSet) -> None:
    if row.spec.size_gib < was.spec.size_gib:
        raise Invalid(
            f"volume {row.name} is {was.spec.size_gib} GiB; {row.spec.size_gib} GiB is less, and disks never shrink",
            fix="make a smaller volume and copy what you need",
            errors=(FieldError(field="spec.size_gib", message=f"must be ≥ {was.spec.size_gib}"),),
        )
    placement = seen.placement(row.id)
    if placement and row.spec.size_gib > was.spec.size_gib and (short := short_of(row, seen, _claim(row, placement))):
        raise NoCapacity(short.summary, fix=short.smallest_change, refusal=short)


def _admit_attach(row: AnyResource, was: AnyResource | None, seen: WorkingSet) -> None:
    vm = seen.get(Id(row.spec.vm))
    assert vm is not None, "references are resolved"
    if was is not None and was.spec.vm and _is_wanted(seen.get(Id(was.spec.vm))):
        raise Conflict(
            f"volume {row.name} is attached to vm {seen.name_of(was.spec.vm)}",
            fix=f"detach it first: skerry volume detach {row.name}",
        )
    if kept_until(vm):
        raise Conflict(
            f"vm {vm.name} is deleted, and only kept to be restored", fix=f"skerry vm restore {vm.name}, or use another"
        )
    if len(others := [one for one in data_volumes(vm, seen) if one.id != row.id]) >= MOST_ATTACHED:
        raise Conflict(
            f"vm {vm.name} has {len(others)} volumes beside its root disk, and {MOST_ATTACHED} is the most",
            fix="detach one, or use a larger volume in place of several",
        )
    if apart := _apart(row, vm, seen):
        raise Conflict(apart.summary, fix=apart.smallest_change)


def _apart(row: AnyResource, vm: AnyResource, seen: WorkingSet) -> Refusal | None:
    """Say that a volume and its machine are on two hosts; None: they are not."""
    host, placement = bound_to(row, seen), seen.placement(vm.id)
    if host is None or placement is None or placement.host == host:
        return None
    here, there = seen.name_of(host), seen.name_of(placement.host)
    summary = (
        f"volume {row.name} lies on host {here}, and vm {vm.name} is on host {there}: disks do not move between hosts"
    )
    if lies_on(row, seen) is None:
        source = f"where snapshot {seen.name_of(row.spec.snapshot)} lies, on host {here}"
        summary = f"volume {row.name} is made {source}, and vm {vm.name} is on host {there}"
    return Refusal(
        summary=summary,
        smallest_change=f"make a machine where it lies (skerry vm create NAME --beside {row.name} …), or copy it into "
        "a new volume",
    )


def _admit_revert(row: AnyResource, was: AnyResource, seen: WorkingSet) -> None:
    snapshot = seen.get(Id(row.spec.revert_to))
    assert snapshot is not None, "references are resolved"
    if snapshot.spec.volume != row.id:
        raise Invalid(
            f"snapshot {snapshot.name} is one of volume {seen.name_of(snapshot.spec.volume)}, not of {row.name}",
            fix=f"use one of its own: skerry snapshot list --where spec.volume={row.id}",
        )
    for one in seen.users(row.id):
        if one.kind == "snapshot" and one.deleted_at is None and not one.observed_generation:
            raise Conflict(
                f"snapshot {one.name} of volume {row.name} is still being made", fix="wait for it: skerry snapshot list"
            )
    vm = seen.get(Id(was.spec.vm)) if was.spec.vm else None
    if vm is not None and not _is_off(vm, seen):
        raise Conflict(
            f"volume {row.name} is attached to vm {vm.name}, which is not stopped: its guest would not know what "
            "happened to its disk",
            fix=f"skerry vm stop {vm.name} --wait, or skerry volume detach {row.name} --wait",
        )


def _is_off(vm: AnyResource, seen: WorkingSet) -> bool:
    """Say whether a machine was told to be off, and was last seen so: it starts with what its disks hold then."""
    for document in seen.owned_documents(vm.id):
        if isinstance(document.doc, DomainDoc):
            report = seen.report(document.host, document.key)
            off = report and isinstance(report.seen, DomainSeen) and report.seen.state not in ("running", "paused")
            return bool(document.doc.power == "stopped" and off)
    return True


def _is_wanted(row: AnyResource | None) -> TypeGuard[AnyResource]:
    return row is not None and row.deleted_at is None


def along(row: AnyResource, was: AnyResource, seen: WorkingSet) -> tuple[AnyWrite, ...]:
    """Have the machines looked at that get it, lose it, or see it reverted."""
    changed = (row.spec.vm, row.spec.revert_generation) != (was.spec.vm, was.spec.revert_generation)
    machines = {Id(one) for one in (row.spec.vm, was.spec.vm) if changed and one and seen.get(Id(one))}
    return tuple(Poke(resource=one) for one in sorted(machines))


def admit_delete(row: AnyResource, seen: WorkingSet) -> None:
    """Refuse while a machine that is wanted has it."""
    vm = seen.get(Id(row.spec.vm)) if row.spec.vm else None
    if vm is not None and vm.deleted_at is None:
        kept = " (deleted, and kept)" if kept_until(vm) else ""
        raise Conflict(
            f"volume {row.name} is attached to vm {vm.name}{kept}",
            fix=f"detach it first: skerry volume detach {row.name}",
        )


def counts(row: AnyResource, _seen: WorkingSet) -> dict[Counter, int]:
    """One volume of its size. (A root volume counts with its machine.)"""
    return {VOLUMES: 1, DISK_GIB: row.spec.size_gib}


# --- its life -----------------------------------------------------------------------------------------------------


def plan(row: AnyResource, seen: WorkingSet, _now: float) -> Outcome:
    """Have it made on its host, and destroyed there."""
    if row.deleted_at is not None:
        return _plan_delete(row, seen)
    if row.spec.host:
        return _on_host(row, seen, HostId(Id(row.spec.host)), row.spec.size_gib)
    if row.spec.vm and not _is_wanted(vm := seen.get(Id(row.spec.vm))):
        left = Amend(
            row=row,
            spec=msgspec.structs.replace(row.spec, vm=None),
            what="detach",
            message=f"vm {vm.name if vm else row.spec.vm} is deleted",
        )
        return Do(writes=(left,), say="letting go of its machine, which is deleted")
    placement = seen.placement(row.id)
    if placement is None:
        return _place(row, seen)
    needed = _claim(row, placement)
    short = short_of(row, seen, needed) if needed != placement else None
    if needed != placement and short is None:
        return Do(writes=(ResizePlacement(placement=needed),), say="reserving the room to grow")
    found = _on_host(row, seen, placement.host, placement.disk_gib)
    return Blocked(status=found.status, why=short) if short and isinstance(found, Done) else found


def _claim(row: AnyResource, placement: Placement) -> Placement:
    """Return what is to be reserved for it: as much as it may come to take."""
    return msgspec.structs.replace(placement, disk_gib=max(placement.disk_gib, row.spec.size_gib))


def _place(row: AnyResource, seen: WorkingSet) -> Outcome:
    """Reserve its room where its snapshot is, else where its machine is."""
    vm = seen.get(Id(row.spec.vm)) if row.spec.vm else None
    if row.spec.snapshot:
        return _place_clone(row, seen, Id(row.spec.snapshot), vm)
    if vm is None:
        message = f"it gets a host with its first machine: skerry volume attach {row.name} --vm VM"
        return Done(status=VolumeStatus(state="detached", message=message))
    there = seen.placement(vm.id)
    if there is None:
        return _without_host(row, vm)
    wanted = disk_claim(row, there.host)
    if short := short_of(row, seen, wanted):
        return Blocked(status=VolumeStatus(state="blocked", vm=vm.name), why=short)
    writes = (TakePlacement(placement=wanted), Poke(resource=vm.id))
    return Do(writes=writes, say=f"reserving its room on host {seen.name_of(there.host)}, where vm {vm.name} is")


def _place_clone(row: AnyResource, seen: WorkingSet, source: Id, vm: AnyResource | None) -> Outcome:
    """Reserve its room where its snapshot is, and so its machine is to be."""
    there, snapshot, name = seen.placement(source), seen.get(source), seen.name_of(source)
    blocked = VolumeStatus(state="blocked", vm=vm.name if vm else "")
    if there is None and _is_wanted(snapshot):
        return wait_behind(snapshot, f"snapshot {name} has no host yet", blocked)
    if there is None:
        gone = f"the snapshot that volume {row.name} was to be made from is deleted"
        why = Refusal(summary=gone, smallest_change=f"skerry volume delete {row.name}, and make it of another")
        return Blocked(status=blocked, why=why)
    wanted = disk_claim(row, there.host)
    if short := short_of(row, seen, wanted):
        why = msgspec.structs.replace(short, summary=f"{short.summary}, where snapshot {name} lies")
        return Blocked(status=blocked, why=why)
    pokes = (Poke(resource=vm.id),) if vm else ()
    say = f"reserving its room on host {seen.name_of(there.host)}, where snapshot {name} lies"
    return Do(writes=(TakePlacement(placement=wanted), *pokes), say=say)


def _without_host(row: AnyResource, vm: AnyResource) -> Outcome:
    """Wait for its machine to be placed; where that can't be, say so in its words."""
    blocked = VolumeStatus(state="blocked", vm=vm.name)
    if vm.status.why is None and kept_until(vm):
        kept = f"vm {vm.name} never had a host, and is only kept to be restored"
        way_out = f"skerry vm restore {vm.name}, or skerry volume detach {row.name}"
        return Blocked(status=blocked, why=Refusal(summary=kept, smallest_change=way_out))
    return wait_behind(vm, f"vm {vm.name} has no host yet", blocked)


def _on_host(row: AnyResource, seen: WorkingSet, host: HostId, size_gib: int) -> Outcome:
    """Have its host make it so, and say how far that is."""
    image = seen.get(Id(row.spec.image)) if row.spec.image else None
    if row.spec.image and (image is None or not image.spec.digest):
        message = f"image {seen.name_of(row.spec.image)} has no content yet"
        return Wait(status=_status(row, seen, "waiting", message), message=message)
    doc = VolumeDoc(
        id=row.id,
        size_gib=size_gib,
        image=image_ref(image) if image else None,
        reverts=row.spec.revert_generation,
        revert_to=Id(row.spec.revert_to) if row.spec.revert_to else None,
        data=row.owner is None,
        snapshot=SnapshotRef(id=Id(row.spec.snapshot), volume=Id(row.spec.snapshot_of)) if row.spec.snapshot else None,
    )
    document = seen.document(host, key_of(doc))
    if document is None or document.gone or document.doc != doc:
        return Do(writes=(PutDocument(host=host, owner=row.id, doc=doc),), say=f"asking host {seen.name_of(host)}")
    report = seen.report(host, document.key)
    if report and report.done:
        allocated = report.seen.allocated_bytes if isinstance(report.seen, VolumeSeen) else 0
        return _settle(row, seen, host, allocated)
    said = (report.problem or report.message) if report else ""
    message = silence(seen, host) or said or f"host {seen.name_of(host)} makes it"
    progress = report.progress if report and report.progress is not None else 0.0
    state = "changing" if row.observed_generation else "creating"
    return Wait(status=_status(row, seen, state, message), message=message, progress=progress)


class _Standing(NamedTuple):
    """How a volume stands with its machine."""

    state: str
    message: str = ""
    settled: bool = True


def _settle(row: AnyResource, seen: WorkingSet, host: HostId, allocated: int) -> Outcome:
    """A disk that is as wished is where it belongs once the machines on its host say so."""
    if row.owner is not None:
        return Done(status=_status(row, seen, "ready", "", allocated))
    vm = seen.get(Id(row.spec.vm)) if row.spec.vm else None
    if vm is not None and (apart := _apart(row, vm, seen)):
        return Blocked(status=_status(row, seen, "blocked", "", allocated), why=apart)
    found = _standing(row, seen, host, vm)
    status = _status(row, seen, found.state, found.message, allocated)
    if found.settled:
        return Done(status=status)
    return Wait(status=status, message=found.message, progress=0.8, seconds=LOOK_AGAIN_S)


def _standing(row: AnyResource, seen: WorkingSet, host: HostId, vm: AnyResource | None) -> _Standing:
    has: dict[str, DomainSeen] = {}
    for key, report in seen.host(host).reports.items():
        if isinstance(report.seen, DomainSeen) and row.id in report.seen.data:
            has[key.partition("/")[2]] = report.seen
    if vm is not None and vm.id in has:
        return _Standing("attached")
    quiet = silence(seen, host)
    if vm is not None and kept_until(vm):
        return _Standing("waiting", f"vm {vm.name} is only kept to be restored, and has it from its next start on")
    if vm is not None:
        document = next((one for one in seen.owned_documents(vm.id) if one.key == f"domain/{vm.id}"), None)
        last_said = seen.report(host, document.key) if document else None
        note = last_said.seen.data_note if last_said and isinstance(last_said.seen, DomainSeen) else ""
        said = (note or last_said.problem or last_said.message) if last_said else ""
        return _Standing("attaching", quiet or said or f"host {seen.name_of(host)} gives it to vm {vm.name}", False)
    if not has:
        return _Standing("detached")
    last, told = next(iter(has.items()))
    return _Standing("detaching", quiet or told.data_note or f"vm {seen.name_of(last)} lets go of it", False)


def _status(row: AnyResource, seen: WorkingSet, state: str, message: str, allocated: int | None = None) -> VolumeStatus:
    host, vm = lies_on(row, seen), row.owner or row.spec.vm
    return VolumeStatus(
        state=state,
        message=message,
        host=seen.name_of(host) if host else "",
        vm=seen.name_of(vm) if vm else "",
        allocated_bytes=row.status.allocated_bytes if allocated is None else allocated,
    )


def _plan_delete(row: AnyResource, seen: WorkingSet) -> Outcome:
    if waiting := wait_for_users(row, seen):
        return waiting
    left = seen.owned_documents(row.id)
    if wanted := [document for document in left if not document.gone]:
        writes = tuple(Tombstone(host=document.host, key=document.key) for document in wanted)
        return Do(writes=writes, say="having it destroyed")
    if left:
        host = left[0].host
        report = seen.report(host, left[0].key)
        said = (report.problem or report.message) if report else ""
        message = silence(seen, host) or said or f"host {seen.name_of(host)} destroys it"
        return Wait(status=_status(row, seen, "deleting", message), message=message)
    claim = (ReleasePlacement(owner=row.id),) if seen.placement(row.id) else ()
    return Do(writes=(*claim, Forget(resource=row.id)), say="forgetting the volume")


def image_ref(image: AnyResource) -> ImageRef:
    """Return an image as hosts know it."""
    return ImageRef(digest=image.spec.digest, format=image.spec.format, size_bytes=image.spec.size_bytes)
