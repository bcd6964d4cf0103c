"""Choosing alone, with all that is kept up for it: what a controller's one core spends beside the claim's transaction.

Machines come and go as real ones did where SKERRY_TRACE names a trace of arrivals (a gzipped CSV with the columns
arrival_s, vcpus, mem_gb and life_hi_s, such as the Azure Public Dataset gives); else as a mix of three sizes that stay.
"""

import csv
import gzip
import heapq
import os
import random
import time
from collections.abc import Iterator

from common.ids import HostId, Id, Revision
from common.kinds import kind_named
from common.kinds.kind import Resource
from controller.scheduler.choose import Choice, Demand
from controller.scheduler.columns import Place
from controller.scheduler.inventory import Inventory
from controller.store.rows import Capacity, Gone, Placement, Put
from controller.store.working import WorkingSet
from tests.bench.figures import Figure, percentile

HOSTS = (1_000, 10_000, 100_000)
CHOICES = 20_000
BUDGET_US = 100.0
"""At 10,000 hosts: half of what a durable placement may cost there."""
SIZES = ((1, 512, 10), (2, 2048, 20), (4, 8192, 40))
ZONES = 4


def measure() -> Iterator[Figure]:
    """Yield what a choice costs at each number of hosts, anywhere and in one of four zones."""
    for hosts in HOSTS:
        for pinned in (False, True):
            took = _chosen(hosts, pinned=pinned)
            where = "in one of four zones" if pinned else "anywhere"
            yield Figure(
                name=f"choosing a host of {hosts:,}, {where}", figure=sum(took) / len(took), unit="µs",
                budget=BUDGET_US, beside="p99", beside_figure=percentile(took, 0.99),
            )  # fmt: skip


def _chosen(hosts: int, *, pinned: bool) -> list[float]:
    """Place machines, and take those away whose time is over; return what each choice cost, µs of CPU time."""
    seen, inventory = _cloud(hosts)
    zones = [Place(row.id, row.name) for row in seen.of_kind("zone")]
    took, leaving = list[float](), list[tuple[float, int]]()
    placed: dict[int, Placement] = {}
    for number, (at, life, vcpus, memory_mib, disk_gib) in enumerate(_arrivals()):
        while leaving and leaving[0][0] <= at:
            gone = placed.pop(heapq.heappop(leaving)[1])
            seen.apply([Gone(gone)])
            inventory.refresh(gone.host)
        demand = Demand(
            owner=Id(f"vm-{number:012d}"), vcpus=vcpus, memory_mib=memory_mib, disk_gib=disk_gib,
            zone=zones[number % ZONES] if pinned else None,
        )  # fmt: skip
        began = time.thread_time()
        choice = inventory.choose(demand)
        spent = time.thread_time() - began
        assert isinstance(choice, Choice), choice
        row = Placement(
            owner=demand.owner, host=choice.host, vcpus=vcpus, memory_mib=memory_mib, disk_gib=disk_gib
        )  # fmt: skip
        seen.apply([Put(row)])
        began = time.thread_time()
        inventory.refresh(row.host)
        inventory.settle(choice, demand)
        took.append((spent + time.thread_time() - began) * 1e6)
        placed[number] = row
        heapq.heappush(leaving, (at + life, number))
    return took


def _cloud(hosts: int) -> tuple[WorkingSet, Inventory]:
    seen = WorkingSet()
    inventory = Inventory(seen)
    zones = [_row("zone", number, {}) for number in range(ZONES)]
    seen.apply([Put(zone) for zone in zones])
    for number in range(hosts):
        row = _row("host", number, {"zone": zones[number % ZONES].id})
        host = HostId(row.id)
        seen.apply([Put(row), Put(Capacity(host=host, vcpus=256, memory_mib=1 << 19, disk_gib=20_000))])
        seen.host(host).connected = True
        inventory.refresh(host)
    return seen, inventory


def _row(kind: str, number: int, spec: dict[str, str]) -> Resource:  # type: ignore[type-arg]
    made = kind_named(kind)
    return Resource(
        id=Id(f"{made.prefix}-{number:012d}"), kind=kind, project="", name=f"{kind}{number}", labels={}, generation=1,
        observed_generation=1, spec=made.spec(**spec), status=made.status(), owner=None, created_at=0.0,
        deleted_at=None, revision=Revision(1),
    )  # fmt: skip


def _arrivals() -> Iterator[tuple[float, float, int, int, int]]:
    """Yield machines in the order in which they come: when (s), for how long (s), vCPUs, memory (MiB), disk (GiB)."""
    if trace := os.environ.get("SKERRY_TRACE"):
        with gzip.open(trace, "rt") as file:
            for number, line in enumerate(csv.DictReader(file)):
                if number == CHOICES:
                    return
                memory_mib = int(float(line["mem_gb"]) * 1024)
                yield float(line["arrival_s"]), float(line["life_hi_s"]), int(line["vcpus"]), memory_mib, 30
        return
    chance = random.Random(1)
    for number in range(CHOICES):
        yield float(number), float("inf"), *chance.choice(SIZES)
