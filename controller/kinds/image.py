"""image: a row, and the bytes that its digest names in the blob directory."""

from common.counters import IMAGE_GIB, IMAGES, Counter
from common.errors import Invalid
from common.kinds.image import ImageSpec
from common.kinds.kind import AnyResource, Spec, Status
from controller.auth.caller import Caller, require_operator
from controller.kinds.outcome import Do, Done, Outcome
from controller.kinds.plain import wait_for_users
from controller.store.working import WorkingSet
from controller.store.writes import Forget

GIB = 1 << 30


def admit(row: AnyResource, _was: AnyResource | None, _seen: WorkingSet, caller: Caller) -> Spec:
    """Only operators may show an image to every project. A bare kernel never starts under Secure Boot."""
    spec: ImageSpec = row.spec
    if spec.public:
        require_operator(caller, "a public image")
    if spec.format == "kernel" and spec.firmware == "uefi-secure":
        raise Invalid(
            f"image {row.name} is a bare kernel: under Secure Boot only a signed boot loader, which is on a disk, can "
            "start one",
            fix="firmware uefi or bios, or an image that is a disk",
        )
    return spec


def counts(row: AnyResource, _seen: WorkingSet) -> dict[Counter, int]:
    """One image, and as much as was uploaded."""
    return {IMAGES: 1, IMAGE_GIB: -(-row.spec.size_bytes // GIB)}


def plan(row: AnyResource, seen: WorkingSet, _now: float) -> Outcome:
    """It is active once its bytes are there. Blobs that no image names are swept by a timer, not by a step."""
    if row.deleted_at is not None:
        return wait_for_users(row, seen) or Do(writes=(Forget(resource=row.id),), say="forgetting the image")
    if not row.spec.digest:
        message = f"has no content yet: skerry image upload {row.name} FILE"
        return Done(status=Status(state="empty", message=message))
    return Done(status=Status(state="active"))
