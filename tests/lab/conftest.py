"""Labs of real hosts for tests: brought up on first use, torn down at the end, and searched for traces."""

import os
from collections.abc import Callable, Iterator

import pytest

from lab.cloud import Lab
from lab.processes import command_of, mentioning
from lab.traces import interfaces, traces

MakeLab = Callable[[int], Lab]


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
