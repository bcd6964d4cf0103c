"""A link on loopback for tests: a real authority, TLS port and agent's end, between a fleet and a host that behave."""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from agent import join
from agent.dial import Dialer
from agent.join import Identity
from agent.kinds.unit import Do, Settled, Wish
from agent.link import Host, Link
from agent.loop import Loop
from agent.memory import Memory, open_memory
from agent.outbox import Outbox
from common import tls
from common.documents import Desired, DocKey, Report, VolumeDoc, key_of
from common.errors import Conflict, Denied, NotFound
from common.ids import HostId, Id, Revision, new_id
from common.joining import Enrolled, JoinToken, Vouched, VouchRequest
from common.protocol import (
    Found,
    Hello,
    HostMetrics,
    Inventory,
    Metrics,
    Refused,
    Reports,
    Welcome,
    digest,
    reports_digest,
)
from common.secret import digest_of, new_token
from common.tls import Peer
from controller.fleet.link import LinkServer, serve
from controller.fleet.sessions import Session, Sessions, Told
from controller.pki.authority import Authority
from tests.patience import PATIENCE_S

NAMES = ["127.0.0.1", "localhost"]


def volume(number: int, revision: int, *, gone: bool = False) -> Desired:
    doc = VolumeDoc(id=Id(f"vol-{number:012d}"), size_gib=1, image=None)
    return Desired(key=key_of(doc), revision=Revision(revision), doc=doc, gone=gone)


async def eventually(true: Callable[[], object], *, limit_s: float = PATIENCE_S) -> None:
    """Wait until something holds that tells nobody when it does."""
    async with asyncio.timeout(limit_s):
        while not true():  # noqa: ASYNC110 - there is nothing to wait on
            await asyncio.sleep(0.01)


class Books:
    """A fleet with a memory: tokens that work once, documents per host, reports as they came."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.sessions = Sessions()
        self.tokens: dict[str, tuple[HostId, float]] = {}
        self.revoked: set[HostId] = set()
        self.desired: dict[DocKey, Desired] = {}
        self.reports: dict[DocKey, Report] = {}
        self.heard: list[Told] = []
        self.story: list[str] = []
        self.images: dict[str, Path] = {}
        self.resyncs = 0
        self.full_reports = 0
        self.pace: asyncio.Event | None = None
        self.moved = asyncio.Event()

    def token(self, host: HostId, *, lives_s: float = 60.0) -> str:
        secret = new_token("skj")
        self.tokens[digest_of(secret.reveal())] = (host, time.time() + lives_s)
        return JoinToken(secret=secret, fingerprint=self.authority.fingerprint()).text().reveal()

    def note(self, line: str) -> None:
        self.story.append(line)
        self.moved.set()

    async def until(self, true: Callable[[], object], *, limit_s: float = PATIENCE_S) -> None:
        """Wait until something holds that changes with what is noted."""
        async with asyncio.timeout(limit_s):
            while not true():
                self.moved.clear()
                await self.moved.wait()

    # --- the Fleet protocol

    async def enrol(self, token: str, csr_pem: str) -> Enrolled:
        found = self.tokens.get(digest_of(token.split(".", maxsplit=1)[0]))
        if found is None:
            raise Denied("this join token is not known, or was used already", fix="skerry host token NAME")
        host, until = found
        if time.time() > until:
            raise Denied("this join token has expired", fix="skerry host token NAME")
        signed = self.authority.sign_host(csr_pem, host, time.time())
        del self.tokens[digest_of(token.split(".", maxsplit=1)[0])]
        return Enrolled(host_id=host, host_name="h1", certificate=signed.pem, ca=self.authority.ca_pem)

    async def renew(self, peer: Peer, csr_pem: str) -> Enrolled:
        signed = self.authority.sign_host(csr_pem, peer.host, time.time())
        return Enrolled(host_id=peer.host, host_name="h1", certificate=signed.pem, ca=self.authority.ca_pem)

    async def vouch(self, peer: Peer, request: VouchRequest) -> Vouched:
        return Vouched(certificates={})

    async def left(self, peer: Peer) -> None:
        if self.desired:
            raise Conflict(f"host h1 should have {', '.join(self.desired)}", fix="delete them")
        self.revoked.add(peer.host)

    def is_revoked(self, host: HostId, serial: str) -> bool:
        return host in self.revoked

    async def connected(self, session: Session, hello: Hello) -> Welcome | Refused:
        self.note("connected")
        known = digest((item.key, item.revision) for item in self.desired.values())
        if hello.desired_digest != known:
            self.resyncs += 1
            await session.send_documents(self.desired.values(), full=True)
        unsure = hello.observed_digest != reports_digest(self.reports.values())
        return Welcome(protocol=1, controller_version="test", host_name="h1", send_reports=unsure, metrics_every_s=0.05)

    async def received(self, session: Session, message: Told) -> None:
        if self.pace is not None:
            await self.pace.wait()
        if isinstance(message, Reports):
            self._take(message)
        self.heard.append(message)
        self.moved.set()

    def _take(self, message: Reports) -> None:
        if message.full:
            self.full_reports += 1
            self.reports.clear()
        for report in message.reports:
            item = self.desired.get(report.key)
            if item is None:
                continue
            self.reports[report.key] = msgspec.structs.replace(report, steps=())  # as the fleet keeps it
            if item.gone and report.done and report.revision == item.revision:
                del self.desired[report.key], self.reports[report.key]

    async def disconnected(self, session: Session, reason: str) -> None:
        self.note(f"disconnected: {reason}")

    async def lied(self, host: HostId, lie: str, detail: str) -> None:
        self.note(f"lied: {lie}: {detail}")

    async def turned_away(self, host: HostId, reason: str) -> None:
        self.note(f"turned away: {reason}")

    def may_fetch(self, host: HostId, digest: str) -> Path | None:
        return self.images.get(digest)

    # --- for tests

    def want(self, *items: Desired) -> None:
        for item in items:
            self.desired[item.key] = item

    def all_done(self) -> bool:
        return set(self.reports) == set(self.desired) and all(
            report.done and report.revision == self.desired[key].revision for key, report in self.reports.items()
        )


class Port:
    """The link's port: a socket that stays when the server behind it stops, so that it can be restarted in place."""

    def __init__(self, books: Books) -> None:
        self.books = books
        self.number = 0
        self.ca_pem = books.authority.ca_pem
        """The CA it shows."""
        self.clock_ahead_s = 0.0

    def clock(self) -> float:
        return time.time() + self.clock_ahead_s

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.number}"

    @asynccontextmanager
    async def up(self) -> AsyncIterator[None]:
        listener = socket.create_server(("127.0.0.1", self.number), reuse_port=False)
        self.number = listener.getsockname()[1]
        self.books.sessions = Sessions()
        server = LinkServer(self.books, self.books.sessions, lambda: self.ca_pem, self.clock)
        async with serve(server.app(), self.books.authority.server_context(), sock=listener):
            yield


class Shelf:
    """A kind of unit: volumes in a dict."""

    name = "volume"

    def __init__(self) -> None:
        self.world: dict[Id, int] = {}

    async def observe(self, wish: Wish) -> dict[Id, int]:
        return self.world

    def plan(self, wish: Wish, seen: dict[Id, int], now: float) -> Do[Desired] | Settled:
        (item,) = wish.items.values()
        assert isinstance(item.doc, VolumeDoc)
        if (item.doc.id in seen) == item.gone:
            return Do(item, "moving boxes")
        return Settled(reports=(Report(key=item.key, revision=item.revision, done=True),))

    async def apply(self, step: Desired) -> None:
        assert isinstance(step.doc, VolumeDoc)
        if step.gone:
            del self.world[step.doc.id]
        else:
            self.world[step.doc.id] = 1

    async def survey(self) -> tuple[Found, ...]:
        return ()


class EchoConsole:
    """A console that repeats what is typed, and writes `blurt` bytes by itself first."""

    def __init__(self, blurt: int) -> None:
        self.typed: asyncio.Queue[bytes] = asyncio.Queue()
        self.blurt = blurt
        self.given = 0
        self.left = False

    async def read(self) -> bytes:
        if self.given < self.blurt:
            size = min(10_000, self.blurt - self.given)
            self.given += size
            return b"x" * size
        return await self.typed.get()

    async def write(self, data: bytes) -> None:
        self.typed.put_nowait(b"" if data == b"exit" else data)


class Answers:
    """What the host can be asked."""

    def __init__(self) -> None:
        self.blurt = 0
        self.consoles: list[EchoConsole] = []

    @asynccontextmanager
    async def attach(self, vm: Id) -> AsyncIterator[EchoConsole]:
        if vm.endswith("z"):
            raise NotFound(f"{vm} is not running here")
        console = EchoConsole(self.blurt)
        self.consoles.append(console)
        try:
            yield console
        finally:
            console.left = True

    async def read_log(self, vm: Id, tail_bytes: int) -> bytes:
        if vm.endswith("z"):
            raise NotFound(f"{vm} is not known here")
        if vm.endswith("y"):
            raise ZeroDivisionError
        if vm.endswith("x"):
            await asyncio.sleep(3600)
        return b"booted"[-tail_bytes:]

    async def survey(self) -> tuple[Found, ...]:
        return (Found(what="disk", name="vol-1", owner=None),)


INVENTORY = Inventory(
    cpu_model="test", cpu_flags=(), cpu_threads=2, memory_mib=1024, disk_gib=10, nics=(), capabilities=(),
    virtualisation="tcg", kernel="6", boot_id="b", vtep="10.77.0.11", underlay_mtu=1500,
)  # fmt: skip


async def inventory() -> Inventory:
    return INVENTORY


async def metrics() -> Metrics:
    return Metrics(at=1.0, host=HostMetrics(1.0, 1, 1.0, 1.0, 1, 1, 1.0, 0), guests=())


class Agent:
    """A real memory, loop and link over a shelf."""

    def __init__(self, identity: Identity, memory: Memory, shelf: Shelf) -> None:
        self.identity = identity
        self.memory = memory
        self.shelf = shelf
        self.answers = Answers()
        self.outbox = Outbox()
        self.loop = Loop(memory=memory, kinds=[shelf], sink=self.outbox.report)

    @asynccontextmanager
    async def up(self) -> AsyncIterator[None]:
        host = Host(version="test", inventory=inventory, metrics=metrics, orders=self.answers)
        async with Dialer(self.identity) as dialer:
            link = Link(dialer=dialer, memory=self.memory, loop=self.loop, outbox=self.outbox, host=host)
            tasks = [asyncio.ensure_future(self.loop.run()), asyncio.ensure_future(link.run())]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


class Bench:
    """Everything together."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority.ensure(directory / "pki", time.time())
        self.authority.ensure_server(NAMES, time.time())
        self.books = Books(self.authority)
        self.port = Port(self.books)
        self.host = HostId(new_id("host"))

    async def joined(self, host: HostId | None = None) -> Identity:
        host = host or self.host
        return await join.join(self.port.url, self.books.token(host), self.directory / f"{host}.pem")

    @asynccontextmanager
    async def agent(self, identity: Identity, shelf: Shelf | None = None) -> AsyncIterator[Agent]:
        memory = await open_memory(self.directory / f"{identity.host}.db")
        agent = Agent(identity, memory, shelf or Shelf())
        try:
            async with agent.up():
                yield agent
        finally:
            await memory.close()

    @asynccontextmanager
    async def raw(self, identity: Identity) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """A websocket without an agent behind it."""
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=identity.context())) as http,
            http.ws_connect(
                f"{identity.url}/link", compress=0, max_msg_size=0, timeout=aiohttp.ClientWSTimeout(ws_close=0.2)
            ) as ws,
        ):
            yield ws

    def session(self) -> Session:
        found = self.books.sessions.get(self.host)
        assert found is not None
        return found


def hello(host: HostId, *, protocol: int = 1) -> Hello:
    return Hello(
        protocol=protocol, agent_version="test", host=host, inventory=INVENTORY,
        desired_digest=digest(()), observed_digest=reports_digest(()),
    )  # fmt: skip


def own_context(
    ca_pem: str, directory: Path, *, signed: tuple[x509.Certificate, ec.EllipticCurvePrivateKey]
) -> ssl.SSLContext:
    """A client context with any certificate."""
    certificate, key = signed
    path = directory / "own.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return tls.client_context(ca_pem=ca_pem, identity=path)
