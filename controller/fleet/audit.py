"""The auditor: wish beside reality for one host, each difference named with its owner. Pure."""

from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from common import names
from common.documents import AnyDoc, DomainDoc, DomainSeen, NetworkDoc, PortDoc, SnapshotDoc, VolumeDoc
from common.ids import HostId, Id
from common.protocol import Found
from controller.store.rows import Document
from controller.store.working import WorkingSet


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is not as wished."""

    problem: Literal["orphan", "missing", "claim"]
    """orphan: it exists and nobody wants it. missing: it is wanted and not there. claim: the books disagree."""
    what: str
    """As in `Found.what`, or `placement`."""
    name: str
    owner: Id | None
    owner_name: str
    """The owner's kind and name, where it still exists."""
    detail: str = ""


Thing = tuple[str, str]
"""What it is, and its name."""

PASSING = frozenset({"lease", "file", "image"})
"""Found things that come and go by themselves while their owner lives, so that none is ever missed."""

ENTRIES = frozenset({"fdb", "neighbour", "lease"})
"""What a host may have of a machine that it only knows a port of."""


def compare(seen: WorkingSet, host: HostId, found: Iterable[Found]) -> tuple[Difference, ...]:
    """Return every difference between what a host should have and what it found. Empty: wish and reality agree.

    What a pending tombstone stands for is neither missed nor an orphan: it is on its way out.
    """
    there = {(one.what, one.name): one for one in found}
    wanted: dict[Thing, Id] = {}
    known, spoken_of = set[Id](), set[Id]()
    for document in seen.documents(host):
        known.add(document.owner)
        if isinstance(document.doc, PortDoc):
            spoken_of.add(document.doc.vm)
        if not document.gone:
            wanted.update(things(document.doc, host))
    return (
        *(_missing(seen, thing, owner) for thing, owner in sorted(wanted.items()) if thing not in there),
        *(_orphan(seen, one) for one in _orphans(there, known, spoken_of)),
        *_claims(seen, host),
    )


def things(doc: AnyDoc, host: HostId) -> Iterator[tuple[Thing, Id]]:
    """Give what must exist for a document, named as the agent's survey names it. A stopped machine has a domain, and
    neither tap nor the entry that ties its MAC to one."""
    match doc:
        case DomainDoc():
            yield ("domain", names.domain_name(doc.id)), doc.id
        case VolumeDoc():
            yield ("disk", doc.id), doc.id
        case SnapshotDoc():
            yield ("snapshot", doc.id), doc.id
        case NetworkDoc():
            yield ("bridge", names.bridge(doc.id)), doc.id
            yield ("vxlan", names.vxlan(doc.id)), doc.id
            yield ("namespace", names.router_namespace(doc.id)), doc.id
            yield ("veth", names.gateway_outer(doc.id)), doc.id
            yield ("veth", names.gateway_inner(doc.id)), doc.id
        case PortDoc():
            if doc.host != host:
                yield ("fdb", f"{doc.mac} {names.vxlan(doc.network)}"), doc.vm
                yield ("neighbour", f"{doc.address} {doc.mac} {names.vxlan(doc.network)}"), doc.vm
            else:
                yield ("neighbour", f"{doc.address} {doc.mac} {names.gateway_inner(doc.network)}"), doc.vm


def _orphans(there: dict[Thing, Found], known: set[Id], spoken_of: set[Id]) -> Iterator[Found]:
    """Give what belongs to nobody here. A machine that runs elsewhere has no more here than entries of its port."""
    for (what, _), one in sorted(there.items()):
        if (one.owner is None and what in PASSING - {"lease"}) or one.owner in known:
            continue
        if what in ENTRIES and one.owner in spoken_of:
            continue
        yield one


def _missing(seen: WorkingSet, thing: Thing, owner: Id) -> Difference:
    return Difference(problem="missing", what=thing[0], name=thing[1], owner=owner, owner_name=_named(seen, owner))


def _orphan(seen: WorkingSet, one: Found) -> Difference:
    return Difference(
        problem="orphan",
        what=one.what,
        name=one.name,
        owner=one.owner,
        owner_name=_named(seen, one.owner),
        detail=one.detail,
    )


def _claims(seen: WorkingSet, host: HostId) -> Iterator[Difference]:
    """A machine's claim is what its document says, or what it still runs with; and no claim outlives its machine."""
    for placement in seen.placed_on(host):
        if seen.get(placement.owner) is None:
            yield Difference(
                problem="claim",
                what="placement",
                name=placement.owner,
                owner=placement.owner,
                owner_name="",
                detail=f"{placement.vcpus} vCPUs and {placement.memory_mib} MiB are claimed for what is gone",
            )
    for document in seen.documents(host):
        doc = document.doc
        if document.gone or not isinstance(doc, DomainDoc):
            continue
        claim = seen.placement(doc.id)
        given = (host, doc.vcpus, doc.memory_mib)
        sold = (claim.host, claim.vcpus, claim.memory_mib) if claim else None
        if sold not in (given, (host, *_may_run_with(seen, document, doc))):
            books = f"the books say {sold}" if sold else "the books have no claim"
            yield Difference(
                problem="claim",
                what="placement",
                name=doc.id,
                owner=doc.id,
                owner_name=_named(seen, doc.id),
                detail=f"the host was told {given}, {books}",
            )


def _may_run_with(seen: WorkingSet, document: Document, doc: DomainDoc) -> tuple[int, int]:
    """Return what a machine runs with that was told to shrink, and does with its next start."""
    report = seen.report(document.host, document.key)
    shown = report.seen if report else None
    if not isinstance(shown, DomainSeen):
        return doc.vcpus, doc.memory_mib
    return max(doc.vcpus, shown.vcpus), max(doc.memory_mib, shown.memory_mib)


def _named(seen: WorkingSet, owner: Id | None) -> str:
    row = seen.get(owner) if owner else None
    return f"{row.kind} {row.name}" if row else ""
