"""Time as an argument: what the shells pass to the planners, and the simulator replaces."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], float]
"""Gives seconds since the epoch."""

system_clock: Clock = time.time


def iso(at: float) -> str:
    """Return a moment as RFC 3339 in UTC, to the second."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
