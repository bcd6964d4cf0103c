"""The end of a process that is nobody's child is told at once, and once."""

import asyncio
import subprocess
from collections.abc import Iterator

import pytest

from agent.drivers.vigil import Vigil
from common.ids import Id
from tests.patience import PATIENCE_S

ONE = Id("net-00000000001a")


def _daemon() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


daemon = pytest.fixture(_daemon, name="daemon")
second = pytest.fixture(_daemon, name="second")


class Told:
    """What was told."""

    def __init__(self) -> None:
        self.owners: list[Id] = []
        self._event = asyncio.Event()

    def __call__(self, owner: Id) -> None:
        self.owners.append(owner)
        self._event.set()

    async def wait(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self._event.wait()


async def test_a_process_that_is_killed_is_told_of_once(daemon: subprocess.Popen[bytes]) -> None:
    told = Told()
    vigil = Vigil(told)
    for _ in range(3):
        vigil.watch(ONE, daemon.pid)
    assert told.owners == []
    daemon.kill()
    await told.wait()
    await asyncio.sleep(0)
    assert told.owners == [ONE]


async def test_a_process_that_is_gone_already_is_told_of(daemon: subprocess.Popen[bytes]) -> None:
    daemon.kill()
    daemon.wait()
    told = Told()
    Vigil(told).watch(ONE, daemon.pid)
    await told.wait()
    assert told.owners == [ONE]


async def test_one_that_was_replaced_is_no_news(
    daemon: subprocess.Popen[bytes], second: subprocess.Popen[bytes]
) -> None:
    told = Told()
    vigil = Vigil(told)
    vigil.watch(ONE, daemon.pid)
    vigil.watch(ONE, second.pid)
    daemon.kill()
    daemon.wait()
    await asyncio.sleep(0.05)
    assert told.owners == []
    second.kill()
    await told.wait()
    assert told.owners == [ONE]


async def test_nothing_is_told_after_the_end(daemon: subprocess.Popen[bytes]) -> None:
    told = Told()
    vigil = Vigil(told)
    vigil.watch(ONE, daemon.pid)
    vigil.close()
    daemon.kill()
    daemon.wait()
    await asyncio.sleep(0.05)
    assert told.owners == []
