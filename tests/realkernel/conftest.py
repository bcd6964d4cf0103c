"""One machine with Debian's own kernel and systemd for all tests here: booted on first use, off at the end."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.box import box
from lab.layout import ROOT
from lab.machine import Machine


@pytest.fixture(scope="session")
def real_kernel() -> Iterator[Machine]:
    """Give the machine. What a test makes in it, it removes. Its logs stay in build/lab-logs."""
    folder = Path(tempfile.mkdtemp(prefix="skerry-machine-", dir="/tmp"))
    machine = Machine(box(), folder)
    try:
        machine.power_on()
        yield machine
    finally:
        machine.cut_power()
        kept = ROOT / "build" / "lab-logs" / "realkernel"
        kept.mkdir(parents=True, exist_ok=True)
        for log in folder.glob("*.log"):
            shutil.copy(log, kept)
        shutil.rmtree(folder)
