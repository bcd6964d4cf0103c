"""Members of groups: where each is, decided and defended in the transaction that gives it its host.

Anti-affinity is a unique constraint over (group, place); affinity a row that names the group's one place. A place is
read from the host's row in the same transaction: no look before it has to be believed.
"""

from collections.abc import Iterable

from sqlalchemy import bindparam, delete, exists, insert, select

from common.errors import Conflict
from common.ids import HostId, Id
from common.kinds.kind import AnyResource
from controller.store import tables
from controller.store.places import domain_of
from controller.store.prepared import Prepared
from controller.store.rows import Membership
from controller.store.tx import Tx

_m = tables.membership.c
_LEAVE = Prepared(
    delete(tables.membership).where(_m.owner == bindparam("of")).returning(_m.group_id, _m.owner, _m.domain)
)


def require_within(tx: Tx, host: HostId, places: Iterable[Id]) -> None:
    """Raise Conflict where a host is not in all of these racks and zones (any more)."""
    wanted = set(places)
    row = tx.resource(host) if wanted else None
    if row and (outside := wanted - {Id(domain_of(tx.resource, row, over)) for over in ("rack", "zone")}):
        raise Conflict(f"host {row.name} is not in {', '.join(sorted(outside))} any more", fix="look again")


def join(tx: Tx, group: Id, owner: Id, host: HostId) -> None:
    """Note where a member is. Raises Conflict where its group's hard rule forbids that."""
    rule, there = tx.resource(group), tx.resource(host)
    if rule is None or there is None:
        raise Conflict(f"{group if rule is None else host} was deleted meanwhile", fix="look again")
    domain = domain_of(tx.resource, there, rule.spec.over)
    _settle_at(tx, rule, there, domain)
    table = tables.membership
    tx.run(delete(table).where(table.c.group_id == group, table.c.owner == owner))
    tx.run(insert(table).values(group_id=group, owner=owner, domain=domain, apart=_apart(rule, domain)))
    tx.put(Membership(group=group, owner=owner, domain=domain))


def leave(tx: Tx, owner: Id) -> None:
    """Take a machine out of all its groups' places."""
    for group, member, domain in tx.rows(_LEAVE, of=owner):
        tx.gone(Membership(group=group, owner=member, domain=domain))
        _leave_place(tx, group)


def move_host(tx: Tx, host: HostId) -> None:
    """Take over where a host stands now, for the machines on it. Raises Conflict where one may not be there."""
    there = tx.resource(host)
    if there is None:
        return
    places = {domain_of(tx.resource, there, over) for over in ("rack", "zone")}
    p, m = tables.placement.c, tables.membership
    owners = tx.run(select(p.owner).where(p.host == host)).scalars().all()
    for vm in filter(None, map(tx.resource, map(Id, owners))):
        if outside := {one for one in (vm.spec.rack, vm.spec.zone) if one} - places:
            raise Conflict(f"vm {vm.name} on host {there.name} is pinned to {', '.join(sorted(outside))}")
    rows = tx.run(select(*m.c).where(m.c.owner.in_(owners))).mappings().all()
    moved = [(row, rule) for row in rows if (rule := tx.resource(Id(row["group_id"]))) and rule.spec.over != "host"]
    for group in {row["group_id"] for row, _ in moved}:
        tx.run(delete(m).where(m.c.group_id == group, m.c.owner.in_(owners)))
        _leave_place(tx, group)
    for row, rule in moved:
        join(tx, rule.id, Id(row["owner"]), host)


def _settle_at(tx: Tx, rule: AnyResource, host: AnyResource, domain: str) -> None:
    if not rule.spec.hard:
        return
    if not domain:
        raise Conflict(
            f"host {host.name} is in no {rule.spec.over}, which group {rule.name} asks for", fix="look again"
        )
    if rule.spec.policy == "anti-affinity":
        c = tables.membership.c
        taken = tx.run(select(c.owner).where(c.group_id == rule.id, c.apart == domain)).scalar_one_or_none()
        if taken is not None:
            raise Conflict(f"{taken} of group {rule.name} is in {domain} already", fix="look again")
        return
    table = tables.meeting
    place = tx.run(select(table.c.domain).where(table.c.group_id == rule.id)).scalar_one_or_none()
    if place is None:
        tx.run(insert(table).values(group_id=rule.id, domain=domain))
    elif place != domain:
        raise Conflict(f"group {rule.name} is in {place}", fix="look again")


def _apart(rule: AnyResource, domain: str) -> str | None:
    return domain if rule.spec.hard and rule.spec.policy == "anti-affinity" else None


def _leave_place(tx: Tx, group: str) -> None:
    """A group without members has no place: the next one chooses it."""
    table, c = tables.meeting, tables.membership.c
    tx.run(delete(table).where(table.c.group_id == group, ~exists().where(c.group_id == group)))
