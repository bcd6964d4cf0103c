"""What waits to be sent to the controller, bounded: replies and stream frames in order, reports merged per document.

Of the rest only what still means something is kept: the newest metrics, and the last few hundred events.
"""

import asyncio
from collections import deque
from collections.abc import Iterable

import msgspec
import structlog

from common.batches import cut
from common.documents import DocKey, Report
from common.protocol import HostEvent, Metrics, Reply, Reports, StreamCredit, StreamData, StreamEnd, Up

log = structlog.get_logger(__name__)

EVENTS = 256
LINGER_S = 0.1
"""A report of work under way waits so long for the next one of the same document; one of done or a problem does not."""

Frame = Reply | StreamData | StreamCredit | StreamEnd


class Parcel(msgspec.Struct, frozen=True, kw_only=True):
    """One message to send."""

    message: Up
    reports: tuple[Report, ...] = ()
    """Those in it: they are delivered once it went out."""


class Outbox:
    """One per agent; it outlives sessions. `report`, `event` and `metrics` may be called at any time."""

    def __init__(self) -> None:
        self._frames: deque[Frame] = deque()
        self._reports: dict[DocKey, Report] = {}
        self._reports_at: float | None = None
        self._full = False
        self._number = 0
        self._events: deque[HostEvent] = deque(maxlen=EVENTS)
        self._metrics: Metrics | None = None
        self._filled = asyncio.Event()

    def report(self, report: Report) -> None:
        """Take a report; it replaces one of the same document that still waits."""
        self._reports.pop(report.key, None)
        self._reports[report.key] = report
        now = asyncio.get_running_loop().time()
        at = now if report.done or report.problem else now + LINGER_S
        self._reports_at = at if self._reports_at is None else min(at, self._reports_at)
        self._filled.set()

    def event(self, event: HostEvent) -> None:
        """Take an event; when too many wait the oldest is dropped."""
        if len(self._events) == EVENTS:
            log.warning("event dropped", subject=self._events[0].subject, action=self._events[0].action)
        self._events.append(event)
        self._filled.set()

    def metrics(self, metrics: Metrics) -> None:
        """Take metrics in place of those that still wait."""
        self._metrics = metrics
        self._filled.set()

    def frame(self, frame: Frame) -> None:
        """Take a reply or a frame of a stream (credit bounds those)."""
        self._frames.append(frame)
        self._filled.set()

    def new_session(self) -> None:
        """Drop what only meant something to the last session. Its reports are compared by digest instead."""
        self._frames.clear()
        self._reports.clear()
        self._reports_at = None
        self._full = False
        self._number = 0
        self._metrics = None

    def resync(self, reports: Iterable[Report], *, full: bool) -> None:
        """Send these, unless a newer one of the same document waits already. `full`: the controller forgets others."""
        self._reports = {report.key: report for report in reports} | self._reports
        self._full = full
        if self._reports or full:
            self._reports_at = 0.0
        self._filled.set()

    async def next(self) -> Parcel:
        """Wait for the next message to send."""
        while True:
            self._filled.clear()
            now = asyncio.get_running_loop().time()
            if (parcel := self._take(now)) is not None:
                return parcel
            pause = None if self._reports_at is None else self._reports_at - now
            try:
                async with asyncio.timeout(pause):
                    await self._filled.wait()
            except TimeoutError:
                continue

    def _take(self, now: float) -> Parcel | None:
        if self._frames:
            return Parcel(message=self._frames.popleft())
        if self._reports_at is not None and self._reports_at <= now:
            return self._take_reports()
        if self._events:
            return Parcel(message=self._events.popleft())
        if (metrics := self._metrics) is not None:
            self._metrics = None
            return Parcel(message=metrics)
        return None

    def _take_reports(self) -> Parcel:
        group = next(cut(self._reports.values()), ())
        for report in group:
            del self._reports[report.key]
        full, self._full = self._full, False
        if not self._reports:
            self._reports_at = None
        self._number += 1
        return Parcel(message=Reports(number=self._number, reports=group, full=full), reports=group)
