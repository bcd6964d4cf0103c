"""Several controllers in one process, in real time over one real PostgreSQL; hosts are simulated agents."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

from sqlalchemy import Engine

from common.clock import system_clock
from common.errors import Conflict, NotFound, SkerryError
from common.faults import Faults
from common.ids import HostId, new_id
from common.kinds import kind_named
from common.protocol import Welcome
from common.tls import Peer
from controller.fleet.crew import Crew
from controller.fleet.hosts import Hosts
from controller.fleet.sessions import Session, Sessions
from controller.kinds import admission
from controller.kinds.admission import Admission, Context, NewResource
from controller.loop.loop import Loop
from controller.pki.authority import Authority
from controller.store.database import open_database
from controller.store.opening import run_store
from controller.store.rows import Controller as Row
from sim.cloud import OPERATOR
from sim.machine import Machine
from sim.process import Agent, Controller, SimAuthority
from tests.patience import PATIENCE_S

R = TypeVar("R")


class Killed(Exception):
    """The controller died before it answered: whether the request was committed is not known."""


class LiveController(Controller):
    """One life of a controller: its parts, running."""

    def __init__(self, name: str, url: str, authority: SimAuthority) -> None:
        self.name = name
        self._url = url
        self._authority = cast(Authority, authority)
        self._dead = asyncio.Event()
        self.up = asyncio.Event()
        self.busy = 0

    async def run(self) -> None:
        """Live until killed."""
        async with AsyncExitStack() as stack:
            engine = open_database(self._url)
            stack.callback(engine.dispose)
            self.store = await stack.enter_async_context(run_store(engine, system_clock))
            rows = await self.store.load(alone=False)
            me = Row(
                id=new_id("ctl"), url=f"https://{self.name}:8443", version="test", since=system_clock(), alive=True
            )
            self.sessions = Sessions()
            self.loop = Loop(self.store, system_clock, Faults(), worker=me.id)
            self.crew = Crew(self.store, me, self.sessions, lambda: self.loop.busy)
            self.hosts = Hosts(
                self.store,
                self._authority,
                self.sessions,
                images=Path("/images"),
                version="test",
                clock=system_clock,
                changed=self.loop.host_changed,
                poke=self.loop.poke,
                links=self.crew,
            )
            await self.crew.enter()
            self.loop.start(rows)
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            running = [tasks.create_task(work) for work in (self.loop.run(), self.hosts.run(), self.crew.run())]
            self.up.set()
            await self._dead.wait()
            self.up.clear()
            self.store._writer.abandon()  # type: ignore[attr-defined]  # nothing more is written, no leave is taken
            for task in running:
                task.cancel()

    def kill(self) -> None:
        """Have it die between two lines."""
        self._dead.set()

    async def ask(self, question: Callable[["LiveController"], Awaitable[R]]) -> R:
        """Ask it something. Raises Killed where it dies before it answers."""
        if not self.up.is_set():
            raise Killed
        answer = asyncio.ensure_future(question(self))
        death = asyncio.ensure_future(self._dead.wait())
        try:
            await asyncio.wait([answer, death], return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise Killed
            return answer.result()
        finally:
            for task in (answer, death):
                task.cancel()
                with suppress(asyncio.CancelledError, SkerryError):
                    await task


class LiveHost:
    """A machine whose agent dials whichever controller lives."""

    def __init__(self, cloud: "LiveCloud", name: str, number: int, host: HostId, serial: str) -> None:
        self._cloud = cloud
        self.name = name
        self.host = host
        self._peer = Peer(host=host, serial=serial, expires_at=1e12)
        self.machine = Machine(name, number, cloud.directory, system_clock)
        self.at = ""
        """The controller it is connected to."""

    async def run(self) -> None:
        """Work and dial until cancelled."""
        agent = Agent(
            self.machine,
            self.host,
            clock=system_clock,
            timer=time.monotonic,
            faults=Faults(),
            chance=random.random,
            fetch=lambda _digest: True,
        )
        await agent.boot()
        try:
            while True:
                with suppress(Killed):
                    await self._serve(agent)
                self.at = ""
                await asyncio.sleep(0.2 * random.random())
        finally:
            await agent.close()

    async def _serve(self, agent: Agent) -> None:
        controller = self._cloud.any()
        session, answer = await controller.ask(lambda one: one.greet(self._peer, agent.hello()))
        if not isinstance(answer, Welcome):
            return
        self.at = controller.name
        await agent.welcomed(answer)
        while not session.reason:
            await self._exchange(controller, session, agent)
            await asyncio.sleep(0.01)
        await controller.ask(lambda one: one.hang_up(session, "gone"))

    async def _exchange(self, controller: LiveController, session: Session, agent: Agent) -> None:
        for frame in await controller.ask(lambda one: one.frames(session)):
            await agent.take(frame)
        self.machine.tick()
        await agent.work()
        said: list[bytes] = []
        await agent.say(said.append)
        for body in said:
            await controller.ask(lambda one, body=body: one.take(session, body))  # type: ignore[misc]


class LiveCloud:
    """All of it."""

    def __init__(self, url: str, directory: Path, tasks: asyncio.TaskGroup) -> None:
        self.directory = directory
        self.engine: Engine = open_database(url)
        self.hosts: list[LiveHost] = []
        self.controllers: dict[str, LiveController] = {}
        self.deaths = 0
        self._lives: list[LiveController] = []
        self._url = url
        self._authority = SimAuthority()
        self._tasks = tasks
        self._running: list[asyncio.Task[None]] = []

    def start(self, name: str) -> LiveController:
        """Start a controller."""
        self.controllers[name] = one = LiveController(name, self._url, self._authority)
        self._lives.append(one)
        self._running.append(self._tasks.create_task(one.run()))
        return one

    def kill(self, name: str) -> None:
        """Kill one."""
        self.deaths += 1
        self.controllers[name].kill()

    def any(self) -> LiveController:
        """Return one that lives. Raises Killed while none does."""
        alive = [one for one in self.controllers.values() if one.up.is_set()]
        if not alive:
            raise Killed
        return random.choice(alive)

    async def stop(self) -> None:
        """End everything."""
        for one in self._lives:
            one.kill()
        for task in self._running:
            if task.get_coro().__qualname__ != "LiveController.run":  # type: ignore[union-attr]
                task.cancel()
        self.engine.dispose()

    async def insist(self, admit: Callable[[Context], Admission]) -> Admission | None:
        """Ask any controller until one has answered. None: an earlier try, whose answer was lost, had been kept."""
        lost = False
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    return await self.any().ask(lambda one: self._admit(one, admit))
                except (Conflict, NotFound):
                    if lost:
                        return None
                    await asyncio.sleep(0.05)  # this controller may not have heard of it yet
                except Killed:
                    lost = True
                    await asyncio.sleep(0.05)
                except SkerryError:
                    lost = True
                    await asyncio.sleep(0.2)

    async def _admit(self, one: LiveController, admit: Callable[[Context], Admission]) -> Admission:
        context = Context(seen=one.store.seen, caller=OPERATOR, now=system_clock())
        return await one.store.admit(admit(context))

    async def create(self, kind: str, project: str, name: str, **spec: Any) -> Admission | None:
        """Make something."""
        body = NewResource(name=name, spec=spec)
        return await self.insist(lambda context: admission.create(context, kind_named(kind), project, body))

    async def delete(self, kind: str, project: str, name: str) -> None:
        """Delete something."""

        def admit(context: Context) -> Admission:
            row = context.seen.named(kind, project, name)
            if row is None:
                raise NotFound(f"there is no {kind} {name}")
            return admission.delete(context, row)

        await self.insist(admit)

    async def join(self, name: str) -> None:
        """Have a machine join, and dial."""
        done = await self.insist(lambda context: admission.reissue(context, _named(context, "host", "", name)))
        assert done is not None
        assert done.revealed is not None
        secret, host = done.revealed.reveal(), HostId(done.resource.id)

        async def enrol(one: LiveController) -> str:
            await one.hosts.enrol(one.hosts.join_text(secret), "csr")
            enrolment = one.store.seen.enrolment(host)
            assert enrolment is not None
            return enrolment.certificate_serial

        live = LiveHost(self, name, len(self.hosts), host, await self.any().ask(enrol))
        self.hosts.append(live)
        self._running.append(self._tasks.create_task(live.run()))

    async def until(self, there: Callable[[LiveController], object], *, limit_s: float, what: str) -> None:
        """Wait until something is so on every controller that lives."""
        try:
            async with asyncio.timeout(limit_s):
                while True:
                    alive = [one for one in self.controllers.values() if one.up.is_set()]
                    if alive and all(there(one) for one in alive):
                        return
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"not in {limit_s:g} s: {what}") from None


def _named(context: Context, kind: str, project: str, name: str) -> Any:
    row = context.seen.named(kind, project, name)
    if row is None:
        raise NotFound(f"there is no {kind} {name}")
    return row


@asynccontextmanager
async def live_cloud(url: str, directory: Path, names: tuple[str, ...]) -> AsyncIterator[LiveCloud]:
    """Have controllers of these names on a database, until the block is left."""
    async with asyncio.TaskGroup() as tasks:
        cloud = LiveCloud(url, directory, tasks)
        try:
            for name in names:
                await cloud.start(name).up.wait()
            yield cloud
        finally:
            await cloud.stop()
