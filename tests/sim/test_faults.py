"""Random runs of faults: a few in every test run; `python -P -m tests.sim.faults --runs 10000` for thousands."""

import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]


def faults(*words: str) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, "-P", "-m", "tests.sim.faults", *words]
    return subprocess.run(line, cwd=TOP, env={"PYTHONPATH": str(TOP)}, capture_output=True, text=True, check=False)


@pytest.mark.timeout(600)
def test_whatever_befalls_a_cloud_all_ends_as_wished() -> None:
    done = faults("--runs", "160", "--jobs", "2", "--minutes", "0.5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failed" in done.stdout


@pytest.mark.timeout(120)
def test_a_seed_lives_the_same_life_again() -> None:
    first, second = faults("--seed", "3"), faults("--seed", "3")
    assert "everything holds in story" in first.stdout, first.stdout + first.stderr
    assert first.stdout == second.stdout
