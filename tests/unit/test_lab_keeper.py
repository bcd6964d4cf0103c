"""The keeper stands in for a service manager: it starts in order and anew what died, and leaves held what is held."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from lab.keeper import Kept, Orders, Part
from lab.processes import alive
from tests.patience import PATIENCE_S


def until(so: Callable[[], bool], limit_s: float = PATIENCE_S) -> bool:
    """Wait for something; tell whether it came true."""
    deadline = time.monotonic() + limit_s
    while not so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


class Keeper:
    """A keeper that runs, and what it says of its parts."""

    def __init__(self, folder: Path, parts: tuple[Part, ...]) -> None:
        self.control = folder / "control"
        self.control.mkdir()
        self.folder, self.parts = folder, parts

    def start(self) -> None:
        """Start it."""
        orders = self.folder / "orders.json"
        orders.write_bytes(msgspec.json.encode(Orders(control=str(self.control), parts=self.parts)))
        self.process = subprocess.Popen([sys.executable, "-P", "-m", "lab.keeper", str(orders)])

    def pid(self, part: str) -> int | None:
        """Return the process number it gives for a part."""
        try:
            return int((self.control / f"{part}.pid").read_text())
        except FileNotFoundError:
            return None

    def stop(self) -> None:
        """Stop it in order."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(15)


def part(folder: Path, name: str, script: str = "exec sleep 60", ready: str = "") -> Part:
    """Return a part that is a shell script."""
    return Part(name=name, argv=("sh", "-c", script), log=str(folder / f"{name}.log"), ready=ready)


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Callable[..., Keeper]]:
    """Give a function that makes a keeper of parts."""
    made: list[Keeper] = []

    def make(*parts: Part) -> Keeper:
        made.append(Keeper(tmp_path, parts))
        return made[-1]

    yield make
    for keeper in made:
        keeper.stop()


def test_a_part_that_is_killed_is_started_again(keep: Callable[..., Keeper], tmp_path: Path) -> None:
    keeper = keep(part(tmp_path, "one"))
    keeper.start()
    assert until(lambda: keeper.pid("one") is not None)
    first = keeper.pid("one")
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert until(lambda: keeper.pid("one") not in (None, first))


def test_a_held_part_is_stopped_and_started_when_the_hold_goes(keep: Callable[..., Keeper], tmp_path: Path) -> None:
    keeper = keep(part(tmp_path, "one"), part(tmp_path, "two"))
    hold = keeper.control / "one.hold"
    hold.touch()
    keeper.start()
    assert until(lambda: keeper.pid("two") is not None)
    assert keeper.pid("one") is None
    hold.unlink()
    assert until(lambda: keeper.pid("one") is not None)
    running = keeper.pid("one")
    assert running is not None
    hold.touch()
    assert until(lambda: keeper.pid("one") is None)
    assert not alive(running)


def test_a_part_waits_until_the_one_before_it_is_ready(keep: Callable[..., Keeper], tmp_path: Path) -> None:
    ready = tmp_path / "socket"
    keeper = keep(part(tmp_path, "one", ready=str(ready)), part(tmp_path, "two"))
    keeper.start()
    assert until(lambda: keeper.pid("one") is not None)
    time.sleep(0.3)
    assert keeper.pid("two") is None
    ready.touch()
    assert until(lambda: keeper.pid("two") is not None)


def test_stopping_the_keeper_stops_its_parts_the_last_first(keep: Callable[..., Keeper], tmp_path: Path) -> None:
    script = f"trap 'echo $0 >>{tmp_path}/ended; exit 0' TERM; while :; do sleep 0.05; done"
    keeper = keep(
        *(Part(name=name, argv=("sh", "-c", script, name), log=str(tmp_path / "log")) for name in ("one", "two"))
    )
    keeper.start()
    assert until(lambda: keeper.pid("two") is not None)
    time.sleep(0.2)  # the traps are set
    keeper.stop()
    assert (tmp_path / "ended").read_text().split() == ["two", "one"]


def test_a_part_that_dies_young_is_started_ever_less_soon(tmp_path: Path) -> None:
    kept = Kept(part(tmp_path, "one", "exit 1"), tmp_path)
    pauses = []
    now = 0.0
    for _ in range(8):
        kept.tend(now, may_start=True)
        assert kept.process is not None
        kept.process.wait()
        kept.tend(now + 0.5, may_start=False)
        pauses.append(kept.pause_s)
        now = kept.due_at
    assert pauses == sorted(pauses)
    assert pauses[0] < 0.5
    assert pauses[-1] == 2.0


def test_a_part_that_had_settled_is_started_again_at_once(tmp_path: Path) -> None:
    kept = Kept(part(tmp_path, "one", "exit 1"), tmp_path)
    kept.tend(0.0, may_start=True)
    assert kept.process is not None
    kept.process.wait()
    kept.tend(3600.0, may_start=False)
    assert kept.due_at == pytest.approx(3600.1)
