"""A simulated world for each test."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from sim.cloud import Cloud
from sim.world import World


@pytest.fixture
def world() -> Iterator[World]:
    """Give a world in memory, and fail on anything that it logged as an error."""
    directory = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None, prefix="skerry-sim-"))
    with capture_logs() as logs:
        made = World(directory)
        yield made
        made.close()
        shutil.rmtree(directory)
    errors = [line for line in logs if line["log_level"] in ("error", "critical")]
    assert not errors, errors


@pytest.fixture
def cloud(world: World) -> Cloud:
    """Give the API of the world."""
    return Cloud(world)
