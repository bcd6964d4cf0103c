"""volume: one document on one host, from the owner's step that makes it to the host's word that it is gone."""

from common.counters import DISK_GIB, VOLUMES, Counter
from common.documents import ImageRef, VolumeDoc, VolumeSeen, key_of
from common.ids import HostId, Id
from common.kinds.kind import AnyResource
from common.kinds.volume import VolumeStatus
from controller.kinds.outcome import Do, Done, Outcome, Wait
from controller.kinds.plain import silence, wait_for_users
from controller.store.working import WorkingSet
from controller.store.writes import Forget, PutDocument, Tombstone


def counts(row: AnyResource, _seen: WorkingSet) -> dict[Counter, int]:
    """One volume of its size. (A root volume counts with its machine.)"""
    return {VOLUMES: 1, DISK_GIB: row.spec.size_gib}


def plan(row: AnyResource, seen: WorkingSet, _now: float) -> Outcome:
    """Have it made on its host, and destroyed there."""
    host = HostId(Id(row.spec.host))
    if row.deleted_at is not None:
        return _plan_delete(row, seen, host)
    image = seen.get(Id(row.spec.image)) if row.spec.image else None
    if row.spec.image and (image is None or not image.spec.digest):
        message = f"image {seen.name_of(row.spec.image)} has no content yet"
        return Wait(status=VolumeStatus(state="waiting", message=message), message=message)
    doc = VolumeDoc(id=row.id, size_gib=row.spec.size_gib, image=image_ref(image) if image else None)
    document = seen.document(host, key_of(doc))
    if document is None or document.gone or document.doc != doc:
        return Do(writes=(PutDocument(host=host, owner=row.id, doc=doc),), say=f"asking host {seen.name_of(host)}")
    report = seen.report(host, document.key)
    if report and report.done:
        allocated = report.seen.allocated_bytes if isinstance(report.seen, VolumeSeen) else 0
        return Done(status=VolumeStatus(state="ready", allocated_bytes=allocated))
    said = (report.problem or report.message) if report else ""
    message = silence(seen, host) or said or f"host {seen.name_of(host)} makes it"
    progress = report.progress if report and report.progress is not None else 0.0
    state = "growing" if row.observed_generation else "creating"
    return Wait(status=VolumeStatus(state=state, message=message), message=message, progress=progress)


def _plan_delete(row: AnyResource, seen: WorkingSet, host: HostId) -> Outcome:
    if waiting := wait_for_users(row, seen):
        return waiting
    left = seen.owned_documents(row.id)
    if wanted := [document for document in left if not document.gone]:
        writes = tuple(Tombstone(host=document.host, key=document.key) for document in wanted)
        return Do(writes=writes, say="having it destroyed")
    if left:
        message = silence(seen, host) or f"host {seen.name_of(host)} destroys it"
        return Wait(status=VolumeStatus(state="deleting", message=message), message=message)
    return Do(writes=(Forget(resource=row.id),), say="forgetting the volume")


def image_ref(image: AnyResource) -> ImageRef:
    """Return an image as hosts know it."""
    return ImageRef(digest=image.spec.digest, format=image.spec.format, size_bytes=image.spec.size_bytes)
