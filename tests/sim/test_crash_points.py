"""Every kind lives its whole life with a process dying at each crash point: once, and twice."""

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from common.faults import Died
from common.kinds import KINDS
from sim.cloud import Cloud
from sim.world import World
from tests.sim.lives import CHANGES, LIVES, clear, prepare

ALL = bool(os.environ.get("SKERRY_SIM_ALL"))
"""Die at every point there is, and at many pairs. Else at a few points of each kind's life, spread over all of it."""

ONCE = 1_000_000 if ALL else 20
TWICE = 400 if ALL else 5


class Deaths:
    """Counts the crash points that are passed, and kills at some of them."""

    def __init__(self, *at: int) -> None:
        self.passed: list[tuple[str, str]] = []
        self.at = set(at)

    def __call__(self, process: str, point: str) -> None:
        """Take note; die where it is time."""
        self.passed.append((process, point))
        if len(self.passed) - 1 in self.at:
            raise Died


@contextmanager
def world() -> Iterator[World]:
    """Give a world in memory, and fail on anything that it logged as an error."""
    directory = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None, prefix="skerry-sim-"))
    with capture_logs() as logs:
        made = World(directory)
        try:
            yield made
        finally:
            made.close()
            shutil.rmtree(directory)
    errors = [line for line in logs if line["log_level"] in ("error", "critical")]
    assert not errors, errors


def live(kind: str, deaths: Deaths) -> None:
    """Live one life, then delete everything and look that nothing is left."""
    with world() as around:
        cloud = Cloud(around)
        prepare(cloud)
        around.hook = deaths
        (LIVES | CHANGES)[kind](cloud)
        around.hook = lambda _process, _point: None
        around.run(60)
        clear(cloud)


def different(passed: list[tuple[str, str]]) -> list[int]:
    """Number the points that differ: the first of each name after another one of the same process."""
    seen: set[tuple[str, str, str]] = set()
    last: dict[str, str] = {}
    found = []
    for number, (process, point) in enumerate(passed):
        situation = (process, last.get(process, ""), point)
        if ALL or situation not in seen:
            seen.add(situation)
            found.append(number)
        if not point.startswith("store."):
            last[process] = point
    few = min(ONCE, len(found))
    return [found[index * len(found) // few] for index in range(few)]


def passed_by(kind: str) -> list[tuple[str, str]]:
    """Return the crash points of a life without deaths."""
    deaths = Deaths()
    live(kind, deaths)
    return deaths.passed


def test_every_kind_has_a_life() -> None:
    assert set(LIVES) == {kind.name for kind in KINDS}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", [*LIVES, *CHANGES])
def test_dying_once_anywhere_changes_nothing(kind: str) -> None:
    passed = passed_by(kind)
    assert any(point == "store.committed" for _, point in passed)
    for number in different(passed):
        try:
            live(kind, Deaths(number))
        except BaseException as err:
            err.add_note(f"after a death at point {number}: {passed[number]}")
            raise


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", [*LIVES, *CHANGES])
def test_dying_twice_anywhere_changes_nothing(kind: str) -> None:
    passed = passed_by(kind)
    chance = random.Random(kind)
    for _ in range(TWICE):
        first = chance.randrange(len(passed))
        second = first + chance.choice((1, 2, 3, 5, 8, 13, 21, 34))
        try:
            live(kind, Deaths(first, second))
        except BaseException as err:
            err.add_note(f"after deaths at points {first} ({passed[first]}) and {second}")
            raise
