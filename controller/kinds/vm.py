"""vm: placed with its addresses in one transaction, then a root volume and a document that its host makes true."""

from collections.abc import Iterator

import msgspec

from common.counters import ADDRESSES, DISK_GIB, MEMORY_MIB, VCPUS, VMS, VOLUMES, Counter
from common.documents import DataDisk, DocKey, DomainDoc, DomainSeen, GuestMetadata, Nic, Report, key_of
from common.errors import Conflict, FieldError, Invalid
from common.ids import HostId, Id
from common.kinds.kind import AnyResource, Spec, kept_until
from common.kinds.vm import VmSpec, VmStatus
from common.names import mac
from controller.auth.caller import Caller, require_operator
from controller.kinds import lifetime
from controller.kinds.claim import admit_growth, claim_of, resting
from controller.kinds.demand import demand_of
from controller.kinds.disks import data_volumes, disks_of, held_gib, lagging, lies_on, needed_gib, next_write
from controller.kinds.firmware import admit_firmware, as_its_image_says, firmware_remarks, firmware_words
from controller.kinds.growing import growth_waits, room_for
from controller.kinds.network import guest_mtu
from controller.kinds.outcome import Blocked, Do, Done, Outcome, Place, Wait
from controller.kinds.plain import silence
from controller.kinds.processor import admit_cpu, cpu_remarks, cpu_words, with_cpu
from controller.kinds.shape import Shape, admit_shape, shape_of
from controller.kinds.volume import image_ref
from controller.store.rows import Placement
from controller.store.working import WorkingSet
from controller.store.writes import (
    ClaimAddress,
    DeleteChild,
    Forget,
    Poke,
    PutDocument,
    ReleaseAddresses,
    ReleasePlacement,
    ResizePlacement,
    Tombstone,
)


def admit(row: AnyResource, was: AnyResource | None, seen: WorkingSet, caller: Caller) -> Spec:
    """Check what spans fields: a disk that holds its image, networks named once, a pin only by operators."""
    spec = as_its_image_says(row, was, seen)
    row = msgspec.structs.replace(row, spec=spec)
    if spec.host and (was is None or was.spec.host != spec.host):
        require_operator(caller, f"pinning vm {row.name} to a host")
    if len(set(spec.networks)) != len(spec.networks):
        raise Invalid(f"vm {row.name}: a network is named twice", fix="name each network once: a NIC in each")
    admit_shape(row, seen)
    if len(set(spec.groups)) != len(spec.groups):
        raise Invalid(f"vm {row.name}: a group is named twice", fix="name each group once")
    if spec.cpu_weight > 100 and (was is None or was.spec.cpu_weight != spec.cpu_weight):
        require_operator(caller, f"a CPU weight above 100 for vm {row.name}")
    admit_cpu(row, was, seen, caller)
    admit_firmware(row, was, seen)
    spec = _given_time(_kept(row, was, seen), row, was, seen)
    row = msgspec.structs.replace(row, spec=spec)
    admit_growth(row, was, seen)
    _admit_images(row, was, seen)
    return spec


def _given_time(spec: VmSpec, row: AnyResource, was: AnyResource | None, seen: WorkingSet) -> VmSpec:
    """Start one anew that was stopped at the end of its time: a host starts what is off for a new run only."""
    if was is None or (spec.ttl_s, spec.on_expiry) == (was.spec.ttl_s, was.spec.on_expiry):
        return spec
    documents = (document.doc for document in seen.owned_documents(row.id))
    held = any(isinstance(doc, DomainDoc) and doc.power == "stopped" for doc in documents)
    if held and was.spec.power == "running":
        return msgspec.structs.replace(spec, start_generation=spec.start_generation + 1)
    return spec


def _kept(row: AnyResource, was: AnyResource | None, seen: WorkingSet) -> VmSpec:
    """Return the spec with the root disk that it has already, where that is larger than what is asked for.

    Raises Invalid where a smaller one is asked for in so many words.
    """
    spec: VmSpec = msgspec.structs.replace(row.spec, kept_disk_gib=0)
    shape, held = shape_of(msgspec.structs.replace(row, spec=spec), seen), held_gib(row, seen)
    if shape is None or held <= shape.disk_gib:
        return spec
    if spec.disk_gib is not None and was is not None and spec.disk_gib != was.spec.disk_gib:
        raise Invalid(
            f"vm {row.name} has a root disk of {held} GiB; {spec.disk_gib} GiB is less, and disks never shrink",
            fix=f"ask for {held} GiB or more, or make a new machine",
            errors=(FieldError(field="spec.disk_gib", message=f"must be ≥ {held}"),),
        )
    return msgspec.structs.replace(spec, kept_disk_gib=held)


def _admit_images(row: AnyResource, was: AnyResource | None, seen: WorkingSet) -> None:
    """Refuse an image that does not fit the disk, and for a machine that is there already one without content."""
    spec: VmSpec = row.spec
    image, shape = seen.get(Id(spec.image)), shape_of(row, seen)
    if image and shape and image.spec.disk_gib > shape.disk_gib:
        raise Invalid(
            f"vm {row.name} has a disk of {shape.disk_gib} GiB (size {shape.size}); "
            f"image {image.name} needs {image.spec.disk_gib}",
            fix=f"use a size with a disk of {image.spec.disk_gib} GiB or more",
        )
    anew = was is not None and spec.rebuild_generation > was.spec.rebuild_generation
    rescue = seen.get(Id(spec.rescue)) if spec.rescue else None
    for used, boots in ((image, anew), (rescue, rescue is not None)):
        if used and boots and not used.spec.digest:
            raise Conflict(
                f"image {used.name} has no content yet, so vm {row.name} can't boot from it",
                fix=f"skerry image upload {used.name} FILE",
            )


def counts(row: AnyResource, seen: WorkingSet) -> dict[Counter, int]:
    """The machine, running or not, and what it is to have: its share of a host, its root volume, its addresses.

    A rescue disk is not counted: no quota stands between somebody and a machine that needs help.
    """
    shape = shape_of(row, seen)
    share = {VCPUS: shape.vcpus, MEMORY_MIB: shape.memory_mib, DISK_GIB: shape.disk_gib} if shape else {}
    return {VMS: 1, VOLUMES: 1, ADDRESSES: len(row.spec.networks), **share}


def plan(row: AnyResource, seen: WorkingSet, now: float) -> Outcome:
    """Give the one next step in a VM's life."""
    if row.deleted_at is not None:
        return _plan_delete(row, seen)
    if over := lifetime.end(row, seen, now):
        return over
    if kept_until(row):
        return _plan_kept(row, seen, now)
    spec: VmSpec = row.spec
    image = seen.get(Id(spec.image))
    if image is None or not image.spec.digest:
        message = (
            f"image {seen.name_of(spec.image)} has no content yet: skerry image upload {seen.name_of(spec.image)} FILE"
        )
        return Wait(status=_status(row, seen, "waiting", message), message=message)
    shape = shape_of(row, seen)
    if shape is None:
        message = f"size {spec.size} is gone"
        return Wait(status=_status(row, seen, "waiting", message), message=message)
    placement = seen.placement(row.id)
    if placement is None:
        return _place(row, seen, shape)
    claim = claim_of(row, seen, placement, shape)
    if claim.placement != placement:
        resized = ResizePlacement(placement=claim.placement)
        return Do(writes=(resized,), say=f"changing what is reserved for it on host {seen.name_of(placement.host)}")
    if claim.short is None and (step := next_write(row, seen, shape, placement)):
        return Do(writes=(step[0],), say=step[1])
    doc = _domain(row, seen, shape, placement, now)
    document = seen.document(placement.host, key_of(doc))
    if document is None or document.gone or document.doc != doc:
        write = PutDocument(host=placement.host, owner=row.id, doc=doc)
        return Do(writes=(write,), say=f"asking host {seen.name_of(placement.host)}")
    found = _follow(row, seen, placement.host, seen.report(placement.host, document.key), now)
    return Blocked(status=found.status, why=claim.short) if claim.short and isinstance(found, Done) else found


def _plan_kept(row: AnyResource, seen: WorkingSet, now: float) -> Outcome:
    """It is stopped where it is, and holds all it has, until it is restored or its time is over."""
    message, seconds = lifetime.rests(row, now), lifetime.look_again_s(row, now)
    for document in seen.owned_documents(row.id):
        if not isinstance(document.doc, DomainDoc) or document.gone:
            continue
        data = _data(row, seen, document.host)
        stopped = msgspec.structs.replace(document.doc, power="stopped", data=data)
        if document.doc != stopped:
            write = PutDocument(host=document.host, owner=row.id, doc=stopped)
            return Do(writes=(write,), say=f"having host {seen.name_of(document.host)} stop it")
        report = seen.report(document.host, document.key)
        if not silence(seen, document.host) and not (report and report.done):
            status = _status(row, seen, "stopping", message, report)
            return Wait(status=status, message=f"host {seen.name_of(document.host)} stops it", seconds=seconds)
    placement = seen.placement(row.id)
    if placement and (rests := resting(row, seen, placement)) != placement:
        return Do(
            writes=(ResizePlacement(placement=rests),), say="giving back what a size it does not have was to take"
        )
    return Done(status=_status(row, seen, "deleted", message), seconds=seconds)


def _place(row: AnyResource, seen: WorkingSet, shape: Shape) -> Outcome:
    claims, pokes = [], []
    for index, name in enumerate(row.spec.networks):
        network = seen.get(Id(name))
        if network is None:
            message = f"network {name} is gone"
            return Wait(status=_status(row, seen, "waiting", message), message=message)
        cidr = network.spec.cidr
        claims.append(ClaimAddress(network=network.id, cidr=cidr, vm=row.id, index=index, mac=mac(row.id, index)))
        pokes.append(Poke(resource=network.id))
    pokes += [Poke(resource=volume.id) for volume in data_volumes(row, seen)]
    demand = demand_of(row, msgspec.structs.replace(shape, disk_gib=needed_gib(row, seen, shape)), seen)
    return Place(demand=demand, writes=(*claims, *pokes), status=_status(row, seen, "blocked", ""))


def _domain(row: AnyResource, seen: WorkingSet, shape: Shape, placement: Placement, now: float) -> DomainDoc:
    """Return what its host is to make of it. Without its disks it is off, until it has them."""
    spec: VmSpec = row.spec
    disks = disks_of(row, seen)
    boots = seen.get(Id(spec.rescue if spec.rescue and disks.boots_rescue else spec.image))
    kernel = image_ref(boots) if boots and boots.spec.format == "kernel" and disks.attached else None
    mtu = guest_mtu(seen)
    keys = [seen.get(Id(key)) for key in spec.keypairs]
    doc = DomainDoc(
        id=row.id,
        name=row.name,
        project=row.project,
        vcpus=min(shape.vcpus, placement.vcpus),
        memory_mib=min(shape.memory_mib, placement.memory_mib),
        **room_for(shape, placement, seen),
        kernel=kernel,
        volumes=disks.attached,
        nics=tuple(
            Nic(index=address.index, network=address.network, mac=address.mac, mtu=mtu)
            for address in seen.addresses(row.id)
        ),
        power=spec.power if disks.attached and not lifetime.is_over(row, now) else "stopped",
        start_generation=spec.start_generation,
        # While there is no room for a rescue disk it runs on: the boot that was wished for comes with the disk.
        boot_generation=spec.rescue_after
        if disks.rescue and disks.attached and not disks.boots_rescue
        else spec.boot_generation,
        restart=spec.restart,
        stop_grace_s=spec.stop_grace_s if disks.root in disks.here else 0,
        nocloud=spec.nocloud,
        cpu_weight=spec.cpu_weight,
        cpu_cap_percent=spec.cpu_cap_percent,
        memory_min_mib=spec.memory_min_mib,
        data=_data(row, seen, placement.host),
        firmware=spec.firmware,
        tpm=spec.tpm,
        metadata=GuestMetadata(
            instance_id=row.id,
            hostname=row.name,
            project=row.project,
            public_keys=tuple((key.name, key.spec.public_key) for key in keys if key),
            user_data=spec.user_data,
            host=seen.name_of(placement.host),
            token_required=_needs_token(row, seen),
            token_hops=spec.metadata_hops,
        ),
    )
    return with_cpu(doc, row, seen, placement.host)


def _data(row: AnyResource, seen: WorkingSet, host: HostId) -> tuple[DataDisk, ...]:
    """Return its data volumes, as far as they lie on its host."""
    return tuple(
        DataDisk(volume=one.id, reverts=one.spec.revert_generation)
        for one in data_volumes(row, seen)
        if lies_on(one, seen) == host
    )


def _needs_token(row: AnyResource, seen: WorkingSet) -> bool:
    """Say whether its metadata is only for who shows a session token: as it says, or else its project."""
    asked = row.spec.metadata_tokens
    if asked == "project":
        project = seen.named("project", "", row.project)
        asked = project.spec.metadata_tokens if project else "optional"
    return bool(asked == "required")


def _follow(row: AnyResource, seen: WorkingSet, host: HostId, report: Report | None, now: float) -> Wait | Done:
    """Say how far the host is."""
    quiet = silence(seen, host)
    if report and report.done and not quiet:
        found = _as_reported(row, seen, host, report)
        if isinstance(found, Wait):
            return found
        over = lifetime.rests(row, now)
        status = msgspec.structs.replace(found.status, message=over) if over else found.status
        return Done(status=status, seconds=lifetime.look_again_s(row, now))
    if quiet and row.observed_generation == row.generation:
        return Wait(status=_status(row, seen, row.status.state, quiet, report), message=quiet)
    said = (report.problem or report.message) if report else ""
    message = quiet or said or f"host {seen.name_of(host)} works on it"
    state = "stopping" if row.spec.power == "stopped" else "starting"
    progress = report.progress if report and report.progress is not None else 0.5
    return Wait(status=_status(row, seen, state, message, report), message=message, progress=progress)


def _as_reported(row: AnyResource, seen: WorkingSet, host: HostId, report: Report) -> Wait | Done:
    """Show a domain that is as it was asked to be. Its disks may still lag behind."""
    state, messages = "unknown", []
    if isinstance(report.seen, DomainSeen):
        state = str(report.seen.state)
        messages = [*_waits_for_a_restart(row, seen, host, report.seen), *_remarks(row, seen, report.seen)]
    if state == "stopped-by-guest":
        state = "stopped"
    if waits := lagging(row, seen, host):
        status = _status(row, seen, state, "; ".join([waits, *messages]), report)
        return Wait(status=status, message=waits, progress=0.7)
    return Done(status=_status(row, seen, state, "; ".join(messages), report))


def _waits_for_a_restart(row: AnyResource, seen: WorkingSet, host: HostId, domain: DomainSeen) -> Iterator[str]:
    """Say what a machine that runs gets once it is started again."""
    doc = _document(row, seen, host)
    if domain.state not in ("running", "paused") or not domain.vcpus or doc is None:
        return
    yield from cpu_remarks(row, seen, host, doc)
    yield from firmware_remarks(row, doc, domain)
    if why := growth_waits(doc, domain):
        to = f"{doc.vcpus} vCPU{'s' if doc.vcpus != 1 else ''} and {doc.memory_mib} MiB of memory"
        yield f"its resize to {to} waits for a restart ({why}): skerry vm reboot {row.name}"


def _document(row: AnyResource, seen: WorkingSet, host: HostId) -> DomainDoc | None:
    document = seen.document(host, DocKey(f"domain/{row.id}"))
    return document.doc if document and isinstance(document.doc, DomainDoc) else None


def _remarks(row: AnyResource, seen: WorkingSet, domain: DomainSeen) -> Iterator[str]:
    if domain.state == "stopped-by-guest":
        yield f"the guest powered itself off: skerry vm start {row.name}"
    if row.spec.rescue and disks_of(row, seen).boots_rescue:
        image = seen.name_of(row.spec.rescue)
        yield f"in rescue: it boots from image {image}, its own disk is the second: skerry vm unrescue {row.name}"
    if domain.balloon_mib:
        yield f"it lends memory to its host, which is short of it: it has {domain.balloon_mib} MiB just now"
    if domain.note:
        yield domain.note
    if domain.data_note:
        yield domain.data_note


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
        vcpus=domain.vcpus if domain else row.status.vcpus,
        memory_mib=domain.memory_mib if domain else row.status.memory_mib,
        disk_gib=held_gib(row, seen),
        first_boot=domain.first_boot if domain else row.status.first_boot,
        balloon_mib=domain.balloon_mib if domain else 0,
        vcpus_max=domain.vcpus_max if domain else 0,
        memory_max_mib=domain.memory_max_mib if domain else 0,
        cpu=cpu_words(_document(row, seen, placement.host)) if placement else "",
        firmware=firmware_words(domain),
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
