"""Rate limits: each token has its own bucket; one request too many is told when to come back, and does nothing."""

import asyncio
from pathlib import Path

import pytest
from api_world import P, World, world

from common.errors import RateLimited
from common.secret import Secret
from controller.api import limits
from controller.api.limits import Limits
from controller.cli import client as module
from controller.cli.client import Client
from controller.cli.failures import Refused
from controller.cli.settings import Connection
from controller.config import ApiSection, Config
from tests.patience import PATIENCE_S

TIGHT = Config(api=ApiSection(rate_per_s=1.0, burst=5))


async def used_up(cloud: World) -> None:
    """Use up the root token's bucket."""
    async with asyncio.timeout(PATIENCE_S):
        while (await cloud.call("GET", "/v1/me")).status != 429:
            pass


async def test_one_too_many_is_told_when_to_come_back_and_does_nothing(tmp_path: Path) -> None:
    async with world(tmp_path, TIGHT) as cloud:
        await used_up(cloud)
        refused = await cloud.call("POST", "/v1/projects", {"name": "late"})
        cloud.clock.now += int(refused.headers["Retry-After"])
        taken = await cloud.call("POST", "/v1/projects", {"name": "late"})

    assert refused.status == 429
    assert refused.json["code"] == "rate-limited"
    assert "1 requests a second, with bursts of 5" in refused.json["detail"]
    assert "try again in 1 s" in refused.json["fix"]
    assert taken.status == 202


async def test_each_token_has_its_own_and_what_is_open_to_all_has_none(tmp_path: Path) -> None:
    async with world(tmp_path, TIGHT) as cloud:
        await cloud.token("other", "system", "reader")
        await used_up(cloud)

        assert (await cloud.call("GET", "/v1/me", as_="other")).status == 200
        assert (await cloud.call("GET", "/healthz")).status == 200


def test_a_bucket_fills_again_evenly_and_never_beyond_its_burst() -> None:
    now = 0.0
    found = Limits(rate_per_s=2.0, burst=3, clock=lambda: now)

    def taken() -> int:
        for number in range(100):
            try:
                found.spend("a/ci")
            except RateLimited:
                return number
        return 100

    assert taken() == 3
    now = 1.0
    assert taken() == 2
    now = 1000.0
    assert taken() == 3
    now = 999.0  # a clock that was set back
    assert taken() == 0


def test_no_rate_is_no_limit() -> None:
    found = Limits(rate_per_s=0, burst=1, clock=lambda: 0.0)
    for _ in range(1000):
        found.spend("a/ci")


def test_buckets_of_the_quiet_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BUCKETS_KEPT", 10)
    now = 0.0
    found = Limits(rate_per_s=1.0, burst=2, clock=lambda: now)
    for number in range(1000):
        now += 0.5
        found.spend(f"a/{number}")

    assert len(found._buckets) <= 20


async def test_the_command_backs_off_and_gives_up_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.random, "random", lambda: 0.0)
    async with world(tmp_path, TIGHT) as cloud:
        url = f"http://127.0.0.1:{cloud.client.port}"
        connection = Connection(url=url, token=Secret(cloud.tokens["root"]), project="a", ca="", context="")
        await used_up(cloud)
        async with Client(connection) as client:
            asking = asyncio.ensure_future(client.raw("GET", "/v1/me"))
            await asyncio.sleep(0.3)
            assert not asking.done()
            cloud.clock.now += 2
            assert b"system/root" in await asking

            await used_up(cloud)
            monkeypatch.setattr(module, "BACK_OFF_FOR_S", 0.5)
            with pytest.raises(Refused, match="requests a second"):
                await client.change("POST", f"{P}/a/networks", body={"name": "n"})
