"""A whole controller but for its hosts: real store, loop and API over HTTP; a host is an object that acts like one."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from aiohttp.test_utils import TestClient, TestServer

from common.documents import AnySeen, DomainDoc, DomainSeen, NetworkSeen, Report, VolumeDoc, VolumeSeen
from common.errors import NotFound
from common.faults import Faults
from common.ids import HostId, RequestId
from common.protocol import (
    AttachConsole,
    GuestMetrics,
    HostMetrics,
    Inventory,
    Metrics,
    Order,
    ReadSerialLog,
)
from common.stream import Stream
from controller import bootstrap
from controller.api.app import Parts, make_app
from controller.config import Config
from controller.fleet.audit import Difference
from controller.fleet.repair import Plan, plan_repairs
from controller.loop.loop import Loop
from controller.metrics.history import History
from controller.metrics.shelf import Keep
from controller.store.blobs import Blobs
from controller.store.database import migrate, open_database
from controller.store.store import Feed, Store
from controller.store.writer import GroupWriter
from tests.patience import PATIENCE_S

KEEP = Keep(raw_s=6 * 3600, minute_s=7 * 86400, hour_s=366 * 86400, most_bytes=1 << 30)
FINGERPRINT = "ab" * 32
P = "/v1/projects"


class Clock:
    """Seconds that only a test moves, and each look a little."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


class Host:
    """A connected host: it makes every document true when told to, and answers calls about its guests."""

    def __init__(self, world: "World", identity: HostId) -> None:
        self.world = world
        self.id = identity
        self.serial: dict[str, bytes] = {}
        self.consoles: list[Stream] = []
        self.typed = bytearray()
        self.asked: list[RequestId] = []

    async def call(self, order: Order, request: RequestId) -> bytes:
        self.asked.append(request)
        assert isinstance(order, ReadSerialLog)
        if order.vm not in self.serial:
            raise NotFound(f"there is no serial log of {order.vm} yet")
        return self.serial[order.vm][-order.tail_bytes :]

    async def open_stream(self, order: AttachConsole, request: RequestId) -> Stream:
        """Give the controller's end; the guest's end answers in capitals."""
        self.asked.append(request)
        ours = Stream(1, lambda frame: guest.take(frame))  # noqa: PLW0108 - each end needs the other one first
        guest = Stream(1, ours.take)
        self.consoles.append(guest)
        self.world.tasks.create_task(self._guest(guest))
        return ours

    async def _guest(self, end: Stream) -> None:
        async for data in end:
            self.typed += data
            await end.write(data.upper())

    def settle(self) -> None:
        """Report every document as done."""
        view = self.world.store.seen.host(self.id)
        for document in self.world.store.seen.documents(self.id):
            view.reports[document.key] = Report(
                key=document.key, revision=document.revision, done=True, seen=_seen(document.doc)
            )
        self.world.loop.host_changed(self.id)

    def say(self, part: str, *, message: str = "", problem: str = "", progress: float | None = None) -> None:
        """Report the documents whose key begins so as not done yet."""
        view = self.world.store.seen.host(self.id)
        for document in self.world.store.seen.documents(self.id):
            if document.key.startswith(part):
                view.reports[document.key] = Report(
                    key=document.key,
                    revision=document.revision,
                    done=False,
                    message=message,
                    problem=problem,
                    progress=progress,
                )
        self.world.loop.host_changed(self.id)


def _seen(doc: object) -> AnySeen:
    if isinstance(doc, DomainDoc):
        state = "running" if doc.power == "running" else "stopped"
        return DomainSeen(
            state=state,
            start_generation=doc.start_generation,
            boot_generation=doc.boot_generation,
            started_at=1.0,
        )
    if isinstance(doc, VolumeDoc):
        return VolumeSeen(size_gib=doc.size_gib, allocated_bytes=0)
    return NetworkSeen(ports=1)


class FakeFleet:
    """The hosts that are connected."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.hosts: dict[HostId, Host] = {}
        self.differences: tuple[Difference, ...] = ()

    def session(self, host: HostId) -> Host | None:
        return self.hosts.get(host)

    async def audit(self, host: HostId, request: RequestId) -> tuple[Difference, ...]:
        return self.differences

    def plan_repairs(self, host: HostId, differences: tuple[Difference, ...], request: RequestId) -> Plan:
        return plan_repairs(self.store.seen, host, differences, request)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer."""

    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.raw)


class World:
    """One controller under test."""

    def __init__(self, store: Store, loop: Loop, blobs: Blobs, tasks: asyncio.TaskGroup, clock: Clock) -> None:
        self.store = store
        self.loop = loop
        self.blobs = blobs
        self.tasks = tasks
        self.clock = clock
        self.fleet = FakeFleet(store)
        self.unready: tuple[str, ...] = ()
        self.tokens: dict[str, str] = {}
        self.client: TestClient[Any, Any]
        self.history: History
        self._names = (f"k{number}" for number in itertools.count())

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        as_: str | None = "root",
        data: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send a request with a token by its name here (None: with none)."""
        sent = dict(headers or {})
        if as_ is not None:
            sent.setdefault("Authorization", f"Bearer {self.tokens[as_]}")
        if body is not None:
            data = msgspec.json.encode(body)
            sent.setdefault("Content-Type", "application/json")
        async with self.client.request(
            method, path, data=data, headers=sent, skip_auto_headers=["Content-Type"]
        ) as got:
            return Reply(status=got.status, headers=got.headers, raw=await got.read())

    async def make(self, path: str, name: str, spec: object | None = None, *, as_: str = "root", **more: Any) -> Any:
        """Create something and return the answer's JSON."""
        reply = await self.call("POST", path, {"name": name, "spec": spec or {}, **more}, as_=as_)
        assert reply.status == 202, reply.raw
        return reply.json

    async def token(self, name: str, project: str, role: str) -> str:
        """Make a token; it is known as `name` from here on."""
        made = await self.make(f"{P}/{project}/tokens", name, {"role": role})
        self.tokens[name] = made["revealed"]
        return str(made["resource"]["id"])

    async def settled(self, operation: str, state: str = "done") -> Any:
        """Wait for an operation to reach a state."""
        found: Any = None
        async with asyncio.timeout(PATIENCE_S):
            while not found or found["state"] != state:
                seen = found["revision"] if found else 0
                found = (await self.call("GET", f"/v1/operations/{operation}?wait_s=5&seen={seen}")).json
        return found

    async def until(self, so: Callable[[], object]) -> None:
        """Wait until something is so."""
        async with asyncio.timeout(PATIENCE_S):
            while not so():  # noqa: ASYNC110 - what is waited for is anything at all
                await asyncio.sleep(0.005)

    async def host(self, name: str, *, threads: int = 8, memory_mib: int = 16384) -> Host:
        """Make a host that is connected and has room."""
        made = await self.make("/v1/hosts", name)
        identity = HostId(made["resource"]["id"])
        host = self.fleet.hosts[identity] = Host(self, identity)
        view = self.store.seen.host(identity)
        view.connected, view.since = True, self.clock()
        view.inventory = Inventory(
            cpu_model="test",
            cpu_flags=(),
            cpu_threads=threads,
            memory_mib=memory_mib,
            disk_gib=1000,
            nics=(),
            capabilities=(),
            virtualisation="tcg",
            kernel="6.1",
            boot_id="b",
            vtep="10.0.0.1",
            underlay_mtu=1500,
        )
        self.loop.host_changed(identity)
        await self.until(lambda: self.store.seen.capacity(identity))
        return host

    def measure(self, host: Host, guests: tuple[GuestMetrics, ...]) -> None:
        """Have a host report its figures."""
        self.store.seen.host(host.id).metrics = Metrics(
            at=self.clock(), host=HostMetrics(12.5, 2048, 7.0, 0.5, 100, 200, 40.0, len(guests)), guests=guests
        )

    async def vm(self, project: str, name: str, host: Host, *, as_: str = "root") -> Any:
        """Make a machine with all it needs and have it run."""
        await self.needs(project)
        made = await self.make(f"{P}/{project}/vms", name, {"image": "disk", "size": "small"}, as_=as_)
        identity = made["resource"]["id"]
        await self.until(lambda: self.store.seen.owned_documents(identity))
        while not self._running(identity):
            host.settle()
            await asyncio.sleep(0.01)
        return self.store.seen.get(identity)

    def _running(self, identity: Any) -> bool:
        row = self.store.seen.get(identity)
        children = self.store.seen.children(identity)
        ready = [child.status.state for child in children] == ["ready"]
        return bool(row and ready and row.observed_generation == row.generation and row.status.state == "running")

    async def needs(self, project: str) -> None:
        """Make a size, an image with bytes and a network, unless they are there."""
        if self.store.seen.named("size", "", "small") is None:
            await self.make("/v1/sizes", "small", {"vcpus": 1, "memory_mib": 512, "disk_gib": 1})
        if self.store.seen.named("network", project, "default") is None:
            await self.make(f"{P}/{project}/networks", "default")
        if self.store.seen.named("image", project, "disk") is None:
            await self.make(f"{P}/{project}/images", "disk", {"format": "raw"})
            reply = await self.call("PUT", f"{P}/{project}/images/disk/content", data=b"\x01" * 1024)
            assert reply.status == 202, reply.raw


Made = Callable[..., Awaitable[World]]


@asynccontextmanager
async def world(directory: Path, config: Config | None = None, **parts: Any) -> AsyncIterator[World]:
    """Run a controller over a directory."""
    clock = Clock()
    feed = Feed()
    engine = open_database(f"sqlite:///{directory / 'test.db'}")
    await asyncio.to_thread(migrate, engine)
    try:
        async with GroupWriter(engine, clock, feed.committed) as writer, asyncio.TaskGroup() as tasks:
            store = Store(writer, feed)
            await store.load(alone=True)
            await bootstrap.ensure_system_project(store, clock)
            token = await bootstrap.issue_token(store, clock, project="system", name="root", role="admin")
            loop = Loop(store, clock, Faults(), "test")
            made = World(store, loop, Blobs(directory / "images"), tasks, clock)
            made.tokens["root"] = token.reveal()
            loop.start([])
            running = tasks.create_task(loop.run())
            history = History(directory / "metrics", KEEP, clock)
            await history.open()
            made.history = history
            app = make_app(
                Parts(
                    store=store,
                    fleet=made.fleet,
                    blobs=made.blobs,
                    measured=history,
                    choose=loop.inventory.would_choose,
                    take_stock=loop.inventory.take_stock,
                    readiness=lambda: made.unready,
                    config=config or Config(),
                    authority_fingerprint=lambda: FINGERPRINT,
                    clock=clock,
                    **parts,
                )
            )
            jar = aiohttp.DummyCookieJar()
            async with TestClient(TestServer(app), cookie_jar=jar) as made.client:
                yield made
            running.cancel()
            await history.close()
            for host in made.fleet.hosts.values():
                for console in host.consoles:
                    console.close("the test ends")
    finally:
        engine.dispose()
