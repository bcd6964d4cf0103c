"""vm: a virtual machine."""

from typing import Annotated, Literal

import msgspec

from common.boots import FirstBoot
from common.counters import ADDRESSES, DISK_GIB, MEMORY_MIB, VCPUS, VMS, VOLUMES
from common.cpus import CpuWish
from common.firmware import Firmware
from common.kinds.kind import (
    WHY,
    Column,
    Counts,
    Extra,
    Kind,
    Nothing,
    Private,
    Ref,
    Role,
    Scope,
    ServerSet,
    Spec,
    Status,
    Verb,
)
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
    beside: Annotated[
        str | None,
        Ref("volume", holds=False),
        msgspec.Meta(description="place it on the host of this volume, so that it can be attached"),
    ] = None
    groups: Annotated[
        tuple[Annotated[str, Ref("group")], ...],
        msgspec.Meta(max_length=8, description="groups whose rule it obeys: machines apart, or together"),
    ] = ()
    ha: Annotated[
        bool,
        msgspec.Meta(description="whether room is kept for it on another host, in a zone that does so (n_minus_one)"),
    ] = True
    user_data: Annotated[
        str,
        Private(),
        msgspec.Meta(max_length=65536, description="given to the guest unread: cloud-config or a script"),
    ] = ""
    metadata_tokens: Annotated[
        Literal["project", "optional", "required"],
        msgspec.Meta(
            description="whether the metadata service answers only who shows a session token (IMDSv2); "
            "project: as its project says"
        ),
    ] = "project"
    metadata_hops: Annotated[
        int,
        msgspec.Meta(
            ge=1,
            le=64,
            description="routers that a session token may pass inside the guest, such as "
            "a container's: the TTL of the packets that carry it",
        ),
    ] = 1
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
    protected: Annotated[bool, msgspec.Meta(description="refuse to delete it until this is taken back")] = False
    ttl_s: Annotated[
        int,
        msgspec.Meta(
            ge=0, le=10 * 366 * 86400, description="seconds after its creation at which its time is over; 0: never"
        ),
    ] = 0
    on_expiry: Annotated[Literal["stop", "delete"], msgspec.Meta(description="what happens when its time is over")] = (
        "stop"
    )
    kept_until: Annotated[
        float,
        ServerSet(),
        msgspec.Meta(description="when it was deleted: until when it can be restored, epoch seconds; 0: not deleted"),
    ] = 0.0
    cpu_weight: Annotated[
        int,
        msgspec.Meta(
            ge=1,
            le=10000,
            description="its share of the host's CPUs where machines compete for them: 50 gets half of what 100 gets "
            "(more than 100: operators only)",
        ),
    ] = 100
    cpu_cap_percent: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=25600)] | None,
        msgspec.Meta(description="the most CPU it may use, percent of one hardware thread; none: no cap"),
    ] = None
    memory_min_mib: Annotated[
        MemoryMib | None,
        msgspec.Meta(
            description="memory that it keeps while its host is short of it, MiB: what it does not use above that is "
            "lent; none: all of it"
        ),
    ] = None
    cpu: Annotated[
        CpuWish,
        msgspec.Meta(
            description="the CPU that its guest sees, from its next start on. shared: what all hosts can give, so "
            "that it can move to any of them; a level: what those of at least this level can give, and only they take "
            "it; host: all that its own host has (operators only)"
        ),
    ] = "shared"
    firmware: Annotated[
        Firmware,
        msgspec.Meta(
            description="what it starts with, from its next start on. uefi-secure: UEFI with Secure Boot, which starts "
            "only what Microsoft or its image's maker has signed"
        ),
    ] = "bios"
    tpm: Annotated[
        bool,
        msgspec.Meta(
            description="whether it has a TPM 2.0, from its next start on; what that holds stays until the machine is "
            "rebuilt or deleted"
        ),
    ] = False
    power: Annotated[
        Literal["running", "stopped"],
        ServerSet(),
        msgspec.Meta(description="set by the verbs start and stop"),
    ] = "running"
    start_generation: Annotated[
        int,
        ServerSet(),
        Counts(),
        msgspec.Meta(description="counts wishes to start: revives a guest that powered itself off"),
    ] = 1
    boot_generation: Annotated[
        int,
        ServerSet(),
        msgspec.Meta(description="which boot it is to run; a cancel goes back to the one before"),
    ] = 1
    boots: Annotated[
        int, ServerSet(), Counts(), msgspec.Meta(description="the highest number that a boot was given")
    ] = 1
    kept_disk_gib: Annotated[
        int,
        ServerSet(),
        msgspec.Meta(description="root disk, GiB, that it keeps since it was larger once: disks never shrink"),
    ] = 0
    rebuild_generation: Annotated[
        int, ServerSet(), msgspec.Meta(description="counts its root disks, but the first")
    ] = 0
    rescue: Annotated[
        str | None,
        Ref("image"),
        ServerSet(),
        msgspec.Meta(description="what it boots from in place of its own disk; set by rescue and unrescue"),
    ] = None
    rescue_generation: Annotated[
        int, ServerSet(), msgspec.Meta(description="the boot that its rescue disk was made for")
    ] = 0
    rescue_after: Annotated[
        int, ServerSet(), msgspec.Meta(description="the boot that it runs until its rescue disk can be made")
    ] = 0


class Resize(Spec, frozen=True):
    """What a machine is to have."""

    size: Annotated[
        str | None,
        Ref("size"),
        msgspec.Meta(description="another size; none: the one it has, with other values within its bounds"),
    ] = None
    vcpus: Annotated[Vcpus | None, msgspec.Meta(description="virtual CPUs, within the bounds of a custom size")] = None
    memory_mib: Annotated[
        MemoryMib | None, msgspec.Meta(description="memory, MiB, within the bounds of a custom size")
    ] = None
    disk_gib: Annotated[
        DiskGib | None, msgspec.Meta(description="root disk, GiB, within the bounds of a custom size; it only grows")
    ] = None
    restart: Annotated[
        bool,
        msgspec.Meta(
            description="power it off and on at once; else what can't change while it runs does so at its next start "
            "or reboot"
        ),
    ] = False


class Rebuild(Spec, frozen=True):
    """What a machine's new root disk is made from."""

    image: Annotated[
        str | None, Ref("image"), msgspec.Meta(description="what it boots from then; none: the image that it has")
    ] = None


class Rescue(Spec, frozen=True):
    """What a machine is rescued with."""

    image: Annotated[
        str | None, Ref("image"), msgspec.Meta(description="what it boots from; none: the image that it was made from")
    ] = None


class VmStatus(Status, frozen=True):
    """What the host reports."""

    host: str = ""
    """The host's name."""
    addresses: tuple[str, ...] = ()
    boot_generation: int = 0
    started_at: float = 0
    vcpus: int = 0
    """That it runs with."""
    memory_mib: int = 0
    """That it runs with."""
    vcpus_max: int = 0
    """Up to which they can be grown while it runs."""
    memory_max_mib: int = 0
    """Likewise; 0: not while it runs."""
    disk_gib: int = 0
    """Of its root disk."""
    first_boot: FirstBoot | None = None
    """How it came up for the first time; None: its host has not said."""
    balloon_mib: int = 0
    """Memory that it has while it lends some to its host; 0: all."""
    cpu: str = ""
    """The CPU that its guest sees."""
    firmware: str = ""
    """What it was started with, a TPM included; empty: it is off, or its host does not say."""


def _start(spec: VmSpec, _: Nothing) -> VmSpec:
    return msgspec.structs.replace(spec, power="running", start_generation=spec.start_generation + 1)


def _stop(spec: VmSpec, _: Nothing) -> VmSpec:
    return msgspec.structs.replace(spec, power="stopped")


def _next_boot(spec: VmSpec) -> int:
    return max(spec.boots, spec.boot_generation) + 1


def _booted(spec: VmSpec) -> VmSpec:
    """Wish for a boot. One that is in rescue, or waits for it, is booted meanwhile too."""
    number = _next_boot(spec)
    if spec.rescue is None:
        return msgspec.structs.replace(spec, boot_generation=number, boots=number)
    return msgspec.structs.replace(spec, rescue_after=number, boot_generation=number + 1, boots=number + 1)


def _reboot(spec: VmSpec, _: Nothing) -> VmSpec:
    return _booted(spec)


def _resize(spec: VmSpec, to: Resize) -> VmSpec:
    """Take what is given; of another size nothing else stays."""
    values = {"vcpus": to.vcpus, "memory_mib": to.memory_mib, "disk_gib": to.disk_gib}
    if to.size is None or to.size == spec.size:
        values = {name: value for name, value in values.items() if value is not None}
    return msgspec.structs.replace(_booted(spec) if to.restart else spec, size=to.size or spec.size, **values)


def _rebuild(spec: VmSpec, with_: Rebuild) -> VmSpec:
    """A new disk needs no rescue."""
    out = msgspec.structs.replace(spec, rescue=None)
    return msgspec.structs.replace(
        _booted(out), image=with_.image or spec.image, rebuild_generation=spec.rebuild_generation + 1
    )


def _rescue(spec: VmSpec, with_: Rescue) -> VmSpec:
    number = _next_boot(spec)
    return msgspec.structs.replace(
        spec,
        rescue=with_.image or spec.image,
        rescue_generation=number,
        rescue_after=spec.boot_generation if spec.rescue is None else spec.rescue_after,
        boot_generation=number,
        boots=number,
        power="running",
    )


def _unrescue(spec: VmSpec, _: Nothing) -> VmSpec:
    if spec.rescue is None:
        return spec
    return _booted(msgspec.structs.replace(spec, rescue=None))


def _restore(spec: VmSpec, _: Nothing) -> VmSpec:
    """A host starts what is off for a new run only."""
    return msgspec.structs.replace(spec, kept_until=0.0, start_generation=spec.start_generation + 1)


VM = Kind(
    name="vm",
    plural="vms",
    prefix="vm",
    scope=Scope.PROJECT,
    spec=VmSpec,
    status=VmStatus,
    summary="A virtual machine.",
    example="skerry vm create web --image tiny --size small --wait",
    counters=(VMS, VCPUS, MEMORY_MIB, VOLUMES, DISK_GIB, ADDRESSES),
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
        Verb(
            name="resize",
            summary="Give it another size, on the host where it is. What grows does so while it runs, as far as it was "
            "started with room for that; else CPU and memory change at its next start or reboot (--restart: now).",
            change=_resize,
            takes=Resize,
            example="--size large --restart",
        ),
        Verb(
            name="rebuild",
            summary="Make its root disk anew from an image. All that was on the disk is lost; name, addresses and "
            "MACs stay.",
            change=_rebuild,
            takes=Rebuild,
            example="--image tiny",
            final=True,
        ),
        Verb(
            name="rescue",
            summary="Boot it from an image, with its own disk as the second one, to repair that.",
            change=_rescue,
            takes=Rescue,
            example="--image tiny",
        ),
        Verb(name="unrescue", summary="Boot it from its own disk again.", change=_unrescue),
        Verb(
            name="restore",
            summary="Take its deletion back, while its project keeps it (keep_deleted_s).",
            change=_restore,
            restores=True,
        ),
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
        Extra(
            name="metrics", method="GET", summary="Show what the machine used, over any span of time.", role=Role.READER
        ),
        WHY,
    ),
    fixed=frozenset(
        {
            "image",
            "size",
            "vcpus",
            "memory_mib",
            "disk_gib",
            "networks",
            "host",
            "zone",
            "rack",
            "beside",
            "groups",
            "ha",
        }
    ),
    keeps=True,
)
