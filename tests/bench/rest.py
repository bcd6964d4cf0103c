"""What an agent takes of its host while nothing happens."""

import time

import psutil

from lab.cloud import Lab
from tests.bench.figures import Figure
from tests.lab.calls import Cloud

BUDGET_MIB, BUDGET_PERCENT = 60.0, 1.0
"""With 50 VMs."""
LOOK_S = 30.0
GUESTS = 3


def measure(lab: Lab) -> list[Figure]:
    """Measure with a few guests up and nothing to do."""
    cloud, names = Cloud(lab), [f"rest-{number}" for number in range(GUESTS)]
    for name in names:
        cloud.create(name)
    for name in names:
        cloud.until_up(name)
    pid = lab.host("h1").agent()
    if pid is None:
        raise RuntimeError("host h1 runs no agent")
    agent = psutil.Process(pid)
    time.sleep(5)
    before = _cpu_s(agent)
    time.sleep(LOOK_S)
    percent = (_cpu_s(agent) - before) / LOOK_S * 100
    memory = agent.memory_info().rss / (1 << 20)
    cloud.delete_vms(*names)
    what = f"agent at rest with {GUESTS} VMs (budget: 50)"
    return [
        Figure(name=f"{what}, memory", figure=memory, unit="MiB", budget=BUDGET_MIB),
        Figure(name=f"{what}, of one core", figure=percent, unit="%", budget=BUDGET_PERCENT),
    ]


def _cpu_s(process: psutil.Process) -> float:
    used = process.cpu_times()
    return float(used.user + used.system)
