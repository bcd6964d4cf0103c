"""Claims: capacity, addresses and VNIs, each decided and defended in the transaction that takes it."""

from ipaddress import IPv4Network

from sqlalchemy import ColumnElement, RowMapping, bindparam, delete, exists, func, insert, select, text, update

from common.codec import from_json, to_json
from common.errors import Conflict, NoCapacity
from common.ids import HostId, Id
from common.refusal import Refusal
from controller.store import members, tables
from controller.store.prepared import Prepared
from controller.store.rows import Address, Capacity, Placement, Traits, Vni, ZoneUse
from controller.store.tx import Tx
from controller.store.writes import ClaimAddress, TakePlacement

_p, _c, _a, _r = tables.placement.c, tables.capacity.c, tables.address.c, tables.resource.c
_RESERVE = Prepared(
    text(
        "INSERT INTO placement (owner, host, vcpus, memory_mib, disk_gib) "
        "VALUES (:owner, :host, :vcpus, :memory_mib, :disk_gib) ON CONFLICT (owner) DO NOTHING"
    )
)
_SELL = Prepared(
    update(tables.capacity)
    .where(
        _c.host == bindparam("of"),
        _c.vcpus_used + bindparam("more_vcpus") <= _c.vcpus,
        _c.memory_mib_used + bindparam("more_memory_mib") <= _c.memory_mib,
        _c.disk_gib_used + bindparam("more_disk_gib") <= _c.disk_gib,
        exists().where(_r.id == _c.host, _r.deleted_at.is_(None)),
    )
    .values(
        vcpus_used=_c.vcpus_used + bindparam("more_vcpus"),
        memory_mib_used=_c.memory_mib_used + bindparam("more_memory_mib"),
        disk_gib_used=_c.disk_gib_used + bindparam("more_disk_gib"),
    )
)
_RELEASE = Prepared(delete(tables.placement).where(_p.owner == bindparam("of")).returning(*_p))
_TAKE_BACK = Prepared(
    update(tables.capacity)
    .where(_c.host == bindparam("of"))
    .values(
        vcpus_used=_c.vcpus_used - bindparam("less_vcpus"),
        memory_mib_used=_c.memory_mib_used - bindparam("less_memory_mib"),
        disk_gib_used=_c.disk_gib_used - bindparam("less_disk_gib"),
    )
)
_HAS_ADDRESS = Prepared(select(_a.address).where(_a.vm == bindparam("of"), _a.index == bindparam("of_index")))
_HIGHEST = Prepared(select(func.max(_a.offset)).where(_a.network == bindparam("of")))
_ASSIGN = Prepared(insert(tables.address))
_ADDRESS = (_a.network, _a.address, _a.vm, _a.index, _a.mac)
_FREE_ADDRESSES = Prepared(delete(tables.address).where(_a.vm == bindparam("of")).returning(*_ADDRESS))

FIRST_VNI = 4096
LAST_VNI = (1 << 24) - 1
FIRST_HOST_OFFSET = 2  # 0 is the subnet itself, 1 the gateway


def take_placement(tx: Tx, write: TakePlacement) -> None:
    """Reserve capacity, where the host still has it, and a place in each group. Raises Conflict where it was sold
    meanwhile, or where a hard rule forbids that host by now."""
    wanted = write.placement
    vcpus, memory_mib, disk_gib = wanted.vcpus, wanted.memory_mib, wanted.disk_gib
    if not tx.change(
        _RESERVE, owner=wanted.owner, host=wanted.host, vcpus=vcpus, memory_mib=memory_mib, disk_gib=disk_gib
    ):
        return
    if not _sell(tx, wanted.host, vcpus, memory_mib, disk_gib):
        raise Conflict(f"host {wanted.host} has no room any more for {wanted.owner}")
    tx.put(wanted)
    if write.use:
        _use_zone(tx, write.use)
    members.require_within(tx, wanted.host, write.within)
    for group in write.groups:
        members.join(tx, group, wanted.owner, wanted.host)


def _use_zone(tx: Tx, use: ZoneUse) -> None:
    """Note who had a machine placed in a zone, unless somebody else did since it was looked at: rooms add up."""
    table, c = tables.zone_use, tables.zone_use.c
    others = select(func.max(c.revision)).where(c.zone == use.zone, c.controller != use.controller)
    if (tx.run(others).scalar_one() or 0) > use.revision:
        raise Conflict(f"another controller placed a machine in {use.zone} meanwhile", fix="look again")
    own = (c.zone == use.zone, c.controller == use.controller)
    if not tx.run(update(table).where(*own).values(revision=tx.revision)).rowcount:
        tx.run(insert(table).values(zone=use.zone, controller=use.controller, revision=tx.revision))
    tx.put(ZoneUse(zone=use.zone, controller=use.controller, revision=tx.revision))


def _sell(tx: Tx, host: HostId, vcpus: int, memory_mib: int, disk_gib: int) -> int:
    """Add to what a host has sold, only while it stays within what it may sell and is not being deleted: the rows that
    changed, 1 or 0."""
    return tx.change(_SELL, of=host, more_vcpus=vcpus, more_memory_mib=memory_mib, more_disk_gib=disk_gib)


def resize_placement(tx: Tx, wanted: Placement) -> None:
    """Change what an owner has reserved where it is: more only of what its host still has.

    Raises Conflict where that was sold meanwhile, or the owner is not there any more.
    """
    table, c = tables.placement, tables.capacity.c
    found = tx.run(select(*table.c).where(table.c.owner == wanted.owner)).mappings().one_or_none()
    if found is None or found["host"] != wanted.host:
        raise Conflict(f"{wanted.owner} is not placed on host {wanted.host} any more")
    was = Placement(**found)
    more = {name: getattr(wanted, name) - getattr(was, name) for name in ("vcpus", "memory_mib", "disk_gib")}
    if not any(more.values()):
        return
    used = {name: c[f"{name}_used"] + amount for name, amount in more.items()}
    room: list[ColumnElement[bool]] = [used[name] <= c[name] for name, amount in more.items() if amount > 0]
    if room:
        room.append(exists().where(_r.id == c.host, _r.deleted_at.is_(None)))
    sale = update(tables.capacity).where(c.host == wanted.host, *room)
    sold = tx.run(sale.values(**{f"{name}_used": value for name, value in used.items()})).rowcount
    if room and not sold:
        raise Conflict(f"host {wanted.host} has not so much more room any more for {wanted.owner}")
    values = {name: getattr(wanted, name) for name in more}
    tx.run(update(table).where(table.c.owner == wanted.owner).values(**values))
    if any(amount < 0 for amount in more.values()):
        tx.gone(was)
    tx.put(wanted)


def release_placement(tx: Tx, owner: Id) -> None:
    """Give an owner's capacity back, and its places in groups."""
    members.leave(tx, owner)
    found = tx.row(_RELEASE, of=owner)
    if found is None:
        return
    row = Placement(**dict(zip(Placement.__struct_fields__, found, strict=True)))
    tx.change(
        _TAKE_BACK,
        of=row.host,
        less_vcpus=row.vcpus,
        less_memory_mib=row.memory_mib,
        less_disk_gib=row.disk_gib,
    )
    tx.gone(row)


CAPACITY = (_c.host, _c.vcpus, _c.memory_mib, _c.disk_gib, _c.traits)
"""The columns of a row of capacity: what is sold of it is counted in the database only."""


def capacity_row(found: RowMapping) -> Capacity:
    """Return the row that such columns stand for."""
    traits = from_json(found["traits"], Traits, f"the traits of host {found['host']}")
    return Capacity(**{**found, "traits": traits})


def set_capacity(tx: Tx, wanted: Capacity) -> None:
    """Set what a host may sell. What it has sold already stays sold, also where that is more."""
    c = tables.capacity.c
    values = {
        "vcpus": wanted.vcpus,
        "memory_mib": wanted.memory_mib,
        "disk_gib": wanted.disk_gib,
        "traits": to_json(wanted.traits).decode(),
    }
    if tx.run(update(tables.capacity).where(c.host == wanted.host).values(**values)).rowcount == 0:
        p = tables.placement.c
        sold = select(
            func.coalesce(func.sum(p.vcpus), 0).label("vcpus_used"),
            func.coalesce(func.sum(p.memory_mib), 0).label("memory_mib_used"),
            func.coalesce(func.sum(p.disk_gib), 0).label("disk_gib_used"),
        )
        used = tx.run(sold.where(p.host == wanted.host)).mappings().one()
        tx.run(insert(tables.capacity).values(host=wanted.host, **used, **values))
    tx.put(wanted)


def claim_address(tx: Tx, wanted: ClaimAddress) -> None:
    """Reserve an address: the one after the highest in use, so that one just freed is not handed out again at once;
    at the subnet's end, the lowest gap. Raises NoCapacity where the subnet is full.
    """
    if tx.row(_HAS_ADDRESS, of=wanted.vm, of_index=wanted.index):
        return
    subnet = IPv4Network(wanted.cidr)
    last = subnet.num_addresses - 2
    ((highest,),) = tx.rows(_HIGHEST, of=wanted.network)
    offset = FIRST_HOST_OFFSET if highest is None else highest + 1
    if offset > last:
        taken = set(tx.run(select(_a.offset).where(_a.network == wanted.network)).scalars())
        free = next((n for n in range(FIRST_HOST_OFFSET, last + 1) if n not in taken), None)
        if free is None:
            raise NoCapacity("no free address", refusal=_subnet_full(subnet, len(taken)))
        offset = free
    row = Address(network=wanted.network, address=str(subnet[offset]), vm=wanted.vm, index=wanted.index, mac=wanted.mac)
    tx.change(
        _ASSIGN,
        network=row.network,
        offset=offset,
        address=row.address,
        vm=row.vm,
        index=row.index,
        mac=row.mac,
    )
    tx.put(row)


def _subnet_full(subnet: IPv4Network, taken: int) -> Refusal:
    return Refusal(
        summary=f"subnet {subnet} has no free address: all {taken} are taken",
        smallest_change="delete a machine of this network, or use a network with a larger subnet",
    )


def release_addresses(tx: Tx, vm: Id) -> None:
    """Give all addresses of a VM back."""
    for network, address, owner, index, mac in tx.rows(_FREE_ADDRESSES, of=vm):
        tx.gone(Address(network=network, address=address, vm=owner, index=index, mac=mac))


def claim_vni(tx: Tx, network: Id) -> None:
    """Reserve a VNI for a network. Raises NoCapacity where 16 million are taken."""
    c = tables.vni.c
    if tx.run(select(c.vni).where(c.network == network)).scalar_one_or_none():
        return
    highest = tx.run(select(func.max(c.vni))).scalar_one()
    vni = FIRST_VNI if highest is None else highest + 1
    if vni > LAST_VNI:
        taken = set(tx.run(select(c.vni)).scalars())
        free = next((n for n in range(FIRST_VNI, LAST_VNI + 1) if n not in taken), None)
        if free is None:
            raise NoCapacity("all VNIs are taken", refusal=Refusal(summary=f"all {len(taken)} VNIs are taken"))
        vni = free
    tx.run(insert(tables.vni).values(network=network, vni=vni))
    tx.put(Vni(network=network, vni=vni))


def release_vni(tx: Tx, network: Id) -> None:
    """Give a network's VNI back."""
    c = tables.vni.c
    vni = tx.run(delete(tables.vni).where(c.network == network).returning(c.vni)).scalar_one_or_none()
    if vni is not None:
        tx.gone(Vni(network=network, vni=vni))
