"""The simulated world: a controller, machines with agents, links between them, a clock, and accidents.

Deterministic: one thread, no sleep, all chance from one seed. `run` lets time pass; whatever a process does, it may
die at each of its crash points, and what follows is a new process over the same database or memory file.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import update

from common.errors import SkerryError
from common.faults import Died, Faults
from common.ids import HostId
from common.protocol import Welcome
from common.tls import Peer
from controller.fleet.sessions import Session
from controller.store import rows
from controller.store.tables import fact
from controller.store.working import WorkingSet
from sim.database import memory_engine
from sim.lies import Lie, forged_hello, messages
from sim.machine import Machine
from sim.process import Agent, Controller, SimAuthority
from sim.wire import Wire

R = TypeVar("R")
P = ParamSpec("P")

EPOCH = 1_800_000_000.0
RESTART_S = 1.0
BOOT_S = 20.0
REDIAL_S = 1.0

Hook = Callable[[str, str], None]
"""(process, crash point): raises Died where that process is to die there."""


class Lost(Exception):
    """The controller died before it answered: whether the request was committed is not known."""


class Node:
    """A machine, the agent on it, and its link."""

    def __init__(self, machine: Machine, host: HostId, serial: str) -> None:
        self.machine = machine
        self.host = host
        self.serial = serial
        self.agent: Agent | None = None
        self.agent_starts_at = 0.0
        self.wire: Wire | None = None
        self.session: Session | None = None
        self.dials_at = 0.0
        self.cut_off = False
        """No link can be made until it is healed."""
        self.ahead_s = 0.0
        """Its clock is this far ahead of the world's; what is measured by a timer is not."""
        self.lies: list[Lie] = []
        """What it says besides, or instead, next."""


class World:
    """All of it."""

    def __init__(self, directory: Path, *, seed: int = 0, hook: Hook = lambda _process, _point: None) -> None:
        self.now = EPOCH
        self.hook = hook
        self.random = random.Random(seed)
        self.nodes: dict[str, Node] = {}
        self._ashes: list[Node] = []
        self.controller: Controller | None = None
        self.deaths = 0
        self.ahead_s = 0.0
        """The controller's clock is this far ahead of the world's."""
        self._directory = directory
        self._engine = memory_engine()
        self._authority = SimAuthority()
        self._asyncio = asyncio.new_event_loop()
        self._controller_starts_at = self.now
        self._lives = 0

    def clock(self) -> float:
        """Give the world's time."""
        return self.now

    def _clock_of(self, node: Node) -> float:
        return self.now + node.ahead_s

    def controllers_clock(self) -> float:
        """Give the time that the controller's clock shows."""
        return self.now + self.ahead_s

    def set_controllers_clock(self, _name: str, seconds: float) -> None:
        """Set a controller's clock forth, or back."""
        self.ahead_s += seconds

    def close(self) -> None:
        """End the world."""
        for node in self.nodes.values():
            if node.agent:
                self._asyncio.run_until_complete(node.agent.close())
        if self.controller:
            self.controller.close()
        self._asyncio.close()
        self._engine.dispose()

    @property
    def engine(self) -> Any:
        """The database, for checks."""
        return self._engine

    # --- processes --------------------------------------------------------------------------------------------------

    @property
    def controller_names(self) -> tuple[str, ...]:
        """Name the processes that are controllers."""
        return ("controller",)

    def seen_by_its(self, node: Node) -> WorkingSet:
        """Return what the controller that a machine speaks with has in memory. Raises Lost while there is none."""
        controller = self._its(node)
        if controller is None:
            raise Lost
        return controller.store.seen

    def kill(self, _name: str) -> None:
        """kill -9 a controller."""
        self.kill_controller()

    def _faults(self, process: str) -> Faults:
        return Faults(lambda point: self.hook(process, point))

    def within_controller(
        self, work: Callable[Concatenate[Controller, P], Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run something in the controller's process. Raises Lost where it is dead, or dies of it."""
        if self.controller is None:
            raise Lost
        try:
            return self._asyncio.run_until_complete(work(self.controller, *args, **kwargs))
        except Died as err:
            self.kill_controller()
            raise Lost from err

    def within_agent(
        self,
        node: Node,
        work: Callable[Concatenate[Agent, P], Coroutine[Any, Any, R]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R | None:
        """Run something in an agent's process; None where it dies of it."""
        assert node.agent is not None
        try:
            return self._asyncio.run_until_complete(work(node.agent, *args, **kwargs))
        except Died:
            self.kill_agent(node.machine.name)
            return None

    def kill_controller(self) -> None:
        """kill -9."""
        if self.controller is None:
            return
        self.deaths += 1
        self.controller.close()
        self.controller = None
        self._controller_starts_at = self.now + RESTART_S
        for node in (*self.nodes.values(), *self._ashes):
            node.session = None
            if node.wire:
                node.wire.break_now()

    def backup(self) -> bytes:
        """Copy the database."""
        raw = self._engine.raw_connection()
        try:
            image: bytes = raw.driver_connection.serialize()  # type: ignore[union-attr]
            return image
        finally:
            raw.close()

    def restore(self, image: bytes, *, told: bool) -> None:
        """Put a copy in the database's place while the controller is down. `told`: the operator says so to it."""
        self.kill_controller()
        raw = self._engine.raw_connection()
        try:
            raw.driver_connection.deserialize(image)  # type: ignore[union-attr]
        finally:
            raw.close()
        if told:
            with self._engine.begin() as connection:
                connection.execute(update(fact).where(fact.c.name == rows.EPOCH).values(value=f"epoch-{self.now}"))

    def kill_agent(self, name: str) -> None:
        """kill -9. The machine and its guests go on."""
        node = self.nodes[name]
        if node.agent is None:
            return
        self.deaths += 1
        self._asyncio.run_until_complete(node.agent.close())
        node.agent = None
        node.agent_starts_at = self.now + RESTART_S
        if node.wire:
            node.wire.break_now()

    def cut_power(self, name: str) -> None:
        """Pull a machine's plug; it boots again after a while."""
        node = self.nodes[name]
        if node.agent:
            self._asyncio.run_until_complete(node.agent.close())
        node.agent = None
        node.machine.power_cut()
        node.agent_starts_at = self.now + BOOT_S
        if node.wire:
            node.wire.pull()

    def _start_processes(self) -> bool:
        started = False
        if self.controller is None and self._controller_starts_at <= self.now:
            self._lives += 1
            self.controller = Controller(
                self._engine,
                self._authority,
                clock=self.controllers_clock,
                timer=self.clock,
                faults=self._faults("controller"),
                number=self._lives,
            )
            started = True
            try:
                self._try(Controller.boot)
            except SkerryError:
                self.kill_controller()  # it ends with an error, and is started again
        for node in self.nodes.values():
            if node.agent is None and node.agent_starts_at <= self.now:
                node.machine.powered = True
                node.agent = Agent(
                    node.machine,
                    node.host,
                    clock=partial(self._clock_of, node),
                    timer=self.clock,
                    faults=self._faults(node.machine.name),
                    chance=self.random.random,
                    fetch=lambda _digest: self.controller is not None,
                )
                self.within_agent(node, Agent.boot)
                started = True
        return started

    # --- links ------------------------------------------------------------------------------------------------------

    def add_machine(self, name: str, host: HostId, serial: str) -> Node:
        """Have a machine whose agent has joined."""
        machine = Machine(name, len(self.nodes), self._directory, self.clock)
        node = Node(machine, host, serial)
        self.nodes[name] = node
        return node

    def remove_machine(self, name: str) -> Node:
        """Have a machine burn down. The controller notices as with a cut link."""
        self.cut_power(name)
        node = self.nodes.pop(name)
        self._ashes.append(node)
        return node

    def _break_links(self) -> bool:
        broke = False
        for node in (*self.nodes.values(), *self._ashes):
            wire = node.wire
            if wire is None or wire.breaks_at is None or wire.breaks_at > self.now:
                continue
            broke = True
            wire.cut = True
            node.wire = None
            node.dials_at = self.now + REDIAL_S * self.random.random()
            session, node.session = node.session, None
            if session and self._its(node):
                with suppress(Lost):
                    self._within_its(node, Controller.hang_up, session, "gave no sign of life")
        return broke

    def _its(self, _node: Node) -> Controller | None:
        """Return the controller that a machine speaks with; None while it is dead."""
        return self.controller

    def _within_its(
        self,
        _node: Node,
        work: Callable[Concatenate[Controller, P], Coroutine[Any, Any, R]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Run something in the process of the controller that a machine speaks with. Raises Lost."""
        return self.within_controller(work, *args, **kwargs)

    def _try(
        self, work: Callable[Concatenate[Controller, P], Coroutine[Any, Any, object]], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        with suppress(Lost):
            self.within_controller(work, *args, **kwargs)

    def _dial(self) -> bool:
        dialled = False
        for node in self.nodes.values():
            if node.agent is None or node.wire or node.cut_off or node.dials_at > self.now or self.controller is None:
                continue
            dialled = True
            node.dials_at = self.now + REDIAL_S
            peer = Peer(host=node.host, serial=node.serial, expires_at=1e12)
            self._turn_to_one(node)
            hello = forged_hello(node.agent.hello(), node.lies, self.controller.store.seen)
            try:
                session, answer = self._within_its(node, Controller.greet, peer, hello)
            except Lost:
                continue
            if isinstance(answer, Welcome):
                node.wire = Wire(self.clock, lambda: self.random.choice((0.0, 0.0, 0.001, 0.02)))
                node.session = session
                if self.within_agent(node, Agent.welcomed, answer) is False:
                    node.wire.break_now()
        return dialled

    def _turn_to_one(self, node: Node) -> None:
        """Choose which controller a machine dials: there is one."""

    def _talk(self) -> bool:
        talked = False
        for node in list(self.nodes.values()):
            wire = node.wire
            if wire is None:
                continue
            if node.session and self._its(node) and not wire.cut:
                if node.session.reason:
                    wire.break_now()
                    talked = True
                    continue
                for body in self._within_its(node, Controller.frames, node.session):
                    wire.send("down", body)
            if node.agent and self.within_agent(node, Agent.say, partial(wire.send, "up")) is False:
                wire.break_now()
            if node.lies and node.agent and self.controller:
                for body in messages(node.lies, node.host, self.controller.store.seen, node.agent.next_number):
                    wire.send("up", body)
            while node.agent and (down := wire.arrived("down")) is not None:
                talked = True
                if self.within_agent(node, Agent.take, down) is False:
                    wire.break_now()
            while node.session and self._its(node) and (up := wire.arrived("up")) is not None:
                talked = True
                with suppress(Lost):
                    self._within_its(node, Controller.take, node.session, up)
        return talked

    # --- time -------------------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Let time pass, from one event to the next."""
        until = self.now + seconds
        while True:
            self._settle()
            at = self._next_at()
            if at > until:
                break
            self.now = max(at, self.now + 1e-4)
        self.now = max(self.now, until)
        self._settle()

    def run_until(self, there: Callable[[], bool], *, limit_s: float, what: str) -> None:
        """Let time pass until something is so. Raises AssertionError where it isn't in time."""
        until = self.now + limit_s
        self._settle()
        while not there():
            at = self._next_at()
            assert at <= until, f"not in {limit_s:g} s: {what}"
            self.now = max(at, self.now + 1e-4)
            self._settle()

    def _settle(self) -> None:
        """Do all that can be done at this moment."""
        for _ in range(1000):
            moved = self._start_processes()
            moved |= self._break_links()
            moved |= self._dial()
            if self.controller:
                before = self.controller
                self._try(Controller.work)
                moved |= self.controller is not before
            for node in self.nodes.values():
                node.machine.tick()
                if node.agent:
                    moved |= bool(self.within_agent(node, Agent.work))
            moved |= self._talk()
            if not moved:
                return
        raise AssertionError("the world does not come to rest")

    def _next_at(self) -> float:
        times = [self.now + 60.0]
        if self.controller is None:
            times.append(self._controller_starts_at)
        elif (at := self.controller.loop.next_at()) is not None:
            times.append(at)
        for node in self.nodes.values():
            if node.agent is None:
                times.append(node.agent_starts_at)
            else:
                times.append(self.now + node.agent.loop.next_due_s())
            if node.wire is None and node.agent and not node.cut_off and self.controller:
                times.append(node.dials_at)
            if (at := node.machine.guests.next_at()) is not None:
                times.append(at)
        wires = [node.wire for node in (*self.nodes.values(), *self._ashes) if node.wire is not None]
        times += [at for wire in wires if (at := wire.next_at()) is not None]
        return min(times)
