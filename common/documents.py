"""What one host should have: desired documents, and what it reports of each.

A document is known by its key, `<type>/<id>`. The controller sends upserts and tombstones, each with the revision
at which the store wrote it; the agent keeps them on its disk and answers with one `Report` per key.
Absence is not an order: only a tombstone (`gone=True`, which carries the last document) destroys.
"""

from typing import Annotated, Literal, NewType

import msgspec

from common.boots import FirstBoot
from common.cpus import CpuWish
from common.firmware import Firmware
from common.ids import HostId, Id, RequestId, Revision, is_id
from common.kinds.image import ImageFormat

DocKey = NewType("DocKey", str)


class Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The base of all documents: plain frozen structs, told apart by their tag.

    A new field has a default that means what was so before. Defaults are not sent, so that an agent one version behind
    takes every document that does not use the field; one that does it refuses, rather than build something else. So the
    controller uses one only for hosts that say they can do what it asks for (`Inventory.capabilities`).
    """


class ImageRef(Document, frozen=True):
    """An image a volume is cloned from or a domain boots: hosts fetch it by digest from the controller."""

    digest: str
    """`sha256:` and 64 hex digits."""
    format: ImageFormat
    size_bytes: int


class SnapshotRef(Document, frozen=True):
    """A snapshot on the same host that a disk is cloned from."""

    id: Id
    volume: Id
    """That it is one of."""


class VolumeDoc(Document, frozen=True, tag="volume", tag_field="type"):
    """A disk that should exist. A kernel image gives a blank disk."""

    id: Id
    size_gib: int
    image: ImageRef | None
    reverts: int = 0
    """How often it is to have been reverted to a snapshot. The disk itself tells how often it was."""
    revert_to: Id | None = None
    """The snapshot of the last time."""
    data: bool = False
    """Users' own: once made it is never made anew, blank, in place of what was lost."""
    snapshot: SnapshotRef | None = None
    """What it is cloned from, in place of an image. Once it is made it may go."""


class SnapshotDoc(Document, frozen=True, tag="snapshot", tag_field="type"):
    """A snapshot of a volume on the same host that should exist."""

    id: Id
    volume: Id


class DataDisk(Document, frozen=True):
    """A data volume of a domain, attached and detached while it runs."""

    volume: Id
    reverts: int = 0
    """As in its `VolumeDoc`: the domain gets it once the disk was reverted so often."""


class Nic(Document, frozen=True):
    """One NIC of a domain. Its tap is `names.tap(vm, index)`, in the bridge of the network."""

    index: int
    network: Id
    mac: str
    mtu: int


class GuestMetadata(Document, frozen=True):
    """What the metadata service and the NoCloud disk tell the guest. Only its own host ever gets it."""

    instance_id: Id
    hostname: str
    project: str
    public_keys: tuple[tuple[str, str], ...]
    """(name, key) pairs."""
    user_data: str
    host: str
    """The host's name, shown as the placement's availability zone."""
    token_required: bool = False
    """Whether the metadata service answers only who shows a session token (IMDSv2)."""
    token_hops: int = 1
    """How many routers a session token may pass on its way: the TTL of the packets that carry it."""


class GuestCpu(Document, frozen=True):
    """The CPU that a guest sees, chosen when it is started and the same for as long as it runs."""

    wish: CpuWish
    """What it was chosen for."""
    flags: tuple[str, ...]
    """All that it has, by libvirt's names, in order."""


class DomainDoc(Document, frozen=True, tag="domain", tag_field="type"):
    """A machine that should exist, and whether it should run."""

    id: Id
    name: str
    project: str
    vcpus: int
    memory_mib: int
    kernel: ImageRef | None
    """Boot this kernel and initrd; None: boot from the root volume."""
    volumes: tuple[Id, ...]
    """The disks in order, root first. Each is a `VolumeDoc` on the same host."""
    nics: tuple[Nic, ...]
    power: Literal["running", "stopped"]
    start_generation: int
    boot_generation: int
    restart: Literal["on-crash", "never"]
    stop_grace_s: int
    nocloud: bool
    metadata: GuestMetadata
    cpu_weight: int = 100
    """Its share of the host's CPUs where guests compete for them, beside the 100 of a plain one."""
    cpu_cap_percent: int | None = None
    """The most it may use, percent of one hardware thread; None: no cap."""
    memory_min_mib: int | None = None
    """How much memory it keeps where the host is short of it; None: all."""
    data: tuple[DataDisk, ...] = ()
    """Beside `volumes`, which it boots from."""
    cpu: GuestCpu | None = None
    """The CPU that it sees from its start on; None: all that its host has."""
    vcpus_max: int = 0
    """The vCPUs that it is started with room for; 0: for no more than it has."""
    memory_max_mib: int = 0
    """Likewise the memory."""
    firmware: Firmware = "bios"
    """UEFI's variables go with the disk that it boots from, the first one."""
    tpm: bool = False
    """Whether it has a TPM. What that holds goes with its own disk, the last one of `volumes`."""


class NetworkDoc(Document, frozen=True, tag="network", tag_field="type"):
    """A network that should be on this host: bridge, VXLAN device, router namespace (gateway, DHCP, DNS, metadata)."""

    id: Id
    vni: int
    cidr: str
    gateway: str
    mtu: int
    domain: str
    """The DNS domain of its names: `<network>.<project>.internal`."""


class PortDoc(Document, frozen=True, tag="port", tag_field="type"):
    """One NIC's address in a network, known on every host that has the network."""

    vm: Id
    index: int
    network: Id
    mac: str
    address: str
    hostname: str
    host: HostId
    """Where it runs. Equal to the reading host: local."""
    vtep: str
    """That host's tunnel endpoint address."""


AnyDoc = VolumeDoc | SnapshotDoc | DomainDoc | NetworkDoc | PortDoc


def key_of(doc: AnyDoc) -> DocKey:
    """Return a document's key."""
    match doc:
        case DomainDoc():
            return DocKey(f"domain/{doc.id}")
        case VolumeDoc():
            return DocKey(f"volume/{doc.id}")
        case SnapshotDoc():
            return DocKey(f"snapshot/{doc.id}")
        case NetworkDoc():
            return DocKey(f"network/{doc.id}")
        case PortDoc():
            return DocKey(f"port/{doc.vm}.{doc.index}")


class Desired(msgspec.Struct, frozen=True, kw_only=True):
    """One document as the controller wants it on one host."""

    key: DocKey
    revision: Revision
    doc: AnyDoc
    gone: bool = False
    """A tombstone: destroy it, and report when it is gone."""
    request: RequestId = RequestId("")
    """Of the caller it was written for, where it was for one: for the host's log."""


Moment = Annotated[float, msgspec.Meta(ge=0, le=1e11)]
"""Seconds since 1970. What a host says has bounds: NaN and the like would be in the books for ever."""

Counted = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class DomainSeen(msgspec.Struct, frozen=True, kw_only=True, tag="domain", tag_field="type"):
    """A domain as libvirt shows it."""

    state: Literal["running", "stopped", "stopped-by-guest", "crashed", "paused"]
    start_generation: Counted
    boot_generation: Counted
    started_at: Moment
    vcpus: Counted = 0
    """That it runs with; 0: it is off, or its agent does not tell."""
    memory_mib: Counted = 0
    """Likewise, as it was started."""
    balloon_mib: Counted = 0
    """What its balloon leaves it of that; 0: all."""
    note: str = ""
    """What is not in effect and why, for people."""
    first_boot: FirstBoot | None = None
    data: Annotated[tuple[Id, ...], msgspec.Meta(max_length=64)] = ()
    """The data volumes that it has: open, where it runs."""
    data_note: str = ""
    """What of them is not as wished, and why, for people."""
    vcpus_max: Counted = 0
    """The vCPUs that the present run has room for; 0: no more than it has, or its agent does not tell."""
    memory_max_mib: Counted = 0
    """Likewise."""
    memory_slots: Counted = 0
    """In which memory can still be put."""
    firmware: Firmware | Literal[""] = ""
    """What the present run was started with; empty: it is off, or its agent does not tell."""
    tpm: bool = False
    """Likewise."""


class VolumeSeen(msgspec.Struct, frozen=True, kw_only=True, tag="volume", tag_field="type"):
    """A volume as its pool shows it."""

    size_gib: Counted
    allocated_bytes: Counted


class NetworkSeen(msgspec.Struct, frozen=True, kw_only=True, tag="network", tag_field="type"):
    """A network on a host."""

    ports: Counted


AnySeen = DomainSeen | VolumeSeen | NetworkSeen


class StepTaken(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One step that a host took to make a document true, for the timeline of whoever asked for it."""

    at: Moment
    """When it was begun first, by the host's clock."""
    what: str
    seconds: Moment | None = None
    """Until it was done, failed tries included; None: it is not."""
    failures: Counted = 0
    problem: str = ""
    """Why the last try failed."""


class Report(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a host says of one document: exactly one of done, or not yet with a reason.

    For a tombstone `done` means gone: nothing of it is left.
    """

    key: DocKey
    revision: Revision
    """Of the document it speaks of."""
    done: bool
    message: str = ""
    """What is being done or waited for, for people."""
    problem: str = ""
    """Why the last try failed; it will be tried again."""
    progress: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    """0 to 1, on long work such as fetching an image."""
    seen: AnySeen | None = None
    steps: tuple[StepTaken, ...] = ()
    """Those taken since the document came, the newest few. On the way only: no digest covers them."""


def last_document(owner: Id, detail: str = "") -> AnyDoc | None:
    """Return what a tombstone carries for something of which only the id is known: its host destroys it by the id.

    None where nothing is destroyed by such an id. `detail`: what was said where it was found; of a snapshot its volume.
    """
    match owner.partition("-")[0]:
        case "vm":
            return DomainDoc(
                id=owner,
                name=owner,
                project="",
                vcpus=1,
                memory_mib=1,
                kernel=None,
                volumes=(),
                nics=(),
                power="stopped",
                start_generation=0,
                boot_generation=0,
                restart="never",
                stop_grace_s=0,
                nocloud=False,
                metadata=GuestMetadata(
                    instance_id=owner, hostname="", project="", public_keys=(), user_data="", host=""
                ),
            )
        case "vol":
            return VolumeDoc(id=owner, size_gib=1, image=None)
        case "snap" if is_id(detail, "vol"):
            return SnapshotDoc(id=owner, volume=Id(detail))
        case "net":
            return NetworkDoc(id=owner, vni=0, cidr="0.0.0.0/29", gateway="0.0.0.1", mtu=1280, domain="")
        case _:
            return None
