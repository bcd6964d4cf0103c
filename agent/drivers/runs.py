"""What libvirtd keeps of a guest's runs in the file system: read, and tidied where it does not do so itself."""

import shutil
from pathlib import Path

from common import names
from common.ids import Id

RUN_DIR = Path("/run/libvirt/qemu")
"""Where libvirtd keeps QEMU's pid files: compiled in, and in nobody's configuration."""

LIB_DIR = Path("/var/lib/libvirt/qemu")
"""Where libvirtd keeps each run's sockets and secrets, compiled in likewise. It removes them when the run ends, but
those of a run that a power cut ended stay for ever."""


def started_at(run_dir: Path, vm: Id) -> float:
    """Return when QEMU's pid file was written: libvirt itself does not tell when a domain was started."""
    try:
        return (run_dir / f"{names.domain_name(vm)}.pid").stat().st_mtime
    except OSError:
        return 0


def remove_dead(lib_dir: Path, vm: Id) -> None:
    """Remove what libvirtd left of runs that it did not see end: `domain-<run>-<name>`, here and for channels."""
    for folder in (lib_dir, lib_dir / "channel" / "target"):
        for dead in folder.glob(f"domain-*-{names.domain_name(vm)}"):
            shutil.rmtree(dead, ignore_errors=True)
