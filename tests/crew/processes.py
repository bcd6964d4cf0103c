"""Real controller processes on one PostgreSQL, and real agents' links to them over TLS, of simulated machines."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from agent import join
from agent.dial import Dialer
from agent.link import Host, Link
from agent.loop import Loop
from agent.memory import open_memory
from agent.outbox import Outbox
from common.clock import system_clock
from common.faults import Faults
from common.ids import Id
from common.protocol import Found, HostMetrics, Inventory, Metrics
from sim.machine import Machine
from sim.units import kinds

TOP = Path(__file__).parents[2]


def free_port() -> int:
    """Return a port that nobody listens on just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Process:
    """One controller: its directory, its configuration, and its process while it runs."""

    def __init__(self, directory: Path, database: str) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.api = f"http://127.0.0.1:{free_port()}"
        self.link = f"https://127.0.0.1:{free_port()}"
        self._config = directory / "controller.toml"
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir()
        self._config.write_text(
            f'[controller]\nstate_dir = "{self.state}"\ndatabase = "{database}"\n'
            f'[api]\nlisten = "{self.api.removeprefix("http://")}"\n'
            f'[link]\nlisten = "{self.link.removeprefix("https://")}"\nnames = ["127.0.0.1"]\n'
        )

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the controller's."""
        return subprocess.run(
            self._line(*words), capture_output=True, text=True, timeout=60, env=self._env, check=False
        )

    def init(self, of: "Process | None" = None) -> None:
        """Make the state; with another one's authority."""
        if of is not None:
            pki = self.state / "pki"
            pki.mkdir(parents=True, mode=0o700)
            for name in ("ca.key", "ca.pem"):
                shutil.copy(of.state / "pki" / name, pki / name)
        done = self.command("init")
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start it."""
        with (self.directory / "log").open("ab") as out:
            self._process = subprocess.Popen(self._line("run"), stdout=out, stderr=out, env=self._env)

    async def ready(self, limit_s: float = 30.0) -> None:
        """Wait until it serves."""
        end = time.monotonic() + limit_s
        async with aiohttp.ClientSession() as http:
            while True:
                assert self._process is not None
                assert self._process.poll() is None, self.log()
                with suppress(aiohttp.ClientError, OSError):
                    async with http.get(f"{self.api}/readyz") as answer:
                        if answer.status == 200:
                            return
                assert time.monotonic() < end, self.log()
                await asyncio.sleep(0.05)

    async def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        await asyncio.to_thread(self._process.wait)

    async def stop(self) -> int:
        """Stop it in order; return what it ended with."""
        assert self._process is not None
        self._process.terminate()
        return await asyncio.to_thread(self._process.wait, 20)

    def log(self) -> str:
        """Return what it logged."""
        return (self.directory / "log").read_text()[-4000:]

    def end(self) -> None:
        """Leave no process."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _line(self, *words: str) -> list[str]:
        return [sys.executable, "-P", "-m", "controller.main", "--config", str(self._config), *words]

    @property
    def _env(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "PYTHONPATH": str(TOP)}


class Client:
    """A caller of the API, at any controller."""

    def __init__(self, http: aiohttp.ClientSession, token: str) -> None:
        self._http = http
        self._headers = {"Authorization": f"Bearer {token}"}

    async def call(
        self, at: Process, method: str, path: str, body: object = None, *, data: bytes | None = None
    ) -> tuple[int, Any]:
        """Ask; return status and body (JSON where it is, else text)."""
        headers = dict(self._headers)
        if body is not None:
            data, headers["Content-Type"] = msgspec.json.encode(body), "application/json"
        elif data is not None:
            headers["Content-Type"] = "application/octet-stream"
        async with self._http.request(method, at.api + path, data=data, headers=headers) as answer:
            raw = await answer.read()
            return answer.status, msgspec.json.decode(raw) if "json" in answer.content_type else raw.decode()

    async def make(self, at: Process, path: str, name: str, **spec: Any) -> Any:
        """Make something."""
        status, body = await self.call(at, "POST", path, {"name": name, "spec": spec})
        assert status == 202, body
        return body

    async def until(
        self, at: Process, path: str, there: Callable[[int, Any], object], *, limit_s: float = 20.0
    ) -> tuple[int, Any]:
        """Ask until the answer is as wished."""
        end = time.monotonic() + limit_s
        while True:
            status, body = await self.call(at, "GET", path)
            if there(status, body):
                return status, body
            assert time.monotonic() < end, (status, body)
            await asyncio.sleep(0.02)

    async def console(self, at: Process, path: str) -> aiohttp.ClientWebSocketResponse:
        """Open a console."""
        return await self._http.ws_connect(at.api + path, headers=self._headers)


class Echo:
    """A guest's console, which repeats what is typed; and what else a host is asked for."""

    def __init__(self) -> None:
        self._typed: asyncio.Queue[bytes] = asyncio.Queue()

    @asynccontextmanager
    async def attach(self, _vm: Id) -> AsyncIterator["Echo"]:
        """Attach to it."""
        yield self

    async def read(self) -> bytes:
        """Return what was typed."""
        return await self._typed.get()

    async def write(self, data: bytes) -> None:
        """Type."""
        self._typed.put_nowait(data)

    async def read_log(self, vm: Id, tail_bytes: int) -> bytes:
        """Return a log."""
        return f"{vm} booted".encode()[-tail_bytes:]

    async def survey(self) -> tuple[Found, ...]:
        """Find nothing."""
        return ()


@asynccontextmanager
async def agent(machine: Machine, identity: join.Identity) -> AsyncIterator[Dialer]:
    """Have an agent of a simulated machine dial, until the block is left."""
    memory = await open_memory(machine.memory_file)
    outbox, faults = Outbox(), Faults()
    units = kinds(
        machine,
        host=identity.host,
        faults=faults,
        clock=system_clock,
        fetch=lambda _digest: True,
        items=lambda: memory.items,
        announce=outbox.event,
    )
    loop = Loop(memory=memory, kinds=units, sink=outbox.report, faults=faults)
    machine.guests.ended = lambda vm: loop.poke(f"domain/{vm}")  # type: ignore[arg-type]

    async def inventory() -> Inventory:
        return machine.inventory()

    async def metrics() -> Metrics:
        return Metrics(at=system_clock(), host=HostMetrics(1.0, 1, 1.0, 1.0, 1, 1, 1.0, 0), guests=())

    async def tick() -> None:
        while True:
            machine.tick()
            await asyncio.sleep(0.05)

    host = Host(version="test", inventory=inventory, metrics=metrics, orders=Echo())
    async with Dialer(identity) as dialer:
        link = Link(dialer=dialer, memory=memory, loop=loop, outbox=outbox, host=host)
        tasks = [asyncio.ensure_future(work) for work in (loop.run(), link.run(), tick())]
        try:
            yield dialer
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await memory.close()


def named(items: list[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """Return one of a list by its name."""
    return next(item for item in items if item["name"] == name)
