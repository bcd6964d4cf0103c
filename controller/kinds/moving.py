"""Whether a host may stand in another rack or zone, for the machines that are on it: pure."""

from common.errors import Conflict
from common.ids import HostId, Id
from common.kinds.kind import AnyResource
from controller.store.places import domain_of
from controller.store.working import WorkingSet


def refuse_move(host: AnyResource, seen: WorkingSet) -> None:
    """Raise Conflict where a machine on a host, as it would stand, is pinned elsewhere or breaks a hard rule there."""
    here = {placement.owner for placement in seen.placed_on(HostId(host.id))}
    machines = [one for one in map(seen.get, here) if one and one.kind == "vm"]
    for vm in sorted(machines, key=lambda vm: vm.name):
        for over, place in (("rack", vm.spec.rack), ("zone", vm.spec.zone)):
            if place and domain_of(seen.get, host, over) != place:
                raise _refused(host, vm, f"is pinned to {over} {seen.name_of(place)}")
        for group in filter(None, (seen.get(Id(one)) for one in vm.spec.groups)):
            if group.spec.hard and group.spec.over != "host" and (why := _broken(host, group, here, seen)):
                raise _refused(host, vm, why)


def _broken(host: AnyResource, group: AnyResource, here: set[Id], seen: WorkingSet) -> str:
    """Say how a group's hard rule would not hold any more; empty: it would."""
    over = group.spec.over
    goes_to = domain_of(seen.get, host, over)
    if not goes_to:
        return f"is in group {group.name}, whose members have to be in a {over}"
    elsewhere = [
        member.domain
        for user in seen.users(group.id)
        if user.id not in here and (member := seen.membership(group.id, user.id))
    ]
    if group.spec.policy == "anti-affinity" and goes_to in elsewhere:
        return f"is in group {group.name}, which has a machine in {over} {seen.name_of(goes_to)} already"
    if group.spec.policy == "affinity" and any(domain != goes_to for domain in elsewhere):
        return f"is in group {group.name}, whose other machines are in {over} {seen.name_of(elsewhere[0])}"
    return ""


def _refused(host: AnyResource, vm: AnyResource, why: str) -> Conflict:
    return Conflict(
        f"host {host.name} can't move: vm {vm.name} of project {vm.project} on it {why}",
        fix=f"delete vm {vm.name} first and make it anew after the move, or move another host",
    )
