"""The auditor: wish beside reality for one host, each difference named with its owner. Pure."""

from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from common import names
from common.documents import AnyDoc, DomainDoc, NetworkDoc, PortDoc, VolumeDoc
from common.ids import HostId, Id
from common.protocol import Found
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


def compare(seen: WorkingSet, host: HostId, found: Iterable[Found]) -> tuple[Difference, ...]:
    """Return every difference between what a host should have and what it found. Empty: wish and reality agree.

    What a pending tombstone stands for is neither missed nor an orphan: it is on its way out.
    """
    there = {(one.what, one.name): one for one in found}
    wanted: dict[Thing, Id] = {}
    known: set[Id] = set()
    for document in seen.documents(host):
        known |= {document.owner, *_owners(document.doc)}
        if not document.gone:
            wanted.update(_things(document.doc, host))
    return (
        *(_missing(seen, thing, owner) for thing, owner in sorted(wanted.items()) if thing not in there),
        *(_orphan(seen, one) for one in _orphans(there, known)),
        *_claims(seen, host),
    )


def _things(doc: AnyDoc, host: HostId) -> Iterator[tuple[Thing, Id]]:
    """Give what must exist for a document, named as the agent's survey names it. A stopped machine has a domain, and
    neither tap nor the entry that ties its MAC to one."""
    match doc:
        case DomainDoc():
            yield ("domain", names.domain_name(doc.id)), doc.id
        case VolumeDoc():
            yield ("disk", names.volume_file(doc.id)), doc.id
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


def _owners(doc: AnyDoc) -> tuple[Id, ...]:
    return (doc.vm, doc.network) if isinstance(doc, PortDoc) else (doc.id,)


def _orphans(there: dict[Thing, Found], known: set[Id]) -> Iterator[Found]:
    for (what, _), one in sorted(there.items()):
        if (one.owner is None and what in PASSING - {"lease"}) or one.owner in known:
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
    """A machine's claim and its document say the same, and no claim outlives its machine."""
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
        claim = seen.placement(doc.id) if isinstance(doc, DomainDoc) and not document.gone else None
        if claim is None or not isinstance(doc, DomainDoc):
            continue
        given, sold = (host, doc.vcpus, doc.memory_mib), (claim.host, claim.vcpus, claim.memory_mib)
        if given != sold:
            yield Difference(
                problem="claim",
                what="placement",
                name=doc.id,
                owner=doc.id,
                owner_name=_named(seen, doc.id),
                detail=f"the host was told {given}, the books say {sold}",
            )


def _named(seen: WorkingSet, owner: Id | None) -> str:
    row = seen.get(owner) if owner else None
    return f"{row.kind} {row.name}" if row else ""
