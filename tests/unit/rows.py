"""Rows put straight into a working set, without a store: for tests of what only reads them."""

from typing import Any

from common.documents import AnyDoc, DomainDoc, GuestMetadata, NetworkDoc, Nic, PortDoc, VolumeDoc, key_of
from common.ids import HostId, Id, Revision
from common.kinds import kind_named
from common.kinds.kind import AnyResource, Resource
from common.names import mac
from controller.store.rows import AnyRow, Capacity, Document, Placement, Put
from controller.store.working import WorkingSet


def made_id(prefix: str, number: int) -> Id:
    """Return the id that a test gives its nth thing of a kind."""
    return Id(f"{prefix}-{number:012d}")


def host_id(number: int) -> HostId:
    """Return the id of a test's nth host."""
    return HostId(made_id("host", number))


def a_row(kind: str, number: int, name: str = "", **fields: Any) -> AnyResource:
    """Return a resource; `spec` holds the fields of its spec, the rest are the row's own."""
    described = kind_named(kind)
    spec = described.spec(**fields.pop("spec", {}))
    given: dict[str, Any] = {
        "id": made_id(described.prefix, number), "kind": kind, "project": "shop", "name": name or f"{kind}{number}",
        "labels": {}, "generation": 1, "observed_generation": 0, "spec": spec, "status": described.status(),
        "owner": None, "created_at": 0.0, "deleted_at": None, "revision": Revision(1),
    }  # fmt: skip
    return Resource(**given | fields)


def a_host(number: int, *, deleted_at: float | None = None, revision: int = 1, **spec: Any) -> AnyResource:
    """Return a host's row."""
    return a_row(
        "host", number, f"h{number}", project="", spec=spec, deleted_at=deleted_at, revision=Revision(revision)
    )


def a_capacity(number: int, vcpus: int = 8, memory_mib: int = 8192, disk_gib: int = 100) -> Capacity:
    """Return what a test's nth host may sell."""
    return Capacity(host=host_id(number), vcpus=vcpus, memory_mib=memory_mib, disk_gib=disk_gib)


def a_vm(number: int, name: str = "", **fields: Any) -> AnyResource:
    """Return a VM's row."""
    spec = {"image": made_id("img", 1), "size": made_id("size", 1), "networks": (made_id("net", 1),)}
    return a_row("vm", number, name, spec=spec | fields.pop("spec", {}), **fields)


def a_placement(vm: int, host: int, vcpus: int = 1, memory_mib: int = 512, disk_gib: int = 10) -> Placement:
    """Return the claim of a test's nth VM on a host."""
    return Placement(owner=made_id("vm", vm), host=host_id(host), vcpus=vcpus, memory_mib=memory_mib, disk_gib=disk_gib)


def a_domain(vm: int, vcpus: int = 1, memory_mib: int = 512) -> DomainDoc:
    """Return the document of a test's nth VM: one disk, one NIC in network 1."""
    machine, network = made_id("vm", vm), made_id("net", 1)
    return DomainDoc(
        id=machine, name=f"vm{vm}", project="shop", vcpus=vcpus, memory_mib=memory_mib, kernel=None,
        volumes=(made_id("vol", vm),), nics=(Nic(index=0, network=network, mac=mac(machine, 0), mtu=1450),),
        power="running", start_generation=1, boot_generation=1, restart="on-crash", stop_grace_s=20, nocloud=False,
        metadata=GuestMetadata(
            instance_id=machine, hostname=f"vm{vm}", project="shop", public_keys=(), user_data="", host="h1"
        ),
    )  # fmt: skip


def a_disk(number: int) -> VolumeDoc:
    """Return the document of a test's nth volume."""
    return VolumeDoc(id=made_id("vol", number), size_gib=10, image=None)


def a_network_doc(number: int = 1) -> NetworkDoc:
    """Return the document of a test's nth network."""
    return NetworkDoc(
        id=made_id("net", number), vni=4095 + number, cidr="10.20.0.0/24", gateway="10.20.0.1", mtu=1450,
        domain="default.shop.internal",
    )  # fmt: skip


def a_port(vm: int, host: int) -> PortDoc:
    """Return the document of the NIC that a test's nth VM has in network 1, on the host where it runs."""
    machine = made_id("vm", vm)
    return PortDoc(
        vm=machine, index=0, network=made_id("net", 1), mac=mac(machine, 0), address=f"10.20.0.{vm + 1}",
        hostname=f"vm{vm}", host=host_id(host), vtep=f"10.77.0.{host}",
    )  # fmt: skip


def told(host: int, doc: AnyDoc, *, gone: bool = False, revision: int = 1) -> Document:
    """Return the row that has a host want a document, or (gone) destroy what it stands for."""
    owner = doc.network if isinstance(doc, PortDoc) else doc.id
    return Document(host=host_id(host), key=key_of(doc), owner=owner, doc=doc, gone=gone, revision=Revision(revision))


def working_set(*rows: AnyRow | AnyResource) -> WorkingSet:
    """Return a working set that holds these rows."""
    seen = WorkingSet()
    seen.apply([Put(row) for row in rows])
    return seen


def connect(seen: WorkingSet, *hosts: int) -> WorkingSet:
    """Have hosts be connected; returns the working set."""
    for number in hosts:
        seen.host(host_id(number)).connected = True
    return seen
