"""vm: placed with its addresses in one transaction, then a root volume and a document that its host makes true."""

from common.documents import DomainDoc, DomainSeen, GuestMetadata, Nic, Report, key_of
from common.errors import Invalid
from common.ids import HostId, Id, child_id
from common.kinds.kind import AnyResource, Spec
from common.kinds.vm import VmSpec, VmStatus
from common.kinds.volume import VOLUME, VolumeSpec
from common.names import mac
from controller.auth.caller import Caller, require_operator
from controller.kinds.demand import demand_of
from controller.kinds.network import guest_mtu
from controller.kinds.outcome import Do, Done, Outcome, Place, Wait
from controller.kinds.plain import silence
from controller.kinds.shape import admit_shape, shape_of
from controller.kinds.volume import image_ref
from controller.store.rows import Placement
from controller.store.working import WorkingSet
from controller.store.writes import (
    ClaimAddress,
    CreateChild,
    DeleteChild,
    Forget,
    Poke,
    PutDocument,
    ReleaseAddresses,
    ReleasePlacement,
    Tombstone,
)


def admit(row: AnyResource, was: AnyResource | None, seen: WorkingSet, caller: Caller) -> Spec:
    """Check what spans fields: a disk that holds its image, networks named once, a pin only by operators."""
    spec: VmSpec = row.spec
    if spec.host and (was is None or was.spec.host != spec.host):
        require_operator(caller, f"pinning vm {row.name} to a host")
    if len(set(spec.networks)) != len(spec.networks):
        raise Invalid(f"vm {row.name}: a network is named twice", fix="name each network once: a NIC in each")
    admit_shape(row, seen)
    if len(set(spec.groups)) != len(spec.groups):
        raise Invalid(f"vm {row.name}: a group is named twice", fix="name each group once")
    image, shape = seen.get(Id(spec.image)), shape_of(row, seen)
    if image and shape and image.spec.disk_gib > shape.disk_gib:
        raise Invalid(
            f"vm {row.name} has a disk of {shape.disk_gib} GiB (size {shape.size}); "
            f"image {image.name} needs {image.spec.disk_gib}",
            fix=f"use a size with a disk of {image.spec.disk_gib} GiB or more",
        )
    return spec


def plan(row: AnyResource, seen: WorkingSet, _now: float) -> Outcome:
    """Give the one next step in a VM's life."""
    if row.deleted_at is not None:
        return _plan_delete(row, seen)
    spec: VmSpec = row.spec
    image = seen.get(Id(spec.image))
    if image is None or not image.spec.digest:
        message = (
            f"image {seen.name_of(spec.image)} has no content yet: skerry image upload {seen.name_of(spec.image)} FILE"
        )
        return Wait(status=_status(row, seen, "waiting", message), message=message)
    placement = seen.placement(row.id)
    if placement is None:
        return _place(row, seen)
    volume = child_id(row.id, VOLUME.prefix)
    if seen.get(volume) is None:
        return Do(writes=(_root_volume(row, volume, placement),), say="making its root volume")
    doc = _domain(row, seen, image, placement)
    document = seen.document(placement.host, key_of(doc))
    if document is None or document.gone or document.doc != doc:
        write = PutDocument(host=placement.host, owner=row.id, doc=doc)
        return Do(writes=(write,), say=f"asking host {seen.name_of(placement.host)}")
    return _follow(row, seen, placement.host, seen.report(placement.host, document.key))


def _place(row: AnyResource, seen: WorkingSet) -> Outcome:
    shape = shape_of(row, seen)
    if shape is None:
        message = f"size {row.spec.size} is gone"
        return Wait(status=_status(row, seen, "waiting", message), message=message)
    claims, pokes = [], []
    for index, name in enumerate(row.spec.networks):
        network = seen.get(Id(name))
        if network is None:
            message = f"network {name} is gone"
            return Wait(status=_status(row, seen, "waiting", message), message=message)
        cidr = network.spec.cidr
        claims.append(ClaimAddress(network=network.id, cidr=cidr, vm=row.id, index=index, mac=mac(row.id, index)))
        pokes.append(Poke(resource=network.id))
    return Place(demand=demand_of(row, shape, seen), writes=(*claims, *pokes), status=_status(row, seen, "blocked", ""))


def _root_volume(row: AnyResource, volume: Id, placement: Placement) -> CreateChild:
    spec = VolumeSpec(size_gib=placement.disk_gib, image=row.spec.image, host=placement.host)
    return CreateChild(id=volume, kind=VOLUME.name, project=row.project, name=row.name, owner=row.id, spec=spec)


def _domain(row: AnyResource, seen: WorkingSet, image: AnyResource, placement: Placement) -> DomainDoc:
    spec: VmSpec = row.spec
    mtu = guest_mtu(seen)
    keys = [seen.get(Id(key)) for key in spec.keypairs]
    return DomainDoc(
        id=row.id,
        name=row.name,
        project=row.project,
        vcpus=placement.vcpus,
        memory_mib=placement.memory_mib,
        kernel=image_ref(image) if image.spec.format == "kernel" else None,
        volumes=(child_id(row.id, VOLUME.prefix),),
        nics=tuple(
            Nic(index=address.index, network=address.network, mac=address.mac, mtu=mtu)
            for address in seen.addresses(row.id)
        ),
        power=spec.power,
        start_generation=spec.start_generation,
        boot_generation=spec.boot_generation,
        restart=spec.restart,
        stop_grace_s=spec.stop_grace_s,
        nocloud=spec.nocloud,
        metadata=GuestMetadata(
            instance_id=row.id,
            hostname=row.name,
            project=row.project,
            public_keys=tuple((key.name, key.spec.public_key) for key in keys if key),
            user_data=spec.user_data,
            host=seen.name_of(placement.host),
        ),
    )


def _follow(row: AnyResource, seen: WorkingSet, host: HostId, report: Report | None) -> Outcome:
    """Say how far the host is."""
    quiet = silence(seen, host)
    if report and report.done and not quiet:
        state, message = str(report.seen.state if isinstance(report.seen, DomainSeen) else "unknown"), ""
        if state == "stopped-by-guest":
            state, message = "stopped", f"the guest powered itself off: skerry vm start {row.name}"
        return Done(status=_status(row, seen, state, message, report))
    if quiet and row.observed_generation == row.generation:
        return Wait(status=_status(row, seen, row.status.state, quiet, report), message=quiet)
    said = (report.problem or report.message) if report else ""
    message = quiet or said or f"host {seen.name_of(host)} works on it"
    state = "stopping" if row.spec.power == "stopped" else "starting"
    progress = report.progress if report and report.progress is not None else 0.5
    return Wait(status=_status(row, seen, state, message, report), message=message, progress=progress)


def _status(row: AnyResource, seen: WorkingSet, state: str, message: str, report: Report | None = None) -> VmStatus:
    placement = seen.placement(row.id)
    domain = report.seen if report and isinstance(report.seen, DomainSeen) else None
    return VmStatus(
        state=state,
        message=message,
        host=seen.name_of(placement.host) if placement else "",
        addresses=tuple(address.address for address in seen.addresses(row.id)),
        boot_generation=domain.boot_generation if domain else row.status.boot_generation,
        started_at=domain.started_at if domain else row.status.started_at,
    )


def _plan_delete(row: AnyResource, seen: WorkingSet) -> Outcome:
    """Domain, then volume, then claims, then the row: each is gone before the next is touched."""
    documents = seen.owned_documents(row.id)
    if wanted := [document for document in documents if not document.gone]:
        writes = tuple(Tombstone(host=document.host, key=document.key) for document in wanted)
        return Do(writes=writes, say="having it destroyed")
    if documents:
        host = documents[0].host
        message = silence(seen, host)
        message = f"{message}; it is destroyed when the host is back, or when the host is deleted" if message else ""
        message = message or f"host {seen.name_of(host)} destroys it"
        return Wait(status=_status(row, seen, "deleting", message), message=message)
    children = seen.children(row.id)
    if wanted_children := [child for child in children if child.deleted_at is None]:
        return Do(writes=tuple(DeleteChild(id=child.id) for child in wanted_children), say="deleting its volume")
    if children:
        message = f"its volume goes: {children[0].status.message}".rstrip(": ")
        return Wait(status=_status(row, seen, "deleting", message), message=message, progress=0.7)
    networks = sorted({address.network for address in seen.addresses(row.id)})
    return Do(
        writes=(
            ReleaseAddresses(vm=row.id),
            ReleasePlacement(owner=row.id),
            *(Poke(resource=network) for network in networks),
            Forget(resource=row.id),
        ),
        say="giving back what it had",
    )
