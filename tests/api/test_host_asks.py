"""What a host's doctor and its leaving hear from a real controller's port."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from link_bench import Bench

from agent import join, leave, sight
from agent.doctor import Controller
from common.errors import Temporary


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


# --- leaving -----------------------------------------------------------------------------------------------------


async def test_a_host_that_leaves_is_let_go_and_its_certificate_opens_nothing_any_more(
    bench: Bench, tmp_path: Path
) -> None:
    path = tmp_path / "id.pem"
    identity = await join.join(bench.port.url, bench.books.token(bench.host), path)
    assert "let h1 go" in await leave.let_go(identity, force=False)
    assert "is revoked" in (await asked(bench, path)).refuses
    assert "had let it go before" in await leave.let_go(identity, force=False)


async def test_a_controller_that_is_away_is_left_without_by_force_only(bench: Bench, tmp_path: Path) -> None:
    identity = await join.join(bench.port.url, bench.books.token(bench.host), tmp_path / "id.pem")
    lost = msgspec.structs.replace(identity, url="https://127.0.0.1:1")
    with pytest.raises(Temporary, match="can't be reached") as caught:
        await leave.let_go(lost, force=False)
    assert "skerry-agent leave --force" in caught.value.fix
    assert "skerry host remove h1 --force" in await leave.let_go(lost, force=True)
