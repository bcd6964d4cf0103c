"""The two kinds of processes of the simulated world: the real cores, over a database and machines that outlive them."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec
from sqlalchemy import Engine

from agent.link import resume
from agent.loop import Loop as AgentLoop
from agent.memory import EPOCH, DirectLane, Memory, open_memory
from common.batches import cut
from common.clock import Clock
from common.codec import to_pack
from common.documents import DocKey, Report
from common.errors import SkerryError
from common.faults import Faults
from common.ids import HostId
from common.protocol import (
    PROTOCOL,
    Controllers,
    DesiredBatch,
    Down,
    Found,
    Hello,
    HostEvent,
    Metrics,
    Refused,
    Reports,
    Up,
    Welcome,
)
from common.tls import Peer
from controller.fleet.hosts import Hosts
from controller.fleet.sessions import Session, Sessions
from controller.loop.loop import Loop
from controller.pki.authority import Authority, Signed
from controller.store.store import Feed, Store
from controller.store.writer import InlineWriter
from sim.machine import Machine
from sim.units import kinds

_up = msgspec.msgpack.Decoder(Up)
_down = msgspec.msgpack.Decoder(Down)


class SimAuthority:
    """Signs without cryptography: certificates are serial numbers."""

    ca_pem = "CA"

    def __init__(self) -> None:
        self._serial = 0

    def fingerprint(self) -> str:
        """Return the CA's fingerprint."""
        return "0" * 64

    def sign_host(self, csr_pem: str, host: HostId, now: float) -> Signed:
        """Return the next serial."""
        self._serial += 1
        return Signed(pem=f"{host} {self._serial}", serial=f"{self._serial:x}", expires_at=now + 1e9)


class Controller:
    """One life of the controller's process."""

    def __init__(
        self, engine: Engine, authority: SimAuthority, *, clock: Clock, timer: Clock, faults: Faults, number: int
    ) -> None:
        self.feed = Feed()
        self._writer = InlineWriter(engine, clock, self.feed.committed, faults)
        self.store = Store(self._writer, self.feed)
        self._authority = cast(Authority, authority)
        self._clock = clock
        self._timer = timer
        self._faults = faults
        self._number = number
        self.sessions = Sessions()
        self.loop: Loop
        self.hosts: Hosts

    async def boot(self) -> None:
        """Load what the database holds and go on."""
        rows = await self.store.load(alone=True)
        self.loop = Loop(self.store, self._clock, self._faults, f"ctl-{self._number:012d}", self._timer)
        self.hosts = Hosts(
            self.store,
            self._authority,
            self.sessions,
            images=Path("/images"),
            version="sim",
            clock=self._clock,
            changed=self.loop.host_changed,
            poke=self.loop.poke,
        )
        self.loop.start(rows)

    async def work(self) -> int:
        """Do all that can be done at this moment; returns the number of turns."""
        turns = await self.loop.drain()
        await self.hosts.drain()
        return turns

    async def greet(self, peer: Peer, hello: Hello) -> tuple[Session, Welcome | Refused]:
        """Take a host in, as `controller.fleet.link` does."""
        if self.hosts.is_revoked(peer.host, peer.serial):
            return Session(peer), Refused(reason="revoked")
        for older in self.sessions.all():
            if older.host == peer.host:
                await self.hang_up(older, "the host connected anew")
        session = Session(peer)
        assert await self.sessions.replace(session)
        try:
            answer = await self.hosts.connected(session, hello)
        except SkerryError as err:
            answer = Refused(reason=err.detail)
        if isinstance(answer, Refused):
            self.sessions.remove(session)
            session.close(answer.reason)
            session.end()
        return session, answer

    async def hang_up(self, session: Session, reason: str) -> None:
        """End a session, as `controller.fleet.link` does."""
        session.close(reason)
        if not session.over:
            await self.hosts.disconnected(session, session.reason)
        self.sessions.remove(session)
        session.end()

    async def take(self, session: Session, body: bytes) -> None:
        """Take in what a host said, as `controller.fleet.link` does."""
        try:
            message = _up.decode(body)
            assert isinstance(message, Reports | HostEvent | Metrics)
            await self.hosts.received(session, message)
        except msgspec.DecodeError as err:
            session.close(f"sent what can't be read: {err}")
        except SkerryError as err:
            session.close(f"could not be taken in: {err.detail}")

    async def frames(self, session: Session) -> tuple[bytes, ...]:
        """Return the frames that wait to be sent."""
        found: list[bytes] = []
        while (frame := session.next_frame()) is not None:
            found.append(frame)
        return tuple(found)

    def close(self) -> None:
        """Let go of the database, as a dead process does."""
        self._writer.close()


class Agent:
    """One life of an agent's process."""

    def __init__(
        self,
        machine: Machine,
        host: HostId,
        *,
        clock: Clock,
        timer: Clock,
        faults: Faults,
        chance: Callable[[], float],
        fetch: Callable[[str], bool],
    ) -> None:
        self.machine = machine
        self.host = host
        self._clock = clock
        self._timer = timer
        self._faults = faults
        self._chance = chance
        self._fetch = fetch
        self._waiting: dict[DocKey, Report] = {}
        self._full = False
        self._number = 0
        self._events: list[HostEvent] = []
        self.memory: Memory
        self.loop: AgentLoop

    async def boot(self) -> None:
        """Open the memory and look at everything."""
        self.memory = await open_memory(self.machine.memory_file, lane=DirectLane(), faults=self._faults)
        self._kinds = kinds(
            self.machine,
            host=self.host,
            faults=self._faults,
            clock=self._clock,
            fetch=self._fetch,
            items=lambda: self.memory.items,
            announce=self._events.append,
        )
        self.loop = AgentLoop(
            memory=self.memory,
            kinds=self._kinds,
            sink=self._sink,
            clock=self._clock,
            timer=self._timer,
            chance=self._chance,
            faults=self._faults,
        )
        self.mind_the_disk()
        self.machine.guests.ended = lambda vm: self.loop.poke(f"domain/{vm}")  # type: ignore[arg-type]

    def mind_the_disk(self) -> None:
        """Let SQLite refuse every write where the disk is full."""
        full = "ON" if self.machine.state_full else "OFF"
        self.memory._database.execute(f"PRAGMA query_only = {full}")

    def _sink(self, report: Report) -> None:
        self._waiting[report.key] = report

    async def work(self) -> int:
        """Turn every unit that is due now; returns the number of turns."""
        self.mind_the_disk()
        turns = 0
        while due := self.loop.due():
            for unit in due:
                await self.loop.turn(unit)
                turns += 1
        return turns

    def hello(self) -> Hello:
        """Say hello on a new connection, as `agent.link` does."""
        self._waiting.clear()
        self._full = False
        self._number = 0
        return Hello(
            protocol=PROTOCOL,
            agent_version="sim",
            host=self.host,
            inventory=self.machine.inventory(),
            desired_digest=self.memory.digest(),
            observed_digest=self.loop.observed_digest(),
            epoch=self.memory.fact(EPOCH),
            newest=self.memory.newest(),
        )

    async def welcomed(self, welcome: Welcome) -> bool:
        """Put together what the controller lacks, as `agent.link` does; False: the link has to end."""
        try:
            words = await resume(welcome, self.memory, self.loop)
        except SkerryError:
            return False
        self._waiting = {report.key: report for report in words} | self._waiting
        self._full = welcome.send_reports
        return True

    async def take(self, body: bytes) -> bool:
        """Take in what the controller sent; False: it could not be saved, and the link has to end."""
        message = _down.decode(body)
        if isinstance(message, Controllers):
            return True  # the world dials for it
        assert isinstance(message, DesiredBatch)
        self.mind_the_disk()
        try:
            changed = await self.memory.apply(message)
        except SkerryError:
            return False
        self.loop.changed(changed)
        return True

    def next_number(self) -> int:
        """Number the next message of reports."""
        self._number += 1
        return self._number

    async def say(self, send: Callable[[bytes], None]) -> bool:
        """Send what waits to be sent; False: the link has to end."""
        for event in self._events:
            send(to_pack(event))
        self._events.clear()
        while self._waiting or self._full:
            group = next(cut(self._waiting.values()), ())
            for report in group:
                del self._waiting[report.key]
            send(to_pack(Reports(number=self.next_number(), reports=group, full=self._full)))
            self._full = False
            self.mind_the_disk()
            try:
                await self.loop.delivered(group)
            except SkerryError:
                return False
        return True

    async def survey(self) -> tuple[Found, ...]:
        """List everything on the machine."""
        return tuple([found for kind in self._kinds for found in await kind.survey()])

    async def close(self) -> None:
        """Let go of the memory's file, as a dead process does."""
        self.machine.guests.ended = lambda _vm: None
        await self.memory.close()
