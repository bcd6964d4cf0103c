"""host: from a one-time token to a machine that sells what it has, to one that is forgotten."""

import msgspec

from common.cpus import level_of
from common.errors import Conflict, Invalid
from common.firmware import ABILITIES
from common.ids import HostId, is_id
from common.kinds.host import HostSpec, HostStatus
from common.kinds.kind import AnyResource, Spec
from common.kinds.vm import VM
from common.protocol import CPU_MODEL, Inventory
from common.secret import Secret, digest_of
from controller.auth.caller import Caller
from controller.kinds.moving import refuse_move
from controller.kinds.outcome import Do, Done, Outcome, Wait
from controller.kinds.plain import going, silence
from controller.kinds.pool import PoolState, closed_words, limited, pool_state
from controller.store.places import domain_of, rack_of, zone_of
from controller.store.rows import JOIN_TOKEN_S, Capacity, Enrolment, Traits
from controller.store.working import WorkingSet
from controller.store.writes import Amend, AnyWrite, Forget, ForgetHost, MoveHost, PutEnrolment, SetCapacity

REVEALS = "skj"
NOTHING_SAID = Traits()


def admit(row: AnyResource, was: AnyResource | None, seen: WorkingSet, _caller: Caller) -> Spec:
    """Check that it stands in one zone, and that its machines may be where it goes."""
    spec: HostSpec = row.spec
    rack = rack_of(seen.get, row)
    if rack and spec.zone and rack.spec.zone != spec.zone:
        zones = f"in zone {seen.name_of(rack.spec.zone)}, not in {seen.name_of(spec.zone)}"
        raise Invalid(
            f"host {row.name}: rack {rack.name} is {zones}", fix="name the rack only: its zone is its hosts' zone"
        )
    if was is not None and _moves(row, was, seen):
        refuse_move(row, seen)
    return spec


def along(row: AnyResource, was: AnyResource, seen: WorkingSet) -> tuple[AnyWrite, ...]:
    """Take the machines on it along where it moves."""
    return (MoveHost(host=HostId(row.id)),) if _moves(row, was, seen) else ()


def _moves(row: AnyResource, was: AnyResource, seen: WorkingSet) -> bool:
    return any(domain_of(seen.get, row, over) != domain_of(seen.get, was, over) for over in ("rack", "zone"))


def admit_delete(row: AnyResource, seen: WorkingSet) -> None:
    """Refuse while wanted machines live on it. Those being deleted don't hold it: so a dead host never blocks them."""
    here = [seen.get(placement.owner) for placement in seen.placed_on(HostId(row.id))]
    wanted = sorted(f"{one.kind} {one.name}" for one in here if one and one.deleted_at is None)
    if wanted:
        more = f" and {len(wanted) - 5} more" if len(wanted) > 5 else ""
        raise Conflict(
            f"host {row.name} has {', '.join(wanted[:5])}{more}",
            fix="delete those first; if the host is lost, their deletion ends when the host is deleted after them",
        )


def reveal(row: AnyResource, secret: Secret, now: float) -> tuple[AnyWrite, ...]:
    """Make the join token good for a day. A certificate that was given before stops being good."""
    enrolment = Enrolment(
        host=HostId(row.id),
        join_digest=digest_of(secret.reveal()),
        join_expires_at=now + JOIN_TOKEN_S,
        certificate_serial="",
    )
    return (PutEnrolment(enrolment=enrolment),)


def plan(row: AnyResource, seen: WorkingSet, now: float) -> Outcome:
    """Keep its capacity in the books as it is; show how it is."""
    host = HostId(row.id)
    if row.deleted_at is not None:
        return _plan_delete(row, seen, host)
    view = seen.host(host)
    pool = pool_state(row, seen)
    wanted = None
    if view.inventory:
        before = seen.capacity(host)
        known = before.traits if before else NOTHING_SAID
        wanted = limited(capacity_of(host, row.spec, view.inventory, known), seen.used(host), pool)
    sells = (SetCapacity(capacity=wanted),) if wanted and wanted != seen.capacity(host) else ()
    if writes := (*sells, *_told(row, pool)):
        return Do(writes=writes, say="noting what it may sell")
    return Done(status=_with_pool(_status(row, seen, host, now), row, pool))


def _told(row: AnyResource, pool: PoolState) -> tuple[AnyWrite, ...]:
    """Write down that its pool closes or opens, with the event that says so: once."""
    if pool.closed == row.spec.closed_by_pool:
        return ()
    spec = msgspec.structs.replace(row.spec, closed_by_pool=pool.closed)
    words = closed_words(row, pool) or f"the pool of host {row.name} is {pool.data} % full: it takes volumes again"
    return (Amend(row=row, spec=spec, what="pool-closed" if pool.closed else "pool-opened", message=words),)


def _with_pool(status: HostStatus, row: AnyResource, pool: PoolState) -> HostStatus:
    closed = closed_words(row, pool)
    message = "; ".join(words for words in (status.message, closed) if words)
    return msgspec.structs.replace(
        status, message=message, pool_percent=pool.data, pool_metadata_percent=pool.metadata, pool_closed=closed
    )


def _plan_delete(row: AnyResource, seen: WorkingSet, host: HostId) -> Outcome:
    if seen.enrolment(host) or seen.capacity(host) or any(True for _ in seen.documents(host)):
        return Do(writes=(ForgetHost(host=host),), say="forgetting what is on it")
    users = {user.id: user for user in seen.users(row.id)}
    for placement in seen.placed_on(host):
        if owner := seen.get(placement.owner):
            users[owner.id] = owner
    if users:
        message = f"until {going(row, tuple(users.values()))} is gone"
        return Wait(status=HostStatus(state="deleting", message=message), message=message, seconds=5)
    return Do(writes=(Forget(resource=row.id),), say="forgetting the host")


def capacity_of(host: HostId, spec: HostSpec, inventory: Inventory, known: Traits = NOTHING_SAID) -> Capacity:
    """Return what a host may sell: what it has, less the reserve, times its overcommit ratios. `known`: what it could
    do by what it said before."""
    memory = max(0, inventory.memory_mib - spec.reserved_memory_mib)
    return Capacity(
        host=host,
        vcpus=_bounded(inventory.cpu_threads * spec.cpu_overcommit),
        memory_mib=_bounded(memory * spec.memory_overcommit),
        disk_gib=_bounded(inventory.disk_gib),
        traits=traits_of(inventory, known),
    )


def traits_of(inventory: Inventory, known: Traits) -> Traits:
    """Return what a host can do. Its CPU, and what libvirt can give guests, are as before while its agent can't find
    out; an older agent has none of it."""
    can = tuple(sorted({one.name for one in inventory.capabilities if one.works}))
    if cpu := inventory.guest_cpu:
        make = f"{inventory.virtualisation} {cpu.vendor}".strip() if inventory.virtualisation == "kvm" else "tcg"
        return Traits(make=make, flags=tuple(sorted(set(cpu.flags))), can=can)
    says = any(one.name == CPU_MODEL for one in inventory.capabilities)
    if not says:
        return Traits(can=can)
    untold = ABILITIES.keys() - {one.name for one in inventory.capabilities}
    return msgspec.structs.replace(known, can=tuple(sorted({*can, *(untold & set(known.can))})))


def _bounded(wanted: float) -> int:
    """Keep what a host claims to have within what a column holds, twice over: sums of it are taken."""
    return int(min(max(0, wanted), 2**30))


def _status(row: AnyResource, seen: WorkingSet, host: HostId, now: float) -> HostStatus:
    view, enrolment, inventory = seen.host(host), seen.enrolment(host), seen.host(host).inventory
    status: HostStatus = msgspec.structs.replace(row.status, vms=_machines(seen, host), message="", why=None)
    rack, zone = rack_of(seen.get, row), zone_of(seen.get, row)
    status = msgspec.structs.replace(status, rack=rack.name if rack else "", zone=zone.name if zone else "")
    if inventory:
        sells = seen.capacity(host)
        traits = sells.traits if sells else NOTHING_SAID
        status = msgspec.structs.replace(
            status,
            address=inventory.vtep,
            agent_version=view.agent_version,
            cpu_model=inventory.cpu_model,
            cpu_level=level_of(frozenset(traits.flags)) if traits.make else "",
            cpu_flags=traits.flags,
            capabilities=traits.can,
            cpu_threads=inventory.cpu_threads,
            memory_mib=inventory.memory_mib,
            disk_gib=inventory.disk_gib,
            virtualisation=inventory.virtualisation,
        )
    status = _with_books(status, seen, host)
    if view.connected:
        state = "ready" if row.spec.schedulable else "cordoned"
        return msgspec.structs.replace(status, state=state, last_seen_at=view.since)
    if enrolment is None or not enrolment.certificate_serial:
        late = enrolment is None or enrolment.join_expires_at < now
        message = (
            f"its join token is out of date: skerry host token {row.name}" if late else "waits for its agent to join"
        )
        return msgspec.structs.replace(status, state="expected", message=message)
    return msgspec.structs.replace(status, state="unreachable", message=silence(seen, host))


def _machines(seen: WorkingSet, host: HostId) -> int:
    """Count the machines on a host: volumes and snapshots have claims, too."""
    return sum(is_id(placement.owner, VM.prefix) for placement in seen.placed_on(host))


def _with_books(status: HostStatus, seen: WorkingSet, host: HostId) -> HostStatus:
    """Show what it may sell and has sold. Where that is more, a ratio was lowered: what is sold stays sold."""
    sells, sold = seen.capacity(host), seen.used(host)
    if sells is None:
        return status
    pairs = (
        ("vCPUs", sells.vcpus, sold.vcpus),
        ("MiB of memory", sells.memory_mib, sold.memory_mib),
        ("GiB of disk", sells.disk_gib, sold.disk_gib),
    )
    over = [f"{has_sold} of {may_sell} {unit}" for unit, may_sell, has_sold in pairs if has_sold > may_sell]
    message = f"has sold {' and '.join(over)}: its machines run on, new ones go elsewhere" if over else ""
    return msgspec.structs.replace(
        status,
        message=message,
        sells_vcpus=sells.vcpus,
        sold_vcpus=sold.vcpus,
        sells_memory_mib=sells.memory_mib,
        sold_memory_mib=sold.memory_mib,
        sells_disk_gib=sells.disk_gib,
        sold_disk_gib=sold.disk_gib,
    )
