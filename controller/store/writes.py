"""What a planner may ask of the store: each a small fact, all of one step in one transaction.

Every write states a result: applied twice it is applied once. A unique constraint that stops one raises Conflict,
nothing of the step is kept, and the planner looks again.
"""

import msgspec

from common.documents import AnyDoc, DocKey
from common.errors import SkerryError
from common.ids import HostId, Id, RequestId
from common.kinds.kind import AnyResource, Spec
from common.secret import Secret
from controller.store.rows import (
    Capacity,
    Change,
    Enrolment,
    Event,
    Operation,
    OperationStep,
    Placement,
    Token,
    ZoneUse,
)


class Write(msgspec.Struct, frozen=True, kw_only=True):
    """The base of all writes."""


class TakePlacement(Write, frozen=True):
    """Reserve capacity. Refused (Conflict) where the host has sold it meanwhile."""

    placement: Placement
    groups: tuple[Id, ...] = ()
    """The owner's: refused (Conflict) where a hard rule of one forbids the host."""
    within: tuple[Id, ...] = ()
    """Racks and zones: refused (Conflict) where the host is not in all of them any more."""
    use: ZoneUse | None = None
    """Of a zone that was found to survive with it: refused (Conflict) where another controller had a machine placed
    there after the revision that was looked at."""


class MoveHost(Write, frozen=True):
    """Take over for the machines on a host where it stands now. Refused (Conflict) where one may not be there."""

    host: HostId


class ResizePlacement(Write, frozen=True):
    """Change what an owner has reserved on its host. Refused (Conflict) where the host has not as much more."""

    placement: Placement


class ReleasePlacement(Write, frozen=True):
    """Give an owner's capacity back."""

    owner: Id


class SetCapacity(Write, frozen=True):
    """Set what a host may sell."""

    capacity: Capacity


class ClaimAddress(Write, frozen=True):
    """Reserve the lowest free address of a network for a NIC; the one it has already stays."""

    network: Id
    cidr: str
    vm: Id
    index: int
    mac: str


class ReleaseAddresses(Write, frozen=True):
    """Give all addresses of a VM back."""

    vm: Id


class ClaimVni(Write, frozen=True):
    """Reserve the lowest free VNI for a network."""

    network: Id


class ReleaseVni(Write, frozen=True):
    """Give a network's VNI back."""

    network: Id


class CreateChild(Write, frozen=True):
    """Make a resource that belongs to another one. Its id is derived from the owner's, so twice is once."""

    id: Id
    kind: str
    project: str
    name: str
    owner: Id
    spec: Spec


class ChangeChild(Write, frozen=True):
    """Change what is wanted of a child."""

    id: Id
    spec: Spec


class DeleteChild(Write, frozen=True):
    """Accept the deletion of a child."""

    id: Id


class Amend(Write, frozen=True):
    """Change a thing's spec, or delete it, as a request would, with an event that says why. Nothing where it changed
    since it was read."""

    row: AnyResource
    """As it was read."""
    spec: Spec
    what: str
    """The event's action: `start`, `delete`. Empty: Skerry's own note, no event."""
    message: str = ""
    delete: bool = False


class PutDocument(Write, frozen=True):
    """Make a host want this document."""

    host: HostId
    owner: Id
    doc: AnyDoc
    request: RequestId = RequestId("")


class Tombstone(Write, frozen=True):
    """Make a host destroy what this key stands for."""

    host: HostId
    key: DocKey
    request: RequestId = RequestId("")


class BuryOrphan(Write, frozen=True):
    """Make a host destroy something that nobody owns. Refused (Conflict) where somebody does by now."""

    host: HostId
    owner: Id
    doc: AnyDoc
    request: RequestId = RequestId("")


class ForgetHost(Write, frozen=True):
    """Drop every document, the enrolment and the capacity of a host that will never come back."""

    host: HostId


class PutToken(Write, frozen=True):
    """Make a bearer token good."""

    token: Token


class RemoveToken(Write, frozen=True):
    """Make it good for nothing."""

    resource: Id
    digest: str = ""
    """Only this one of a user's sessions; empty: all."""


class PutPassword(Write, frozen=True):
    """Set a user's password, by its hash."""

    user: Id
    hash: Secret


class RemovePassword(Write, frozen=True):
    """Forget it."""

    user: Id


class PutEnrolment(Write, frozen=True):
    """Set how a host may join, or what it joined with."""

    enrolment: Enrolment


class SetLimits(Write, frozen=True):
    """Set what an account may use up: its project's or its domain's things together. What it uses already stays."""

    account: str
    limits: dict[str, int | None]
    """By counter, every one there is; None: no limit."""
    parent: str = ""
    """The account that is charged along with it, a project's domain's; empty: none."""
    instead_of: dict[str, int | None] | None = None
    """The limits that are found wrong: only where they are still so. None: whatever they are."""


class DropAccount(Write, frozen=True):
    """Forget the account of a project or domain that goes."""

    account: str


class Recharge(Write, frozen=True):
    """Have a thing count what it should: it was stored by a release that counted otherwise. Refused (Conflict) where
    it changed meanwhile. What its account uses up is set by the Recount that must follow."""

    resource: Id
    counted: dict[str, int]
    counts: dict[str, int]


class Recount(Write, frozen=True):
    """Set all that accounts use up to what the things in them count, whatever the limits."""


class Poke(Write, frozen=True):
    """Have another resource looked at."""

    resource: Id


class Forget(Write, frozen=True):
    """Remove a deleted resource's row: its last step. Closes its operations."""

    resource: Id


AnyWrite = (
    TakePlacement
    | MoveHost
    | ResizePlacement
    | ReleasePlacement
    | SetCapacity
    | ClaimAddress
    | ReleaseAddresses
    | ClaimVni
    | ReleaseVni
    | CreateChild
    | ChangeChild
    | DeleteChild
    | Amend
    | PutDocument
    | Tombstone
    | BuryOrphan
    | ForgetHost
    | PutToken
    | RemoveToken
    | PutPassword
    | RemovePassword
    | PutEnrolment
    | SetLimits
    | DropAccount
    | Recharge
    | Recount
    | Poke
    | Forget
)


class Once(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a repeated request known: who sends it, under which Idempotency-Key, and what it asks for."""

    caller: str
    key: str
    fingerprint: str
    """Of method, address and body."""


class First(msgspec.Struct, frozen=True, kw_only=True):
    """What a key's first request was answered with."""

    resource: AnyResource
    operation: Operation
    revealed: bool
    """Whether it showed a secret, which nobody can show again."""


class Repeated(Exception):
    """The request was carried out before: unwinds its transaction and brings the first answer."""

    def __init__(self, first: First) -> None:
        super().__init__(first.operation.id)
        self.first = first


class Mutation(msgspec.Struct, frozen=True, kw_only=True):
    """One accepted request: rows that are committed together."""

    resource: AnyResource
    was: AnyResource | None
    """As the caller saw it; the commit is refused where it changed since."""
    operation: Operation
    event: Event
    writes: tuple[AnyWrite, ...] = ()
    closes: tuple[Operation, ...] = ()
    """Open operations that this one overtakes, as they end."""
    once: Once | None = None
    """Carried out once only, however often it is sent."""

    @property
    def reveals(self) -> bool:
        """Say whether its answer shows a secret."""
        return False


class Rehearsal(msgspec.Struct, frozen=True, kw_only=True):
    """What a mutation and the step behind it would have written."""

    resource: AnyResource
    """As it would be stored."""
    changes: tuple[Change, ...]
    """Of the step."""
    problem: SkerryError | None
    """What stopped the step."""


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """A step as the timeline shows it, and what hosts did meanwhile."""

    began: float
    host: str = ""
    retries: int = 0
    steps: tuple[OperationStep, ...] = ()
