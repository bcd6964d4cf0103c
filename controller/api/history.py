"""The history of machines and hosts: one thing's figures over a span, and the newest of all (`skerry top`).

Each controller keeps what its own hosts send. Where there are several, the one that is asked asks the others and joins
what they know; those that gave no answer are named.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import get_args

import msgspec
from aiohttp import web

from common import ids
from common.clock import Clock
from common.errors import NotFound
from common.ids import HostId, Id
from common.kinds.kind import AnyKind, AnyResource
from common.kinds.vm import VM
from controller.api.call import Call, Handler
from controller.api.ports import Measured, Store
from controller.api.query import bad, integer, moment, refuse_unknown
from controller.api.relay import Relay, from_others
from controller.api.render import answer, past_of
from controller.api.resources import found
from controller.auth.caller import require_everywhere, sees, sees_past
from controller.metrics.buckets import Aggregate
from controller.metrics.catalogue import METRICS, Of
from controller.metrics.codec import Floats
from controller.metrics.history import Question
from controller.store.rows import EventQuery

AGGREGATES: tuple[str, ...] = get_args(Aggregate)
DEFAULT_POINTS = 240
MOST_POINTS = 2000
MOST_SPAN_S = 400 * 86400
FRESH_S = 60.0
"""What was last heard of longer ago is not shown as the newest."""

TOP_DEFAULT, TOP_MOST = 100, 1000

_SPANS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
LEAST_STEP_S = 5
_STEPS = (LEAST_STEP_S, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)

METRICS_PARAMETERS = {
    "metric": "which one; may be repeated (default: all)",
    "from": "where it begins: `-1h` (s, m, h, d, w before now), epoch seconds, or ISO 8601 (default: -1h)",
    "to": "where it ends, likewise; `now` is the default",
    "step": f"seconds from one value to the next, at least {LEAST_STEP_S} (default: so that there are up to "
    f"{DEFAULT_POINTS}; at most {MOST_POINTS})",
    "agg": f"what a value says of its step: {', '.join(AGGREGATES)} (default: avg)",
}
TOP_PARAMETERS = {
    "of": "vms (default) or hosts; hosts are for tokens of project system",
    "project": "only machines of this project; a project's token sees its own in any case",
    "sort": "by which metric, the highest first (default: cpu)",
    "limit": f"how many at most, 1 to {TOP_MOST} (default {TOP_DEFAULT})",
}


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """One metric: a value for each step, null where nothing is known."""

    metric: str
    unit: str
    values: tuple[float | None, ...]


class History(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one thing over a span. The first value is of `start` to `start + step`, epoch seconds."""

    id: Id
    name: str
    start: int
    step: int
    end: int
    agg: str
    series: tuple[Series, ...]
    missing: tuple[str, ...] = ()
    """The controllers that gave no answer: what they know is not in it."""


class Top(msgspec.Struct, frozen=True, kw_only=True):
    """The newest figures of one machine or host."""

    id: Id
    name: str
    project: str
    host: str
    at: float
    vcpus: int
    memory_mib: int
    """What it has, or of a host what is built in."""
    figures: dict[str, float | None]


class Tops(msgspec.Struct, frozen=True, kw_only=True):
    """The newest figures, the busiest first."""

    items: tuple[Top, ...]
    missing: tuple[str, ...] = ()


class Histories:
    """The handlers."""

    def __init__(self, store: Store, measured: Measured, clock: Clock, relay: Relay | None) -> None:
        self._store = store
        self._measured = measured
        self._clock = clock
        self._relay = relay

    def of(self, kind: AnyKind) -> Handler:
        """Return the handler of a kind's history."""

        async def handler(call: Call) -> web.Response:
            query = call.request.query
            refuse_unknown(query, METRICS_PARAMETERS)
            thing, name = await self._thing(call, kind)
            metrics = _metrics("vm" if kind is VM else "host", query.getall("metric", []))
            question = _question(query, thing, metrics, self._clock())
            mine = await self._answer(question, name)
            others, missing = await from_others(self._relay, call, History)
            return answer(msgspec.structs.replace(_joined(mine, others), missing=missing))

        return handler

    async def top(self, call: Call) -> web.Response:
        """Answer the newest figures of all machines or hosts that the caller sees."""
        query = call.request.query
        refuse_unknown(query, TOP_PARAMETERS)
        limit = integer(query, "limit", TOP_DEFAULT, 1, TOP_MOST)
        of = query.get("of", "vms")
        if of not in ("vms", "hosts"):
            raise bad("of", f"{of[:40]!r} is neither vms nor hosts", "say of=vms or of=hosts")
        kind: Of = "vm" if of == "vms" else "host"
        (sort,) = _metrics(kind, [query.get("sort", "cpu")], "sort")
        if kind == "host":
            require_everywhere(call.caller, "host.metrics", "the figures of hosts")
        mine = tuple(self._newest(call, kind, query.get("project", "")))
        others, missing = await from_others(self._relay, call, Tops)
        newest: dict[Id, Top] = {}
        for one in (*mine, *(one for other in others for one in other.items)):
            if one.id not in newest or newest[one.id].at < one.at:
                newest[one.id] = one
        ordered = sorted(newest.values(), key=lambda one: (-(one.figures.get(sort) or 0.0), one.name, one.id))
        return answer(Tops(items=tuple(ordered[:limit]), missing=missing))

    # --- whose ------------------------------------------------------------------------------------------------------

    async def _thing(self, call: Call, kind: AnyKind) -> tuple[Id, str]:
        """Return what the address means; by its id also what is gone, where it was this project's."""
        try:
            row = found(self._store.seen, call, kind)
        except NotFound:
            if not ids.is_id(call.name, kind.prefix):
                raise
            gone = EventQuery(resource=Id(call.name), kind=kind.name, project=call.project)
            events = await self._store.events(0, 1, gone, newest=True)
            if not events or not sees_past(call.caller, self._store.seen, past_of(events[-1])):
                raise
            return Id(call.name), events[-1].name
        return row.id, row.name

    # --- one thing --------------------------------------------------------------------------------------------------

    async def _answer(self, question: Question, name: str) -> History:
        values = await self._measured.query(question)
        units = {one.name: one.unit for one in METRICS["host" if question.thing.startswith("host-") else "vm"]}
        return History(
            id=question.thing,
            name=name,
            start=question.start,
            step=question.step,
            end=question.end,
            agg=question.how,
            series=tuple(
                Series(metric=metric, unit=units[metric], values=_plain(row))
                for metric, row in zip(question.metrics, values, strict=True)
            ),
        )

    # --- all --------------------------------------------------------------------------------------------------------

    def _newest(self, call: Call, kind: Of, project: str) -> Iterable[Top]:
        seen = self._store.seen
        for one in self._measured.newest(self._clock() - FRESH_S):
            row = seen.get(one.thing)
            if row is None or row.kind != kind or not sees(call.caller, seen, row) or project not in ("", row.project):
                continue
            vcpus, memory_mib = self._size(row, one.host)
            figures = zip(METRICS[kind], one.figures, strict=True)
            yield Top(
                id=row.id,
                name=row.name,
                project=row.project,
                host=seen.name_of(one.host),
                at=one.at,
                vcpus=vcpus,
                memory_mib=memory_mib,
                figures={metric.name: None if value is None else _short(value) for metric, value in figures},
            )

    def _size(self, row: AnyResource, host: HostId) -> tuple[int, int]:
        if row.kind == "host":
            inventory = self._store.seen.host(host).inventory
            return (inventory.cpu_threads, inventory.memory_mib) if inventory else (0, 0)
        placement = self._store.seen.placement(row.id)
        return (placement.vcpus, placement.memory_mib) if placement else (0, 0)


# --- the question -------------------------------------------------------------------------------------------------


def _metrics(of: Of, names: Sequence[str], parameter: str = "metric") -> tuple[str, ...]:
    known = [one.name for one in METRICS[of]]
    for name in names:
        if name not in known:
            raise bad(parameter, f"a {of} has no metric {name[:40]!r}", f"there is {', '.join(known)}")
    return tuple(dict.fromkeys(names)) or tuple(known)


def _question(query: Mapping[str, str], thing: Id, metrics: tuple[str, ...], now: float) -> Question:
    """Read span, step and aggregate. Raises Invalid, naming the parameter and the way out."""
    start, end = instant(query, "from", "-1h", now), instant(query, "to", "now", now)
    if not start < end:
        raise bad("from", f"{_iso(start)} is not before to, {_iso(end)}", "swap them, or widen the span")
    if end - start > MOST_SPAN_S:
        raise bad("from", f"the span has {(end - start) / 86400:.0f} days", f"at most {MOST_SPAN_S // 86400} at once")
    step = integer(query, "step", _fitting(end - start, DEFAULT_POINTS), LEAST_STEP_S, MOST_SPAN_S)
    first = int(start // step) * step
    count = max(1, int(-(-(end - first) // step)))
    if count > MOST_POINTS:
        most = _fitting(end - start, MOST_POINTS)
        raise bad("step", f"the span has {count} steps of {step} s, at most {MOST_POINTS} are answered", f"step={most}")
    how = query.get("agg", "avg")
    if how not in AGGREGATES:
        raise bad("agg", f"{how[:40]!r} is no aggregate", f"there is {', '.join(AGGREGATES)}")
    chosen: Aggregate = "avg" if how == "avg" else "max" if how == "max" else "last"
    return Question(thing=thing, metrics=metrics, start=first, step=step, count=count, how=chosen)


def instant(query: Mapping[str, str], name: str, default: str, now: float) -> float:
    """Read a moment that may be said from now on back: `now`, `-90s`, `-1h`, `-7d`. Raises Invalid."""
    text = query.get(name) or default
    if text == "now":
        return now
    if back := re.fullmatch(r"-([0-9]{1,9})([smhdw])", text):
        return max(0.0, now - int(back[1]) * _SPANS[back[2]])
    return moment({name: text}, name)


def _fitting(span_s: float, points: int) -> int:
    """Return the smallest of the usual steps with which a span has at most so many."""
    return next((step for step in _STEPS if span_s <= step * points), _STEPS[-1])


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- the answer ---------------------------------------------------------------------------------------------------


def _plain(values: Floats) -> tuple[float | None, ...]:
    return tuple([None if value != value else _short(value) for value in values.tolist()])  # noqa: PLR0124 - NaN


def _short(value: float) -> float:
    """Return a figure with as many digits as mean something."""
    return float(f"{value:.5g}")


def _joined(mine: History, others: Sequence[History]) -> History:
    """Return one history from what several controllers know: a host told one of them at a time."""
    pick: Callable[[float, float], float] = max if mine.agg == "max" else lambda one, _two: one
    series = list(mine.series)
    for other in others:
        if (other.start, other.step, len(other.series)) != (mine.start, mine.step, len(series)):
            continue
        series = [
            msgspec.structs.replace(one, values=_either(one.values, its.values, pick))
            for one, its in zip(series, other.series, strict=True)
        ]
    return msgspec.structs.replace(mine, series=tuple(series))


def _either(
    one: Sequence[float | None], two: Sequence[float | None], pick: Callable[[float, float], float]
) -> tuple[float | None, ...]:
    return tuple(
        right if left is None else left if right is None else pick(left, right)
        for left, right in zip(one, two, strict=False)
    )
