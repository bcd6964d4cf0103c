"""volume: a disk on one host. Users make data volumes; root disks are made by their machines."""

from typing import Annotated

import msgspec

from common.counters import DISK_GIB, VOLUMES
from common.kinds.kind import WHY, Column, Kind, Nothing, Ref, Scope, ServerSet, Spec, Status, Verb

MOST_ATTACHED = 8
"""Data volumes that one machine may have: each takes a slot that its definition keeps free for it."""


class VolumeSpec(Spec, frozen=True):
    """A disk of a size, blank or cloned from an image or a snapshot, and the machine that has it."""

    size_gib: Annotated[
        int,
        msgspec.Meta(
            ge=0,
            le=65536,
            description="the disk's size, GiB; it only grows; 0: as large as what it is cloned from",
            examples=[10],
        ),
    ] = 0
    image: Annotated[
        str | None, Ref("image"), msgspec.Meta(description="what it is cloned from; none: a blank disk")
    ] = None
    snapshot: Annotated[
        str | None,
        Ref("snapshot", holds=False),
        msgspec.Meta(description="what it is cloned from in place of an image, on the snapshot's host"),
    ] = None
    snapshot_of: Annotated[str, ServerSet(), msgspec.Meta(description="the volume (its id) that this is one of")] = ""
    vm: Annotated[
        str | None, Ref("vm", holds=False), msgspec.Meta(description="the machine it is attached to; none: detached")
    ] = None
    protected: Annotated[bool, msgspec.Meta(description="refuse to delete it until this is taken back")] = False
    host: Annotated[str, Ref("host"), ServerSet(), msgspec.Meta(description="the host that a root disk lies on")] = ""
    revert_generation: Annotated[
        int, ServerSet(), msgspec.Meta(description="counts wishes to revert it to a snapshot")
    ] = 0
    revert_to: Annotated[
        str, ServerSet(), msgspec.Meta(description="the snapshot (its id) that the last of them named")
    ] = ""


class Attach(Spec, frozen=True):
    """What a volume is attached to."""

    vm: Annotated[str, Ref("vm"), msgspec.Meta(description="the machine that is to have it")]


class Revert(Spec, frozen=True):
    """What a volume is reverted to."""

    snapshot: Annotated[str, Ref("snapshot"), msgspec.Meta(description="one of its own")]


class VolumeStatus(Status, frozen=True):
    """What the host reports."""

    host: str = ""
    """The host's name; empty: it has none yet."""
    vm: str = ""
    """The machine that has it, by name."""
    allocated_bytes: int = 0


def _attach(spec: VolumeSpec, to: Attach) -> VolumeSpec:
    return msgspec.structs.replace(spec, vm=to.vm)


def _detach(spec: VolumeSpec, _: Nothing) -> VolumeSpec:
    return msgspec.structs.replace(spec, vm=None)


def _revert(spec: VolumeSpec, to: Revert) -> VolumeSpec:
    return msgspec.structs.replace(spec, revert_generation=spec.revert_generation + 1, revert_to=to.snapshot)


VOLUME = Kind(
    name="volume",
    plural="volumes",
    prefix="vol",
    scope=Scope.PROJECT,
    spec=VolumeSpec,
    status=VolumeStatus,
    summary="A disk. Data volumes outlive their machines; root disks are made and deleted with theirs.",
    example="skerry volume create data --size-gib 10 --vm web",
    counters=(VOLUMES, DISK_GIB),
    columns=(
        Column(title="NAME", path="name"),
        Column(title="STATE", path="status.state"),
        Column(title="GIB", path="spec.size_gib"),
        Column(title="IMAGE", path="spec.image"),
        Column(title="HOST", path="status.host"),
        Column(title="VM", path="status.vm"),
        Column(title="MESSAGE", path="status.message"),
    ),
    verbs=(
        Verb(
            name="attach",
            summary="Give it to a machine, which may run on: its guest finds /dev/disk/by-id/virtio-ID.",
            change=_attach,
            takes=Attach,
            example="--vm web",
        ),
        Verb(
            name="detach",
            summary="Take it from its machine, once the guest lets go of it. Unmount it there first.",
            change=_detach,
        ),
        Verb(
            name="revert",
            summary="Have it hold again what a snapshot of it holds. All that was written since is lost. "
            "It must be detached, or its machine stopped.",
            change=_revert,
            takes=Revert,
            example="--snapshot before-upgrade",
            final=True,
        ),
    ),
    extras=(WHY,),
    fixed=frozenset({"image", "snapshot"}),
)
