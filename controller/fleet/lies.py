"""What hosts say that can't be so, told from what is late, and kept as one event a lie however often it is said.

A host may speak of what is placed on it. Nothing else that it says is taken in, and nobody else notices; the operators
find an event `host.lied` with the host, the lie and how often it came.
"""

from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec

from common.clock import Clock
from common.documents import (
    AnyDoc,
    DocKey,
    DomainDoc,
    DomainSeen,
    NetworkDoc,
    NetworkSeen,
    PortDoc,
    Report,
    SnapshotDoc,
    VolumeDoc,
    VolumeSeen,
)
from common.ids import HostId, Id
from controller.store.working import WorkingSet

QUIET_S = 60.0
"""One event in so long, of one lie of one host; what comes meanwhile is counted, and told with the next one."""

DETAIL_CHARACTERS = 300
WORDS_CHARACTERS = 2000
"""Of a host's own words on one document."""

Lie = Literal[
    "claim",
    "unknown",
    "mistyped",
    "future",
    "replay",
    "event",
    "unreadable",
    "flood",
    "twin",
    "past",
    "survey",
    "figures",
]

WORDS: dict[Lie, str] = {
    "claim": "spoke for what is not on it",
    "unknown": "spoke of what nobody gave it",
    "mistyped": "reported one thing as another",
    "future": "reported on a document that it was never sent",
    "replay": "said again what it had said before",
    "event": "told of an event that a host can't know",
    "unreadable": "sent what can't be read",
    "flood": "flooded the link",
    "twin": "is two machines that use one certificate",
    "past": "knows documents that are newer than the database",
    "survey": "answered a survey with what can't be",
    "figures": "sent figures that can't be",
}


class _Told(msgspec.Struct, kw_only=True):
    """How often one host told one lie since the last event of it."""

    at: float
    count: int = 0
    detail: str = ""


class Lies:
    """The lies of all hosts. `happened` writes an event about a host: (host, what, message)."""

    def __init__(self, happened: Callable[[HostId, str, str], Awaitable[None]], clock: Clock) -> None:
        self._happened = happened
        self._clock = clock
        self._told: dict[tuple[HostId, Lie], _Told] = {}

    async def told(self, host: HostId, lie: Lie, detail: str, *, times: int = 1) -> None:
        """Take note of a lie."""
        now = self._clock()
        known = self._told.get((host, lie))
        if known is not None and now - known.at < QUIET_S:
            known.count, known.detail = known.count + times, detail
            return
        before = known.count if known else 0
        self._told[host, lie] = _Told(at=now)
        await self._write(host, lie, detail, before + times)

    async def sum_up(self) -> None:
        """Write an event for what was only counted, and is over."""
        now = self._clock()
        for (host, lie), known in list(self._told.items()):
            if now - known.at < QUIET_S:
                continue
            del self._told[host, lie]
            if known.count:
                await self._write(host, lie, known.detail, known.count)

    async def _write(self, host: HostId, lie: Lie, detail: str, count: int) -> None:
        often = f" ({count} times)" if count > 1 else ""
        await self._happened(host, "lied", f"it {WORDS[lie]}{often}: {detail[:DETAIL_CHARACTERS]}")


def judge(seen: WorkingSet, host: HostId, report: Report) -> tuple[Lie, str] | None:
    """Say what is wrong with a report on a document that the host has; None: it may well be so."""
    document = seen.document(host, report.key)
    if document is None:
        return _stranger(seen, host, report)
    if report.seen is not None and not isinstance(report.seen, _SIGHTS[type(document.doc)]):
        return "mistyped", f"{report.key} as {type(report.seen).__name__}"
    if report.revision > document.revision:
        return "future", f"{report.key} at revision {report.revision}, it was sent {document.revision}"
    return None


def clipped(report: Report) -> Report:
    """Keep a host's own words to what people read."""
    steps = tuple(
        msgspec.structs.replace(step, what=step.what[:DETAIL_CHARACTERS], problem=step.problem[:WORDS_CHARACTERS])
        for step in report.steps
    )
    if max(len(report.message), len(report.problem)) <= WORDS_CHARACTERS:
        return msgspec.structs.replace(report, steps=steps) if steps else report
    return msgspec.structs.replace(
        report, message=report.message[:WORDS_CHARACTERS], problem=report.problem[:WORDS_CHARACTERS], steps=steps
    )


def is_late(seen: WorkingSet, host: HostId, key: DocKey) -> bool:
    """Say whether a host may still speak of something that it has no document of: it had one a moment ago."""
    one = Id(key.partition("/")[2].partition(".")[0])
    row = seen.get(one)
    if row is None:
        return seen.grave(one) is not None
    placement = seen.placement(row.id) or (seen.placement(row.owner) if row.owner else None)
    return placement is None or placement.host == host


def _stranger(seen: WorkingSet, host: HostId, report: Report) -> tuple[Lie, str] | None:
    if is_late(seen, host, report.key):
        return None
    one = Id(report.key.partition("/")[2].partition(".")[0])
    if (row := seen.get(one)) is None:
        return (
            "unknown",
            f"{report.key[:80]}, which this cloud does not know: skerry audit host names what is left on it",
        )
    if report.seen is None:
        return None
    return "claim", f"{row.kind} {row.name} of project {row.project}, which is elsewhere"


_SIGHTS: dict[type[AnyDoc], type] = {
    DomainDoc: DomainSeen,
    VolumeDoc: VolumeSeen,
    SnapshotDoc: type(None),
    NetworkDoc: NetworkSeen,
    PortDoc: type(None),
}
