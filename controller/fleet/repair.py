"""What to do about each difference that an audit found: pure. Nothing that anybody owns is ever destroyed.

An orphan is destroyed by a tombstone, like everything else, and only where the books know no owner: no resource, no
document, and no claim but on this very host (which is given back as well). What is missing is sent again, so that its
host looks at once. A claim that outlived its machine is given back.
"""

import hashlib
import re
from collections.abc import Iterable
from typing import Literal

import msgspec

from common import names
from common.codec import to_json
from common.documents import NetworkDoc, PortDoc, last_document
from common.ids import HostId, Id, RequestId
from controller.fleet.audit import ENTRIES, Difference, things
from controller.store.working import WorkingSet
from controller.store.writes import AnyWrite, BuryOrphan, Poke, PutDocument, ReleaseAddresses, ReleasePlacement

_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")


class Repair(msgspec.Struct, frozen=True, kw_only=True):
    """What is done about one difference."""

    difference: Difference
    action: Literal["destroy", "send again", "give back", "look again", "leave"]
    """leave: by hand, or not at all; `say` has the reason."""
    say: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is done about all differences of one host."""

    repairs: tuple[Repair, ...]
    writes: tuple[AnyWrite, ...]

    @property
    def digest(self) -> str:
        """A name for this plan: who saw it carries out this one, or none."""
        return hashlib.sha256(to_json(self.repairs)).hexdigest()[:32]


def plan_repairs(seen: WorkingSet, host: HostId, differences: Iterable[Difference], request: RequestId) -> Plan:
    """Decide what is done about each difference of a host."""
    found = tuple(differences)
    repairs: list[Repair] = []
    writes: dict[AnyWrite, None] = {}
    for difference in found:
        repair, wanted = _repair(seen, host, difference, found)
        repairs.append(repair)
        writes.update((_asked_by(request, write), None) for write in wanted)
    return Plan(repairs=tuple(repairs), writes=tuple(writes))


def _asked_by(request: RequestId, write: AnyWrite) -> AnyWrite:
    match write:
        case PutDocument() | BuryOrphan():
            return msgspec.structs.replace(write, request=request)
        case _:
            return write


def _repair(
    seen: WorkingSet, host: HostId, difference: Difference, others: tuple[Difference, ...]
) -> tuple[Repair, tuple[AnyWrite, ...]]:
    match difference.problem:
        case "missing":
            return _missing(seen, host, difference)
        case "claim":
            return _claim(seen, difference)
        case "orphan" if difference.what == "tap" and not _has_domain(difference, others):
            return _left(difference, f"no machine holds it any more: on the host, ip link delete {difference.name}")
        case "orphan":
            return _orphan(seen, host, difference)


def _missing(seen: WorkingSet, host: HostId, difference: Difference) -> tuple[Repair, tuple[AnyWrite, ...]]:
    thing = (difference.what, difference.name)
    writes = tuple(
        PutDocument(host=host, owner=document.owner, doc=document.doc)
        for document in seen.documents(host)
        if not document.gone and thing in dict(things(document.doc, host))
    )
    say = f"sends what {difference.owner_name or difference.owner} needs again, so that the host makes it now"
    return Repair(difference=difference, action="send again", say=say), writes


def _claim(seen: WorkingSet, difference: Difference) -> tuple[Repair, tuple[AnyWrite, ...]]:
    owner = difference.owner
    assert owner is not None, "a claim has an owner"
    if seen.get(owner) is None:
        say = f"gives back what is claimed for {owner}, which is gone"
        return (
            Repair(difference=difference, action="give back", say=say),
            (ReleasePlacement(owner=owner), ReleaseAddresses(vm=owner)),
        )
    say = f"has {difference.owner_name} planned anew, which writes its document as its claim is"
    return Repair(difference=difference, action="look again", say=say), (Poke(resource=owner),)


def _orphan(seen: WorkingSet, host: HostId, difference: Difference) -> tuple[Repair, tuple[AnyWrite, ...]]:
    owner = _network_of(difference) or difference.owner
    if owner is None:
        return _left(difference, "it has no name of Skerry's: look at it, and remove it by hand")
    if live := _live_network(seen, host, owner):
        if port := _port_of_nobody(seen, host, difference, owner):
            say = f"destroys what is left of a port of {port.vm}, which is gone"
            return Repair(difference=difference, action="destroy", say=say), (
                BuryOrphan(host=host, owner=port.vm, doc=port),
            )
        say = f"sends network {seen.name_of(owner)} again: its host removes what does not belong to it"
        return Repair(difference=difference, action="send again", say=say), (live,)
    if row := seen.get(owner):
        where = f" on host {seen.name_of(claim.host)}" if (claim := seen.placement(owner)) else ""
        return _left(difference, f"{row.kind} {row.name} owns it and is{where or ' there'}: this may be its only copy")
    claim = seen.placement(owner)
    if (claim and claim.host != host) or seen.owned_documents(owner):
        return _left(difference, f"{owner} still has a claim elsewhere, or a document: look there first")
    doc = last_document(owner, difference.detail)
    if doc is None:
        return _left(difference, f"nothing is known of how a {difference.what} is destroyed: remove it by hand")
    say = f"destroys {difference.what} {difference.name}: nothing in the books owns {owner}"
    return Repair(difference=difference, action="destroy", say=say), (BuryOrphan(host=host, owner=owner, doc=doc),)


def _has_domain(tap: Difference, others: tuple[Difference, ...]) -> bool:
    """Say whether a tap goes with an orphaned machine."""
    return any((one.problem, one.what, one.owner) == ("orphan", "domain", tap.owner) for one in others)


def _left(difference: Difference, say: str) -> tuple[Repair, tuple[AnyWrite, ...]]:
    return Repair(difference=difference, action="leave", say=say), ()


def _network_of(difference: Difference) -> Id | None:
    """Return the network whose device an entry is in: the unit that keeps such entries is the network's."""
    if difference.what == "lease":
        found = names.owner_of(difference.detail)
    elif difference.what in ENTRIES:
        found = names.owner_of(difference.name.rpartition(" ")[2])
    else:
        return None
    return found if found and found.startswith("net-") else None


def _port_of_nobody(seen: WorkingSet, host: HostId, difference: Difference, network: Id) -> PortDoc | None:
    """Return the port that an entry belongs to, where its machine is gone and its host still thinks that it is not."""
    vm, mac = difference.owner, _MAC.search(difference.name)
    if vm is None or not vm.startswith("vm-") or mac is None or seen.get(vm) or seen.owned_documents(vm):
        return None
    index = next((nic for nic in range(10) if names.mac(vm, nic) == mac[0]), None)
    if index is None:
        return None
    return PortDoc(vm=vm, index=index, network=network, mac=mac[0], address="", hostname="", host=host, vtep="")


def _live_network(seen: WorkingSet, host: HostId, owner: Id) -> PutDocument | None:
    """Return the writing again of a network that is wanted on this host."""
    for document in seen.documents(host):
        if isinstance(document.doc, NetworkDoc) and document.doc.id == owner and not document.gone:
            return PutDocument(host=host, owner=document.owner, doc=document.doc)
    return None
