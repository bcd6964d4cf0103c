"""network: a VNI, and on every host that has a NIC in it the network itself and every port.

Each host knows every port's MAC, address and host, so that nothing needs to be flooded. All of it is derived from
the addresses and placements that are claimed; this page keeps the documents equal to that.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Network

from common.documents import AnyDoc, DocKey, NetworkDoc, PortDoc, key_of
from common.errors import Invalid
from common.ids import HostId, Id
from common.kinds.kind import AnyResource, Spec
from common.kinds.network import NetworkSpec, NetworkStatus
from controller.auth.caller import Caller
from controller.kinds.outcome import Do, Done, Outcome, Wait
from controller.kinds.plain import silence, wait_for_users
from controller.store.working import WorkingSet
from controller.store.writes import AnyWrite, ClaimVni, Forget, PutDocument, ReleaseVni, Tombstone

VXLAN_OVERHEAD = 50
"""Bytes that VXLAN over IPv4 adds to a frame's IP packet: Ethernet 14, VXLAN 8, UDP 8, IP 20."""


def admit(row: AnyResource, _was: AnyResource | None, _seen: WorkingSet, _caller: Caller) -> Spec:
    """Check the subnet."""
    spec: NetworkSpec = row.spec
    try:
        subnet = IPv4Network(spec.cidr)
    except ValueError as err:
        raise Invalid(
            f"network {row.name}: cidr {spec.cidr} is no subnet: {err}", fix="for instance 10.20.0.0/24"
        ) from err
    if not 16 <= subnet.prefixlen <= 29:
        raise Invalid(
            f"network {row.name}: cidr {spec.cidr} has a /{subnet.prefixlen}; a network has /16 to /29",
            fix="for instance 10.20.0.0/24",
        )
    if (
        subnet.is_multicast
        or subnet.is_loopback
        or subnet.is_link_local
        or subnet.is_reserved
        or subnet[0].is_unspecified
    ):
        raise Invalid(f"network {row.name}: {spec.cidr} can't be used by machines", fix="for instance 10.20.0.0/24")
    return spec


def plan(row: AnyResource, seen: WorkingSet, _now: float) -> Outcome:
    """Claim a VNI; keep every host's documents as the ports are; go when no port is left."""
    vni = seen.vni(row.id)
    if vni is None and row.deleted_at is None:
        return Do(writes=(ClaimVni(network=row.id),), say="claiming a VNI")
    ports = tuple(_ports(row, seen)) if vni is not None else ()
    hosts = sorted({port.host for port in ports})
    if writes := tuple(_differences(row, seen, hosts, _wanted(row, seen, vni, ports))):
        return Do(writes=writes, say="telling hosts of its ports")
    if row.deleted_at is not None:
        return _plan_delete(row, seen)
    status = NetworkStatus(state="active", vni=vni or 0, ports=sum(1 for _ in seen.ports(row.id)), hosts=len(hosts))
    return Done(status=status)


def _plan_delete(row: AnyResource, seen: WorkingSet) -> Outcome:
    if waiting := wait_for_users(row, seen):
        return waiting
    left = seen.owned_documents(row.id)
    if left:
        hosts = sorted({document.host for document in left})
        message = "; ".join(silence(seen, host) or f"host {seen.name_of(host)} removes it" for host in hosts)
        return Wait(status=NetworkStatus(state="deleting", message=message), message=message)
    return Do(writes=(ReleaseVni(network=row.id), Forget(resource=row.id)), say="forgetting the network")


def _wanted(row: AnyResource, seen: WorkingSet, vni: int | None, ports: Iterable[PortDoc]) -> dict[DocKey, AnyDoc]:
    """Return every document that should be on each host with a port, by key."""
    if vni is None:
        return {}
    docs: tuple[AnyDoc, ...] = (network_doc(row, seen, vni), *ports)
    return {key_of(doc): doc for doc in docs}


def _ports(row: AnyResource, seen: WorkingSet) -> Iterator[PortDoc]:
    for address in seen.ports(row.id):
        placement, vm = seen.placement(address.vm), seen.get(address.vm)
        enrolment = seen.enrolment(placement.host) if placement else None
        if placement and enrolment and vm:
            yield PortDoc(
                vm=address.vm,
                index=address.index,
                network=row.id,
                mac=address.mac,
                address=address.address,
                hostname=vm.name,
                host=placement.host,
                vtep=enrolment.vtep,
            )


def network_doc(row: AnyResource, seen: WorkingSet, vni: int) -> NetworkDoc:
    """Return the network as its hosts should have it."""
    return NetworkDoc(
        id=row.id,
        vni=vni,
        cidr=row.spec.cidr,
        gateway=str(IPv4Network(row.spec.cidr)[1]),
        mtu=guest_mtu(seen),
        domain=f"{row.name}.{row.project}.internal",
    )


def guest_mtu(seen: WorkingSet) -> int:
    """Return the MTU that fits through every host's underlay."""
    return seen.smallest_mtu - VXLAN_OVERHEAD


def _differences(
    row: AnyResource, seen: WorkingSet, hosts: Sequence[HostId], wanted: Mapping[DocKey, AnyDoc]
) -> Iterator[AnyWrite]:
    for host in hosts:
        for key, doc in wanted.items():
            there = seen.document(host, key)
            if there is None or there.gone or there.doc != doc:
                yield PutDocument(host=host, owner=Id(row.id), doc=doc)
    right = set(hosts)
    for document in seen.owned_documents(row.id):
        if not document.gone and (document.host not in right or document.key not in wanted):
            yield Tombstone(host=document.host, key=document.key)
