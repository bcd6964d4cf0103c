"""A controller of one's own: a directory with its state and its configuration, and the process while it runs."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import aiohttp
import psutil

TOP = Path(__file__).parents[1]


def free_port() -> int:
    """Return a port that nobody listens on just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Process:
    """One controller on loopback. `database` None: SQLite in its directory; `limits` are lines of its section [api],
    `more` are sections of their own."""

    def __init__(
        self, directory: Path, database: str | None = None, *, level: str = "info", limits: str = "", more: str = ""
    ) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.api = f"http://127.0.0.1:{free_port()}"
        self.link = f"https://127.0.0.1:{free_port()}"
        self._config = directory / "controller.toml"
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True)
        url = database or f"sqlite:///{self.state}/skerry.db"
        self._config.write_text(
            f'[controller]\nstate_dir = "{self.state}"\ndatabase = "{url}"\n'
            f'[api]\nlisten = "{self.api.removeprefix("http://")}"\n{limits}\n'
            f'[link]\nlisten = "{self.link.removeprefix("https://")}"\nnames = ["127.0.0.1"]\n'
            f'[log]\nlevel = "{level}"\n{more}'
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
        if done.returncode:
            raise RuntimeError(f"the controller can't be set up: {done.stderr}")

    def token(self, name: str) -> str:
        """Return a fresh operator's token."""
        done = self.command("token", "--name", name)
        if done.returncode:
            raise RuntimeError(f"the controller gives no token: {done.stderr}")
        return done.stdout.strip()

    def start(self) -> None:
        """Start it, in place of what was started before."""
        self.end()
        with (self.directory / "log").open("ab") as out:
            self._process = subprocess.Popen(self._line("run"), stdout=out, stderr=out, env=self._env)

    async def ready(self, limit_s: float = 30.0) -> None:
        """Wait until it serves."""
        end = time.monotonic() + limit_s
        async with aiohttp.ClientSession() as http:
            while self._process is not None and self._process.poll() is None and time.monotonic() < end:
                with suppress(aiohttp.ClientError, OSError):
                    async with http.get(f"{self.api}/readyz") as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(0.05)
        raise RuntimeError(f"the controller does not serve: {self.log()}")

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

    @property
    def pid(self) -> int:
        """Its process id while it runs."""
        assert self._process is not None
        return self._process.pid

    def usage(self) -> tuple[float, int]:
        """Return its CPU seconds so far and its resident bytes."""
        process = psutil.Process(self.pid)
        times = process.cpu_times()
        return times.user + times.system, process.memory_info().rss

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
