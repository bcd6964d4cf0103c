"""The cloud that tests of the main job and of the manual share: one real host, brought up on first use."""

import os
import shutil
from collections.abc import Iterator

import pytest

from lab.cloud import Lab
from lab.layout import ROOT
from lab.traces import traces
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
