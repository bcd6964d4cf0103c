"""snapshot: a document beside its volume's, with a claim as large as the volume was: so much it may come to take."""

import msgspec

from common.counters import DISK_GIB, SNAPSHOTS, Counter
from common.documents import SnapshotDoc, VolumeDoc, key_of
from common.errors import Conflict
from common.ids import Id
from common.kinds.kind import AnyResource, Spec
from common.kinds.snapshot import SnapshotSpec, SnapshotStatus
from common.refusal import Refusal
from controller.auth.caller import Caller
from controller.kinds.claim import disk_claim, short_of
from controller.kinds.outcome import Blocked, Do, Done, Outcome, Wait
from controller.kinds.plain import LOOK_AGAIN_S, silence, wait_behind
from controller.store.working import WorkingSet
from controller.store.writes import Forget, PutDocument, ReleasePlacement, TakePlacement, Tombstone


def admit(row: AnyResource, was: AnyResource | None, seen: WorkingSet, _caller: Caller) -> Spec:
    """Check that there is something to keep, and note how large it is."""
    spec: SnapshotSpec = row.spec
    volume = seen.get(Id(spec.volume))
    if was is not None or volume is None:
        return spec
    if volume.owner is not None:
        raise Conflict(
            f"volume {volume.name} is a disk of vm {seen.name_of(volume.owner)}; only data volumes have snapshots",
            fix="keep what matters on a volume of its own: skerry volume create NAME --size-gib N --vm VM",
        )
    if seen.placement(volume.id) is None and not _gets_host(volume):
        raise Conflict(
            f"volume {volume.name} holds nothing yet: it was never attached",
            fix=f"skerry volume attach {volume.name} --vm VM",
        )
    if volume.spec.revert_generation and volume.observed_generation < volume.generation:
        raise Conflict(f"volume {volume.name} is being changed", fix=f"wait for it: skerry volume show {volume.name}")
    return msgspec.structs.replace(spec, size_gib=volume.spec.size_gib)


def counts(row: AnyResource, _seen: WorkingSet) -> dict[Counter, int]:
    """One snapshot, of its volume's size."""
    return {SNAPSHOTS: 1, DISK_GIB: row.spec.size_gib}


def plan(row: AnyResource, seen: WorkingSet, _now: float) -> Outcome:
    """Have it taken where its volume lies, and dropped there."""
    if row.deleted_at is not None:
        return _plan_delete(row, seen)
    placement, volume = seen.placement(row.id), seen.placement(Id(row.spec.volume))
    if placement is None:
        if volume is None:
            return _without_host(row, seen)
        wanted = disk_claim(row, volume.host)
        if short := short_of(row, seen, wanted):
            return Blocked(status=_status(row, seen, "blocked", ""), why=short)
        return Do(writes=(TakePlacement(placement=wanted),), say="reserving its room")
    host, doc = placement.host, SnapshotDoc(id=row.id, volume=Id(row.spec.volume))
    document = seen.document(host, key_of(doc))
    if document is None or document.gone or document.doc != doc:
        return Do(writes=(PutDocument(host=host, owner=row.id, doc=doc),), say=f"asking host {seen.name_of(host)}")
    report = seen.report(host, document.key)
    if report and report.done:
        return Done(status=_status(row, seen, "ready", ""))
    said = (report.problem or report.message) if report else ""
    message = silence(seen, host) or said or f"host {seen.name_of(host)} takes it"
    return Wait(status=_status(row, seen, "creating", message), message=message)


def is_reverting_to(row: AnyResource, volume: AnyResource, seen: WorkingSet) -> bool:
    """Say whether a volume is on the way back to a snapshot: its host has not said yet that it is there."""
    if volume.spec.revert_to != row.id:
        return False
    for document in seen.owned_documents(volume.id):
        if isinstance(document.doc, VolumeDoc) and document.doc.reverts == volume.spec.revert_generation:
            report = seen.report(document.host, document.key)
            return not (report and report.done)
    return True


def is_being_cloned(row: AnyResource, clone: AnyResource, seen: WorkingSet) -> bool:
    """Say whether a volume is on the way to be made from a snapshot: its host has not said yet that it is there. One
    that finds no room is not."""
    there = seen.placement(row.id)
    if clone.deleted_at is not None or clone.observed_generation > 0 or there is None:
        return False
    for document in seen.owned_documents(clone.id):
        report = seen.report(document.host, document.key)
        return not (report and report.done)
    return seen.placement(clone.id) is not None or short_of(clone, seen, disk_claim(clone, there.host)) is None


def _without_host(row: AnyResource, seen: WorkingSet) -> Outcome:
    """Wait for its volume to be placed; where that does not come, say why."""
    volume, name = seen.get(Id(row.spec.volume)), seen.name_of(row.spec.volume)
    message = f"volume {name} lies on no host yet"
    status = _status(row, seen, "blocked", "")
    if volume and (volume.status.why or _gets_host(volume)):
        return wait_behind(volume, message, status)
    way_out = f"attach it (skerry volume attach {name} --vm VM), or delete snapshot {row.name}"
    return Blocked(status=status, why=Refusal(summary=message, smallest_change=way_out))


def _gets_host(volume: AnyResource) -> bool:
    """Say whether a volume that lies nowhere will lie somewhere: with its machine, or with what it is cloned from."""
    return bool(volume.spec.vm or volume.spec.snapshot)


def _plan_delete(row: AnyResource, seen: WorkingSet) -> Outcome:
    volume = seen.get(Id(row.spec.volume))
    if volume and volume.deleted_at is None and is_reverting_to(row, volume, seen):
        message = f"kept until volume {volume.name} is reverted to it, or is deleted"
        return Wait(status=_status(row, seen, "deleting", message), message=message, seconds=LOOK_AGAIN_S)
    left = seen.owned_documents(row.id)
    wanted = [document for document in left if not document.gone]
    if wanted and (clones := [one for one in seen.users(row.id) if is_being_cloned(row, one, seen)]):
        message = f"kept until volume {clones[0].name} is made from it, or is deleted"
        return Wait(status=_status(row, seen, "deleting", message), message=message, seconds=LOOK_AGAIN_S)
    if wanted:
        writes = tuple(Tombstone(host=document.host, key=document.key) for document in wanted)
        return Do(writes=writes, say="having it dropped")
    if left:
        host = left[0].host
        message = silence(seen, host) or f"host {seen.name_of(host)} drops it"
        return Wait(status=_status(row, seen, "deleting", message), message=message)
    return Do(writes=(ReleasePlacement(owner=row.id), Forget(resource=row.id)), say="forgetting the snapshot")


def _status(row: AnyResource, seen: WorkingSet, state: str, message: str) -> SnapshotStatus:
    placement = seen.placement(row.id)
    return SnapshotStatus(state=state, message=message, host=seen.name_of(placement.host) if placement else "")
