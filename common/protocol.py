"""Every message between controller and agent: one tagged union each way, msgpack over one websocket per host.

The agent dials. First message up is `Hello`, first down `Welcome` or `Refused`. Then, in any order:
down `DesiredBatch`, `Renew`, `Controllers`, `Call`, stream frames;
up `Reports`, `Metrics`, `HostEvent`, `Reply`, stream frames.
A stream (console) is opened by a `Call`, carries `StreamData` both ways against credit, and ends with `StreamEnd`.
"""

import hashlib
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec

from common.codec import to_pack
from common.documents import Desired, DocKey, Report
from common.ids import HostId, Id, RequestId, Revision

PROTOCOL = 1
"""The version this code speaks. An agent may be one behind its controller."""

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""A larger frame ends the link. Batches are cut to stay below it."""

BATCH = 256
"""Documents or reports in one message."""

STREAM_WINDOW_BYTES = 256 * 1024
"""Bytes a stream's sender may have under way before the receiver grants more."""


Words = Annotated[str, msgspec.Meta(max_length=256)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Mebibytes = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
Figure = Annotated[float, msgspec.Meta(ge=0, le=1e15)]
"""What a host says of itself has bounds: beyond them, and NaN, is no figure but a lie, and ends the link."""


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, tag_field="m", omit_defaults=True):
    """The base of all messages. Unknown fields are passed over, so that either side may be one version ahead."""


class Nic(msgspec.Struct, frozen=True, kw_only=True):
    """A network interface of the host."""

    name: Words
    mac: Words
    mtu: Count
    addresses: tuple[Words, ...] = ()


CPU_MODEL = "cpu-model"
"""The capability of an agent that gives guests the CPU that their documents name."""


HOT_PLUG = "hot-plug"
"""Likewise of one that gives running guests more vCPUs and memory."""


class Capability(msgspec.Struct, frozen=True, kw_only=True):
    """Something found by trying it, not by version: `kvm`, `vxlan`, `bridge-conntrack`, `lvm`, …"""

    name: Words
    works: bool
    detail: Annotated[str, msgspec.Meta(max_length=4096)] = ""


class GuestCpus(msgspec.Struct, frozen=True, kw_only=True):
    """What the hypervisor can give guests of a CPU, and take to another host of the same vendor."""

    vendor: Words
    flags: Annotated[tuple[Words, ...], msgspec.Meta(max_length=1024)]
    """By libvirt's names."""


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine has."""

    cpu_model: Words
    cpu_flags: tuple[Words, ...]
    cpu_threads: Annotated[int, msgspec.Meta(ge=0, le=65536)]
    memory_mib: Mebibytes
    disk_gib: Mebibytes
    """Of the pool that holds volumes."""
    nics: tuple[Nic, ...]
    capabilities: tuple[Capability, ...]
    virtualisation: Literal["kvm", "tcg"]
    kernel: Words
    boot_id: Words
    vtep: Words
    """The address other hosts tunnel to."""
    underlay_mtu: Annotated[int, msgspec.Meta(ge=576, le=65535)]
    guest_cpu: GuestCpus | None = None
    """None: its agent does not say, being older, or could not find out just now."""


# --- up -----------------------------------------------------------------------------------------------------------


class Hello(Message, frozen=True):
    """Who I am, what I have, and what I already know."""

    protocol: int
    agent_version: Words
    host: HostId
    inventory: Inventory
    desired_digest: str
    """`digest` over the (key, revision) pairs on the agent's disk."""
    observed_digest: str
    """`reports_digest` of the reports the agent last made."""
    epoch: Words = ""
    """Which past of the controller's database the agent's documents are of."""
    newest: Annotated[int, msgspec.Meta(ge=0, le=2**62)] = 0
    """The highest revision that the agent knows."""


class Reports(Message, frozen=True):
    """What was seen. `full`: these are all there are, forget others."""

    number: Annotated[int, msgspec.Meta(ge=1)]
    """Counts the messages of this sort on one connection, from 1: what comes again or out of order is not taken."""
    reports: tuple[Report, ...]
    full: bool = False


class GuestMetrics(msgspec.Struct, frozen=True, array_like=True):
    """One guest's counters since its start; order is the wire format."""

    vm: Id
    cpu_ns: Count
    memory_used_mib: Mebibytes
    disk_read_bytes: Count
    disk_write_bytes: Count
    net_rx_bytes: Count
    net_tx_bytes: Count


class HostMetrics(msgspec.Struct, frozen=True, array_like=True):
    """The host's own figures; order is the wire format."""

    cpu_percent: Figure
    memory_used_mib: Mebibytes
    disk_used_gib: Figure
    load_1: Figure
    net_rx_bytes: Count
    net_tx_bytes: Count
    agent_rss_mib: Figure
    guests_running: Count
    pool_percent: Figure = 0
    """How full the pool of volumes is."""
    pool_metadata_percent: Figure = 0
    """How full the room is that a thin pool keeps for its own books."""


class Metrics(Message, frozen=True):
    """One positional vector per interval."""

    at: Figure
    host: HostMetrics
    guests: tuple[GuestMetrics, ...]


class HostEvent(Message, frozen=True):
    """Something that happened on the host and is worth a line in the event table (a guest crashed, …)."""

    at: Figure
    subject: str
    """A document key, or empty for the host itself."""
    action: str
    message: str


class Reply(Message, frozen=True):
    """The answer to a `Call`. `body` is msgpack of the type that the verb promises; `problem` says why not."""

    call: int
    body: bytes = b""
    problem: str = ""
    code: str = ""
    """Of the problem, as in `common.errors`: `not-found`, `temporary`, …"""


# --- down ---------------------------------------------------------------------------------------------------------


class Welcome(Message, frozen=True):
    """The link is up."""

    protocol: int
    controller_version: str
    host_name: str
    send_reports: bool
    """Send `Reports(full=True)`: the controller does not know what you see."""
    metrics_every_s: float
    urls: tuple[str, ...] = ()
    """Where the controllers of this cloud are dialled, if there are several. Any will do."""
    epoch: str = ""
    """Which past this controller's database has."""
    anew: bool = False
    """It is an older one than the agent knows: from now on, what comes is newer than all that the agent has."""


class Refused(Message, frozen=True):
    """No link, and why. The agent logs it and tries again later."""

    reason: str


class DesiredBatch(Message, frozen=True):
    """Upserts and tombstones. `full` (over the batches up to `last`): the controller knows no other documents."""

    items: tuple[Desired, ...]
    full: bool = False
    last: bool = True


class Renew(Message, frozen=True):
    """Fetch your certificate anew, and whom to trust, at some moment in so many seconds; then dial again with it."""

    within_s: float


class AttachConsole(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Open the serial console of a VM as stream number `stream`. Reply: empty."""

    vm: Id
    stream: int


class ReadSerialLog(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Reply: up to `tail_bytes` last bytes of the VM's serial log (raw)."""

    vm: Id
    tail_bytes: int


class Survey(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Look at everything on the host that Skerry could have made. Reply: tuple[Found, ...] in msgpack."""


Order = AttachConsole | ReadSerialLog | Survey


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that exists on a host, for the auditor."""

    what: str
    """`domain`, `disk`, `tap`, `bridge`, `vxlan`, `namespace`, `fdb`, `neighbour`, `lease`, `dnsmasq`, `file`,
    `image`, `snapshot`, `logical-volume`."""
    name: str
    owner: Id | None
    """From the name or its metadata; None: not Skerry's by name, though in a place where only Skerry builds."""
    detail: str = ""


class Controllers(Message, frozen=True):
    """One came or went: where the controllers of this cloud are dialled, as in the welcome."""

    urls: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]


class Call(Message, frozen=True):
    """Do this now and answer. Unlike documents, a call is not repeated."""

    call: int
    order: Order
    request: RequestId


# --- both ways ----------------------------------------------------------------------------------------------------


class StreamData(Message, frozen=True):
    """Bytes of a stream."""

    stream: int
    data: bytes


class StreamCredit(Message, frozen=True):
    """The receiver has taken this many more bytes."""

    stream: int
    bytes: int


class StreamEnd(Message, frozen=True):
    """No more of this stream."""

    stream: int
    reason: str = ""


Up = Hello | Reports | Metrics | HostEvent | Reply | StreamData | StreamCredit | StreamEnd
Down = Welcome | Refused | DesiredBatch | Renew | Controllers | Call | StreamData | StreamCredit | StreamEnd


def digest(pairs: Iterable[tuple[DocKey, Revision]]) -> str:
    """Return one short name for a set of (key, revision) pairs, the same on both sides whatever the order."""
    text = "\n".join(f"{key} {revision}" for key, revision in sorted(pairs))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def reports_digest(reports: Iterable[Report]) -> str:
    """Return one short name for a set of reports, the same on both sides whatever the order."""
    return hashlib.sha256(to_pack(sorted(reports, key=lambda report: report.key))).hexdigest()[:32]
