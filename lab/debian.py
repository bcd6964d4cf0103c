"""Debian as a folder, and a folder as a file system: how every Debian disk of the lab begins."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from lab.commands import run
from lab.layout import ROOT

SUITE = "bookworm"
_ALONE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private")
"""mmdebstrap mounts /proc, /sys and /dev: in namespaces of its own they are gone with it, however it ends."""
_UNREAD = ("man", "locale", "doc", "info")


def tools() -> None:
    """Install what disks are made with, where it is missing."""
    run(["sh", str(ROOT / "lab" / "packages.sh"), str(ROOT / "lab" / "packages-lab.txt")], timeout_s=300)


def listed(file: Path) -> list[str]:
    """Return the packages of a list, `package  why` in each line."""
    words = (line.split() for line in file.read_text().splitlines())
    return [line[0] for line in words if line and not line[0].startswith("#")]


def bootstrap(root: Path, packages: Iterable[str], *, last: Sequence[str] = ()) -> None:
    """Make a Debian with these packages in the folder `root`, anew; `last`: shell lines for its end, `$1` the root."""
    shutil.rmtree(root, ignore_errors=True)
    unread = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _UNREAD]
    hooks = [f"--customize-hook={line}" for line in last]
    words = ["mmdebstrap", "--variant=minbase", f"--include={','.join(packages)}", *unread, *hooks, SUITE, str(root)]
    run([*_ALONE, *words], timeout_s=900)


def ext4(root: Path, file: Path, size_mib: int, *, label: str) -> Path:
    """Make a file that holds an ext4 file system with what is in `root`, and return its path."""
    run(["mke2fs", "-q", "-t", "ext4", "-L", label, "-d", str(root), str(file), f"{size_mib}M"], timeout_s=300)
    return file
