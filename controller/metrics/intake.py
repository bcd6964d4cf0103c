"""What agents send, checked and turned into codes on a grid of time: the newest windows, in memory. No I/O.

A counter becomes its growth since the vector before. Where it shrank (a guest or an agent that was started anew) or
the one before is too long ago, nothing is known of that moment: no spike, and no zero either.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from common.ids import HostId, Id
from common.protocol import GuestMetrics, Metrics
from controller.metrics.catalogue import METRICS, WIDTH, Metric, kind_of, read_guest, read_host
from controller.metrics.codec import MOST, NONE, Codes, Floats, expand, quantise

SLOT_S = 5
"""From one point to the next: agents are asked to send that often."""

WINDOW_S = 300
"""A window's points go to disk together; this much is lost with the process."""

SLOTS = WINDOW_S // SLOT_S
SKEW_S = 60.0
"""A host's clock may be so far from this machine's."""

GAP_S = 30.0
"""A vector speaks for the time since the one before, where that is no longer ago."""


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """What was believed of a vector, and in words what was not."""

    metrics: Metrics | None
    """None: nothing."""
    refused: str = ""


Told = Mapping[HostId, Metrics]
"""One vector of each host that sent one lately."""


class Measures(Protocol):
    """Where figures are kept."""

    def take(self, told: Told, /) -> Mapping[HostId, Taken]:
        """Keep what is believed of hosts' figures; say of each host what that was."""
        ...


class Unkept:
    """The newest figures are all there is."""

    def take(self, told: Told) -> Mapping[HostId, Taken]:
        """Believe all of it."""
        return {host: Taken(metrics=said) for host, said in told.items()}


UNKEPT = Unkept()


class Rows:
    """What one host told of itself and its guests in one window: a row of codes for each figure."""

    def __init__(self, room: int) -> None:
        self.at: dict[Id, int] = {}
        """The first row of each thing."""
        self._codes: Codes = np.full((room, SLOTS), NONE, np.uint16)
        self._used = 0

    @property
    def codes(self) -> Codes:
        """All rows."""
        return self._codes[: self._used]

    def of(self, thing: Id) -> Codes | None:
        """Return a thing's rows."""
        first = self.at.get(thing)
        return None if first is None else self._codes[first : first + WIDTH[kind_of(thing)]]

    def places(self, things: Iterable[Id]) -> NDArray[np.intp]:
        """Return the rows of all these, in order; made where they are missing."""
        return np.concatenate([self._place(thing) + np.arange(WIDTH[kind_of(thing)]) for thing in things])

    def _place(self, thing: Id) -> int:
        if thing not in self.at:
            self.at[thing], self._used = self._used, self._used + WIDTH[kind_of(thing)]
            if self._used > len(self._codes):
                more = np.full((len(self._codes) + self._used, SLOTS), NONE, np.uint16)
                self._codes = np.concatenate([self._codes, more])
        return self.at[thing]

    def put(self, places: NDArray[np.intp], first: int, last: int, codes: Codes) -> None:
        """Set the points from one slot to another, both included."""
        if first == last:
            self._codes[places, last] = codes
        else:
            self._codes[places, first : last + 1] = codes[:, None]


class _Layout(NamedTuple):
    """How a vector of a host with so many guests is read; the same for all of them."""

    counters: NDArray[np.bool_]
    factors: Floats
    most: Floats


@cache
def _layout(guests: int) -> _Layout:
    metrics: list[Metric] = [*METRICS["host"], *METRICS["vm"] * guests]
    return _Layout(
        counters=np.array([one.counter for one in metrics]),
        factors=np.array([one.factor / one.grain for one in metrics]),
        most=np.array([one.most / one.grain for one in metrics]),
    )


class _Shape:
    """Whose figures the vectors of one host are, while it has the same guests."""

    def __init__(self, host: HostId, guests: tuple[Id, ...]) -> None:
        self.guests = guests
        self.things: tuple[Id, ...] = (host, *guests)
        self.layout = _layout(len(guests))
        self.width = len(self.layout.most)
        self.window = -1
        self.places = np.empty(0, np.intp)


class _Last:
    """The vector before, of one host."""

    def __init__(self, at: float, shape: _Shape, values: Floats, codes: Codes) -> None:
        self.at, self.shape, self.values, self.codes = at, shape, values, codes


class Intake:
    """The windows that are not on disk yet."""

    def __init__(self) -> None:
        self._last: dict[HostId, _Last] = {}
        self._open: dict[int, dict[HostId, Rows]] = defaultdict(dict)
        self._sealed_until = 0

    # --- in -------------------------------------------------------------------------------------------------------

    def take(self, told: Told, now: float) -> dict[HostId, Taken]:
        """Check vectors and keep what is believed of them: many at once cost little more than one."""
        taken: dict[HostId, Taken] = {}
        vectors: list[_Vector] = []
        figures: list[float] = []
        for host, said in told.items():
            ahead = said.at - now
            if abs(ahead) <= SKEW_S:
                vectors.append(self._vector(host, said))
                figures += read_host(said.host)
                for guest in said.guests:
                    figures += read_guest(guest)
            else:
                taken[host] = Taken(metrics=None, refused=_clock_words(said.at, ahead))
        if not vectors:
            return taken
        values = np.array(figures, np.float64)
        if not (values.min() >= 0 and values.max() <= MOST):  # also where one is NaN
            for vector in vectors:
                taken[vector.host] = self._believable(vector.host, vector.said, now)
        else:
            taken |= self._keep(vectors, values)
        return taken

    def _vector(self, host: HostId, said: Metrics) -> "_Vector":
        guests = tuple([guest.vm for guest in said.guests])
        last = self._last.get(host)
        shape = last.shape if last and last.shape.guests == guests else _Shape(host, guests)
        since = said.at - last.at if last else 0.0
        return _Vector(host, said, shape, last, since if 0 < since <= GAP_S else 0.0)

    def _keep(self, vectors: list["_Vector"], values: Floats) -> dict[HostId, Taken]:
        widths = [one.shape.width for one in vectors]
        layouts = [one.shape.layout for one in vectors]
        shown = _shown(vectors, widths, values)
        over = shown > np.concatenate([one.most for one in layouts])
        codes = quantise(np.where(over, np.nan, shown))
        lied = bool(over.any())
        taken = {}
        end = 0
        for (host, said, shape, _, since), width in zip(vectors, widths, strict=True):
            start, end = end, end + width
            refused = _over_words(shape, shown[start:end], over[start:end]) if lied else ""
            self._put(host, shape, said.at, since, codes[start:end])
            self._last[host] = _Last(said.at, shape, values[start:end], codes[start:end])
            taken[host] = Taken(metrics=said, refused=refused)
        return taken

    def _believable(self, host: HostId, said: Metrics, now: float) -> Taken:
        """Take a vector without what can't be: a whole guest's part, or all where the host's own part is bad."""
        if bad := _impossible(METRICS["host"], read_host(said.host)):
            return Taken(metrics=None, refused=f"of the host itself: {bad}")
        good: list[GuestMetrics] = []
        refused = []
        for guest in said.guests:
            bad = _impossible(METRICS["vm"], read_guest(guest))
            if bad:
                refused.append(f"of {guest.vm}: {bad}")
            else:
                good.append(guest)
        taken = self.take({host: msgspec.structs.replace(said, guests=tuple(good))}, now)[host]
        words = "; ".join((*refused[:3], *([f"and of {len(refused) - 3} more"] if len(refused) > 3 else [])))
        return Taken(metrics=taken.metrics, refused="; ".join(filter(None, (words, taken.refused))))

    def _put(self, host: HostId, shape: _Shape, at: float, dt: float, codes: Codes) -> None:
        last = int(at // SLOT_S)
        first = min(last, int((at - dt) // SLOT_S) + 1) if dt else last
        first = max(first, self._sealed_until // SLOT_S)
        while first <= last:
            window = first // SLOTS * WINDOW_S
            end = min(last, window // SLOT_S + SLOTS - 1)
            rows = self._open[window].get(host)
            if rows is None:
                rows = self._open[window][host] = Rows(shape.width)
            if shape.window != window:
                shape.window, shape.places = window, rows.places(shape.things)
            rows.put(shape.places, first - window // SLOT_S, end - window // SLOT_S, codes)
            first = end + 1

    # --- out ------------------------------------------------------------------------------------------------------

    def newest(self, since: float) -> Iterator[tuple[HostId, float, dict[Id, Floats]]]:
        """Give each host with its moment and the figures of it and of its guests, where they came after `since`."""
        for host, last in self._last.items():
            if last.at > since:
                values = expand(last.codes)
                ends = np.cumsum([WIDTH[kind_of(thing)] for thing in last.shape.things])[:-1]
                yield host, last.at, dict(zip(last.shape.things, np.split(values, ends), strict=True))

    def open_windows(self) -> tuple[int, ...]:
        """Return the starts of the windows that are not sealed, in order."""
        return tuple(sorted(self._open))

    def rows(self, window: int) -> dict[HostId, Rows]:
        """Return what is known of an open window."""
        return self._open.get(window, {})

    def seal(self, window: int) -> None:
        """Take nothing more for a window or those before it; what was taken stays until it is dropped."""
        self._sealed_until = max(self._sealed_until, window + WINDOW_S)

    def drop(self, window: int) -> None:
        """Forget a window: it is on disk, or is given up."""
        self._open.pop(window, None)

    def forget_before(self, moment: float) -> None:
        """Forget the last vectors of hosts that were silent since."""
        self._last = {host: last for host, last in self._last.items() if last.at >= moment}


class _Vector(NamedTuple):
    """One host's vector on its way in."""

    host: HostId
    said: Metrics
    shape: _Shape
    last: _Last | None
    since: float
    """The seconds that it speaks for (0: the moment)."""


def _shown(vectors: list[_Vector], widths: list[int], values: Floats) -> Floats:
    """Return the figures in grains of their units; NaN for a counter of which nothing is known."""
    layouts = [one.shape.layout for one in vectors]
    before = np.concatenate([_before(one) for one in vectors])
    growth = (values - before) / np.repeat([one.since or 1.0 for one in vectors], widths)
    growth[growth < 0] = np.nan
    counted = np.concatenate([one.counters for one in layouts])
    shown: Floats = np.where(counted, growth, values) * np.concatenate([one.factors for one in layouts])
    return shown


def _before(vector: _Vector) -> Floats:
    """Return the values before in the order of a vector; NaN for what is new, or was too long ago."""
    last, shape = vector.last, vector.shape
    if last is None or not vector.since:
        return np.full(shape.width, np.nan)
    if last.shape is shape:
        return last.values
    ends = np.cumsum([0, *(WIDTH[kind_of(thing)] for thing in last.shape.things)])
    before = {
        thing: last.values[start:end] for thing, start, end in zip(last.shape.things, ends, ends[1:], strict=False)
    }
    nothing = np.full(WIDTH["vm"], np.nan)
    return np.concatenate([before.get(thing, nothing) for thing in shape.things])


def _clock_words(at: float, ahead: float) -> str:
    if not math.isfinite(at):
        return f"its time is {at}"
    way = "ahead" if ahead > 0 else "behind"
    return f"its clock is {abs(ahead):.0f} s {way} of this controller's, {SKEW_S:.0f} s are allowed: set its clock"


def _impossible(metrics: tuple[Metric, ...], values: Iterable[float]) -> str:
    """Name the first figure that no counter and no gauge can have; empty: there is none."""
    for metric, value in zip(metrics, values, strict=True):
        if not 0 <= value <= MOST:
            return f"{metric.field} is {value:g}"
    return ""


def _over_words(shape: _Shape, shown: Floats, over: NDArray[np.bool_]) -> str:
    """Name the first figure that is more than is believed; empty: there is none."""
    if not over.any():
        return ""
    named = [(thing, one) for thing in shape.things for one in METRICS[kind_of(thing)]]
    place = int(np.argmax(over))
    thing, metric = named[place]
    said = shown[place] * metric.grain
    return f"of {thing}: {metric.name} of {said:.4g} {metric.unit}, at most {metric.most:.4g} is believed"
