"""The working set: every live row in memory, indexed, fed by the store's changes and by what hosts report.

It is plain data and does no I/O: planners and the scheduler read it, lists and watches are served from it, and
nobody but `apply` and the fleet changes it. One per controller process.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache

import msgspec

from common.codec import plain, to_json
from common.documents import DocKey, Report, StepTaken
from common.errors import NotFound
from common.ids import HostId, Id, Revision
from common.kinds import KINDS, kind_named
from common.kinds.kind import AnyResource, Resource, Scope, fields
from common.protocol import Inventory, Metrics
from controller.store import counted
from controller.store.keeping import discard, keep, keep_in
from controller.store.processors import Processors
from controller.store.rows import (
    GRAVES_KEPT,
    Address,
    AnyRow,
    Capacity,
    Change,
    Controller,
    Document,
    Enrolment,
    Event,
    Fact,
    Gone,
    Grave,
    Link,
    Membership,
    Operation,
    Placement,
    Put,
    QueueRow,
    Token,
    Vni,
    ZoneUse,
    identity,
)

_COUNTED = (Resource, Document, Operation, Grave, ZoneUse)

OF_A_DOMAIN = frozenset(
    kind.name for kind in KINDS if kind.scope is Scope.CLOUD and "domain" in kind.spec.__struct_fields__
)
"""Kinds of the cloud whose things belong to a domain each."""


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """What the last audit of a host, or of the quotas, found."""

    at: float
    differences: int
    since: float
    """Since when there are some, or (0) none."""


class HostView(msgspec.Struct, kw_only=True):
    """What is known of a host beside its row: memory only, gone with the process, sent again at every connect."""

    connected: bool = False
    since: float = 0
    """When `connected` last changed."""
    inventory: Inventory | None = None
    agent_version: str = ""
    reports: dict[DocKey, Report] = msgspec.field(default_factory=dict)
    reported: bool = False
    """Whether a full set of reports has come on this link."""
    metrics: Metrics | None = None
    audited: Agreement | None = None


class Used(msgspec.Struct, kw_only=True):
    """Capacity of a host that is sold."""

    vcpus: int = 0
    memory_mib: int = 0
    disk_gib: int = 0


class WorkingSet:
    """Every live row, by the keys that readers need."""

    def __init__(self) -> None:
        self.revision = Revision(0)
        self._resources: dict[Id, AnyResource] = {}
        self._by_name: dict[tuple[str, str, str], Id] = {}
        self._by_kind: dict[str, dict[Id, AnyResource]] = defaultdict(dict)
        self._by_owner: dict[Id, set[Id]] = defaultdict(set)
        self._users: dict[Id, set[Id]] = defaultdict(set)
        self._counted: counted.Sums = {}
        self._placements: dict[Id, Placement] = {}
        self._on_host: dict[HostId, dict[Id, Placement]] = defaultdict(dict)
        self._members: dict[Id, dict[Id, Membership]] = defaultdict(dict)
        self._crowds: dict[Id, Counter[str]] = defaultdict(Counter)
        self._zone_uses: dict[tuple[Id, str], ZoneUse] = {}
        self._capacities: dict[HostId, Capacity] = {}
        self.processors = Processors()
        self._used: dict[HostId, Used] = defaultdict(Used)
        self._addresses: dict[Id, dict[int, Address]] = defaultdict(dict)
        self._in_network: dict[Id, dict[tuple[Id, int], Address]] = defaultdict(dict)
        self._vnis: dict[Id, int] = {}
        self._documents: dict[HostId, dict[DocKey, Document]] = defaultdict(dict)
        self._owned_documents: dict[Id, dict[tuple[HostId, DocKey], Document]] = defaultdict(dict)
        self._operations: dict[Id, Operation] = {}
        self._open_operations: dict[Id, dict[Id, Operation]] = defaultdict(dict)
        self._tokens: dict[str, Token] = {}
        self._tokens_of: dict[Id, dict[str, Token]] = defaultdict(dict)
        self._enrolments: dict[HostId, Enrolment] = {}
        self._mtus: Counter[int] = Counter()
        self._controllers: dict[str, Controller] = {}
        self._links: dict[HostId, Link] = {}
        self._facts: dict[str, Fact] = {}
        self._hosts: dict[HostId, HostView] = {}
        self.quotas_audited: Agreement | None = None
        """What the last recount of quotas found; memory only, like what hosts say."""
        self._graves: dict[Id, Grave] = {}
        self._taken: dict[Id, dict[tuple[HostId, DocKey], tuple[StepTaken, ...]]] = {}

    # --- resources ------------------------------------------------------------------------------------------------

    def get(self, resource: Id) -> AnyResource | None:
        """Return a resource by id; None for one that is gone (or never was)."""
        return self._resources.get(resource)

    def named(self, kind: str, project: str, name: str) -> AnyResource | None:
        """Return a resource by the name it has in its project (empty for things of the cloud)."""
        found = self._by_name.get((kind, project, name))
        return self._resources[found] if found else None

    def find(self, kind: str, project: str, name_or_id: str) -> AnyResource:
        """Return what a user of a project means: its own by name or id, or a public one of another project.

        Raises NotFound, naming what there is instead.
        """
        own = "" if kind_named(kind).scope is Scope.CLOUD else project
        found = self.named(kind, own, name_or_id) or self._resources.get(Id(name_or_id))
        if found and found.kind == kind and (found.project == own or is_public(found)):
            return found
        if kind_named(kind).shared:
            public = [row for row in self.of_kind(kind) if row.name == name_or_id and is_public(row)]
            if public:
                return min(public, key=lambda row: row.created_at)
        raise NotFound(
            f"there is no {kind} {name_or_id}" + (f" in project {own}" if own else ""), fix=self._instead(kind, own)
        )

    def _instead(self, kind: str, project: str) -> str:
        there = sorted(row.name for row in self.of_kind(kind) if row.project == project or is_public(row))
        if not there:
            return f"there is none yet; make one: {kind_named(kind).example}"
        return f"there is {', '.join(there[:10])}" + (f" and {len(there) - 10} more" if len(there) > 10 else "")

    def of_kind(self, kind: str) -> Iterable[AnyResource]:
        """Return all resources of a kind, in no order."""
        return self._by_kind[kind].values()

    def domain_of(self, project: str) -> Id | None:
        """Return the domain of the project of that name; None where there is no such project."""
        found = self.named("project", "", project)
        return Id(found.spec.domain) if found else None

    def children(self, owner: Id) -> tuple[AnyResource, ...]:
        """Return the resources that this one made."""
        found = self._by_owner.get(owner)
        return tuple(self._resources[child] for child in sorted(found)) if found else ()

    def users(self, resource: Id) -> tuple[AnyResource, ...]:
        """Return the resources whose spec refers to this one, by id order."""
        return tuple(self._resources[user] for user in sorted(self._users.get(resource, ())))

    def holders(self, resource: Id) -> tuple[AnyResource, ...]:
        """Return those of its users without which it may not go."""
        return tuple(user for user in self.users(resource) if resource in references(user, holding=True))

    def wanted(self, rows: Iterable[AnyResource]) -> tuple[AnyResource, ...]:
        """Return those that are not being deleted, each once. A part stands for what made it, and goes with it."""
        wholes = {whole.id: whole for whole in map(self._whole, rows)}
        return tuple(whole for _, whole in sorted(wholes.items()) if whole.deleted_at is None)

    def _whole(self, row: AnyResource) -> AnyResource:
        owner = self._resources.get(row.owner) if row.owner else None
        return row if owner is None else self._whole(owner)

    def counted(self, project: str) -> Mapping[str, int]:
        """Return what the things of a project use up of its quota, by counter; what is not used is not named."""
        return self._counted.get(project, {})

    def name_of(self, resource: str) -> str:
        """Return the name behind an id, or the id itself where it is gone."""
        found = self._resources.get(Id(resource))
        return found.name if found else resource

    def __iter__(self) -> Iterator[AnyResource]:
        return iter(self._resources.values())

    # --- claims, documents, operations ----------------------------------------------------------------------------

    def placement(self, owner: Id) -> Placement | None:
        """Return where a VM's capacity is reserved."""
        return self._placements.get(owner)

    def placed_on(self, host: HostId) -> tuple[Placement, ...]:
        """Return all that is reserved on a host."""
        return tuple(self._on_host[host].values()) if host in self._on_host else ()

    def crowd(self, group: Id) -> Mapping[str, int]:
        """Return how many members of a group are in which host, rack or zone (its id)."""
        return self._crowds.get(group, {})

    def membership(self, group: Id, owner: Id) -> Membership | None:
        """Return where a member of a group is; None: it has no host."""
        return self._members[group].get(owner) if group in self._members else None

    def capacity(self, host: HostId) -> Capacity | None:
        """Return what a host may sell, None for one that never said what it has."""
        return self._capacities.get(host)

    def used(self, host: HostId) -> Used:
        """Return the sum of all that is reserved on a host."""
        return self._used.get(host) or Used()

    def addresses(self, vm: Id) -> tuple[Address, ...]:
        """Return a VM's addresses in NIC order."""
        found = self._addresses.get(vm)
        return tuple(found[index] for index in sorted(found)) if found else ()

    def ports(self, network: Id) -> Iterable[Address]:
        """Return every address taken in a network."""
        return self._in_network[network].values() if network in self._in_network else ()

    def vni(self, network: Id) -> int | None:
        """Return a network's VNI."""
        return self._vnis.get(network)

    def document(self, host: HostId, key: DocKey) -> Document | None:
        """Return what a host should have under a key."""
        return self._documents[host].get(key) if host in self._documents else None

    def documents(self, host: HostId) -> Iterable[Document]:
        """Return all that a host should have, tombstones included."""
        return self._documents[host].values() if host in self._documents else ()

    def owned_documents(self, owner: Id) -> tuple[Document, ...]:
        """Return the documents, on any host, that stand for this resource."""
        return tuple(self._owned_documents[owner].values()) if owner in self._owned_documents else ()

    def operation(self, operation: Id) -> Operation | None:
        """Return an operation by id."""
        return self._operations.get(operation)

    def operations(self) -> Iterable[Operation]:
        """Return all operations that are kept, in no order."""
        return self._operations.values()

    def open_operations(self, resource: Id) -> tuple[Operation, ...]:
        """Return the operations of a resource that are not finished, oldest first."""
        found = self._open_operations.get(resource)
        return tuple(sorted(found.values(), key=lambda op: (op.created_at, op.id))) if found else ()

    def token(self, digest: str) -> Token | None:
        """Return the token with this hash, unless it is revoked."""
        found = self._tokens.get(digest)
        row = self._resources.get(found.resource) if found else None
        return found if row and row.deleted_at is None else None

    def tokens_of(self, resource: Id) -> tuple[Token, ...]:
        """Return the hashes that stand for a token, or for a user's sessions."""
        return tuple(self._tokens_of[resource].values()) if resource in self._tokens_of else ()

    def enrolment(self, host: HostId) -> Enrolment | None:
        """Return how a host may join, or joined."""
        return self._enrolments.get(host)

    def enrolments(self) -> Iterable[Enrolment]:
        """Return all enrolments."""
        return self._enrolments.values()

    @property
    def smallest_mtu(self) -> int:
        """The largest packet that fits through every host's underlay, as far as hosts have said."""
        return min(self._mtus, default=1500)

    def controllers(self) -> tuple[Controller, ...]:
        """Return the controllers that share the database, dead ones that may come back included; none: one alone."""
        return tuple(sorted(self._controllers.values(), key=lambda one: one.id))

    def link(self, host: HostId) -> Link | None:
        """Return which of several controllers a host is connected to; None: none of them, or there are not several."""
        return self._links.get(host)

    def links(self) -> tuple[Link, ...]:
        """Return all such links."""
        return tuple(self._links.values())

    def fact(self, name: str) -> str:
        """Return what is so for the whole cloud; empty: nothing was said."""
        found = self._facts.get(name)
        return found.value if found else ""

    def grave(self, resource: Id) -> Grave | None:
        """Return the grave of a resource that is gone, as far as it is known."""
        return self._graves.get(resource)

    @property
    def is_linked(self) -> bool:
        """Whether any host is connected to one of several controllers."""
        return bool(self._links)

    def graves(self) -> Iterable[Grave]:
        """Return what is gone, as far as it is known, in the order in which it went."""
        return self._graves.values()

    @property
    def horizon(self) -> int:
        """The revision from which on all that went is known. Some may have been dropped once so many were kept."""
        return next(iter(self._graves.values())).revision if len(self._graves) >= GRAVES_KEPT else 0

    # --- what hosts say -------------------------------------------------------------------------------------------

    def host(self, host: HostId) -> HostView:
        """Return what is known of a host (an empty view for one that never spoke)."""
        return self._hosts.setdefault(host, HostView())

    def report(self, host: HostId, key: DocKey) -> Report | None:
        """Return what a host last said of a document, None where it did not say anything of its present revision."""
        view, row = self._hosts.get(host), self.document(host, key)
        report = view.reports.get(key) if view else None
        return report if report and row and report.revision >= row.revision else None

    def took(self, owner: Id, host: HostId, key: DocKey, steps: tuple[StepTaken, ...]) -> None:
        """Take over which steps a host took for a document, while somebody waits for its owner."""
        if self._is_awaited(owner):
            self._taken.setdefault(owner, {})[host, key] = steps

    def taken(self, owner: Id) -> tuple[tuple[HostId, tuple[StepTaken, ...]], ...]:
        """Return the steps that hosts took for the documents of a resource that is waited for."""
        return tuple((host, steps) for (host, _), steps in self._taken.get(owner, {}).items())

    def _is_awaited(self, owner: Id) -> bool:
        if self._open_operations.get(owner):
            return True
        row = self._resources.get(owner)
        return self._is_awaited(row.owner) if row and row.owner else False

    def _forget_taken(self, resource: Id) -> None:
        for one in (resource, *self._by_owner.get(resource, ())):
            self._taken.pop(one, None)

    # --- feeding --------------------------------------------------------------------------------------------------

    def apply(self, changes: Iterable[Change]) -> None:
        """Take over what a commit changed."""
        for change in changes:
            row = change.row
            if isinstance(row, Resource):
                self._resource(row, there=isinstance(change, Put))
            else:
                self._typed(row, there=isinstance(change, Put))
            if isinstance(row, _COUNTED) and row.revision > self.revision:
                self.revision = row.revision

    def rows(self) -> Iterator[AnyRow | AnyResource]:
        """Give every row there is."""
        yield from self._resources.values()
        yield from self._placements.values()
        for members in self._members.values():
            yield from members.values()
        yield from self._zone_uses.values()
        yield from self._capacities.values()
        for addresses in self._addresses.values():
            yield from addresses.values()
        for network, vni in self._vnis.items():
            yield Vni(network=network, vni=vni)
        for documents in self._documents.values():
            yield from documents.values()
        yield from self._operations.values()
        yield from self._tokens.values()
        yield from self._enrolments.values()
        yield from self._controllers.values()
        yield from self._links.values()
        yield from self._facts.values()
        yield from self._graves.values()

    def difference(self, rows: Iterable[AnyRow | AnyResource]) -> list[Change]:
        """Return the changes that lead from what is here to these rows."""
        wanted = {identity(row): row for row in rows}
        here = {identity(row): row for row in self.rows()}
        gone: list[Change] = [Gone(row) for key, row in here.items() if key not in wanted]
        return gone + [Put(row) for key, row in wanted.items() if here.get(key) != row]

    def _resource(self, row: AnyResource, *, there: bool) -> None:
        before = self._resources.get(row.id)
        counted.change(self._counted, row.project, before.counts if before else {}, row.counts if there else {})
        if before and there and _same_place(before, row):
            self._resources[row.id] = self._by_kind[row.kind][row.id] = row
            return
        if before:
            del self._resources[row.id]
            self._by_kind[row.kind].pop(row.id, None)
            self._by_name.pop((row.kind, row.project, row.name), None)
            for target in references(before):
                discard(self._users, target, row.id)
            if before.owner:
                discard(self._by_owner, before.owner, row.id)
        if not there:
            if (steps := self._taken.pop(row.id, None)) and row.owner:
                self._taken.setdefault(row.owner, {}).update(steps)
            self._hosts.pop(HostId(row.id), None)
            return
        self._resources[row.id] = row
        self._by_kind[row.kind][row.id] = row
        self._by_name[row.kind, row.project, row.name] = row.id
        for target in references(row):
            self._users[target].add(row.id)
        if row.owner:
            self._by_owner[row.owner].add(row.id)

    def _typed(self, row: AnyRow, *, there: bool) -> None:  # noqa: PLR0912 - a table of the union's members
        match row:
            case Placement():
                self._placement(row, there=there)
            case Membership():
                self._membership(row, there=there)
            case ZoneUse():
                keep(self._zone_uses, (row.zone, row.controller), row, there=there)
            case Capacity():
                keep(self._capacities, row.host, row, there=there)
                self.processors.keep(row, there=there)
            case Address():
                keep_in(self._addresses, row.vm, row.index, row, there=there)
                keep_in(self._in_network, row.network, (row.vm, row.index), row, there=there)
            case Vni():
                keep(self._vnis, row.network, row.vni, there=there)
            case Document():
                keep_in(self._documents, row.host, row.key, row, there=there)
                keep_in(self._owned_documents, row.owner, (row.host, row.key), row, there=there)
            case Operation():
                keep(self._operations, row.id, row, there=there)
                keep_in(self._open_operations, row.resource, row.id, row, there=there and row.finished_at is None)
                if row.resource not in self._open_operations:
                    self._forget_taken(row.resource)
            case Token():
                keep(self._tokens, row.digest, row, there=there)
                keep_in(self._tokens_of, row.resource, row.digest, row, there=there)
            case Enrolment():
                self._enrolment(row, there=there)
            case Controller():
                keep(self._controllers, row.id, row, there=there)
            case Link():
                keep(self._links, row.host, row, there=there)
                view = self.host(row.host) if there else self._hosts.get(row.host)
                if view:
                    view.connected, view.since = there, row.since
            case Fact():
                keep(self._facts, row.name, row, there=there)
            case Grave():
                self._bury(row, there=there)
            case Event() | QueueRow():
                pass

    def _bury(self, row: Grave, *, there: bool) -> None:
        self._graves.pop(row.id, None)
        keep(self._graves, row.id, row, there=there)
        if len(self._graves) > 2 * GRAVES_KEPT:
            for old in tuple(self._graves)[:-GRAVES_KEPT]:
                del self._graves[old]

    def _enrolment(self, row: Enrolment, *, there: bool) -> None:
        if before := self._enrolments.pop(row.host, None):
            self._mtus -= Counter([before.underlay_mtu])
        if there:
            self._enrolments[row.host] = row
            self._mtus[row.underlay_mtu] += 1

    def _placement(self, row: Placement, *, there: bool) -> None:
        before = self._placements.get(row.owner)
        for old in (before,) if before else ():
            del self._placements[old.owner], self._on_host[old.host][old.owner]
            _add(self._used[old.host], old, -1)
            if not self._on_host[old.host]:
                del self._on_host[old.host], self._used[old.host]
        if there:
            self._placements[row.owner] = self._on_host[row.host][row.owner] = row
            _add(self._used[row.host], row, 1)

    def _membership(self, row: Membership, *, there: bool) -> None:
        crowd = self._crowds[row.group]
        if before := self.membership(row.group, row.owner):
            crowd[before.domain] -= 1
            if not crowd[before.domain]:
                del crowd[before.domain]
        keep_in(self._members, row.group, row.owner, row, there=there)
        if there:
            crowd[row.domain] += 1
        if not crowd:
            del self._crowds[row.group]


def _same_place(one: AnyResource, other: AnyResource) -> bool:
    """Say whether two states of a resource stand alike in every index: most changes are of the status."""
    return one.spec == other.spec and (one.name, one.project, one.owner) == (other.name, other.project, other.owner)


def _add(used: Used, placement: Placement, sign: int) -> None:
    used.vcpus += sign * placement.vcpus
    used.memory_mib += sign * placement.memory_mib
    used.disk_gib += sign * placement.disk_gib


def home_of(row: AnyResource) -> str:
    """Return the domain that a thing of the cloud is, or belongs to; empty: none."""
    if row.kind == "domain":
        return row.id
    return row.spec.domain if row.kind in OF_A_DOMAIN else ""


def is_public(row: AnyResource) -> bool:
    """Say whether every project may use this thing."""
    return kind_named(row.kind).shared and bool(row.spec.public)


def spec_told(row: AnyResource) -> bytes:
    """Return a thing's spec as events have it: without what is private."""
    private = {field.name for field in fields(kind_named(row.kind).spec) if field.private}
    if not private:
        return to_json(row.spec)
    return to_json({name: value for name, value in plain(row.spec).items() if name not in private})


def references(row: AnyResource, *, holding: bool = False) -> tuple[Id, ...]:
    """Return the ids that a resource's spec refers to; `holding`: only of what may not go while it does."""
    spec, found = row.spec, list[Id]()
    for field in reference_fields(row.kind, holding=holding):
        if value := getattr(spec, field):
            found += (Id(value),) if isinstance(value, str) else value
    return tuple(found)


@cache
def reference_fields(kind: str, *, holding: bool = False) -> tuple[str, ...]:
    """Return the names of a kind's spec fields that have references; `holding`: that hold what they refer to."""
    return tuple(field.name for field in fields(kind_named(kind).spec) if field.ref and (field.holds or not holding))
