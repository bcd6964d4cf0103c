"""The typed rows beside `resource`: what the database must defend, and what can't be looked at again.

They are the same structs in the store, in the working set and in the planners' hands.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

from common.documents import AnyDoc, DocKey
from common.ids import HostId, Id, RequestId, Revision
from common.kinds.kind import AnyResource, Resource
from common.refusal import Refusal


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """The base of all rows."""


Counts = Mapping[str, int]
"""How much of each counter."""


def project_account(name: str) -> str:
    """Return the account that a project's things are charged to."""
    return f"project/{name}"


def domain_account(domain: Id) -> str:
    """Return the account of all projects of a domain together."""
    return f"domain/{domain}"


class Standing(Row, frozen=True):
    """One counter of one account, in the books and counted anew."""

    account: str
    counter: str
    used: int
    counted: int
    ceiling: int | None
    parent: str


class Placement(Row, frozen=True):
    """Capacity of one host that belongs to one owner. Unique per owner; a host's sum stays below what it sells."""

    owner: Id
    host: HostId
    vcpus: int
    memory_mib: int
    disk_gib: int


class Membership(Row, frozen=True):
    """Where a member of a group is: the host, rack or zone (its id) that the group's rule speaks of."""

    group: Id
    owner: Id
    domain: str
    """Empty: its host is in no rack, or in no zone."""


class ZoneUse(Row, frozen=True):
    """When a controller last had a machine placed in a zone that has to survive the loss of a host."""

    zone: Id
    controller: str
    revision: Revision


class Address(Row, frozen=True):
    """One address of one network that belongs to one NIC. Unique per (network, address) and per (vm, index)."""

    network: Id
    address: str
    vm: Id
    index: int
    mac: str


class Vni(Row, frozen=True):
    """The VXLAN network identifier of one network. Unique both ways."""

    network: Id
    vni: int


class Document(Row, frozen=True):
    """What one host should have, or (gone) should destroy. Kept until the host reports it gone."""

    host: HostId
    key: DocKey
    owner: Id
    doc: AnyDoc
    gone: bool
    revision: Revision
    request: RequestId = RequestId("")
    """Of the caller that it was last written for, where it was for one."""


OperationState = Literal["running", "blocked", "done", "failed", "cancelled"]


class OperationStep(Row, frozen=True, omit_defaults=True):
    """One thing that was done for an operation, or (a phase) that it waited for."""

    at: float
    """When it began, by the clock of whoever did it."""
    what: str
    host: str = ""
    """The names of the hosts it was done on or for; empty: it concerned the controller only."""
    seconds: float | None = None
    """None: it is not over."""
    retries: int = 0
    cause: str = ""
    """Why the last try failed, or why no host fits."""
    phase: bool = False


class Operation(Row, frozen=True, omit_defaults=True):
    """A promise shown to the user. Nothing reads it to decide."""

    id: Id
    verb: str
    kind: str
    resource: Id
    project: str
    name: str
    generation: int
    """The generation of the resource that makes it done."""
    actor: str
    request: RequestId
    state: OperationState
    message: str
    progress: float
    """0 to 1."""
    why: Refusal | None
    previous_spec: bytes
    """The spec (JSON) before it, for cancel; empty for a create."""
    created_at: float
    finished_at: float | None
    revision: Revision
    domain: str = ""
    """Of a thing that is a domain's: who may know of the operation when the thing is gone."""
    steps: tuple[OperationStep, ...] = ()
    steps_dropped: int = 0
    """Steps that are not kept, from the middle."""


EventResult = Literal["", "accepted", "denied", "conflict", "done", "failed", "cancelled"]
"""Of a mutation: how it was answered, and how its operation ended. Empty: the event is no mutation's."""


class Event(Row, frozen=True, omit_defaults=True):
    """One line of the append-only table that audit, watch and billing read."""

    seq: int
    at: float
    actor: str
    request: RequestId
    action: str
    """`vm.create`, `vm.running`, `host.connected`, …"""
    kind: str
    resource: Id
    project: str
    name: str
    message: str
    before: bytes
    """The spec (JSON) before a change, else empty."""
    after: bytes
    result: EventResult = ""
    hash: str = ""
    """Of this row and the hash before it: see `chain`."""


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The last event: its number and its hash."""

    seq: int
    hash: str


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What a verification found."""

    intact: bool
    events: int
    """That were checked before the first bad one."""
    head: Head
    first_bad: int | None
    """The seq of the first event that is not as it was written, or that is missing."""
    problem: str


class EventQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which events to read: those that fit everything that is given."""

    project: str | None = None
    """None: those of all projects, and of the cloud."""
    within: frozenset[str] | None = None
    """Only those of these projects; None: of all, and of the cloud."""
    resource: Id | None = None
    actor: str = ""
    action: str = ""
    """`vm.create`, or with a star at the end all that begin so: `vm.*`."""
    kind: str = ""
    name: str = ""
    request: str = ""
    result: str = ""
    since: float = 0.0

    def matches(self, event: Event) -> bool:
        """Say whether an event is one of them, as the database would."""
        stem = self.action.removesuffix("*")
        return (
            self.project in (None, event.project)
            and (self.within is None or event.project in self.within)
            and self.resource in (None, event.resource)
            and self.actor in ("", event.actor)
            and (event.action.startswith(stem) if self.action.endswith("*") else self.action in ("", event.action))
            and self.kind in ("", event.kind)
            and self.name in ("", event.name)
            and self.request in ("", event.request)
            and self.result in ("", event.result)
            and event.at >= self.since
        )


class Token(Row, frozen=True):
    """The hash of a bearer token: that of a token (the resource), or of a user's session."""

    digest: str
    resource: Id
    expires_at: float = 0
    """0: never."""


JOIN_TOKEN_S = 24 * 3600.0


class Enrolment(Row, frozen=True):
    """How a host may join and what it joined with."""

    host: HostId
    join_digest: str
    """Of the one-time token; empty once used."""
    join_expires_at: float
    certificate_serial: str
    """Hex; the certificate that is good. Empty: none yet, or revoked."""
    previous_serial: str = ""
    """The one before it, good as well: the answer that brought the newer one may have been lost."""
    expires_at: float = 0.0
    """Of the certificate that is good. 0: not known."""
    authority: str = ""
    """Which authority signed it, as the SHA-256 of that one's certificate."""
    trusts: tuple[str, ...] = ()
    """The authorities that were given with it."""
    confirmed: bool = False
    """Whether the host has shown it."""
    vtep: str = ""
    """Where other hosts tunnel to, as it last said hello."""
    underlay_mtu: int = 1500


class Given(Row, frozen=True):
    """A certificate that a host was given. The fields are those of `Enrolment`."""

    serial: str
    expires_at: float = 0.0
    authority: str = ""
    trusts: tuple[str, ...] = ()


class Traits(Row, frozen=True, omit_defaults=True):
    """What a host can do for machines, beside the room that it has."""

    make: str = ""
    """Virtualisation and vendor: machines could move between hosts of one make only. Empty: it has not said."""
    flags: tuple[str, ...] = ()
    """Of the CPU that it can give guests, by libvirt's names, in order."""
    can: tuple[str, ...] = ()
    """The capabilities that its agent found to work, in order."""


class Capacity(Row, frozen=True):
    """What a host may sell: what it has, less what is reserved, times its overcommit ratios."""

    host: HostId
    vcpus: int
    memory_mib: int
    disk_gib: int
    traits: Traits = Traits()


class Controller(Row, frozen=True):
    """One life of a controller's process, where several share a database."""

    id: str
    url: str
    """Where hosts and other controllers reach its link's port."""
    version: str
    since: float
    alive: bool
    """False: it was not heard of in time, and has left all that it held. Kept so that hosts still know its address."""


class Link(Row, frozen=True):
    """Which controller a host is connected to. There is none where it is connected to none of them."""

    host: HostId
    controller: str
    since: float
    """When it came, or (of a link that is gone) when it went."""


GRAVES_KEPT = 20_000


class Grave(Row, frozen=True):
    """That a resource is gone from this revision on, or (of one that is there) that it is not public any more."""

    id: Id
    kind: str
    project: str
    name: str
    public: bool
    """Whether every project could see it."""
    revision: Revision
    domain: str = ""
    """Of a thing that was a domain's."""


class Fact(Row, frozen=True):
    """Something that is so for the whole cloud, by its name."""

    name: str
    value: str


EPOCH = "epoch"
"""The fact that names which past this database has. It is another one after an older backup was restored."""


class QueueRow(Row, frozen=True):
    """That a resource must be looked at again, and when."""

    resource: Id
    due_at: float
    pokes: int


AnyRow = (
    Placement
    | Membership
    | ZoneUse
    | Capacity
    | Address
    | Vni
    | Document
    | Operation
    | Event
    | Token
    | Enrolment
    | Grave
    | Controller
    | Link
    | Fact
    | QueueRow
)


def identity(row: AnyRow | AnyResource) -> tuple[str, ...]:
    """Return what tells a row from all others."""
    return (type(row).__name__, *_key(row))


def _key(row: AnyRow | AnyResource) -> tuple[str, ...]:
    match row:
        case Placement():
            return (row.owner,)
        case ZoneUse():
            return (row.zone, row.controller)
        case Membership():
            return (row.group, row.owner)
        case Vni():
            return (row.network,)
        case Capacity() | Link() | Enrolment():
            return (row.host,)
        case Address():
            return (row.vm, str(row.index))
        case Document():
            return (row.host, row.key)
        case Token():
            return (row.digest,)
        case Fact():
            return (row.name,)
        case Event():
            return (str(row.seq),)
        case QueueRow():
            return (row.resource,)
        case Operation() | Grave() | Controller() | Resource():
            return (row.id,)


class Put(msgspec.Struct, frozen=True):
    """A row as it stands after a commit."""

    row: AnyRow | AnyResource


class Gone(msgspec.Struct, frozen=True):
    """A row that a commit removed, as it stood before."""

    row: AnyRow | AnyResource


Change = Put | Gone
