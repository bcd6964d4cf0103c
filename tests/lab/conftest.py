"""Labs for tests: brought up on first use, torn down at the end, and searched for traces."""

import os
from collections.abc import Callable, Iterator

import pytest

from lab.cloud import Lab
from lab.guest import tiny
from lab.layout import ROOT
from lab.metal import Metal
from lab.processes import command_of, mentioning
from lab.traces import interfaces, traces
from tests.lab.operator import HOSTS, Operator

MakeLab = Callable[[int], Lab]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the tests on the lab of real hosts come last, one after the other: it is there for them only once."""
    items.sort(key=lambda item: "metal" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def make_lab() -> Iterator[MakeLab]:
    """Give a function that brings up a furnished lab of n hosts under a name of this session's own.

    The labs live as long as the session, and the session fails when one leaves anything behind.
    """
    before = set(interfaces())
    made: list[Lab] = []

    def make(hosts: int) -> Lab:
        lab = Lab(f"t{os.getpid()}x{len(made)}")
        made.append(lab)
        lab.up(hosts)
        lab.furnish()
        return lab

    yield make
    for lab in made:
        lab.down()
    left = [line for lab in made for line in leftovers(lab)]
    left += [f"interface {name}" for name in set(interfaces()) - before if name.startswith(("p-h", "b-net", "t0"))]
    assert left == []


@pytest.fixture(scope="session")
def lab(make_lab: MakeLab) -> Lab:
    """Give the session's lab of one host."""
    return make_lab(1)


@pytest.fixture(scope="session")
def lab_of_three(make_lab: MakeLab) -> Lab:
    """Give the session's lab of three hosts."""
    return make_lab(3)


def leftovers(lab: Lab) -> list[str]:
    """Return what is left of a lab, by its own account and by the paths that processes were started with."""
    folder = f"{lab.layout.folder}/"
    return traces(lab.layout) + [f"process {pid}: {command_of(pid)}" for pid in mentioning(folder)]


@pytest.fixture(scope="session")
def metal() -> Iterator[Metal]:
    """Give the lab of real hosts: the one that is up, else one for this session only."""
    metal = Metal()
    theirs = metal.whole.exists()
    try:
        if not theirs:
            metal.up(len(HOSTS))
        yield metal
    finally:
        if not theirs:
            metal.down()


@pytest.fixture(scope="session")
def operator(metal: Metal) -> Iterator[Operator]:
    """Give a cloud with guests a and c on h1, and b on h2, which asks a for its page for ever. All keep records."""
    operator = Operator(metal)
    operator.until_ready()
    operator.type(
        # What is there already, from a story before, is refused and good.
        "skerry project create demo --keep-deleted-s 0 || true",
        "skerry network create default --wait || true",
        "skerry size create small --vcpus 1 --memory-mib 256 --disk-gib 1 || true",
        "skerry image create tiny --format kernel || true",
        f"skerry image upload tiny {tiny(ROOT / 'build' / 'guest')} --wait",
    )
    for vm in ("a", "c"):
        operator.make(vm, "h1")
    operator.make_b()
    try:
        yield operator
    finally:
        operator.type("skerry vm delete a b c --wait; skerry image delete tiny --wait")
