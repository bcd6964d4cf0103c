"""The links between hosts and controller: frames that take time, and are lost, repeated and swapped by accident.

A link that misbehaved does not last: as with a real connection, what is lost shows after a while, and it breaks.
What was under way then is lost with it, and neither side knows how much of it the other had.
"""

from collections.abc import Callable
from typing import Literal

import msgspec

from common.clock import Clock

Accident = Literal["lose", "repeat", "swap"]
Way = Literal["up", "down"]

DELAY_S = 0.002
NOTICED_AFTER_S = 7.0
"""A heartbeat and a half."""


class Frame(msgspec.Struct, frozen=True):
    """A message under way."""

    at: float
    way: Way
    body: bytes


class Wire:
    """One connection. `accidents` befall the next frames; None: nothing does."""

    def __init__(self, clock: Clock, delay: Callable[[], float]) -> None:
        self._clock = clock
        self._delay = delay
        self._frames: list[Frame] = []
        self.accidents: list[Accident | None] = []
        self.cut = False
        self.breaks_at: float | None = None

    def send(self, way: Way, body: bytes) -> None:
        """Put a message on its way."""
        if self.cut:
            return
        accident = self.accidents.pop(0) if self.accidents else None
        latest = max((frame.at for frame in self._frames if frame.way == way), default=0.0)
        frame = Frame(max(latest, self._clock() + DELAY_S + self._delay()), way, body)
        match accident:
            case "lose":
                self._break_later()
            case "repeat":
                self._frames += [frame, frame]
            case "swap":
                self._frames.append(frame)
                self._swap(way)
                self._break_later()
            case None:
                self._frames.append(frame)

    def _swap(self, way: Way) -> None:
        own = [index for index, frame in enumerate(self._frames) if frame.way == way]
        if len(own) >= 2:
            one, two = own[-2:]
            first, second = self._frames[one], self._frames[two]
            self._frames[one] = Frame(first.at, way, second.body)
            self._frames[two] = Frame(second.at, way, first.body)

    def _break_later(self) -> None:
        self.breaks_at = min(self.breaks_at or float("inf"), self._clock() + NOTICED_AFTER_S)

    def arrived(self, way: Way) -> bytes | None:
        """Take the next frame that has come by now."""
        now = self._clock()
        for index, frame in enumerate(self._frames):
            if frame.way == way and frame.at <= now and not self.cut:
                del self._frames[index]
                return frame.body
        return None

    def pull(self) -> None:
        """Cut the cable: both ends notice after a while."""
        self.cut = True
        self._frames.clear()
        self._break_later()

    def break_now(self) -> None:
        """Cut the connection, and let both ends notice at once, as when a process dies and its kernel says so."""
        self.pull()
        self.breaks_at = self._clock()

    def next_at(self) -> float | None:
        """Return when something happens next."""
        times = [frame.at for frame in self._frames]
        return min([*times, *([self.breaks_at] if self.breaks_at is not None else [])], default=None)
