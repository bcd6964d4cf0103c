"""snapshot: what a volume held at one moment, kept beside it on the same host."""

from typing import Annotated

import msgspec

from common.counters import DISK_GIB, SNAPSHOTS
from common.kinds.kind import WHY, Column, Kind, Ref, Scope, ServerSet, Spec, Status


class SnapshotSpec(Spec, frozen=True):
    """Of which volume."""

    volume: Annotated[
        str, Ref("volume"), msgspec.Meta(description="the volume whose content it keeps", examples=["data"])
    ]
    size_gib: Annotated[
        int, ServerSet(), msgspec.Meta(description="the volume's size then, GiB: what the snapshot may come to take")
    ] = 0


class SnapshotStatus(Status, frozen=True):
    """What the host reports."""

    host: str = ""
    """The host's name."""


SNAPSHOT = Kind(
    name="snapshot",
    plural="snapshots",
    prefix="snap",
    scope=Scope.PROJECT,
    spec=SnapshotSpec,
    status=SnapshotStatus,
    summary="What a volume held at one moment. The volume can be reverted to it.",
    example="skerry snapshot create before-upgrade --volume data",
    counters=(SNAPSHOTS, DISK_GIB),
    columns=(
        Column(title="NAME", path="name"),
        Column(title="STATE", path="status.state"),
        Column(title="VOLUME", path="spec.volume"),
        Column(title="GIB", path="spec.size_gib"),
        Column(title="HOST", path="status.host"),
        Column(title="MESSAGE", path="status.message"),
    ),
    extras=(WHY,),
    fixed=frozenset({"volume"}),
)
