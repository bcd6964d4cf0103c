"""What the agent's doctor hears from a real controller's port: that it takes this host, or why it does not."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from link_bench import Bench

from agent import join, sight
from agent.doctor import Controller


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    async with bench.port.up():
        yield bench


async def asked(bench: Bench, identity: Path | None) -> Controller:
    return await asyncio.to_thread(sight.ask, bench.port.url, identity)


async def test_a_host_that_is_taken_hears_nothing_bad(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "id.pem"
    await join.join(bench.port.url, bench.books.token(bench.host), path)
    found = await asked(bench, path)
    assert (found.problem, found.untrusted, found.refuses) == ("", "", "")
    assert found.skew_s is not None
    assert abs(found.skew_s) < 2


async def test_a_host_that_was_revoked_hears_why(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "id.pem"
    await join.join(bench.port.url, bench.books.token(bench.host), path)
    bench.books.revoked.add(bench.host)
    assert "is revoked" in (await asked(bench, path)).refuses
    assert bench.books.story == []  # asking is no dial: no event says that a host was turned away


async def test_a_controller_of_another_authority_is_not_trusted(bench: Bench, tmp_path: Path) -> None:
    other = Bench(tmp_path / "other")
    path = tmp_path / "id.pem"
    async with other.port.up():
        await join.join(other.port.url, other.books.token(other.host), path)
        assert "certificate" in (await asked(bench, path)).untrusted


async def test_before_joining_only_the_way_is_tried(bench: Bench) -> None:
    found = await asked(bench, None)
    assert (found.problem, found.untrusted, found.refuses) == ("", "", "")
    assert found.skew_s is not None
