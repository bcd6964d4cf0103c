"""The history of machines and hosts: what agents send is kept, thinned with age, and can be asked for.

The newest window or two lie in memory (`intake`), all else in blocks on disk (`shelf`). Killed at any line, the
process loses what was in memory and nothing else; stopped in peace, it writes that down first.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import structlog

from common.clock import Clock
from common.ids import HostId, Id
from controller.metrics.block import Chunk
from controller.metrics.buckets import Aggregate, Buckets, Span
from controller.metrics.catalogue import METRICS, kind_of, named
from controller.metrics.codec import Floats, expand
from controller.metrics.intake import SKEW_S, SLOT_S, WINDOW_S, Intake, Taken, Told
from controller.metrics.shelf import RAW, TIERS, Keep, Kept, Shelf, Tier

log = structlog.get_logger(__name__)

T = TypeVar("T")

TICK_S = 5.0
LATE_S = SKEW_S + 2 * SLOT_S
"""A window is closed so long after its end: what a host with a slow clock says still finds it open."""

WINDOWS_IN_MEMORY = 4
"""More that can't be written (the disk is full) are given up, the oldest first."""

FORGET_AFTER_S = 600.0
"""The last vector of a host that is silent."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of one thing's history: `count` buckets of `step` seconds from `start` on."""

    thing: Id
    metrics: tuple[str, ...]
    start: int
    step: int
    count: int
    how: Aggregate

    @property
    def end(self) -> int:
        """Return the second behind the last bucket."""
        return self.start + self.step * self.count


class Newest(msgspec.Struct, frozen=True, kw_only=True):
    """A thing's figures at a moment, in the order of its metrics; None where nothing is known."""

    thing: Id
    host: HostId
    at: float
    figures: tuple[float | None, ...]


class History:
    """One per controller. `open` first; `run` keeps it; `close` at the end."""

    def __init__(self, directory: Path, keep: Keep, clock: Clock) -> None:
        self._intake = Intake()
        self._shelf = Shelf(directory, keep)
        self._clock = clock
        self._writing = asyncio.Lock()
        # Whatever was cancelled, no two write at once.
        self._lane = ThreadPoolExecutor(max_workers=1, thread_name_prefix="history")
        self._problem = ""

    async def open(self) -> None:
        """See what is on disk."""
        await asyncio.to_thread(self._shelf.load)

    @property
    def size_bytes(self) -> int:
        """Return how much lies on disk."""
        return self._shelf.size_bytes

    def take(self, told: Told) -> dict[HostId, Taken]:
        """Keep what is believed of vectors: it can be asked for at once."""
        return self._intake.take(told, self._clock())

    # --- keeping ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write, thin and drop, until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            try:
                await self.tick()
            except Exception:
                log.exception("metrics not kept", again_in_s=TICK_S)

    async def tick(self) -> None:
        """Do what is due now."""
        async with self._writing:
            now = self._clock()
            wrote = await self._write(
                [start for start in self._intake.open_windows() if start + WINDOW_S + LATE_S <= now]
            )
            pending = self._intake.open_windows()
            until = min([*pending, int(now - LATE_S)])
            self._intake.forget_before(now - FORGET_AFTER_S)
            try:
                thinned = await self._in_lane(lambda: self._shelf.thin(until))
            except OSError as err:
                self._failed("thinned", err)
                thinned = 0
            dropped = await self._in_lane(lambda: self._shelf.tidy(now))
        if wrote or thinned or dropped:
            log.debug("metrics kept", windows=wrote, thinned=thinned, dropped=dropped, bytes=self.size_bytes)

    async def close(self) -> None:
        """Write down what is in memory."""
        async with self._writing:
            await self._write(list(self._intake.open_windows()))
        self._lane.shutdown()

    async def _in_lane(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._lane, work)

    async def _write(self, windows: list[int]) -> int:
        wrote = 0
        for start in windows:
            self._intake.seal(start)
            try:
                kept = await self._in_lane(partial(self._shelf.write, RAW, start, self._chunks(start)))
            except OSError as err:
                self._failed("written", err)
                break
            self._shelf.add(kept)
            self._intake.drop(start)
            self._problem = ""
            wrote += 1
        for start in windows[wrote : max(wrote, len(windows) - WINDOWS_IN_MEMORY)]:
            log.warning("metrics given up: they can't be written", window=start, seconds=WINDOW_S)
            self._intake.drop(start)
        return wrote

    def _chunks(self, window: int) -> Iterator[Chunk]:
        for host, rows in sorted(self._intake.rows(window).items()):
            yield Chunk(host, rows.at, rows.codes)

    def _failed(self, what: str, err: OSError) -> None:
        if str(err) != self._problem:
            log.warning(f"metrics not {what}", problem=str(err))
        self._problem = str(err)

    # --- asking -----------------------------------------------------------------------------------------------------

    def newest(self, since: float) -> Iterator[Newest]:
        """Give the newest figures of everything that was heard of since a moment."""
        for host, at, things in self._intake.newest(since):
            for thing, values in things.items():
                grains = [one.grain for one in METRICS[kind_of(thing)]]
                figures = tuple(
                    None if np.isnan(value) else float(value) * grain
                    for value, grain in zip(values, grains, strict=True)
                )
                yield Newest(thing=thing, host=host, at=at, figures=figures)

    async def query(self, question: Question) -> Floats:
        """Return (metrics, buckets); NaN where nothing is known."""
        metrics = named(kind_of(question.thing), question.metrics)
        rows = [METRICS[kind_of(question.thing)].index(one) for one in metrics]
        buckets = Buckets(question.start, question.step, question.count, len(rows))
        # Memory and the list of blocks are of one moment: no window is missed or counted twice.
        for window in self._intake.open_windows():
            for told in self._intake.rows(window).values():
                if (codes := told.of(question.thing)) is not None:
                    values = expand(codes[rows])
                    buckets.add((window, SLOT_S), values, values, (question.start, question.end))
        await asyncio.to_thread(self._from_disk, question, rows, buckets, self._shelf.kept)
        grains = np.array([[one.grain] for one in metrics])
        found: Floats = buckets.result(question.how) * grains
        return found

    def _from_disk(self, question: Question, rows: list[int], buckets: Buckets, blocks: Sequence[Kept]) -> None:
        """Add, for each span, the blocks of the tier that fits the question best among those that have it."""
        left = [(question.start, question.end)]
        for tier in _by_fitness(question.step):
            own = [kept for kept in blocks if kept.tier is tier and any(_overlap(kept, span) for span in left)]
            for kept in own:
                for codes in self._shelf.read(kept, question.thing):
                    values = expand(codes[:, rows])
                    for span in left:
                        buckets.add((kept.start, tier.step_s), values[0], values[-1], span)
            left = without(left, {(kept.start, kept.end) for kept in own})


def _by_fitness(step: int) -> tuple[Tier, ...]:
    """Return the tiers: the coarsest of those that are fine enough first, then what is too coarse, finest first."""
    enough = [tier for tier in TIERS if tier.step_s <= step]
    return (*reversed(enough), *(tier for tier in TIERS if tier.step_s > step))


def _overlap(kept: Kept, span: Span) -> bool:
    return kept.start < span[1] and span[0] < kept.end


def without(spans: Iterable[Span], taken: Iterable[Span]) -> list[Span]:
    """Return what is left of some spans without others."""
    left = list(spans)
    for start, end in sorted(taken):
        left = [
            piece
            for one, two in left
            for piece in ((one, min(two, start)), (max(one, end), two))
            if piece[0] < piece[1]
        ]
    return left
