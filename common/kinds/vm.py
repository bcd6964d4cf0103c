"""vm: a virtual machine."""

from typing import Annotated, Literal

import msgspec

from common.kinds.kind import Column, Extra, Kind, Ref, Role, Scope, ServerSet, Spec, Status, Verb
from common.kinds.size import DiskGib, MemoryMib, Vcpus


class VmSpec(Spec, frozen=True):
    """A machine of a size, from an image, on networks."""

    image: Annotated[str, Ref("image"), msgspec.Meta(description="what it boots from", examples=["tiny"])]
    size: Annotated[str, Ref("size"), msgspec.Meta(description="CPU, memory and disk", examples=["small"])]
    vcpus: Annotated[
        Vcpus | None, msgspec.Meta(description="virtual CPUs, within the bounds of a custom size; none: its least")
    ] = None
    memory_mib: Annotated[
        MemoryMib | None, msgspec.Meta(description="memory, MiB, within the bounds of a custom size; none: its least")
    ] = None
    disk_gib: Annotated[
        DiskGib | None, msgspec.Meta(description="root disk, GiB, within the bounds of a custom size; none: its least")
    ] = None
    networks: Annotated[
        tuple[Annotated[str, Ref("network")], ...],
        msgspec.Meta(min_length=1, max_length=8, description="a NIC in each, in this order"),
    ] = ("default",)
    keypairs: Annotated[
        tuple[Annotated[str, Ref("keypair")], ...],
        msgspec.Meta(max_length=32, description="public keys the guest accepts"),
    ] = ()
    host: Annotated[
        str | None,
        Ref("host"),
        msgspec.Meta(description="pin to this host (operators only); none: Skerry chooses"),
    ] = None
    zone: Annotated[str | None, Ref("zone"), msgspec.Meta(description="pin to the hosts of this zone")] = None
    rack: Annotated[str | None, Ref("rack"), msgspec.Meta(description="pin to the hosts of this rack")] = None
    groups: Annotated[
        tuple[Annotated[str, Ref("group")], ...],
        msgspec.Meta(max_length=8, description="groups whose rule it obeys: machines apart, or together"),
    ] = ()
    user_data: Annotated[
        str,
        msgspec.Meta(max_length=65536, description="given to the guest unread: cloud-config or a script"),
    ] = ""
    nocloud: Annotated[
        bool, msgspec.Meta(description="attach a NoCloud disk, for guests without the metadata service")
    ] = False
    restart: Annotated[
        Literal["on-crash", "never"],
        msgspec.Meta(description="what happens when the guest dies without having been asked to"),
    ] = "on-crash"
    stop_grace_s: Annotated[
        int, msgspec.Meta(ge=0, le=600, description="seconds a guest has to power off before it is cut off")
    ] = 20
    power: Annotated[
        Literal["running", "stopped"],
        ServerSet(),
        msgspec.Meta(description="set by the verbs start and stop"),
    ] = "running"
    start_generation: Annotated[
        int,
        ServerSet(),
        msgspec.Meta(description="counts wishes to start: revives a guest that powered itself off"),
    ] = 1
    boot_generation: Annotated[int, ServerSet(), msgspec.Meta(description="counts wishes to reboot")] = 1


class VmStatus(Status, frozen=True):
    """What the host reports."""

    host: str = ""
    """The host's name."""
    addresses: tuple[str, ...] = ()
    boot_generation: int = 0
    started_at: float = 0


def _start(spec: VmSpec) -> VmSpec:
    return msgspec.structs.replace(spec, power="running", start_generation=spec.start_generation + 1)


def _stop(spec: VmSpec) -> VmSpec:
    return msgspec.structs.replace(spec, power="stopped")


def _reboot(spec: VmSpec) -> VmSpec:
    return msgspec.structs.replace(spec, boot_generation=spec.boot_generation + 1)


VM = Kind(
    name="vm",
    plural="vms",
    prefix="vm",
    scope=Scope.PROJECT,
    spec=VmSpec,
    status=VmStatus,
    summary="A virtual machine.",
    example="skerry vm create web --image tiny --size small --wait",
    columns=(
        Column(title="NAME", path="name"),
        Column(title="STATE", path="status.state"),
        Column(title="ADDRESSES", path="status.addresses"),
        Column(title="SIZE", path="spec.size"),
        Column(title="IMAGE", path="spec.image"),
        Column(title="HOST", path="status.host"),
        Column(title="MESSAGE", path="status.message"),
    ),
    verbs=(
        Verb(name="start", summary="Power the machine on.", change=_start),
        Verb(
            name="stop",
            summary="Power it off: asks the guest, then cuts it off after stop_grace_s.",
            change=_stop,
        ),
        Verb(name="reboot", summary="Power it off like stop, and on again.", change=_reboot),
    ),
    extras=(
        Extra(
            name="console",
            method="GET",
            summary="Attach to the serial console (websocket, binary frames).",
            role=Role.MEMBER,
            returns="websocket",
        ),
        Extra(
            name="log",
            method="GET",
            summary="Read the serial console's log, from the first boot line on.",
            role=Role.READER,
            returns="text/plain",
        ),
        Extra(name="why", method="GET", summary="Explain why the machine is not as wished.", role=Role.READER),
    ),
    fixed=frozenset({"image", "size", "vcpus", "memory_mib", "disk_gib", "networks", "host", "zone", "rack", "groups"}),
)
