"""Metrics from an agent's frame until they can be asked for, and what they take on disk, beside plain floors.

One process on one core: each frame is decoded, held against what is placed on its host, checked, turned into codes and
put where a question finds it, as the controller does it. Questions are asked in between.
"""

import asyncio
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from common.codec import to_pack
from common.ids import HostId, Id, new_id
from common.protocol import GuestMetrics, HostMetrics, Metrics, Up
from controller.fleet.figures import EVERY_S
from controller.metrics.catalogue import WIDTH
from controller.metrics.history import History, Question
from controller.metrics.intake import SLOT_S, WINDOW_S
from controller.metrics.shelf import Keep
from lab.layout import ROOT
from tests.bench.figures import Figure

HOSTS, GUESTS = 40, 25
WINDOWS = 13
"""One hour, and what is written behind its end."""

START = 1_800_000_000 // 86400 * 86400
BUDGET_PER_S = 1_000_000.0
BUDGET_BYTES = 1.0
_up = msgspec.msgpack.Decoder(Up)
_KEEP = Keep(raw_s=1e9, minute_s=1e9, hour_s=1e9, most_bytes=1 << 40)


class Clock:
    """Seconds that the run sets."""

    now = float(START)

    def __call__(self) -> float:
        return self.now


class Guest:
    """A machine that uses something: most idle, some serve, a few are busy all the time."""

    def __init__(self, chance: np.random.Generator) -> None:
        self.id = new_id("vm")
        self.sort = str(chance.choice(["idle", "serving", "busy"], p=[0.6, 0.3, 0.1]))
        self._level = float(chance.uniform(0.1, 0.6))
        self._memory = {"idle": 210.0, "serving": 2000.0, "busy": 6000.0}[self.sort]
        self._counters = np.zeros(5)
        """cpu_ns, read, written, received, sent."""

    def step(self, chance: np.random.Generator) -> GuestMetrics:
        """Return what it used until SLOT_S later."""
        match self.sort:
            case "idle":
                cpu, io = abs(chance.normal(0.008, 0.003)), [0, 4096 * chance.integers(1, 20) * (chance.random() < 0.1)]
                packets = chance.integers(0, 8) * (chance.random() < 0.5)
                net = [60 * packets, 42 * packets]
            case "serving":
                self._level = min(2.0, max(0.05, self._level + chance.normal(0, 0.01)))
                cpu = max(0.0, self._level + chance.normal(0, 0.015))
                io = [4096 * chance.integers(1, 200) * (chance.random() < 0.05), 4096 * chance.integers(0, 30)]
                rate = 900_000 * self._level * SLOT_S * max(0.0, chance.normal(1, 0.15))
                net = [rate, 8 * rate * max(0.0, chance.normal(1, 0.05))]
                self._memory += chance.random() < 0.1
            case _:
                cpu, io = min(2.0, chance.normal(1.9, 0.06)), list(SLOT_S * np.abs(chance.normal([2e7, 1e7], 5e6)))
                net = list(SLOT_S * np.abs(chance.normal([3e6, 2e6], 8e5)))
                self._memory += chance.normal(0, 5)
        self._counters += [cpu * SLOT_S * 1e9, *io, *net]
        cpu_ns, read, written, received, sent = (int(count) for count in self._counters)
        return GuestMetrics(self.id, cpu_ns, max(0, int(self._memory)), read, written, received, sent)


def frames(chance: np.random.Generator) -> tuple[list[Id], list[tuple[float, HostId, bytes]]]:
    """Return the machines, and an hour of frames in the order in which they come."""
    hosts = {HostId(new_id("host")): [Guest(chance) for _ in range(GUESTS)] for _ in range(HOSTS)}
    found = []
    for number in range(WINDOWS * WINDOW_S // SLOT_S):
        for place, (host, guests) in enumerate(hosts.items()):
            at = START + SLOT_S * number + place * SLOT_S / HOSTS + abs(chance.normal(0, 0.02))
            own = HostMetrics(
                float(chance.uniform(5, 60)), 40_000 + number % 9, 812.25, float(chance.uniform(0.5, 4)),
                number * 5_000_000, number * 4_000_000, 71.5, GUESTS,
            )  # fmt: skip
            told = Metrics(at=at, host=own, guests=tuple(guest.step(chance) for guest in guests))
            found.append((at, host, to_pack(told)))
    return [guest.id for guests in hosts.values() for guest in guests], found


def measure() -> Iterator[Figure]:
    """Take in an hour of a thousand machines; give the figures."""
    folder = ROOT / "build" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="skerry-metrics-", dir=folder))
    try:
        yield from asyncio.run(_measure(directory))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def _measure(directory: Path) -> list[Figure]:
    machines, told = frames(np.random.default_rng(7))
    samples = HOSTS * (WIDTH["host"] + GUESTS * WIDTH["vm"])
    each = samples / HOSTS
    clock = Clock()
    history = History(directory, _KEEP, clock)
    await history.open()
    taking, keeping = await _take_all(history, clock, told)
    raw = [path.stat().st_size for path in (directory / "raw").iterdir()]
    points = WINDOW_S // SLOT_S
    asking = await _ask(history, machines)
    await history.close()
    total = len(told) * each
    return [
        Figure(
            name="metrics, agent → queryable, on one core", figure=total / taking, unit="samples/s",
            budget=BUDGET_PER_S, beside="decoding the frames alone", beside_figure=total / _decoding(told),
        ),
        Figure(
            name="  the same with writing and thinning", figure=total / (taking + keeping), unit="samples/s",
            budget=BUDGET_PER_S, beside="64-bit counters appended, deflated", beside_figure=_floor(told, total)[0],
        ),
        Figure(
            name="  on disk, index included", figure=sum(raw) / (len(raw) * points * samples), unit="bytes/sample",
            budget=BUDGET_BYTES, beside="64-bit counters, deflated", beside_figure=_floor(told, total)[1],
        ),
        Figure(name="  an hour of one machine, 60 s a step, p50 of 200", figure=asking, unit="ms"),
    ]  # fmt: skip


async def _take_all(history: History, clock: Clock, told: list[tuple[float, HostId, bytes]]) -> tuple[float, float]:
    """Return the CPU seconds that taking took, and those of what is done every few seconds beside it."""
    taking = keeping = 0.0
    ticked = 0.0
    placed: dict[HostId, list[Id]] = {}
    waiting: dict[HostId, Metrics] = {}
    for at, host, frame in told:
        began = time.process_time()
        if waiting and at >= clock.now + EVERY_S:
            if any(one.refused for one in history.take(waiting).values()):
                raise RuntimeError("figures were refused")
            waiting.clear()
        clock.now = at if not waiting else clock.now
        message = _up.decode(frame)
        assert isinstance(message, Metrics)
        if host not in placed:
            placed[host] = [Id(str(guest.vm)) for guest in message.guests]
        own = {one for one in placed[host] if one.startswith("vm-")}
        if not all(guest.vm in own for guest in message.guests):
            raise RuntimeError("a frame of another host")
        waiting[host] = message
        taking += time.process_time() - began
        if at >= ticked + 30:
            ticked, began = at, time.process_time()
            await history.tick()
            keeping += time.process_time() - began
    return taking, keeping


def _decoding(told: list[tuple[float, HostId, bytes]]) -> float:
    began = time.process_time()
    for _, _, frame in told:
        _up.decode(frame)
    return time.process_time() - began


def _floor(told: list[tuple[float, HostId, bytes]], samples: float) -> tuple[float, float]:
    """Return samples a second and bytes a sample of the plainest way: decode, append, deflate each window."""
    kept: dict[HostId, list[list[float]]] = {}
    began, size = time.process_time(), 0
    for number, (_, host, frame) in enumerate(told):
        message = _up.decode(frame)
        assert isinstance(message, Metrics)
        row = list(msgspec.structs.astuple(message.host))
        for guest in message.guests:
            row += msgspec.structs.astuple(guest)[1:]
        kept.setdefault(host, []).append(row)
        if (number + 1) % (HOSTS * WINDOW_S // SLOT_S) == 0:
            size += sum(len(zlib.compress(np.array(rows).T.tobytes(), 6)) for rows in kept.values())
            kept.clear()
    return samples / (time.process_time() - began), size / samples


async def _ask(history: History, machines: list[Id]) -> float:
    """Return the median time of questions over memory and disk."""
    took = []
    for thing in machines[:200]:
        began = time.perf_counter()
        await history.query(Question(thing=thing, metrics=("cpu",), start=START, step=60, count=65, how="avg"))
        took.append((time.perf_counter() - began) * 1000)
    return sorted(took)[len(took) // 2]
