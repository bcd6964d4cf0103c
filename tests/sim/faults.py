"""`python -P -m tests.sim.faults --runs 10000`: lives of the simulated world, each from its own seed, on all cores.

A run is a few dozen acts (`tests.sim.life`) drawn by its seed: wishes, and whatever can befall a cloud. After each act,
and once all has healed, the invariants must hold. A run that fails is told by its seed, which repeats it exactly:
`--seed N` does, and then makes the run as short as it still fails.
"""

import argparse
import os
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import msgspec

from tests.sim.life import ACTS, Life

HASH_SEED = "0"
"""Sets are walked in the order of their hashes: with another order a seed would live another life."""

COMMON = {"a_moment_passes": 4, "time_passes": 1, "dies_soon": 4, "message_suffers": 3}
"""Acts that no run is without, and their weights beside 1 and 4."""

FEWEST, MOST = 8, 40
"""Acts of a run."""

CHUNK = 8


class Act(msgspec.Struct, frozen=True):
    """A call of one of the acts."""

    name: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        """Return it as it would be written."""
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"


class Failure(msgspec.Struct, frozen=True):
    """A run whose invariants did not hold."""

    seed: int
    error: str


class Lived(msgspec.Struct, frozen=True):
    """What came of some runs."""

    runs: int
    failures: list[Failure]
    befell: dict[str, int]


def script(seed: int) -> list[Act]:
    """Draw a run: a few kinds of acts are frequent in it, others rare or absent (swarm testing)."""
    chance = random.Random(seed)
    weights = {name: chance.choice((0, 1, 1, 4)) for name in ACTS} | COMMON
    names = chance.choices(list(weights), list(weights.values()), k=chance.randint(FEWEST, MOST))
    return [Act(name, {argument: chance.choice(choices) for argument, choices in ACTS[name].items()}) for name in names]


def live(seed: int, acts: Sequence[Act]) -> tuple[Counter[str], str]:
    """Live one life. Raises whatever does not hold; returns what befell it, and the name of its story."""
    life = Life(seed)
    try:
        life.begin()
        for one in acts:
            getattr(life, one.name)(**one.arguments)
            life.always()
        life.end()
        befell = {"acts": len(acts), "deaths of processes": life.world.deaths, life.setting: 1}
        return life.befell + Counter(befell) + Counter(f"act {one.name}" for one in acts), life.story
    finally:
        life.close()


def fails(seed: int, acts: Sequence[Act]) -> bool:
    """Live it, and say whether something did not hold."""
    try:
        live(seed, acts)
    except Exception:
        return True
    return False


def shortest(seed: int, acts: Sequence[Act]) -> list[Act]:
    """Leave acts out of a run that fails, for as long as it still does."""
    acts, size = list(acts), max(1, len(acts) // 2)
    while True:
        for start in range(0, len(acts), size):
            fewer = acts[:start] + acts[start + size :]
            if fails(seed, fewer):
                acts = fewer
                break
        else:
            if size == 1:
                return acts
            size = max(1, size // 2)


def live_all(seeds: Sequence[int]) -> Lived:
    """Live these runs."""
    befell: Counter[str] = Counter()
    failures = []
    for seed in seeds:
        try:
            befell += live(seed, script(seed))[0]
        except Exception as err:
            failures.append(Failure(seed, f"{type(err).__name__}: {err}"[:2000]))
    return Lived(len(seeds), failures, dict(befell))


def live_on_all_cores(seeds: Sequence[int], jobs: int, until: float) -> Iterator[Lived]:
    """Yield what came of the runs, a few at a time, until all are done or time is up."""
    chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    with ProcessPoolExecutor(jobs) as pool:
        tasks = [pool.submit(live_all, chunk) for chunk in chunks]
        for task in as_completed(tasks):
            yield task.result()
            if time.monotonic() > until:
                pool.shutdown(cancel_futures=True)
                return


def tell(done: int, runs: int, failed: int, began: float) -> None:
    """Show how far it is: one line on a terminal, one a minute elsewhere."""
    rate = done / max(0.001, time.monotonic() - began)
    line = f"{done} of {runs} runs, {failed} failed, {rate:.1f}/s"
    print(f"\r{line}  ", end="", file=sys.stderr, flush=True) if sys.stderr.isatty() else print(line, flush=True)


def repeat(seed: int) -> int:
    """Live one run again, tell what fails, and the shortest run that still does."""
    try:
        befell, story = live(seed, script(seed))
    except Exception:
        traceback.print_exc()
    else:
        print(f"seed {seed}: everything holds in story {story}: {dict(befell)}")
        return 0
    print(f"seed {seed} fails; its shortest run that still does:")
    for one in shortest(seed, script(seed)):
        print(f"  {one}")
    return 1


def main() -> int:
    """Run."""
    parser = argparse.ArgumentParser(prog="faults", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="how many runs")
    parser.add_argument("--first", type=int, default=0, help="the first run's seed; the others follow")
    parser.add_argument("--seed", type=int, help="repeat this one run, and make it as short as it still fails")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--minutes", type=float, default=1e9, help="end after so long")
    words = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != HASH_SEED:
        os.execve(
            sys.executable,
            [sys.executable, "-P", "-m", "tests.sim.faults", *sys.argv[1:]],
            {**os.environ, "PYTHONHASHSEED": HASH_SEED},
        )
    if words.seed is not None:
        return repeat(words.seed)
    began, told_at, done = time.monotonic(), 0.0, 0
    befell: Counter[str] = Counter()
    failures: list[Failure] = []
    for lived in live_on_all_cores(
        range(words.first, words.first + words.runs), words.jobs, began + words.minutes * 60
    ):
        done += lived.runs
        befell += Counter(lived.befell)
        for failure in lived.failures:
            failures.append(failure)
            print(f"\nseed {failure.seed}: {failure.error.splitlines()[0][:300]}", flush=True)
        if time.monotonic() - told_at > (0.2 if sys.stderr.isatty() else 60.0):
            told_at = time.monotonic()
            tell(done, words.runs, len(failures), began)
    print(f"\n{done} runs in {time.monotonic() - began:.0f} s, {len(failures)} failed")
    for what, count in sorted(befell.items()):
        print(f"  {count:9,} {what}")
    for failure in sorted(failures, key=lambda one: one.seed)[:20]:
        print(f"repeat: .venv/bin/python -P -m tests.sim.faults --seed {failure.seed}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
