"""volume: a disk on one host. In this release machines make their root volumes; nobody else makes any."""

from typing import Annotated

import msgspec

from common.counters import DISK_GIB, VOLUMES
from common.kinds.kind import Column, Kind, Ref, Scope, ServerSet, Spec, Status


class VolumeSpec(Spec, frozen=True):
    """A disk of a size, blank or cloned from an image."""

    size_gib: Annotated[int, msgspec.Meta(ge=1, le=65536, description="the disk's size, GiB")]
    image: Annotated[
        str | None, Ref("image"), msgspec.Meta(description="what it is cloned from; none: a blank disk")
    ] = None
    host: Annotated[str, Ref("host"), ServerSet(), msgspec.Meta(description="the host it lies on")] = ""


class VolumeStatus(Status, frozen=True):
    """What the host reports."""

    allocated_bytes: int = 0


VOLUME = Kind(
    name="volume",
    plural="volumes",
    prefix="vol",
    scope=Scope.PROJECT,
    spec=VolumeSpec,
    status=VolumeStatus,
    summary="A disk. Root disks are made and deleted with their machine.",
    example="skerry volume list",
    counters=(VOLUMES, DISK_GIB),
    columns=(
        Column(title="NAME", path="name"),
        Column(title="STATE", path="status.state"),
        Column(title="GIB", path="spec.size_gib"),
        Column(title="IMAGE", path="spec.image"),
        Column(title="HOST", path="spec.host"),
        Column(title="OWNER", path="owner"),
    ),
    create=None,
    change=None,
    delete=None,
    fixed=frozenset({"size_gib", "image"}),
)
