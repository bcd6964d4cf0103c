"""Whole loops over stores, as several controllers run them: no hosts answer, so machines get a place and no more."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from common.clock import system_clock
from common.faults import Faults
from common.ids import HostId
from controller.loop.loop import Loop
from controller.store.store import Store
from tests.kinds.bench import Bench
from tests.patience import PATIENCE_S


@asynccontextmanager
async def controllers(stores: Sequence[Store]) -> AsyncIterator[list[Loop]]:
    """Run a loop over each store."""
    async with asyncio.TaskGroup() as group:
        loops = [Loop(store, system_clock, Faults(), worker=f"ctl-{number}") for number, store in enumerate(stores)]
        running = [group.create_task(loop.run()) for loop in loops]
        yield loops
        for task in running:
            task.cancel()


async def until(true: Callable[[], object], limit_s: float = PATIENCE_S) -> None:
    async with asyncio.timeout(limit_s):
        while not true():  # noqa: ASYNC110 - what is waited for is a loop's business
            await asyncio.sleep(0.01)


def on_hosts(store: Store) -> Counter[HostId]:
    """Count the machines of each host."""
    placements = [store.seen.placement(vm.id) for vm in store.seen.of_kind("vm")]
    return Counter(one.host for one in placements if one)


def settled(store: Store) -> bool:
    """Say whether each VM has a host or knows why not."""
    return all(store.seen.placement(vm.id) or vm.status.state == "blocked" for vm in store.seen.of_kind("vm"))


async def connected(benches: Sequence[Bench], loops: Sequence[Loop]) -> None:
    """Have every controller see all hosts as connected."""
    await asyncio.gather(*(bench.store.catch_up() for bench in benches))
    for bench, loop in zip(benches, loops, strict=True):
        for host in bench.store.seen.of_kind("host"):
            bench.store.seen.host(HostId(host.id)).connected = True
            loop.inventory.refresh(HostId(host.id))
