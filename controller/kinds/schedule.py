"""schedule: looks at the clock, and changes its machines in the transaction that notes that it did."""

import msgspec

from common.clock import iso
from common.documents import DomainSeen
from common.kinds import kind_named
from common.kinds.kind import AnyResource, Spec, Verb, kept_until
from common.kinds.schedule import ScheduleSpec, ScheduleStatus
from controller.auth.caller import Caller
from controller.kinds import cron
from controller.kinds.outcome import LOOK_AGAIN_S, Do, Done, Outcome
from controller.kinds.plain import plan_plain
from controller.store.working import WorkingSet
from controller.store.writes import Amend

LATE_S = 900.0
"""What could not be done in time, since no controller ran, is done up to so much later; then it is passed over."""


def admit(row: AnyResource, _was: AnyResource | None, _seen: WorkingSet, _caller: Caller) -> Spec:
    """Check the line and the zone."""
    spec: ScheduleSpec = row.spec
    cron.check(spec.cron, spec.time_zone)
    return spec


def plan(row: AnyResource, seen: WorkingSet, now: float) -> Outcome:
    """Note when it counts from, do what is due, and say when that is next."""
    if row.deleted_at is not None:
        return plan_plain(row, seen)
    spec: ScheduleSpec = row.spec
    if not spec.enabled:
        return Done(status=ScheduleStatus(state="off", message="it is not followed: --enabled"))
    if spec.armed != _line(spec):
        armed = msgspec.structs.replace(spec, armed=_line(spec), fired_at=now)
        return Do(writes=(Amend(row=row, spec=armed, what=""),), say="counting from now on")
    due = cron.next_after(spec.cron, spec.time_zone, spec.fired_at)
    if due and due <= now:
        return _fire(row, seen, now)
    chosen = len(_machines(row, seen))
    message = f"{spec.action}s {chosen} machine{'s' if chosen != 1 else ''} at {iso(due)}" if due else "never"
    status = ScheduleStatus(state="active", message=message, next_at=due)
    return Done(status=status, seconds=min(LOOK_AGAIN_S, due - now) if due else LOOK_AGAIN_S)


def _fire(row: AnyResource, seen: WorkingSet, now: float) -> Do:
    """Do the newest of what is due, once. What is too late is passed over."""
    spec: ScheduleSpec = row.spec
    at, latest = max(spec.fired_at, now - LATE_S), 0.0
    while (at := cron.next_after(spec.cron, spec.time_zone, at)) and at <= now:
        latest = at
    fired = msgspec.structs.replace(spec, fired_at=now)
    if not latest:
        missed = f"passed over: it was due more than {LATE_S / 60:.0f} minutes ago"
        return Do(writes=(Amend(row=row, spec=fired, what="missed", message=missed),), say=missed)
    verb = next(one for one in kind_named("vm").verbs if one.name == spec.action)
    wanted = [vm for vm in _machines(row, seen) if _needs(vm, verb, seen)]
    names = ", ".join(vm.name for vm in wanted[:5]) + (f" and {len(wanted) - 5} more" if len(wanted) > 5 else "")
    said = f"{spec.action} as due at {iso(latest)}: {names or 'nothing to do'}"
    changes = (
        Amend(row=vm, spec=verb.change(vm.spec, verb.takes()), what=verb.name, message=f"by schedule {row.name}")
        for vm in wanted
    )
    return Do(writes=(Amend(row=row, spec=fired, what="fired", message=said), *changes), say=said)


def _machines(row: AnyResource, seen: WorkingSet) -> list[AnyResource]:
    """Return the machines that it is for and that are not deleted, in the order of their names."""
    labels = {tuple(one.split("=", 1)) for one in row.spec.vms if "=" in one}
    found = {vm.id: vm for name in row.spec.vms if (vm := seen.named("vm", row.project, name))}
    if labels:
        of_project = (vm for vm in seen.of_kind("vm") if vm.project == row.project)
        found |= {vm.id: vm for vm in of_project if not labels.isdisjoint(vm.labels.items())}
    wanted = (vm for vm in found.values() if vm.deleted_at is None and not kept_until(vm))
    return sorted(wanted, key=lambda vm: vm.name)


def _needs(vm: AnyResource, verb: Verb, seen: WorkingSet) -> bool:
    """Say whether a verb would change anything: what stands still is neither stopped nor rebooted."""
    runs = vm.spec.power == "running"
    return not runs or _powered_itself_off(vm, seen) if verb.name == "start" else runs


def _powered_itself_off(vm: AnyResource, seen: WorkingSet) -> bool:
    reports = (seen.report(document.host, document.key) for document in seen.owned_documents(vm.id))
    return any(
        report is not None and isinstance(report.seen, DomainSeen) and report.seen.state == "stopped-by-guest"
        for report in reports
    )


def _line(spec: ScheduleSpec) -> str:
    return f"{spec.cron} {spec.time_zone}"
