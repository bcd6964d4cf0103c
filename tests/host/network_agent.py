"""The networks of one throwaway host, driven by lines of JSON on standard input. Started by test_network_unit.py.

Each line is a `Command`; the answer is one line, an `Answered`.
"""

import asyncio
import sys
import time
from pathlib import Path
from typing import Literal

import msgspec
import structlog

from agent.kinds.network import Networks
from agent.kinds.unit import Do, Settled, UnitKey, Wait, Wish
from agent.metadata import Guest, find_guest
from common.documents import Desired, PortDoc, Report
from common.faults import Died, Faults
from common.ids import HostId, Id
from common.protocol import Found

MAX_STEPS = 40


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """`settle`: take turns until there is nothing to do. `survey`: list all. `crash`: settle, dying at every point."""

    verb: Literal["settle", "survey", "crash"]
    network: str = ""
    items: tuple[Desired, ...] = ()


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    steps: tuple[str, ...] = ()
    settled: bool = False
    message: str = ""
    reports: tuple[Report, ...] = ()
    found: tuple[Found, ...] = ()
    deaths: tuple[str, ...] = ()


class Agent:
    """As much of an agent as networks need. A death leaves everything but the process as it is."""

    def __init__(self, host: HostId, underlay: str, run_dir: Path) -> None:
        self._host, self._underlay, self._run_dir = host, underlay, run_dir
        self._items: tuple[Desired, ...] = ()
        self._dying, self._deaths = False, list[str]()
        self.networks = self._born()

    def _born(self) -> Networks:
        return Networks(
            host_id=self._host,
            underlay=self._underlay,
            run_dir=self._run_dir,
            lookup=self._lookup,
            owner_of_mac=self._owner_of_mac,
            faults=Faults(self._reached),
        )

    def _reached(self, point: str) -> None:
        if self._dying and point not in self._deaths:
            self._deaths.append(point)
            raise Died(point)

    def _lookup(self, network: Id, address: str) -> Guest | None:
        return find_guest(self._items, self._host, network, address)

    def _owner_of_mac(self, mac: str) -> Id | None:
        docs = (item.doc for item in self._items)
        return next((doc.vm for doc in docs if isinstance(doc, PortDoc) and doc.mac == mac), None)

    async def settle(self, network: str, items: tuple[Desired, ...]) -> Answered:
        """Take turns until the plan says Settled or Wait."""
        self._items = items
        unit = UnitKey(f"network/{network}")
        mine = {item.key: item for item in items if item.key == unit or isinstance(item.doc, PortDoc)}
        wish = Wish(unit=unit, items=mine, marks={})
        steps: list[str] = []
        for _ in range(MAX_STEPS):
            match self.networks.plan(wish, await self.networks.observe(wish), time.time()):
                case Do(step=step):
                    steps.append(type(step).__name__)
                    await self.networks.apply(step)
                case Wait(message=message, reports=reports):
                    return Answered(steps=tuple(steps), message=message, reports=reports)
                case Settled(reports=reports):
                    return Answered(steps=tuple(steps), settled=True, reports=reports)
        return Answered(steps=tuple(steps), message=f"not settled after {MAX_STEPS} steps")

    async def crash(self, network: str, items: tuple[Desired, ...]) -> Answered:
        """Settle, dying once at every point that is reached on the way, with a new agent each time."""
        self._deaths, self._dying = [], True
        while True:
            try:
                answer = await self.settle(network, items)
                break
            except Died:
                await self.networks.close()
                self.networks = self._born()
        self._dying = False
        return msgspec.structs.replace(answer, deaths=tuple(self._deaths))


async def main(host: str, underlay: str, run_dir: str) -> None:
    """Answer commands until standard input ends."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    agent = Agent(HostId(Id(host)), underlay, Path(run_dir))
    reader = asyncio.StreamReader(limit=16 * 1024 * 1024)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        command = msgspec.json.decode(line, type=Command)
        match command.verb:
            case "settle":
                answer = await agent.settle(command.network, command.items)
            case "crash":
                answer = await agent.crash(command.network, command.items)
            case "survey":
                answer = Answered(found=await agent.networks.survey())
        sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
        sys.stdout.flush()
    await agent.networks.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
