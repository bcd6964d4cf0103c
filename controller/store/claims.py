"""Claims: capacity, addresses and VNIs, each decided and defended in the transaction that takes it."""

from ipaddress import IPv4Network

from sqlalchemy import delete, exists, func, insert, select, update

from common.errors import Conflict, NoCapacity
from common.ids import HostId, Id
from common.refusal import Refusal
from controller.store import tables
from controller.store.rows import Address, Capacity, Placement, Vni
from controller.store.tx import Tx
from controller.store.writes import ClaimAddress

FIRST_VNI = 4096
LAST_VNI = (1 << 24) - 1
FIRST_HOST_OFFSET = 2  # 0 is the subnet itself, 1 the gateway


def take_placement(tx: Tx, wanted: Placement) -> None:
    """Reserve capacity, where the host still has it. Raises Conflict where it was sold meanwhile."""
    table = tables.placement
    if tx.run(select(table.c.host).where(table.c.owner == wanted.owner)).scalar_one_or_none():
        return
    if _sell(tx, wanted.host, wanted.vcpus, wanted.memory_mib, wanted.disk_gib) == 0:
        raise Conflict(f"host {wanted.host} has no room any more for {wanted.owner}")
    tx.run(
        insert(table).values(
            owner=wanted.owner,
            host=wanted.host,
            vcpus=wanted.vcpus,
            memory_mib=wanted.memory_mib,
            disk_gib=wanted.disk_gib,
        )
    )
    tx.put(wanted)


def _sell(tx: Tx, host: HostId, vcpus: int, memory_mib: int, disk_gib: int) -> int:
    """Add to what a host has sold, only while it stays within what it may sell and is not being deleted: the rows that
    changed, 1 or 0."""
    c, r = tables.capacity.c, tables.resource.c
    sale = (
        update(tables.capacity)
        .where(
            c.host == host,
            c.vcpus_used + vcpus <= c.vcpus,
            c.memory_mib_used + memory_mib <= c.memory_mib,
            c.disk_gib_used + disk_gib <= c.disk_gib,
            exists().where(r.id == c.host, r.deleted_at.is_(None)),
        )
        .values(
            vcpus_used=c.vcpus_used + vcpus,
            memory_mib_used=c.memory_mib_used + memory_mib,
            disk_gib_used=c.disk_gib_used + disk_gib,
        )
    )
    return tx.run(sale).rowcount


def release_placement(tx: Tx, owner: Id) -> None:
    """Give an owner's capacity back."""
    table = tables.placement
    row = tx.run(delete(table).where(table.c.owner == owner).returning(*table.c)).mappings().one_or_none()
    if row is None:
        return
    c = tables.capacity.c
    tx.run(
        update(tables.capacity)
        .where(c.host == row["host"])
        .values(
            vcpus_used=c.vcpus_used - row["vcpus"],
            memory_mib_used=c.memory_mib_used - row["memory_mib"],
            disk_gib_used=c.disk_gib_used - row["disk_gib"],
        )
    )
    tx.gone(Placement(**row))


def set_capacity(tx: Tx, wanted: Capacity) -> None:
    """Set what a host may sell. What it has sold already stays sold, also where that is more."""
    c = tables.capacity.c
    values = {"vcpus": wanted.vcpus, "memory_mib": wanted.memory_mib, "disk_gib": wanted.disk_gib}
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
    table, c = tables.address, tables.address.c
    if tx.run(select(c.address).where(c.vm == wanted.vm, c.index == wanted.index)).scalar_one_or_none():
        return
    subnet = IPv4Network(wanted.cidr)
    last = subnet.num_addresses - 2
    highest = tx.run(select(func.max(c.offset)).where(c.network == wanted.network)).scalar_one()
    offset = FIRST_HOST_OFFSET if highest is None else highest + 1
    if offset > last:
        taken = set(tx.run(select(c.offset).where(c.network == wanted.network)).scalars())
        free = next((n for n in range(FIRST_HOST_OFFSET, last + 1) if n not in taken), None)
        if free is None:
            raise NoCapacity("no free address", refusal=_subnet_full(subnet, len(taken)))
        offset = free
    row = Address(network=wanted.network, address=str(subnet[offset]), vm=wanted.vm, index=wanted.index, mac=wanted.mac)
    tx.run(
        insert(table).values(
            network=row.network, offset=offset, address=row.address, vm=row.vm, index=row.index, mac=row.mac
        )
    )
    tx.put(row)


def _subnet_full(subnet: IPv4Network, taken: int) -> Refusal:
    return Refusal(
        summary=f"subnet {subnet} has no free address: all {taken} are taken",
        smallest_change="delete a machine of this network, or use a network with a larger subnet",
    )


def release_addresses(tx: Tx, vm: Id) -> None:
    """Give all addresses of a VM back."""
    c = tables.address.c
    rows = tx.run(
        delete(tables.address).where(c.vm == vm).returning(c.network, c.address, c.vm, c.index, c.mac)
    ).mappings()
    for row in rows.all():
        tx.gone(Address(**row))


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
