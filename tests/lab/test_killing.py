"""`kill -9` of controller and agents at random moments of many lives: nothing sticks, nothing is left."""

import os

import pytest

from lab.cloud import Lab
from tests.lab.calls import Cloud
from tests.lab.killing import Plan, run_cycles

pytestmark = [pytest.mark.lab, pytest.mark.timeout(3600)]

CYCLES = int(os.environ.get("SKERRY_CYCLES", "200"))
SEED = int(os.environ.get("SKERRY_SEED", "0")) or int.from_bytes(os.urandom(4), "big")


def test_nothing_sticks_and_nothing_leaks_however_often_controller_and_agents_are_killed(lab_of_three: Lab) -> None:
    deaths = run_cycles(Cloud(lab_of_three), Plan(cycles=CYCLES, seed=SEED, at_once=4))
    assert deaths.get("controller", 0) > CYCLES // 20
    assert sum(deaths.values()) - deaths["controller"] > CYCLES // 20
