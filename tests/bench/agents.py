"""How many agents one controller core carries: real connections that say hello and send metrics, beside bare ones.

The ends that dial are as small as can be, so that this process can hold thousands; the controller is a process on a
core of its own. After it runs a bare aiohttp server, which takes the same frames from the same connections.
"""

import asyncio
import os
import random
import resource
import shutil
import ssl
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import msgspec
import psutil
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from common import tls
from common.clock import system_clock
from common.codec import to_pack
from common.ids import HostId
from common.kinds import kind_named
from common.protocol import PROTOCOL, Down, Hello, HostMetrics, Metrics, Reports, Welcome, digest, reports_digest
from controller.fleet.hosts import Hosts
from controller.fleet.sessions import Sessions
from controller.kinds import admission
from controller.kinds.admission import Context, NewResource
from controller.pki.authority import Authority
from controller.store.store import Store
from sim.controller import Process, free_port
from sim.machine import Machine
from tests.bench.books import OPERATOR, opened, together
from tests.bench.figures import Figure

AGENTS = 1_000
FIRST = 200
"""What is there once counts for none of them: all figures are of the difference that those after these make."""

EVERY_S = 5.0
WARM_S, MEASURED_S = 10.0, 20.0
BUDGET_KIB, BUDGET_AGENTS = 45.0, 15_000
SHARE = 0.4
"""Of a core, for so many agents."""

_down = msgspec.msgpack.Decoder(Down)


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """One agent's end: who it is, and how it shows it."""

    id: HostId
    identity: Path


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What agents cost their controller."""

    kib: float
    """Of memory, each."""
    cpu: float
    """Of a core, each."""
    cpu_once: float
    """Of a core, without any."""

    def agents_on(self, share: float) -> float:
        """Return how many there can be on a share of a core."""
        return (share - self.cpu_once) / self.cpu


async def measure(agents: int = AGENTS) -> list[Figure]:
    """Measure both; return the figures."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    state = Path(tempfile.mkdtemp(prefix="skerry-agents-"))
    cores = sorted(os.sched_getaffinity(0))
    try:
        process = Process(state / "controller", level="warning")
        process.init()
        authority = Authority.ensure(process.state / "pki", system_clock())
        async with opened(process.state / "skerry.db") as store:
            hosts = await _enrol(store, authority, agents, state)
        os.sched_setaffinity(0, cores[:1])
        process.start()
        os.sched_setaffinity(0, cores[1:] or cores)
        try:
            await process.ready(120)
            ours = await _load(process.pid, process.link.removeprefix("https://"), authority.ca_pem, hosts)
        finally:
            process.end()
        os.sched_setaffinity(0, cores[:1])
        async with _bare(state, authority) as (pid, address):
            os.sched_setaffinity(0, cores[1:] or cores)
            bare = await _load(pid, address, authority.ca_pem, hosts)
    finally:
        os.sched_setaffinity(0, cores)
        shutil.rmtree(state, ignore_errors=True)
    what = f"an agent of {agents:,}, metrics every {EVERY_S:g} s"
    return [
        Figure(
            name=f"{what}: memory of the controller", figure=ours.kib, unit="KiB", budget=BUDGET_KIB,
            beside="a bare aiohttp websocket", beside_figure=bare.kib,
        ),
        Figure(
            name=f"agents on {SHARE:.0%} of a core, by its CPU at {agents:,}", figure=ours.agents_on(SHARE),
            unit="at 1/s", budget=BUDGET_AGENTS, beside="bare websockets", beside_figure=bare.agents_on(SHARE),
        ),
    ]  # fmt: skip


async def _enrol(store: Store, authority: Authority, count: int, state: Path) -> list[Host]:
    """Make so many hosts, and their certificates. All have one key: making keys is not what is measured."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "skerry host")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    csr = request.public_bytes(serialization.Encoding.PEM).decode()
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    found: list[Host] = []
    fleet = Hosts(
        store, authority, Sessions(), images=state, version="bench", clock=system_clock, changed=lambda _: None,
        poke=lambda _: None,
    )  # fmt: skip

    async def one(name: str) -> None:
        context = Context(seen=store.seen, caller=OPERATOR, now=system_clock())
        made = await store.admit(admission.create(context, kind_named("host"), "", NewResource(name=name, spec={})))
        assert made.revealed is not None
        enrolled = await fleet.enrol(fleet.join_text(made.revealed.reveal()), csr)
        path = state / f"{enrolled.host_id}.pem"
        path.write_text(pem + enrolled.certificate)
        found.append(Host(id=enrolled.host_id, identity=path))

    await together((f"h{number:05d}" for number in range(count)), one, 64)
    return found


async def _load(pid: int, address: str, ca_pem: str, hosts: Sequence[Host]) -> Cost:
    """Connect some and then all, and let them talk; return what each of those that came later costs."""
    process = psutil.Process(pid)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    gate = asyncio.Semaphore(32)
    up = 0
    async with aiohttp.ClientSession(connector=connector) as http, AsyncExitStack() as stack:
        group = await stack.enter_async_context(asyncio.TaskGroup())

        async def one(number: int, host: Host) -> None:
            nonlocal up
            async with gate:
                context = tls.client_context(ca_pem=ca_pem, identity=host.identity)
                ws = await http.ws_connect(f"https://{address}/link", ssl=context, compress=0, heartbeat=EVERY_S)
                await ws.send_bytes(to_pack(_hello(number, host)))
                welcome = _down.decode(await ws.receive_bytes(timeout=60))
                assert isinstance(welcome, Welcome), welcome
                await ws.send_bytes(to_pack(Reports(number=1, reports=(), full=True)))
            up += 1
            group.create_task(_read(ws))
            await asyncio.sleep(EVERY_S * random.random())
            while True:
                await ws.send_bytes(_metrics())
                await asyncio.sleep(EVERY_S)

        async def cost_of(start: int, end: int) -> tuple[float, float]:
            """Connect the hosts from one to another; return the bytes and the share of a core that all take then."""
            tasks = [group.create_task(one(number, hosts[number])) for number in range(start, end)]
            while up < end:
                await asyncio.sleep(0.5)
                if any(task.done() for task in tasks):
                    break
            await asyncio.sleep(WARM_S)
            cpu, at = sum(process.cpu_times()[:2]), time.perf_counter()
            await asyncio.sleep(MEASURED_S)
            share = (sum(process.cpu_times()[:2]) - cpu) / (time.perf_counter() - at)
            return process.memory_info().rss, share

        first = min(FIRST, len(hosts) // 2)
        rss, share = await cost_of(0, first)
        rss_of_all, share_of_all = await cost_of(first, len(hosts))
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
    more = len(hosts) - first
    cpu = (share_of_all - share) / more
    return Cost(kib=(rss_of_all - rss) / 1024 / more, cpu=cpu, cpu_once=max(0.0, share - cpu * first))


async def _read(ws: aiohttp.ClientWebSocketResponse) -> None:
    with suppress(aiohttp.ClientError):
        async for _ in ws:
            pass
    raise RuntimeError("a connection broke: this machine is too busy for so many; measure fewer, or when it is quiet")


def _hello(number: int, host: Host) -> Hello:
    inventory = Machine(f"h{number}", number, Path(), system_clock).inventory()
    return Hello(
        protocol=PROTOCOL, agent_version="bench", host=host.id, inventory=inventory, desired_digest=digest(()),
        observed_digest=reports_digest(()),
    )  # fmt: skip


def _metrics() -> bytes:
    figures = HostMetrics(random.uniform(1, 90), 4096, 120.5, random.uniform(0, 8), 10**9, 10**8, 48.0, 25)
    return to_pack(Metrics(at=time.time(), host=figures, guests=()))


# --- the peer -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _bare(state: Path, authority: Authority) -> AsyncIterator[tuple[int, str]]:
    """Run a bare server on the same certificates; give its process id and address."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "tests.bench.agents", str(state / "controller" / "state" / "pki"), str(port)
    )
    try:
        async with asyncio.timeout(60):
            while not await _answers(port):  # noqa: ASYNC110 - another process tells nobody when it listens
                await asyncio.sleep(0.1)
        yield process.pid, f"127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def _answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def _serve(context: ssl.SSLContext, port: int) -> None:
    welcome = to_pack(
        Welcome(protocol=PROTOCOL, controller_version="bare", host_name="h", send_reports=True, metrics_every_s=EVERY_S)
    )

    async def link(request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse(heartbeat=EVERY_S, compress=False)
        await ws.prepare(request)
        await ws.receive()
        await ws.send_bytes(welcome)
        async for _ in ws:
            pass
        return ws

    app = web.Application()
    app.router.add_get("/link", link)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context, backlog=1024).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    import uvloop

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    uvloop.run(_serve(Authority.ensure(Path(sys.argv[1]), system_clock()).server_context(), int(sys.argv[2])))
