"""Runs the units: one turn at a time each, a bounded number at once, whenever something gives reason to look.

`turn` is the whole of the work, and has no task, no sleep and no randomness of its own: a simulator calls `due` and
`turn` with its own clock. `run` is the shell that does so in real time.

A unit is due: at the start (so that a host boots its machines with the controller gone); when one of its documents
changed; when a driver pokes it; when another unit did something while it was waiting; when the wait its plan asked for
is over; after a failure, with back-off; and on a slow timer, which repairs drift.
"""

import asyncio
import random
import time
from collections.abc import Callable, Container, Iterable, Mapping

import msgspec
import structlog
from structlog.contextvars import bound_contextvars

from agent import taken
from agent.kinds.unit import AnyUnitKind, Do, Mark, Settled, UnitKey, Wait, Wish
from agent.memory import Memory
from common.clock import Clock, system_clock
from common.documents import Desired, DocKey, Report, StepTaken
from common.errors import SkerryError, Temporary
from common.faults import Faults
from common.protocol import reports_digest

log = structlog.get_logger(__name__)

AT_ONCE = 16
"""Turns at the same time: most of a turn is waiting for libvirt, a file or the network."""

MAX_STEPS = 64
"""A plan that is not at rest after so many steps goes in circles: it is tried again later, with a problem."""

SLOW_TIMER_S = 30.0
BACKOFF_FIRST_S = 0.5
BACKOFF_CAP_S = 30.0
POKED_AGAIN_S = 1.0
"""A driver's poke shortens a back-off to this, no further: a failing step causes events of its own."""

OBSERVE_LIMIT_S = 60.0
APPLY_LIMIT_S = 1800.0
"""The outermost limits, for what hangs in spite of the drivers' own (a large image may be fetched in a step)."""

Sink = Callable[[Report], None]
"""Takes a report that has changed."""


class DestroyedUnasked(Exception):
    """A plan wanted to destroy what no tombstone names: a bug in the plan, stopped here."""


class _Entry:
    """What the loop knows of one unit, none of which matters after a restart."""

    __slots__ = (
        "busy",
        "changed",
        "due_at",
        "failures",
        "looked",
        "poked",
        "problem",
        "settled",
        "steps",
        "tried_at",
        "waiting",
    )

    def __init__(self, due_at: float) -> None:
        self.due_at = due_at
        self.failures = 0
        self.tried_at = 0.0
        self.busy = False
        self.poked = False
        """While it was busy. After a failure it counts for nothing: a failing step causes events of its own."""
        self.changed = False
        """While it was busy."""
        self.looked = False
        self.problem = ""
        """Of the last turn, if it failed: the same traceback is not logged again at every try."""
        self.waiting = False
        self.settled = False
        self.steps: list[StepTaken] = []
        """Taken since its documents changed last, the newest few."""


class Loop:
    """The units of one host.

    `clock` is the time plans are given; `timer` (monotonic seconds) is what turns are scheduled by; `chance` gives
    0 to 1.
    """

    def __init__(
        self,
        *,
        memory: Memory,
        kinds: Iterable[AnyUnitKind],
        sink: Sink,
        clock: Clock = system_clock,
        timer: Clock = time.monotonic,
        chance: Callable[[], float] = random.random,
        faults: Faults | None = None,
    ) -> None:
        self.memory = memory
        self.looked = asyncio.Event()
        """Set once every unit known at the start has had its first turn."""
        self._kinds: Mapping[str, AnyUnitKind] = {kind.name: kind for kind in kinds}
        self._sink = sink
        self._clock = clock
        self._timer = timer
        self._chance = chance
        self._faults = faults or Faults()
        self._held: dict[DocKey, Report] = {}
        self._entries: dict[UnitKey, _Entry] = {unit: _Entry(timer()) for unit in memory.units()}
        self._bell = asyncio.Event()
        if not self._entries:
            self.looked.set()

    # --- reports ------------------------------------------------------------------------------------------------

    def reports(self) -> tuple[Report, ...]:
        """Return the last report of every document, for a resync."""
        return tuple(self._with_steps(self._held[key]) for key in sorted(self._held))

    def observed_digest(self) -> str:
        """Return the name of the set of reports, to compare with the controller's."""
        return reports_digest(self._held.values())

    def last_words(self) -> tuple[Report, ...]:
        """Return the reports of tombstones that are done: said again at every hello until they were delivered."""
        return tuple(report for report in self.reports() if self._is_last(report))

    def _with_steps(self, report: Report) -> Report:
        """Return a report as it is sent: that of a unit's own document tells of the steps taken for it."""
        entry = self._entries.get(UnitKey(report.key))
        return msgspec.structs.replace(report, steps=tuple(entry.steps)) if entry and entry.steps else report

    async def delivered(self, reports: Iterable[Report]) -> None:
        """Take note that these reports went out: what is gone and reported gone is forgotten."""
        last = [report for report in reports if self._is_last(report)]
        if not last:
            return
        await self.memory.forget((report.key, report.revision) for report in last)
        for report in last:
            if report.key not in self.memory.items:
                self._held.pop(report.key, None)
        for unit in set(self._entries) - set(self.memory.units()):
            if not self._entries[unit].busy:
                del self._entries[unit]

    def _is_last(self, report: Report) -> bool:
        item = self.memory.items.get(report.key)
        return report.done and item is not None and item.gone and item.revision == report.revision

    def told(self, report: Report) -> None:
        """Take a report that a kind gives in the middle of a step: how far a long one is."""
        self._hold([report])

    def begin_anew(self) -> None:
        """Forget what was reported: it spoke of revisions that the controller has for something else now."""
        self._held.clear()
        self.changed(tuple(self._entries))

    # --- reasons to look ----------------------------------------------------------------------------------------

    def changed(self, units: Iterable[UnitKey]) -> None:
        """Documents of these units changed: look at once, whatever failed before."""
        for unit in units:
            entry = self._entries.setdefault(unit, _Entry(self._timer()))
            entry.failures = 0
            entry.steps.clear()
            entry.changed = entry.busy
            entry.due_at = self._timer()
        self._bell.set()

    def poke(self, unit: UnitKey) -> None:
        """Something moved: look at this unit again. Unknown units are passed over."""
        entry = self._entries.get(unit)
        if entry is None:
            return
        if entry.busy:
            entry.poked = True
            return
        earliest = entry.tried_at + POKED_AGAIN_S if entry.failures else self._timer()
        entry.due_at = min(entry.due_at, earliest)
        self._bell.set()

    def poke_all(self) -> None:
        """Something moved, and nobody knows what: look at everything (libvirt came back, a namespace is new)."""
        for unit in self._entries:
            self.poke(unit)

    # --- the schedule -------------------------------------------------------------------------------------------

    def due(self) -> tuple[UnitKey, ...]:
        """Return the units to look at now, the longest due first."""
        now = self._timer()
        found = [(entry.due_at, unit) for unit, entry in self._entries.items() if entry.due_at <= now]
        return tuple(unit for _, unit in sorted(found) if not self._entries[unit].busy)

    def next_due_s(self) -> float:
        """Return the seconds until a unit is due; a unit in the middle of its turn does not count."""
        times = [entry.due_at for entry in self._entries.values() if not entry.busy]
        return max(0.0, min(times, default=self._timer() + SLOW_TIMER_S) - self._timer())

    async def run(self) -> None:
        """Look at what is due, until cancelled. Steps under way are cancelled too: they may die at any line."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._bell.clear()
                free = AT_ONCE - sum(entry.busy for entry in self._entries.values())
                for unit in self.due()[:free]:
                    self._entries[unit].busy = True
                    group.create_task(self.turn(unit), name=f"turn {unit}")
                pause = self.next_due_s() if free > 0 else SLOW_TIMER_S
                try:
                    async with asyncio.timeout(pause):
                        await self._bell.wait()
                except TimeoutError:
                    continue

    # --- a turn -------------------------------------------------------------------------------------------------

    async def turn(self, unit: UnitKey) -> None:
        """Observe, plan and apply until the plan comes to rest. Raises nothing but cancellation and planted deaths."""
        with bound_contextvars(**_asked_by(self.memory.wish(unit))):
            await self._turn(unit)

    async def _turn(self, unit: UnitKey) -> None:
        entry = self._entries.setdefault(unit, _Entry(self._timer()))
        entry.busy = True
        entry.poked = entry.changed = False
        entry.tried_at = self._timer()
        entry.due_at = self._timer() + SLOW_TIMER_S * (0.8 + 0.4 * self._chance())
        try:
            end, steps = await self._steps(unit, entry)
            self._rested(unit, entry, end, steps)
        except SkerryError as err:
            self._failed(unit, entry, err.detail)
        except TimeoutError:
            self._failed(unit, entry, "a step took longer than its limit, and was cut off")
        except Exception as err:
            problem = f"{type(err).__name__}: {err}"
            if problem != entry.problem:
                log.exception("turn failed unexpectedly", unit=unit)
            self._failed(unit, entry, problem)
        finally:
            entry.busy = False
            entry.looked = True
            if entry.changed or (entry.poked and not entry.failures):
                entry.due_at = self._timer()
            if not self.memory.wish(unit).items:
                self._entries.pop(unit, None)
            if not self.looked.is_set() and all(other.looked for other in self._entries.values()):
                self.looked.set()
            self._bell.set()

    async def _steps(self, unit: UnitKey, entry: _Entry) -> tuple[Wait | Settled, int]:
        kind = self._kinds[unit.partition("/")[0]]
        steps = 0
        for _ in range(MAX_STEPS):
            wish = self.memory.wish(unit)
            if not wish.items:
                return Settled(reports=()), steps
            async with asyncio.timeout(OBSERVE_LIMIT_S):
                seen = await kind.observe(wish)
            match kind.plan(wish, seen, self._clock()):
                case Do(step=step, say=say):
                    guard_destruction(wish, step)
                    taken.begin(entry.steps, say, self._clock())
                    self._hold_pending(wish, message=say)
                    async with asyncio.timeout(APPLY_LIMIT_S):
                        await kind.apply(step)
                    taken.end(entry.steps, say, self._clock())
                    steps += 1
                    log.info("step applied", unit=unit, step=type(step).__name__)
                    self._faults.reached(f"agent.{kind.name}.{type(step).__name__}")
                case Mark(name=name, value=value):
                    await self.memory.mark(unit, name, value)
                case Wait() | Settled() as end:
                    return end, steps
        raise Temporary(f"{unit} did not come to rest in {MAX_STEPS} steps; the last were no use")

    def _rested(self, unit: UnitKey, entry: _Entry, end: Wait | Settled, steps: int) -> None:
        entry.failures, entry.problem = 0, ""
        moved = steps > 0 or (isinstance(end, Settled) and not entry.settled)
        match end:
            case Wait(message=message, seconds=seconds, reports=reports):
                entry.waiting, entry.settled = True, False
                entry.due_at = min(entry.due_at, self._timer() + max(seconds, 0.05))
                self._hold(reports)
                told = {report.key for report in reports}
                self._hold_pending(self.memory.wish(unit), message=message, problem="", but=told)
            case Settled(reports=reports):
                entry.waiting, entry.settled = False, True
                self._hold(reports)
        if moved:
            for other, its in self._entries.items():
                if its.waiting and other != unit:
                    self.poke(other)

    def _failed(self, unit: UnitKey, entry: _Entry, problem: str) -> None:
        entry.waiting, entry.settled, entry.problem = False, False, problem
        pause = backoff_s(entry.failures, self._chance())
        entry.failures += 1
        taken.fail(entry.steps, problem, self._clock())
        entry.due_at = min(entry.due_at, self._timer() + pause)
        log.warning("turn failed", unit=unit, problem=problem, failures=entry.failures, again_in_s=round(pause, 2))
        wish = self.memory.wish(unit)
        held = self._held.get(DocKey(unit))
        if held is not None and held.problem == problem:
            self._sink(self._with_steps(held))  # nothing new but that it failed once more
        if not self._hold_pending(wish, problem=problem):
            # All was done once, and is being repaired: then it is the unit as a whole that is not as it should be.
            self._hold(not_yet(item, self._held.get(item.key), problem=problem) for item in wish.items.values())

    # --- holding reports ----------------------------------------------------------------------------------------

    def _hold(self, reports: Iterable[Report]) -> None:
        for report in reports:
            if report.key in self.memory.items and self._held.get(report.key) != report:
                self._held[report.key] = report
                self._sink(self._with_steps(report))

    def _hold_pending(
        self, wish: Wish, *, message: str | None = None, problem: str | None = None, but: Container[DocKey] = ()
    ) -> bool:
        """Report on those documents of the wish that are not done yet; say whether there are any. None: as before."""
        pending = [item for item in wish.items.values() if item.key not in but and not self._is_done(item)]
        self._hold(not_yet(item, self._held.get(item.key), message=message, problem=problem) for item in pending)
        return bool(pending)

    def _is_done(self, item: Desired) -> bool:
        held = self._held.get(item.key)
        return held is not None and held.done and held.revision == item.revision


def not_yet(item: Desired, before: Report | None, *, message: str | None = None, problem: str | None = None) -> Report:
    """Return the report of a document that is not as wished. What is None stays as it was reported before."""
    same = before if before is not None and before.revision == item.revision else None
    return Report(
        key=item.key,
        revision=item.revision,
        done=False,
        message=message if message is not None else (same.message if same else ""),
        problem=problem if problem is not None else (same.problem if same else ""),
        seen=before.seen if before is not None else None,
    )


def _asked_by(wish: Wish) -> dict[str, str]:
    """Return, for the log, the request that the newest of a unit's documents was written for."""
    newest = max(wish.items.values(), key=lambda item: item.revision, default=None)
    return {"request": newest.request} if newest and newest.request else {}


def backoff_s(failures: int, chance: float) -> float:
    """Return the pause after that many earlier failures: doubling up to the cap, half of it by chance (0 to 1)."""
    ceiling = min(BACKOFF_CAP_S, BACKOFF_FIRST_S * float(1 << min(failures, 16)))
    return ceiling * (0.5 + 0.5 * chance)


def guard_destruction(wish: Wish, step: object) -> None:
    """Let a step that destroys (its class says `destroys = True`) pass only where a tombstone names the unit, or
    what of it goes.

    So an agent that was sent an empty list, or lost its documents, destroys nothing. Raises DestroyedUnasked.
    """
    if not getattr(step, "destroys", False):
        return
    own = wish.items.get(getattr(step, "document", DocKey(wish.unit)))
    if own is None or not own.gone:
        raise DestroyedUnasked(f"{type(step).__name__} would destroy {wish.unit}, and no tombstone asks for it")
