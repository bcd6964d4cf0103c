"""network: a VNI, and on every host that has a NIC in it the network itself and every port.

Each host knows every port's MAC, address and host, so that nothing needs to be flooded. All of it is derived from
the addresses and placements that are claimed; this page keeps the documents equal to that.
"""

from collections.abc import Iterator
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
    wanted = dict(_wanted(row, seen, vni)) if vni is not None else {}
    if writes := tuple(_differences(row, seen, wanted)):
        return Do(writes=writes, say="telling hosts of its ports")
    if row.deleted_at is not None:
        return _plan_delete(row, seen)
    hosts = {host for host, _ in wanted}
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


def _wanted(row: AnyResource, seen: WorkingSet, vni: int) -> Iterator[tuple[tuple[HostId, DocKey], AnyDoc]]:
    """Give every document that should be, by host and key."""
    ports = tuple(_ports(row, seen))
    hosts = sorted({port.host for port in ports})
    network = network_doc(row, seen, vni)
    for host in hosts:
        yield (host, key_of(network)), network
        for port in ports:
            yield (host, key_of(port)), port


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
    return min((enrolment.underlay_mtu for enrolment in seen.enrolments()), default=1500) - VXLAN_OVERHEAD


def _differences(row: AnyResource, seen: WorkingSet, wanted: dict[tuple[HostId, DocKey], AnyDoc]) -> Iterator[AnyWrite]:
    have = {(document.host, document.key): document for document in seen.owned_documents(row.id)}
    for (host, key), doc in wanted.items():
        there = have.get((host, key))
        if there is None or there.gone or there.doc != doc:
            yield PutDocument(host=host, owner=Id(row.id), doc=doc)
    for (host, key), document in have.items():
        if (host, key) not in wanted and not document.gone:
            yield Tombstone(host=host, key=key)
