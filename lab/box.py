"""The box: the Debian disk of the lab's real hosts, made here from Debian's packages and kept in build/box.

The disk is one ext4 file system without a boot loader; kernel and initrd lie beside it for QEMU to boot. What is on it
say vagrant/packages.txt and vagrant/box.sh.
"""

import fcntl
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lab import debian
from lab.commands import run
from lab.layout import ROOT

PACKAGES = ROOT / "vagrant" / "packages.txt"
RECIPE = ROOT / "vagrant" / "box.sh"
SIZE_GIB = 8
"""What the disk pretends to be; what nobody wrote takes no room."""
CMDLINE = "root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet mitigations=off no5lvl"
"""The last two spare an emulated processor what is slow there: indirect jumps by way of returns, a fifth page table."""


class Box(NamedTuple):
    """The files of the box."""

    disk: Path
    kernel: Path
    initrd: Path


def box(folder: Path = ROOT / "build" / "box") -> Box:
    """Return the box, made now (a minute) unless it is there. Raises CommandFailed, with the line that failed."""
    debian.tools()
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        made = folder / _digest()
        if not made.exists():
            _make(folder, made)
    return Box(made / "box.qcow2", made / "vmlinuz", made / "initrd.img")


def _make(folder: Path, made: Path) -> None:
    for old in folder.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
    part, root = folder / "part", folder / "root"
    part.mkdir()
    debian.bootstrap(root, debian.listed(PACKAGES), last=[f'sh {RECIPE} "$1"'])
    for name in ("vmlinuz", "initrd.img"):
        shutil.copy(root / name, part / name)
    raw = debian.ext4(root, part / "box.raw", SIZE_GIB * 1024, label="box")
    run(["qemu-img", "convert", "-O", "qcow2", str(raw), str(part / "box.qcow2")], timeout_s=300)
    raw.unlink()
    shutil.rmtree(root)
    part.rename(made)


def _digest() -> str:
    """Name everything that the box is made of but the versions of Debian's packages."""
    sources = (PACKAGES, RECIPE, Path(__file__), Path(debian.__file__))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder against another process that makes the same."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
