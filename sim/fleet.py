"""A simulated fleet at a real controller: hosts that join with real tokens and dial over TLS, and machines on them."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from agent import join
from common.clock import system_clock
from sim.agents import Pace, SimulatedAgent
from sim.client import Client, Refused
from sim.machine import Hardware, Machine

log = structlog.get_logger(__name__)

T = TypeVar("T")

HARDWARE = Hardware(threads=64, memory_mib=262_144, disk_gib=4_000)
ENDED = ("done", "failed", "cancelled")

Say = Callable[[str], None]
"""Told how far it is."""


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """Where everything goes: the controller's two doors, and the names of what is made there."""

    api: str
    link: str
    name: str = "sim"

    @property
    def project(self) -> str:
        """Return the path of the project that everything is in."""
        return f"/v1/projects/{self.name}"


class Wish(msgspec.Struct, kw_only=True):
    """One create: when it was sent, answered and made true, and why not."""

    sent_at: float
    answered_s: float = 0.0
    true_s: float | None = None
    """From the moment it was accepted until it was done, by the controller's clock."""
    state: str = ""
    why: str = ""


class Fleet:
    """The hosts, and what was asked of the API for them."""

    def __init__(self, client: Client, site: Site, directory: Path, say: Say = lambda _line: None) -> None:
        self.client = client
        self.site = site
        self.agents: list[SimulatedAgent] = []
        self.wishes: dict[str, Wish] = {}
        """By operation."""
        self.refused: Counter[str] = Counter()
        """Creates that were not accepted, by status and code."""
        self.befell: Counter[str] = Counter()
        self._directory = directory
        self._say = say
        self._moved = asyncio.Event()

    # --- hosts ------------------------------------------------------------------------------------------------------

    async def join(self, count: int, pace: Pace, *, hardware: Hardware = HARDWARE, at_once: int = 16) -> None:
        """Have so many hosts made, and machines that join as them."""

        async def one(number: int) -> None:
            name = f"{self.site.name}-h{number:05d}"
            made = await self.client.make(self.site.api, "/v1/hosts", name)
            identity = await join.join(self.site.link, made["revealed"], self._directory / f"{name}.pem")
            machine = Machine(name, number, self._directory, system_clock, hardware)
            self.agents.append(SimulatedAgent(machine, identity, pace))
            if len(self.agents) % 50 == 0:
                self._say(f"{len(self.agents)} of {count} hosts joined")

        await together(range(count), one, at_once)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Have all agents work and dial, until the block is left."""

        async def stay(agent: SimulatedAgent) -> None:
            async with agent.up():
                await asyncio.Event().wait()

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(stay(agent)) for agent in self.agents]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()

    async def all_ready(self, *, limit_s: float = 120.0) -> None:
        """Wait until every host is ready."""
        mine = {str(agent.identity.host) for agent in self.agents}
        async with asyncio.timeout(limit_s):
            async for event, body in self.client.watch(self.site.api, "kind=host"):
                if event == "put" and body["resource"]["status"]["state"] == "ready":
                    mine.discard(body["resource"]["id"])
                if not mine:
                    return

    async def _until(
        self, kind: str, there: Callable[[dict[str, dict[str, str]]], bool], count: int, limit_s: float
    ) -> None:
        found: set[str] = set()
        mine = f"{self.site.name}-h"
        async with asyncio.timeout(limit_s):
            async for event, body in self.client.watch(self.site.api, f"kind={kind}"):
                if event == "put" and body["resource"]["name"].startswith(mine):
                    (found.add if there(body["resource"]) else found.discard)(body["resource"]["id"])
                if len(found) >= count:
                    return

    # --- machines ---------------------------------------------------------------------------------------------------

    async def furnish(self, networks: int, **size: int) -> None:
        """Make a project with an image, a size and so many networks."""
        make, api, project = self.client.make, self.site.api, self.site.project
        await make(api, "/v1/projects", self.site.name, keep_deleted_s=0)
        await make(api, "/v1/sizes", self.site.name, **size)
        await make(api, f"{project}/images", "tiny", format="raw")
        status, body = await self.client.call(api, "PUT", f"{project}/images/tiny/content", data=b"\x01" * 4096)
        if status != 202:
            raise Refused(status, body)

        async def one(number: int) -> None:
            await make(api, f"{project}/networks", f"net-{number:05d}", cidr="10.20.0.0/24")

        await together(range(networks), one, 16)

    async def create(self, specs: Iterable[tuple[str, dict[str, object]]], *, at_once: int, rate: float = 0.0) -> None:
        """Ask for machines: so many requests under way, at a steady rate where one is given. Nothing is tried twice."""
        began, sent = time.perf_counter(), 0

        async def one(wanted: tuple[str, dict[str, object]]) -> None:
            nonlocal sent
            if rate:
                sent += 1
                await asyncio.sleep(max(0.0, began + sent / rate - time.perf_counter()))
            name, spec = wanted
            wish = Wish(sent_at=time.time())
            at = time.perf_counter()
            try:
                body = await self.client.make(self.site.api, f"{self.site.project}/vms", name, **spec)
            except Refused as err:
                code = err.body.get("code", "") if isinstance(err.body, dict) else ""
                self.refused[f"{err.status} {code}: {err}"] += 1
                return
            wish.answered_s = time.perf_counter() - at
            self._note(body["operation"], wish)
            if len(self.wishes) % 250 == 0:
                self._say(f"{len(self.wishes)} machines accepted, {self.true} run")

        await together(specs, one, at_once)

    @property
    def true(self) -> int:
        """Return how many wishes have come true."""
        return sum(wish.state == "done" for wish in self.wishes.values())

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Hear what becomes of every wish, until the block is left."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self._listen())
            try:
                yield
            finally:
                task.cancel()

    async def _listen(self) -> None:
        query = f"kind=operation&project={self.site.name}"
        while True:
            try:
                async for event, body in self.client.watch(self.site.api, query):
                    if event == "operation":
                        self._heard(body["operation"])
            except OSError as err:
                log.warning("watch ended", error=str(err))
            await asyncio.sleep(0.5)

    def _heard(self, operation: dict[str, object]) -> None:
        if operation["kind"] == "vm" and operation["verb"] == "create":
            known = self.wishes.get(str(operation["id"])) or Wish(sent_at=time.time())
            self._note(operation, known)

    def _note(self, operation: dict[str, object], wish: Wish) -> None:
        """Take an operation as it was answered, or told: whichever comes later counts."""
        known = self.wishes.setdefault(str(operation["id"]), wish)
        known.answered_s = known.answered_s or wish.answered_s
        if known.state in ENDED:
            return
        known.state = str(operation["state"])
        if operation["finished_at"] is not None:
            known.true_s = float(operation["finished_at"]) - float(operation["created_at"])  # type: ignore[arg-type]
        why = operation.get("why")
        known.why = str(why.get("summary", "")) if isinstance(why, dict) else ""
        self._moved.set()

    async def settled(self, *, limit_s: float) -> bool:
        """Wait until every wish has ended or says why not; say whether that was in time."""
        try:
            async with asyncio.timeout(limit_s):
                while any(wish.state not in (*ENDED, "blocked") for wish in self.wishes.values()):
                    self._moved.clear()
                    await self._moved.wait()
                    self._say(f"{self.true} of {len(self.wishes)} machines run")
        except TimeoutError:
            return False
        return True

    # --- accidents, and the end -------------------------------------------------------------------------------------

    async def suffer(self, every_s: float, chance: random.Random) -> None:
        """Let hosts lose their links or become slow, one every so often, until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            agent = chance.choice(self.agents)
            if chance.random() < 0.5:
                agent.cut(chance.choice((0.1, 1.0, 10.0)))
                self.befell["links cut"] += 1
            else:
                agent.slow = 1.0 if agent.slow > 1.0 else chance.choice((5.0, 20.0))
                self.befell["hosts made slow"] += agent.slow > 1.0

    async def clear(self) -> None:
        """Delete all that was made, at a controller that stays."""
        api, project = self.site.api, self.site.project
        for kind in ("vms", "networks", "images"):
            await self._delete_all(f"{project}/{kind}")
        for path in (f"/v1/sizes/{self.site.name}", project):
            await self.client.call(api, "DELETE", path)

        async def one(agent: SimulatedAgent) -> None:
            await self.client.call(api, "DELETE", f"/v1/hosts/{agent.machine.name}")

        await together(self.agents, one, 16)

    async def _delete_all(self, path: str) -> None:
        async def one(name: str) -> None:
            await self.client.call(self.site.api, "DELETE", f"{path}/{name}")

        while True:
            _, page = await self.client.call(self.site.api, "GET", f"{path}?limit=1000")
            left = [item["name"] for item in page["items"]]
            if not left:
                return
            self._say(f"deleting: {len(left)} left of {path}")
            await together(left, one, 16)
            await asyncio.sleep(0.5)


async def together(items: Iterable[T], work: Callable[[T], Awaitable[None]], at_once: int) -> None:
    """Do work for each, so many at a time."""
    left = iter(items)

    async def worker() -> None:
        for item in left:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(worker())
