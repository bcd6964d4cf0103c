"""The simulated world with several controllers on one database: agents dial any, controllers die one by one.

What a controller commits reaches the others a moment later, as a notification does; each has its own working set.
"""

from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Engine

from common.errors import SkerryError
from common.faults import Died
from sim.process import Agent, Controller
from sim.world import RESTART_S, Hook, Lost, Node, World
from tests.crew.sharing import Newest, SharingController

P = ParamSpec("P")
R = TypeVar("R")

READ_AFTER_S = (0.0, 0.001, 0.02)
"""What another one committed is read after one of these."""


class CrewWorld(World):
    """All of it."""

    def __init__(
        self,
        directory: Path,
        *,
        names: tuple[str, ...] = ("one", "two"),
        seed: int = 0,
        hook: Hook = lambda _process, _point: None,
        engine: Engine | None = None,
    ) -> None:
        super().__init__(directory, seed=seed, hook=hook)
        if engine is not None:
            self._engine.dispose()
            self._engine = engine
        self.controllers: dict[str, SharingController | None] = dict.fromkeys(names)
        self.starts_at = dict.fromkeys(names, self.now)
        self.at: dict[str, str] = {}
        """Machine -> the controller that it is connected to, or was last."""
        self.asked = 0
        self._ahead = dict.fromkeys(names, 0.0)
        self._newest = Newest()

    def close(self) -> None:
        """End the world."""
        for controller in self.alive():
            controller.close()
        super().close()

    @property
    def controller_names(self) -> tuple[str, ...]:
        """Name the processes that are controllers."""
        return tuple(self.controllers)

    def alive(self) -> list[SharingController]:
        """Return the controllers that live."""
        return [one for one in self.controllers.values() if one]

    @property
    def controller(self) -> Controller | None:
        """The controller to ask; None while none lives."""
        alive = self.alive()
        return alive[self.asked % len(alive)] if alive else None

    @controller.setter
    def controller(self, _one: Controller | None) -> None:
        """The base has one at a time."""

    def within(
        self,
        name: str,
        work: Callable[Concatenate[SharingController, P], Coroutine[Any, Any, R]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Run something in one controller's process. Raises Lost where it is dead, or dies of it."""
        controller = self.controllers[name]
        if controller is None:
            raise Lost
        try:
            return self._asyncio.run_until_complete(work(controller, *args, **kwargs))
        except Died as err:
            self.kill(name)
            raise Lost from err

    def within_controller(
        self, work: Callable[Concatenate[Controller, P], Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run something in the process of the controller that is to be asked."""
        controller = self.controller
        if not isinstance(controller, SharingController):
            raise Lost
        return self.within(controller.name, work, *args, **kwargs)

    def run(self, seconds: float) -> None:
        """Let time pass; from then on another controller is asked."""
        super().run(seconds)
        if seconds > max(READ_AFTER_S):
            self.asked += 1

    def kill(self, name: str) -> None:
        """kill -9 a controller."""
        controller = self.controllers[name]
        if controller is None:
            return
        self.deaths += 1
        controller.close()
        self.controllers[name] = None
        self.starts_at[name] = self.now + RESTART_S
        for node in (*self.nodes.values(), *self._ashes):
            if self.at.get(node.machine.name) == name and node.wire:
                node.session = None
                node.wire.break_now()

    def set_controllers_clock(self, name: str, seconds: float) -> None:
        """Set the clock of one; the database's stays."""
        self._ahead[name] += seconds

    def _clock_of_controller(self, name: str) -> float:
        return self.now + self._ahead[name]

    def kill_controller(self) -> None:
        """kill -9 all of them."""
        for name in self.controllers:
            self.kill(name)

    def hold(self, name: str, seconds: float) -> None:
        """Let a dead controller not come back for so long."""
        self.starts_at[name] = max(self.starts_at[name], self.now + seconds)

    # --- what the base does with one --------------------------------------------------------------------------------

    def _start_processes(self) -> bool:
        started = False
        for name, controller in self.controllers.items():
            if controller is None and self.starts_at[name] <= self.now:
                self._lives += 1
                self.controllers[name] = SharingController(
                    self._engine,
                    self._newest,
                    self._authority,
                    clock=partial(self._clock_of_controller, name),
                    timer=self.clock,
                    faults=self._faults(name),
                    number=self._lives,
                    name=name,
                )
                started = True
                try:
                    self.within(name, SharingController.boot)
                except Lost:
                    continue
                except SkerryError:
                    self.kill(name)  # it ends with an error, and is started again
        self._controller_starts_at = float("inf")
        return super()._start_processes() or started

    def _its(self, node: Node) -> Controller | None:
        return self.controllers[self.at[node.machine.name]]

    def _within_its(
        self,
        node: Node,
        work: Callable[Concatenate[Controller, P], Coroutine[Any, Any, R]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        return self.within(self.at[node.machine.name], work, *args, **kwargs)

    def _turn_to_one(self, node: Node) -> None:
        """Have a machine dial the controller after its last."""
        names = [name for name, one in self.controllers.items() if one]
        last = self.at.get(node.machine.name)
        following = (name for name in names if last is not None and name > last)
        self.at[node.machine.name] = self.random.choice(names) if last is None else next(following, names[0])

    def _settle(self) -> None:
        for _ in range(1000):
            moved = self._start_processes()
            moved |= self._break_links()
            moved |= self._dial()
            for name in self.controllers:
                moved |= self._work(name)
            for node in self.nodes.values():
                node.machine.tick()
                if node.agent:
                    moved |= bool(self.within_agent(node, Agent.work))
            moved |= self._talk()
            if not moved:
                return
        raise AssertionError("the world does not come to rest")

    def _work(self, name: str) -> bool:
        """Let one controller do all it can; say whether it has to be looked at again."""
        before = self.controllers[name]
        with suppress(Lost):
            self.within(name, SharingController.work)
        self._see_news()
        controller = self.controllers[name]
        if controller and controller.reads_at is not None and controller.reads_at <= self.now:
            controller.reads_at = None
            with suppress(Lost):
                self.within(name, SharingController.catch_up)
            return True
        return controller is not before

    def _see_news(self) -> None:
        for controller in self.alive():
            if controller.reads_at is None and controller.behind:
                controller.reads_at = self.now + self.random.choice(READ_AFTER_S)

    def _next_at(self) -> float:
        times = [super()._next_at()]
        for name, controller in self.controllers.items():
            if controller is None:
                times.append(self.starts_at[name])
                continue
            times.append(controller.beats_at)
            if controller.reads_at is not None:
                times.append(controller.reads_at)
            if (at := controller.loop.next_at()) is not None:
                times.append(at)
        return min(times)
