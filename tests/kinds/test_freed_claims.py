"""A machine that was refused for the sake of a claim which then fails is tried again at once, not after a minute."""

import asyncio
from typing import Any

import pytest

from common.faults import Faults
from common.ids import HostId, Id
from controller.loop.loop import Loop
from controller.store.writes import AnyWrite, ClaimAddress, TakePlacement
from tests.kinds.bench import Bench

FULL = "10.9.0.0/29"


async def full_network(bench: Bench) -> None:
    """Have a network without a free address."""
    row = await bench.create("network", "shop", "full", cidr=FULL)
    for number in range(5):
        vm, mac = Id(f"vm-{number:012d}"), f"02:00:00:00:00:{number:02x}"
        await bench.write(ClaimAddress(network=row.id, cidr=FULL, vm=vm, index=0, mac=mac))


class Held:
    """A store's steps, of which the one that places a certain machine waits until it is let go."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        self.owner = ""
        self.reached, self.go = asyncio.Event(), asyncio.Event()
        self._step = bench.store.step
        monkeypatch.setattr(bench.store, "step", self.step)

    async def step(self, writes: tuple[AnyWrite, ...], *more: Any) -> None:
        if any(isinstance(write, TakePlacement) and write.placement.owner == self.owner for write in writes):
            self.reached.set()
            await self.go.wait()
        await self._step(writes, *more)


async def cloud(bench: Bench) -> tuple[Loop, HostId]:
    """Return a loop over one host that has room for a single machine, and that is at rest."""
    await bench.furniture()
    await full_network(bench)
    host = await bench.connected_host("h1")
    loop = Loop(bench.store, bench.clock, Faults(), "w", bench.clock)
    loop.start([])
    loop.host_changed(host)
    await loop.drain()
    return loop, host


@pytest.mark.parametrize("others", [0, 3])
async def test_a_claim_that_fails_lets_who_was_refused_for_it_try_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    await bench.create("size", "", "whole", vcpus=16, memory_mib=512, disk_gib=10)
    loop, host = await cloud(bench)
    capacity = bench.store.seen.capacity(host)
    assert capacity
    assert capacity.vcpus == 16
    held = Held(bench, monkeypatch)
    doomed = await bench.create("vm", "shop", "doomed", image="tiny", size="whole", networks=("full",))
    held.owner = doomed.id
    failing = asyncio.create_task(loop.drain())
    await held.reached.wait()
    for number in range(others):
        await bench.create("vm", "shop", f"doomed{number}", image="tiny", size="whole", networks=("full",))
    vm = await bench.create("vm", "shop", "web", image="tiny", size="whole")
    await loop.drain()
    assert bench.now(vm).status.state == "blocked"
    held.go.set()
    assert await failing < 100
    assert await loop.drain() < 100
    assert bench.store.seen.placement(vm.id) is not None
    assert bench.store.seen.placement(doomed.id) is None
    assert bench.now(doomed).status.state == "blocked"
    assert "no free address" in bench.now(doomed).status.message
