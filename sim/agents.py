"""Simulated agents over real sockets: the agent's own link, loop and memory over a simulated machine, with real TLS."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec

from agent.dial import Dialer
from agent.join import Identity
from agent.kinds.domain_plan import Start
from agent.kinds.unit import AnyUnitKind
from agent.kinds.volume_plan import FetchImage
from agent.link import Host, Link
from agent.loop import Loop
from agent.memory import DirectLane, open_memory
from agent.outbox import Outbox
from common.clock import system_clock
from common.faults import Faults
from common.ids import Id
from common.protocol import Found, Inventory, Metrics
from sim.load import Load
from sim.machine import Machine
from sim.units import kinds

TICK_S = 1.0
"""Guests obey the power button, and ask for their addresses, so often."""


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How long a host takes for what takes long."""

    start_s: float = 0.0
    """For a domain's start, from half to one and a half of it."""
    fetch_s: float = 0.0
    """For an image that is not on the host yet."""


class Orders:
    """What a host is asked for at once. A guest's console repeats what is typed."""

    def __init__(self, units: tuple[AnyUnitKind, ...]) -> None:
        self._units = units
        self._typed: asyncio.Queue[bytes] = asyncio.Queue()

    @asynccontextmanager
    async def attach(self, vm: Id) -> AsyncIterator["Orders"]:
        """Attach to a console."""
        yield self

    async def read(self) -> bytes:
        """Return what was typed."""
        return await self._typed.get()

    async def write(self, data: bytes) -> None:
        """Type."""
        self._typed.put_nowait(data)

    async def read_log(self, vm: Id, tail_bytes: int) -> bytes:
        """Return the end of a guest's serial log."""
        return f"{vm} booted".encode()[-tail_bytes:]

    async def survey(self) -> tuple[Found, ...]:
        """List everything on the machine."""
        return tuple([found for unit in self._units for found in await unit.survey()])


class SimulatedAgent:
    """One host: a machine, and the agent on it while `up`."""

    def __init__(self, machine: Machine, identity: Identity, pace: Pace | None = None) -> None:
        self.machine = machine
        self.identity = identity
        self.pace = pace or Pace()
        self.slow = 1.0
        """It takes so many times as long."""
        self._link: Link
        self._cut = asyncio.Event()
        self._away_s = 0.0

    @asynccontextmanager
    async def up(self) -> AsyncIterator[Dialer]:
        """Have the agent work and dial, until the block is left."""
        async with AsyncExitStack() as stack:
            memory = await open_memory(self.machine.memory_file, lane=DirectLane())
            stack.push_async_callback(memory.close)
            outbox, faults = Outbox(), Faults()
            units = kinds(
                self.machine,
                host=self.identity.host,
                faults=faults,
                clock=system_clock,
                fetch=lambda _digest: True,
                items=lambda: memory.items,
                announce=outbox.event,
                pause=self._take_time,
            )
            loop = Loop(memory=memory, kinds=units, sink=outbox.report, faults=faults)
            self.machine.guests.ended = lambda vm: loop.poke(f"domain/{vm}")  # type: ignore[arg-type]
            load = Load(self.machine, system_clock)

            async def metrics() -> Metrics:
                return load.sample()

            host = Host(version="sim", inventory=self._inventory, metrics=metrics, orders=Orders(units))
            dialer = await stack.enter_async_context(Dialer(self.identity))
            self._link = Link(dialer=dialer, memory=memory, loop=loop, outbox=outbox, host=host)
            group = await stack.enter_async_context(asyncio.TaskGroup())
            tasks = [group.create_task(work) for work in (loop.run(), self._dial(), self._tick())]
            stack.callback(lambda: [task.cancel() for task in tasks])
            yield dialer

    def cut(self, away_s: float) -> None:
        """Cut the link; it is dialled again after a while."""
        self._away_s = away_s
        self._cut.set()

    async def _dial(self) -> None:
        while True:
            self._cut.clear()
            async with asyncio.TaskGroup() as group:
                link = group.create_task(self._link.run())
                await self._cut.wait()
                link.cancel()
            await asyncio.sleep(self._away_s)

    async def _tick(self) -> None:
        await asyncio.sleep(TICK_S * random.random())  # so that a thousand hosts do not all do it at once
        while True:
            self.machine.tick()
            await asyncio.sleep(TICK_S)

    async def _inventory(self) -> Inventory:
        return self.machine.inventory()

    async def _take_time(self, step: object) -> None:
        seconds = self.pace.start_s * random.uniform(0.5, 1.5) if isinstance(step, Start) else 0.0
        if isinstance(step, FetchImage):
            seconds = self.pace.fetch_s
        if self.slow > 1.0:
            seconds = (seconds or 0.05) * self.slow
        if seconds:
            await asyncio.sleep(seconds)
