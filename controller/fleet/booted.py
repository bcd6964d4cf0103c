"""Which machine's first boot a host's report settles: pure."""

from common.boots import FirstBoot
from common.documents import DomainSeen, Report
from common.ids import HostId
from common.kinds.kind import AnyResource
from common.kinds.vm import VmStatus
from controller.store.working import WorkingSet


def settled_boot(seen: WorkingSet, host: HostId, report: Report) -> tuple[AnyResource, FirstBoot] | None:
    """Return the machine whose first boot a report settles, where nothing said so before."""
    document, before = seen.document(host, report.key), seen.host(host).reports.get(report.key)
    row = seen.get(document.owner) if document else None
    if row is None or not isinstance(row.status, VmStatus) or not (boot := _settled(report)):
        return None
    shown = row.status.first_boot
    return None if _settled(before) or (shown and shown.verdict != "pending") else (row, boot)


def _settled(report: Report | None) -> FirstBoot | None:
    boot = report.seen.first_boot if report and isinstance(report.seen, DomainSeen) else None
    return boot if boot and boot.verdict != "pending" else None
