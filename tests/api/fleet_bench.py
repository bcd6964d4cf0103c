"""A controller with everything behind the link's port (store, fleet, loop, authority), dialled by real agents."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
from link_bench import NAMES, Agent, Shelf, eventually, hello

from agent import join
from agent.join import Identity
from agent.memory import open_memory
from common.codec import to_pack
from common.documents import VolumeDoc
from common.faults import Faults
from common.ids import HostId, Id, new_id
from common.protocol import Down, Hello, Welcome
from controller.fleet.crew import Crew
from controller.fleet.hosts import ALONE, Hosts
from controller.fleet.link import LinkServer, serve
from controller.fleet.sessions import Sessions
from controller.fleet.succession import Successor, asks, next_authority
from controller.kinds import admission
from controller.loop.loop import Loop
from controller.pki.authority import Authority
from controller.store.opening import open_store
from controller.store.rows import Controller, Event, EventQuery
from controller.store.writes import PutDocument
from tests.patience import PATIENCE_S
from tests.store.desk import Clock, Desk


class World:
    """One controller on a database of its own."""

    def __init__(self, directory: Path, url: str = "", *, name: str = "one") -> None:
        self.directory = directory
        self.name = name
        self.faults = Faults()
        directory.mkdir(exist_ok=True)
        self._url = url or f"sqlite:///{directory / 'skerry.db'}"
        self.clock = Clock()
        self.clock.now = time.time()
        self.number = 0

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.number}"

    @asynccontextmanager
    async def up(self) -> AsyncIterator["World"]:
        """Run it until the block is left; again on the same port, like a restarted process."""
        async with AsyncExitStack() as stack:
            self.store = await stack.enter_async_context(open_store(self._url, self.clock))
            queue = await self.store.load(alone=not self.store.shared)
            self.desk = Desk(self.store, self.clock, seed=len(queue) + len(self.name))
            self.authority = Authority.ensure(self.directory / "pki", self.clock(), self.faults)
            self.authority.ensure_server(NAMES, self.clock())
            me = new_id("ctl")
            self.loop = Loop(self.store, self.clock, Faults(), worker=me)
            self.sessions = Sessions()
            listener = socket.create_server(("127.0.0.1", self.number))
            self.number = listener.getsockname()[1]
            own = Controller(id=me, url=self.url, version="test", since=self.clock(), alive=True)
            crew = Crew(self.store, own, self.sessions, lambda: self.loop.busy)
            self.hosts = Hosts(
                self.store, self.authority, self.sessions, images=self.directory, version="test", clock=self.clock,
                changed=self.loop.host_changed, poke=self.loop.poke, links=crew if self.store.shared else ALONE,
            )  # fmt: skip
            if self.store.shared:
                await crew.enter()
            self.successor = Successor(
                self.store, self.authority, self.sessions, me=me, clock=self.clock, ask=asks(self.authority)
            )
            await self.successor.begin()
            self.loop.start(queue)
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            running = [tasks.create_task(self.loop.run()), tasks.create_task(self.hosts.run())]
            if self.store.shared:
                running.append(tasks.create_task(crew.run()))
            link = LinkServer(
                self.hosts, self.sessions, lambda: self.authority.shown_pem, self.clock,
                next_authority=lambda: next_authority(self.authority),
            ).app()  # fmt: skip
            await stack.enter_async_context(serve(link, self.authority.server_context(), sock=listener))
            try:
                yield self
            finally:
                for task in running:
                    task.cancel()

    async def joined(self, name: str) -> Identity:
        """Make a host, and have a machine join as it."""
        done = await self.store.admit(self.desk.admit_create("host", "", name))
        return await self._join(name, done)

    async def joined_anew(self, name: str) -> Identity:
        """Have the machine join with a new token, which shuts out the one that it had."""
        row = self.store.seen.named("host", "", name)
        assert row is not None
        return await self._join(name, await self.store.admit(admission.reissue(self.desk.context, row)))

    async def _join(self, name: str, done: admission.Admission) -> Identity:
        assert done.revealed is not None
        token = self.hosts.join_text(done.revealed.reveal())
        return await join.join(self.url, token, self.directory / f"{name}.pem", force=True)

    async def want(self, host: HostId, number: int) -> Id:
        """Have a host want a disk."""
        disk = Id(f"vol-{number:012d}")
        await self.desk.write(PutDocument(host=host, owner=disk, doc=VolumeDoc(id=disk, size_gib=1, image=None)))
        return disk

    def connected(self, identity: Identity) -> bool:
        return self.sessions.get(identity.host) is not None and self.store.seen.host(identity.host).connected

    async def settled(self, host: HostId) -> None:
        """Wait until a host has said of all its documents that they are done."""
        seen = self.store.seen
        await eventually(
            lambda: all(
                (report := seen.report(host, one.key)) is not None and report.done for one in seen.documents(host)
            )
        )

    async def events(self, action: str, host: HostId | None = None) -> list[Event]:
        return list(await self.store.events(0, 10_000, EventQuery(action=action, resource=host)))

    async def until_event(self, action: str, host: HostId, text: str) -> Event:
        """Wait for an event on a host whose message has this text."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for event in await self.events(action, host):
                    if text in event.message:
                        return event
                await asyncio.sleep(0.02)

    @asynccontextmanager
    async def agent(self, identity: Identity, shelf: Shelf | None = None) -> AsyncIterator[Agent]:
        """Run a real agent over a shelf of disks."""
        memory = await open_memory(self.directory / f"{identity.host}.db")
        agent = Agent(identity, memory, shelf or Shelf())
        try:
            async with agent.up():
                yield agent
        finally:
            await memory.close()

    @asynccontextmanager
    async def raw(self, identity: Identity) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """Dial without an agent behind it."""
        connector = aiohttp.TCPConnector(ssl=identity.context())
        limit = aiohttp.ClientWSTimeout(ws_close=0.2)
        async with (
            aiohttp.ClientSession(connector=connector) as http,
            http.ws_connect(f"{self.url}/link", compress=0, max_msg_size=0, timeout=limit) as ws,
        ):
            yield ws

    @asynccontextmanager
    async def liar(
        self, identity: Identity, said: Hello | None = None
    ) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """Dial, be welcomed, and then say whatever comes to mind."""
        async with self.raw(identity) as ws:
            await ws.send_bytes(to_pack(said or hello(identity.host)))
            assert isinstance(await next_down(ws), Welcome)
            yield ws


async def next_down(ws: aiohttp.ClientWebSocketResponse) -> Down:
    return msgspec.msgpack.decode(await ws.receive_bytes(timeout=5), type=Down)
