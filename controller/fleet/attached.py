"""What of storage hosts say anew: which machines got or lost which volumes, and that a pool fills. Pure.

Each volume, and each host, has its own plan to go on with.
"""

from collections.abc import Iterable, Mapping

from common.documents import DocKey, DomainSeen, Report
from common.ids import Id
from common.protocol import Metrics


def volumes_moved(before: Mapping[DocKey, Report], reports: Iterable[Report]) -> set[Id]:
    """Return the volumes that new reports say something else of than those before."""
    moved: set[Id] = set()
    for report in reports:
        was, now = _told(before.get(report.key)), _told(report)
        if was != now:
            moved |= was.keys() ^ now.keys() | {one for one in was.keys() & now.keys() if was[one] != now[one]}
    return moved


def pool_moved(before: Metrics | None, now: Metrics) -> bool:
    """Say whether a pool is fuller or emptier than before by what its host's plan looks at: whole percent."""
    return before is None or _percents(before) != _percents(now)


def _percents(metrics: Metrics) -> tuple[int, int]:
    return int(metrics.host.pool_percent), int(metrics.host.pool_metadata_percent)


def _told(report: Report | None) -> dict[Id, str]:
    """Return the volumes that a machine has, each with what is not as wished."""
    seen = report.seen if report else None
    return dict.fromkeys(seen.data, seen.data_note) if isinstance(seen, DomainSeen) else {}
