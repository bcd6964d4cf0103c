"""A lab's controller: its API in the machine's own network, its link on the underlay, kept running by a keeper."""

import os
import re
import signal
import socket
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import msgspec

from common.errors import Conflict, NotFound, Temporary
from lab.commands import run, start
from lab.keeper import Orders, Part
from lab.layout import CONTROLLER_ADDRESS, LAB_MARK, LINK_PORT, Layout
from lab.processes import alive, end, running

_FIRST_PORT, _LAST_PORT = 8080, 8180
_WAIT_S = 30.0


class Controller:
    """The controller of one lab, running or not. Its state is a folder."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.folder = layout.controller
        self.config = self.folder / "controller.toml"
        self.orders = self.folder / "keeper.json"
        self.control = self.folder / "control"

    @property
    def url(self) -> str:
        """Return the API's URL. Raises NotFound before the first start."""
        if not self.config.exists():
            raise NotFound(f"lab {self.layout.name!r} is not up", fix=f"make up NAME={self.layout.name}")
        return f"http://{tomllib.loads(self.config.read_text())['api']['listen']}"

    def keeper(self) -> int | None:
        """Return the process that keeps the controller running."""
        return next(iter(running(self._keeper_line())), None)

    def pid(self) -> int | None:
        """Return the controller's process number; None while it does not run."""
        note = self.control / "controller.pid"
        if self.keeper() is None or not note.exists():
            return None
        pid = int(note.read_text() or 0)
        return pid if alive(pid) else None

    def started_at(self) -> float:
        """Return when the controller that runs now was started, in seconds of the epoch; 0 while none runs."""
        try:
            return (self.control / "controller.pid").stat().st_mtime
        except FileNotFoundError:
            return 0

    def init(self) -> None:
        """Write the configuration and make the state, the CA and the database, unless they are there."""
        for folder in (self.folder, self.control, self.layout.logs):
            folder.mkdir(parents=True, exist_ok=True)
        if self.keeper() is None:
            self._configure()
        run([*self._line(), "init"], timeout_s=60, env={"HOME": str(self.folder)})

    def token(self) -> str:
        """Return a new operator's token, made in the store itself."""
        words = ["token", "--name", "root", "--project", "system", "--role", "admin"]
        return run([*self._line(), *words], timeout_s=60, env={"HOME": str(self.folder)}).strip()

    def start(self) -> None:
        """Start the keeper, unless it runs, and let it start the controller."""
        self._hold.unlink(missing_ok=True)
        if self.keeper() is not None:
            return
        (self.control / "controller.pid").unlink(missing_ok=True)
        self.orders.write_bytes(msgspec.json.encode(self._keeper_orders()))
        start(self._keeper_line(), log=self.layout.logs / "controller-keeper.log", env=self._environment())

    def listens(self) -> bool:
        """Tell whether it is this controller that listens on the API's port, by what the kernel says."""
        pid = self.pid()
        return pid is not None and bool(_listeners(self._port_now()) & _sockets(pid))

    def ensure_port(self) -> None:
        """Return when the controller listens; move it to another port if some other program was there first."""
        deadline = time.monotonic() + _WAIT_S
        while not self.listens() and time.monotonic() < deadline:
            if _listeners(self._port_now()) and not self.listens():
                self.stop()
                self._configure()
                self.start()
            time.sleep(0.05)

    def kill(self) -> int:
        """Kill the controller as an accident would (SIGKILL); it is started again. Returns the number of the dead."""
        pid = self.pid()
        if pid is None:
            raise NotFound(f"lab {self.layout.name!r} has no controller running", fix=f"see {self.layout.logs}")
        end([pid])
        return pid

    def hold(self) -> None:
        """Stop the controller in order and keep it stopped."""
        self._hold.touch()
        self._wait(lambda: self.pid() is None, "stop")

    def stop(self) -> None:
        """Stop the controller in order, and its keeper."""
        keeper = self.keeper()
        if keeper is not None:
            end([keeper], signal.SIGTERM)

    @property
    def _hold(self) -> Path:
        return self.control / "controller.hold"

    def _wait(self, so: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _WAIT_S
        while not so():
            if time.monotonic() > deadline:
                raise Temporary(f"the controller did not {what} in {_WAIT_S:.0f} s", fix=f"read {self.layout.logs}")
            time.sleep(0.03)

    def _line(self) -> list[str]:
        return [sys.executable, "-P", "-m", "controller.main", "--config", str(self.config)]

    def _keeper_line(self) -> list[str]:
        return [sys.executable, "-P", "-m", "lab.keeper", str(self.orders)]

    def _keeper_orders(self) -> Orders:
        link = (self.layout.underlay, CONTROLLER_ADDRESS, str(LINK_PORT), "link")
        part = Part(
            name="controller",
            argv=(sys.executable, "-P", "-m", "lab.handover", *link, *self._line(), "run"),
            log=str(self.layout.logs / "controller.log"),
        )
        return Orders(control=str(self.control), parts=(part,))

    def _environment(self) -> dict[str, str]:
        mark = {LAB_MARK: str(self.layout.folder)}
        return {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": str(self.folder), **mark}

    def _configure(self) -> None:
        link = f"{CONTROLLER_ADDRESS}:{LINK_PORT}"
        self.config.write_text(
            f'[controller]\nstate_dir = "{self.folder / "state"}"\n\n'
            f'[api]\nlisten = "127.0.0.1:{self._port()}"\n\n'
            f'[link]\nlisten = "{link}"\nurl = "https://{link}"\nnames = ["{CONTROLLER_ADDRESS}"]\n'
        )

    def _port_now(self) -> int:
        return _port_in(self.config) or 0

    def _port(self) -> int:
        """Return the port this lab had, or the first that no one listens on and no other lab has."""
        own = _port_in(self.config)
        others = {_port_in(path) for path in self.layout.folder.parent.glob("*/controller/controller.toml")} - {own}
        wanted = [own] if own else []
        for port in [*wanted, *(port for port in range(_FIRST_PORT, _LAST_PORT) if port not in others)]:
            if _is_free(port):
                return port
        raise Conflict(f"no port from {_FIRST_PORT} to {_LAST_PORT} of 127.0.0.1 is free for the API")


def _port_in(config: Path) -> int | None:
    try:
        found = re.search(r'listen = "127\.0\.0\.1:(\d+)"', config.read_text())
    except OSError:
        return None
    return int(found[1]) if found else None


def _listeners(port: int) -> set[str]:
    """Return the inodes of the sockets that listen on a port of 127.0.0.1 (proc(5): /proc/net/tcp, state 0A)."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[9] for row in rows if row[3] == "0A" and row[1] in (f"0100007F:{port:04X}", f"00000000:{port:04X}")}


def _sockets(pid: int) -> set[str]:
    """Return the inodes of a process's sockets."""
    found = set()
    for path in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            target = str(path.readlink())
        except OSError:
            continue  # closed since we listed them
        if target.startswith("socket:["):
            found.add(target[8:-1])
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
