"""A real controller process with no hosts, and the `skerry` command run beside it as a process of its own."""

import os
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from lab.machine import free_port

TOP = Path(__file__).parents[2]
SKERRY = [sys.executable, "-P", "-m", "controller.cli.main"]


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class World:
    """A controller's address, a token of its operators, and a directory for context files."""

    url: str
    token: str
    home: Path

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment in which a command is run: nothing of the caller's but where programs are found."""
        found = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        return {
            **found,
            "HOME": str(self.home),
            "SKERRY_URL": self.url,
            "SKERRY_TOKEN": self.token,
            "SKERRY_PROJECT": "shop",
            **more,
        }

    def skerry(self, *words: str, stdin: str = "", code: int | None = 0, **more: str) -> Ran:
        """Run the command and return how it ended; `code` is what it must end with (None: whatever)."""
        done = subprocess.run(
            [*SKERRY, *words],
            env=self.environment(**more),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=self.home,
            check=False,
        )
        assert code is None or done.returncode == code, f"skerry {' '.join(words)}: {done.returncode}\n{done.stderr}"
        return Ran(done.returncode, done.stdout, done.stderr)


def controller_command(config: Path, *words: str) -> list[str]:
    """Return the command line of a controller."""
    return [sys.executable, "-P", "-m", "controller.main", "--config", str(config), *words]


def configure(directory: Path) -> tuple[Path, str]:
    """Write a controller's configuration with free ports; return its path and the API's URL."""
    api, link = free_port(), free_port()
    path = directory / "controller.toml"
    path.write_text(
        f'[controller]\nstate_dir = "{directory / "state"}"\n[api]\nlisten = "127.0.0.1:{api}"\n'
        f'[link]\nlisten = "127.0.0.1:{link}"\nnames = ["127.0.0.1"]\n[log]\nlevel = "warning"\n'
    )
    return path, f"http://127.0.0.1:{api}"


def wait_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    """Wait until a controller serves."""
    for _ in range(200):
        assert process.poll() is None, "the controller ended"
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the controller did not come up in 20 s")
