"""The HTTP face of a real controller process with many machines in its books: reads, a whole list, durable changes.

The controller has one core to itself, this process, which asks, another.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec

from lab.commands import run
from lab.layout import ROOT
from lab.machine import free_port
from tests.bench.books import PROJECT, fill, opened, together
from tests.bench.figures import Figure, percentile
from tests.bench.lister import Listed

VMS = 25_000
READS, READERS = 6_000, 16
WRITE_RATE, WRITE_S = 500, 8
BUDGET_GET_PER_S, BUDGET_GET_P99_MS = 3_000.0, 10.0
BUDGET_LIST_S = 0.5
BUDGET_WRITE_P99_MS = 50.0
ENOUGH_PER_S = 0.95 * WRITE_RATE
_READY_S = 120.0
_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBenchBenchBenchBenchBenchBenchBenchBenchBenc bench"


async def measure(vms: int = VMS) -> list[Figure]:
    """Fill a store, start a controller on it, ask it; return the figures."""
    folder = ROOT / "build" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    state = Path(tempfile.mkdtemp(prefix="skerry-face-", dir=folder))
    try:
        config, address = _configure(state)
        run([*_line(config), "init"], timeout_s=60)
        began = time.perf_counter()
        async with opened(state / "skerry.db") as store:
            await fill(store, vms)
        filling = time.perf_counter() - began
        token = run([*_line(config), "token", "--name", "bench"], timeout_s=120).strip()
        async with _controller(config, address, token, state) as http:
            figures = [
                *await _reads(http, vms),
                *_list(address, token, vms),
                *await _writes(http),
            ]
        return [
            Figure(name="mutations admitted in process, 64 at once", figure=vms / filling, unit="/s"),
            *figures,
        ]
    finally:
        shutil.rmtree(state, ignore_errors=True)


async def _reads(http: aiohttp.ClientSession, vms: int) -> list[Figure]:
    took: list[float] = []

    async def one(name: str) -> None:
        took.append(await _timed(lambda: _get(http, f"/v1/projects/{PROJECT}/vms/{name}")))

    names = [f"vm-{number * 7919 % vms:06d}" for number in range(READS)]
    began = time.perf_counter()
    await together(names, one, READERS)
    rate = READS / (time.perf_counter() - began)
    what = f"GET one of {vms:,} VMs, {READERS} connections"
    return [
        Figure(name=what, figure=rate, unit="/s", budget=BUDGET_GET_PER_S),
        Figure(
            name=f"  one of them, p99 at {rate:,.0f}/s", figure=percentile(took, 0.99), unit="ms",
            budget=BUDGET_GET_P99_MS, beside="p50", beside_figure=percentile(took, 0.5),
        ),
    ]  # fmt: skip


def _list(address: str, token: str, vms: int) -> list[Figure]:
    """Have a program of its own read the whole list, on the core that this process has."""
    words = [sys.executable, "-P", "-m", "tests.bench.lister", address, f"/v1/projects/{PROJECT}/vms"]
    found = msgspec.json.decode(run(words, timeout_s=120, folder=ROOT, env={"SKERRY_TOKEN": token}), type=Listed)
    if found.things != vms:
        raise RuntimeError(f"the list has {found.things} VMs of {vms}")
    return [
        Figure(
            name=f"list all {vms:,} VMs, 1,000 a page, each decoded", figure=found.decoded, unit="s",
            budget=BUDGET_LIST_S, beside="OpenNebula, as its users report", beside_figure=1.3,
        ),
        Figure(name=f"  the same, its {found.mib:.0f} MiB read only", figure=found.read, unit="s"),
    ]  # fmt: skip


async def _writes(http: aiohttp.ClientSession) -> list[Figure]:
    """Create keypairs at a steady rate, whether or not the answers keep up."""
    took: list[float] = []

    async def one(number: int) -> None:
        body = {"name": f"key-{number}", "spec": {"public_key": _KEY}}
        took.append(await _timed(lambda: _post(http, f"/v1/projects/{PROJECT}/keypairs", body)))

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(WRITE_RATE * WRITE_S):
            group.create_task(one(number))
            await asyncio.sleep(max(0.0, began + number / WRITE_RATE - time.perf_counter()))
    rate = len(took) / (time.perf_counter() - began)
    return [
        Figure(name=f"durable, audited creates, {WRITE_RATE}/s asked", figure=rate, unit="/s", budget=ENOUGH_PER_S),
        Figure(
            name="  one of them, p99", figure=percentile(took, 0.99), unit="ms", budget=BUDGET_WRITE_P99_MS,
            beside="p50", beside_figure=percentile(took, 0.5),
        ),
    ]  # fmt: skip


async def _get(http: aiohttp.ClientSession, path: str) -> None:
    async with http.get(path) as answer:
        await answer.read()
        answer.raise_for_status()


async def _post(http: aiohttp.ClientSession, path: str, body: object) -> None:
    async with http.post(path, json=body) as answer:
        await answer.read()
        answer.raise_for_status()


async def _timed(work: Callable[[], Awaitable[None]]) -> float:
    """Return how many milliseconds something took."""
    began = time.perf_counter()
    await work()
    return (time.perf_counter() - began) * 1000


# --- the controller -----------------------------------------------------------------------------------------------


def _configure(state: Path) -> tuple[Path, str]:
    """Write a configuration; return its path and where the API will listen."""
    config, api, link = state / "controller.toml", f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    config.write_text(
        f'[controller]\nstate_dir = "{state}"\ndatabase = "sqlite:///{state}/skerry.db"\n\n'
        f'[api]\nlisten = "{api}"\nrate_per_s = 0\n\n'
        f'[link]\nlisten = "{link}"\nurl = "https://{link}"\nnames = ["127.0.0.1"]\n\n[log]\nlevel = "warning"\n'
    )
    return config, api


def _line(config: Path) -> list[str]:
    return [sys.executable, "-P", "-m", "controller.main", "--config", str(config)]


@asynccontextmanager
async def _controller(config: Path, address: str, token: str, state: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """Run the controller on one core, and this process on the others; give a session with an operator's token."""
    cores = sorted(os.sched_getaffinity(0))
    process = _start(["taskset", "-c", str(cores[0]), *_line(config), "run"], state / "controller.log")
    os.sched_setaffinity(0, cores[1:] or cores)
    try:
        async with aiohttp.ClientSession(
            f"http://{address}", headers={"Authorization": f"Bearer {token}"}, connector=aiohttp.TCPConnector(limit=256)
        ) as http:
            await _ready(http, process)
            yield http
    finally:
        os.sched_setaffinity(0, cores)
        process.terminate()
        process.wait(30)


def _start(words: list[str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("wb") as file:
        return subprocess.Popen(words, stderr=file, stdout=file)


async def _ready(http: aiohttp.ClientSession, process: "subprocess.Popen[bytes]") -> None:
    async with asyncio.timeout(_READY_S):
        while process.poll() is None:
            try:
                await _get(http, "/readyz")
            except aiohttp.ClientError:
                await asyncio.sleep(0.1)
                continue
            return
    raise RuntimeError(f"the controller ended with {process.returncode} before it was ready")
