"""A copy of this machine, on which packages are installed, under an overlay of its files.

Everything happens in a mount namespace of its own, whose upper layer is memory: the machine keeps nothing of it.
"""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.layout import ROOT

BUILT = ROOT / "build" / "packages"
INSIDE = """set -eu
mount -t tmpfs tmpfs {top}
mkdir {top}/upper {top}/work {top}/all
mount -t overlay overlay -o lowerdir=/,upperdir={top}/upper,workdir={top}/work {top}/all
mount -t proc proc {top}/all/proc
mount --rbind /dev {top}/all/dev
mount -t tmpfs tmpfs {top}/all/run
mkdir {top}/all/debs {top}/all/more
mount --bind {debs} {top}/all/debs
mount --bind {more} {top}/all/more
exec chroot {top}/all sh -c '{script}'
"""


@pytest.fixture(scope="session")
def packages() -> Path:
    """Build them, if that is not done."""
    subprocess.run(["sh", ROOT / "systemd" / "packages" / "build.sh"], check=True, timeout=400)
    return BUILT


@pytest.fixture
def more(tmp_path: Path) -> Path:
    """Give a folder that is `/more` on the copy."""
    folder = tmp_path / "more"
    folder.mkdir()
    return folder


@pytest.fixture
def on_a_copy(packages: Path, more: Path, tmp_path: Path) -> Callable[[str], str]:
    """Give what runs a script as root on a copy of this machine and returns what it printed."""

    top = tmp_path / "top"
    top.mkdir()

    def run(script: str) -> str:
        assert "'" not in script
        line = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c"]
        inside = INSIDE.format(top=top, debs=packages, more=more, script=f"set -eu\n{script}")
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
        done = subprocess.run([*line, inside], check=False, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run
