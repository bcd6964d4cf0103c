"""Keeps a host's or the controller's daemons running, as a service manager would: `python -P -m lab.keeper FILE`.

Each part is started in order, the next when the one before is ready, and again when it dies. A file
`<control>/<part>.hold` stops a part and keeps it stopped; `<control>/<part>.pid` says its process number.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

import msgspec

_LOOK_EVERY_S = 0.1
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
_SETTLED_S = 1.0
_GRACE_S = 10.0


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A daemon to keep: how it is started, where it writes, and the path whose existence says that it serves."""

    name: str
    argv: tuple[str, ...]
    log: str
    ready: str = ""
    environment: dict[str, str] = {}


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """What one keeper keeps."""

    control: str
    parts: tuple[Part, ...]


class Kept:
    """One part and its process, if it runs now."""

    def __init__(self, part: Part, control: Path) -> None:
        self.part = part
        self.hold = control / f"{part.name}.hold"
        self.pid = control / f"{part.name}.pid"
        self.process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0
        self.pause_s = _FIRST_PAUSE_S
        self.due_at = 0.0

    def tend(self, now: float, may_start: bool) -> None:
        """Bring the part to what is wished: held or running. Returns at once, unless it has to be stopped."""
        if self.process is not None and (code := self.process.poll()) is not None:
            self._ended(code, now)
        if self.hold.exists():
            self.stop()
        elif self.process is None and may_start and now >= self.due_at:
            self._start(now)

    def serves(self) -> bool:
        """Tell whether the next part may start. A held part holds nobody up."""
        return self.hold.exists() or not self.part.ready or Path(self.part.ready).exists()

    def stop(self) -> None:
        """Ask the part to end, and end it when it doesn't."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            say(f"{self.part.name} did not end {_GRACE_S:.0f} s after SIGTERM, killing it")
            self.process.kill()
            self.process.wait()
        say(f"{self.part.name} stopped")
        self.process, self.due_at, self.pause_s = None, 0.0, _FIRST_PAUSE_S
        self.pid.unlink(missing_ok=True)

    def _start(self, now: float) -> None:
        with Path(self.part.log).open("ab") as log:
            self.process = subprocess.Popen(
                self.part.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.part.environment},
                start_new_session=True,
            )
        self.started_at = now
        part = self.pid.with_suffix(".part")
        part.write_text(f"{self.process.pid}\n")
        part.rename(self.pid)
        say(f"{self.part.name} started as process {self.process.pid}")

    def _ended(self, code: int, now: float) -> None:
        """Plan the next start: soon, but ever less soon for a part that dies young."""
        settled = now - self.started_at > _SETTLED_S
        self.pause_s = _FIRST_PAUSE_S if settled else min(self.pause_s * 2, _LONGEST_PAUSE_S)
        self.process, self.due_at = None, now + self.pause_s
        self.pid.unlink(missing_ok=True)
        say(f"{self.part.name} ended with {code}, starting it again in {self.pause_s:.1f} s")


def say(text: str) -> None:
    """Write a line to the keeper's own log."""
    print(f"{time.strftime('%H:%M:%S')} keeper: {text}", flush=True)


class _Stop:
    """Whether SIGTERM has come."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        self.asked = True


def keep(orders: Orders, stop: _Stop) -> None:
    """Tend all parts until asked to stop, then stop them, the last first."""
    control = Path(orders.control)
    control.mkdir(parents=True, exist_ok=True)
    parts = [Kept(part, control) for part in orders.parts]
    while not stop.asked:
        ready = True
        for kept in parts:
            kept.tend(time.monotonic(), ready)
            ready = ready and kept.serves()
        time.sleep(_LOOK_EVERY_S)
    for kept in reversed(parts):
        kept.stop()


def main() -> None:
    """Read the orders and follow them."""
    stop = _Stop()
    signal.signal(signal.SIGTERM, stop)
    keep(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Orders), stop)


if __name__ == "__main__":
    main()
