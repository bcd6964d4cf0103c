"""The cloud that tests of the main job and of the manual share: one real host, brought up on first use."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cloud import Lab
from lab.guest import tiny
from lab.host import Host
from lab.layout import ROOT
from lab.traces import traces
from lab.underlay import ensure_underlay
from tests.lab.calls import Cloud


@pytest.fixture(scope="session")
def cloud() -> Iterator[Cloud]:
    """Give a cloud of one host. Its logs stay in build/lab-logs."""
    lab = Lab(f"frame{os.getpid()}")
    try:
        lab.up(1)
        lab.furnish()
        yield Cloud(lab)
    finally:
        kept = ROOT / "build" / "lab-logs" / "frame"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(lab.layout.logs, kept, dirs_exist_ok=True, ignore_dangling_symlinks=True)
        lab.down()
    assert traces(lab.layout) == []


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """Give a namespace host with a libvirtd of its own; the agent is this process, outside."""
    lab = Lab(f"d{os.getpid()}")
    try:
        ensure_underlay(lab.layout)
        found = Host(lab.layout, "h1")
        found.plug_in(agent=False)
        yield found
    finally:
        lab.down()


@pytest.fixture(scope="module")
def image() -> Path:
    return tiny(ROOT / "build" / "guest")


@pytest.fixture
def state() -> Iterator[Path]:
    """Give a directory that QEMU's user can enter, which pytest's own is not."""
    path = Path(tempfile.mkdtemp(prefix="skerry-domain-", dir="/tmp"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)
