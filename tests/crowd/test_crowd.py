"""Many creates at once, through the API of real controller processes, on simulated hosts that dial over TLS."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest

from sim.agents import Pace
from sim.client import Client
from sim.controller import Process
from sim.fleet import Fleet, Site
from tests.crowd.crowd import HARDWARE, Crowd, check_answers, check_machines, check_quota, draw


@asynccontextmanager
async def crowd(controllers: Sequence[Process], directory: Path, hosts: int) -> AsyncIterator[Crowd]:
    """Give a crowd at running controllers with so many hosts that are ready."""
    token = controllers[0].token("root")
    for one in controllers:
        one.start()
    for one in controllers:
        await one.ready()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=300)) as http:
        first = controllers[0]
        fleet = Fleet(Client(http, token), Site(api=first.api, link=first.link, name="crowd"), directory)
        await fleet.join(hosts, Pace(), hardware=HARDWARE)
        async with fleet.connected():
            await fleet.all_ready(limit_s=120)
            yield Crowd(fleet, controllers, token, http)


def networks_for(creates: int) -> int:
    return max(2, creates // 40)


def quota_for(creates: int) -> dict[str, int]:
    return {"vms": creates // 8, "vcpus": creates // 4, "memory_mib": creates * 200}


async def come(one: Crowd, creates: int) -> None:
    """Have the crowd come, and check all that must be so."""
    lab_quota = quota_for(creates)
    answers = await one.create(draw(creates, networks_for(creates), seed=creates))
    check_answers(answers, lab_quota)
    check_quota(answers, lab_quota)
    found = await one.settled(limit_s=300)
    check_machines(answers, found, one.fleet)
    assert {answer.status for answer in answers} >= {202, 403}
    assert {vm["status"]["state"] for vm in found.values()} == {"running", "blocked"}


async def on_one(directory: Path, hosts: int, creates: int) -> None:
    process = Process(directory / "controller", level="warning")
    try:
        process.init()
        async with crowd([process], directory, hosts) as one:
            await one.furnish(networks_for(creates), quota_for(creates))
            await come(one, creates)
        assert '"level":"error"' not in process.log()
    finally:
        process.end()


@pytest.mark.timeout(300)
async def test_a_crowd_gets_what_fits_and_every_other_a_reason(tmp_path: Path) -> None:
    await on_one(tmp_path, hosts=6, creates=120)


@pytest.mark.lab
@pytest.mark.timeout(900)
async def test_a_thousand_creates_at_once_on_fifty_hosts(tmp_path: Path) -> None:
    await on_one(tmp_path, hosts=50, creates=1000)


@pytest.mark.lab
@pytest.mark.timeout(1800)
async def test_the_same_on_two_controllers_of_which_one_is_killed_every_few_seconds(
    postgres_url: str, tmp_path: Path
) -> None:
    pair = [Process(tmp_path / name, postgres_url, level="warning") for name in ("one", "two")]
    pair[0].init()
    pair[1].init(of=pair[0])
    chance = random.Random(7)
    deaths = 0

    async def kill_now_and_then() -> None:
        nonlocal deaths
        while True:
            await asyncio.sleep(chance.uniform(0.5, 2))
            dies = chance.choice(pair)
            await dies.kill()
            deaths += 1
            await asyncio.sleep(chance.uniform(0.5, 2))
            while True:  # as systemd does, should it end because its database was too busy to let it in
                dies.start()
                with suppress(RuntimeError):
                    await dies.ready(limit_s=120)
                    break

    try:
        async with crowd(pair, tmp_path, hosts=50) as one:
            await one.furnish(networks_for(1000), quota_for(1000))
            async with asyncio.TaskGroup() as group:
                killing = group.create_task(kill_now_and_then())
                await come(one, 1000)
                killing.cancel()
        assert deaths >= 2, "it was over before it was put to the test"
    finally:
        for process in pair:
            process.end()
