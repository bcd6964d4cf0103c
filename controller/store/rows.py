"""The typed rows beside `resource`: what the database must defend, and what can't be looked at again.

They are the same structs in the store, in the working set and in the planners' hands.
"""

from typing import Literal

import msgspec

from common.documents import AnyDoc, DocKey
from common.ids import HostId, Id, RequestId, Revision
from common.kinds.kind import AnyResource, Resource, Role
from common.refusal import Refusal


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """The base of all rows."""


class Placement(Row, frozen=True):
    """Capacity of one host that belongs to one owner. Unique per owner; a host's sum stays below what it sells."""

    owner: Id
    host: HostId
    vcpus: int
    memory_mib: int
    disk_gib: int


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


OperationState = Literal["running", "blocked", "done", "failed", "cancelled"]


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


class Token(Row, frozen=True):
    """The hash of a bearer token."""

    digest: str
    resource: Id
    project: str
    role: Role


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
    vtep: str = ""
    """Where other hosts tunnel to, as it last said hello."""
    underlay_mtu: int = 1500


class Capacity(Row, frozen=True):
    """What a host may sell: what it has, less what is reserved, times its overcommit ratios."""

    host: HostId
    vcpus: int
    memory_mib: int
    disk_gib: int


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


class QueueRow(Row, frozen=True):
    """That a resource must be looked at again, and when."""

    resource: Id
    due_at: float
    pokes: int


AnyRow = (
    Placement
    | Capacity
    | Address
    | Vni
    | Document
    | Operation
    | Event
    | Token
    | Enrolment
    | Controller
    | Link
    | QueueRow
)


def identity(row: AnyRow | AnyResource) -> tuple[str, ...]:
    """Return what tells a row from all others."""
    return (type(row).__name__, *_key(row))


def _key(row: AnyRow | AnyResource) -> tuple[str, ...]:
    match row:
        case Placement():
            return (row.owner,)
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
        case Event():
            return (str(row.seq),)
        case QueueRow():
            return (row.resource,)
        case Operation() | Controller() | Resource():
            return (row.id,)


class Put(msgspec.Struct, frozen=True):
    """A row as it stands after a commit."""

    row: AnyRow | AnyResource


class Gone(msgspec.Struct, frozen=True):
    """A row that a commit removed, as it stood before."""

    row: AnyRow | AnyResource


Change = Put | Gone
