"""Vectors as agents send them, and what a plain reckoning makes of them."""

from collections.abc import Sequence
from pathlib import Path

from common.ids import HostId, Id, new_id
from common.protocol import GuestMetrics, HostMetrics, Metrics
from controller.metrics.history import History
from controller.metrics.shelf import Keep

START = 1_800_000_000 // 86400 * 86400
HOST = HostId(new_id("host"))
KEEP = Keep(raw_s=6 * 3600, minute_s=7 * 86400, hour_s=366 * 86400, most_bytes=1 << 30)


class Clock:
    """Seconds that a test sets."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def vm() -> Id:
    """Return a machine's id."""
    return new_id("vm")


def guest(
    thing: Id, *, cpu_s: float = 0.0, memory: int = 200, disk: tuple[int, int] = (0, 0), net: tuple[int, int] = (0, 0)
) -> GuestMetrics:
    """Return a guest's part of a vector."""
    return GuestMetrics(thing, int(cpu_s * 1e9), memory, *disk, *net)


def host(*, cpu: float = 12.5, load: float = 0.5, net: tuple[int, int] = (0, 0)) -> HostMetrics:
    """Return a host's own part of a vector."""
    return HostMetrics(cpu, 2048, 7.0, load, *net, 40.0, 1)


def said(at: float, guests: Sequence[GuestMetrics] = (), of_host: HostMetrics | None = None) -> Metrics:
    """Return a vector."""
    return Metrics(at=at, host=of_host or host(), guests=tuple(guests))


async def opened(directory: Path, clock: Clock, keep: Keep = KEEP) -> History:
    """Return a history over a directory."""
    history = History(directory, keep, clock)
    await history.open()
    return history
