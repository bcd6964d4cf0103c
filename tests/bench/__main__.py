"""`make bench`: measures Skerry beside its budgets and its peers; prints a table and writes build/bench.json."""

import argparse
import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvloop

from lab.cloud import Lab
from lab.layout import ROOT
from tests.bench import agents, choosing, create, face, fdb, metrics, placement, rest, turns
from tests.bench.figures import FAR, Figure, show, write

RUNS = 25
PARTS = ("fdb", "metrics", "choosing", "placement", "turns", "face", "agents", "create", "rest")


@contextmanager
def fresh_lab() -> Iterator[Lab]:
    """Give a lab of one host, which is gone afterwards."""
    lab = Lab(f"bench{os.getpid()}")
    try:
        lab.up(1)
        lab.furnish()
        yield lab
    finally:
        lab.down()


def measure(parts: list[str], runs: int) -> Iterator[Figure]:
    """Yield the figures of the wanted parts as they come."""
    if "fdb" in parts:
        yield from fdb.measure()
    if "metrics" in parts:
        yield from metrics.measure()
    if "choosing" in parts:
        yield from choosing.measure()
    if "placement" in parts:
        for hosts in (1_000, 10_000, 100_000):
            yield from uvloop.run(placement.measure(hosts))
    if "turns" in parts:
        yield from uvloop.run(turns.measure(1_000))
    if "face" in parts:
        yield from asyncio.run(face.measure())
    if "agents" in parts:
        yield from asyncio.run(agents.measure())
    if not {"create", "rest"} & set(parts):
        return
    with fresh_lab() as lab:
        if "create" in parts:
            figures, profile = create.measure(lab, runs)
            yield from figures
            far = any((one.away or 0) > FAR for one in figures)
            print(f"\nA create, medians of {runs}{' (far from its budget)' if far else ''}:\n{profile}\n")
        if "rest" in parts:
            yield from rest.measure(lab)


def main() -> int:
    """Measure, show and write."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"what to measure: {', '.join(PARTS)} (default: all)")
    parser.add_argument("--runs", type=int, default=RUNS, help="how many creates")
    words = parser.parse_args()
    if unknown := set(words.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there is {', '.join(PARTS)}")
    if os.geteuid() != 0:
        print("the benchmarks make network namespaces: sudo make bench", file=sys.stderr)
        return 1
    figures: list[Figure] = []
    for figure in measure(words.parts or list(PARTS), words.runs):
        print(f"  {figure.name}: {figure.figure:,.1f} {figure.unit}", flush=True)
        figures.append(figure)
    print()
    show(figures)
    if not words.parts:
        path = ROOT / "build" / "bench.json"
        write(figures, path)
        print(f"\nwritten to {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
