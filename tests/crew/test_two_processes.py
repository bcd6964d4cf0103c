"""Two controllers as processes on one PostgreSQL, with agents that dial them over TLS."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent import join
from agent.dial import Dialer
from common.clock import system_clock
from sim.agents import SimulatedAgent
from sim.client import Client
from sim.controller import Process
from sim.machine import Machine
from tests.patience import PATIENCE_S

P = "/v1/projects/shop"
IMAGE = b"\x01" * 4096
DIGEST = "sha256:" + hashlib.sha256(IMAGE).hexdigest()


@pytest.fixture
def pair(postgres_url: str, tmp_path: Path) -> Iterator[tuple[Process, Process]]:
    """Two controllers of one authority, not running yet."""
    more = "[audit]\nevery_s = 1\n"
    one, two = (Process(tmp_path / name, postgres_url, more=more) for name in ("one", "two"))
    one.init()
    two.init(of=one)
    yield one, two
    one.end()
    two.end()


@pytest.fixture
async def client(pair: tuple[Process, Process]) -> AsyncIterator[Client]:
    """An operator, and both controllers running."""
    done = pair[0].command("token", "--name", "root")
    assert done.returncode == 0, done.stderr
    for one in pair:
        one.start()
    for one in pair:
        await one.ready()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=40)) as http:
        yield Client(http, done.stdout.strip())


async def have_host(client: Client, stack: AsyncExitStack, at: Process, number: int, directory: Path) -> Dialer:
    """Have a machine join at one of the controllers, and dial."""
    name = f"h{number}"
    made = await client.make(at.api, "/v1/hosts", name)
    identity = await join.join(at.link, made["revealed"], directory / f"{name}.pem")
    machine = Machine(name, number, directory, system_clock)
    dialer = await stack.enter_async_context(SimulatedAgent(machine, identity).up())
    await client.until(at.api, f"/v1/hosts/{name}", lambda _, host: host["resource"]["status"]["state"] == "ready")
    return dialer


async def have_project(client: Client, at: Process) -> None:
    await client.make(at.api, "/v1/projects", "shop", keep_deleted_s=0)
    await client.make(at.api, "/v1/sizes", "small", vcpus=1, memory_mib=256, disk_gib=1)
    await client.make(at.api, f"{P}/images", "disk", format="raw")
    status, body = await client.call(at.api, "PUT", f"{P}/images/disk/content", data=IMAGE)
    assert status == 202, body
    await client.make(at.api, f"{P}/networks", "default", cidr="10.20.0.0/24")


async def running(client: Client, at: Process, name: str, limit_s: float = PATIENCE_S) -> None:
    await client.until(
        at.api,
        f"{P}/vms/{name}",
        lambda status, vm: status == 200 and vm["resource"]["status"]["state"] == "running",
        limit_s=limit_s,
    )


def test_a_controller_with_another_authority_is_refused_with_the_way_out(postgres_url: str, tmp_path: Path) -> None:
    more = "[audit]\nevery_s = 1\n"
    one, two = (Process(tmp_path / name, postgres_url, more=more) for name in ("one", "two"))
    one.init()
    refused = two.command("init")
    assert refused.returncode == 1
    assert "certificate authority" in refused.stderr
    assert "copy pki/ca.key and pki/ca.pem" in refused.stderr


@pytest.mark.timeout(180)
async def test_two_controllers_are_one_cloud(client: Client, pair: tuple[Process, Process], tmp_path: Path) -> None:
    one, two = pair
    async with AsyncExitStack() as stack:
        await have_project(client, one)
        await client.until(two.api, P, lambda status, _: status == 200)
        dialer = await have_host(client, stack, one, 1, tmp_path)
        await client.until(two.api, "/v1/hosts/h1", lambda status, host: host["resource"]["status"]["state"] == "ready")
        async with asyncio.timeout(PATIENCE_S):
            while set(dialer.urls) != {one.link, two.link}:  # noqa: ASYNC110 - two may be new to one
                await asyncio.sleep(0.05)
        await client.make(two.api, f"{P}/vms", "web", image="disk", size="small")
        await running(client, two, "web")
        await running(client, one, "web")

        for at in pair:  # only one of them has the host's link
            status, log = await client.call(at.api, "GET", f"{P}/vms/web/log")
            assert (status, log.endswith("booted")) == (200, True), log
            status, why = await client.call(at.api, "GET", f"{P}/vms/web/why")
            assert (status, why["steps"]) == (200, []), why
            status, audit = await client.call(at.api, "GET", "/v1/hosts/h1/audit")
            assert status == 200, audit
            status, plan = await client.call(at.api, "POST", "/v1/hosts/h1/repair?dry_run=true")
            assert status == 200, plan
            console = await client.console(at.api, f"{P}/vms/web/console")
            await console.send_bytes(b"hello")
            assert await console.receive_bytes(timeout=10) == b"hello"
            await console.close()
            status, _ = await client.call(at.api, "GET", f"{P}/vms/nothing/log")
            assert status == 404

        async with asyncio.timeout(PATIENCE_S):
            for at in pair:
                while not (await client.call(at.api, "GET", "/v1/audit"))[1]["hosts"][0]["at"]:  # noqa: ASYNC110 - an HTTP API
                    await asyncio.sleep(0.2)

        def known(_status: int, history: Any) -> bool:
            return any(value is not None for value in history["series"][0]["values"])

        for at in pair:  # each keeps the figures of its own hosts, and asks the other for the rest
            _, found = await client.until(at.api, f"{P}/vms/web/metrics?metric=memory&from=-1m&step=5", known)
            assert found["missing"] == []
            await client.until(at.api, "/v1/hosts/h1/metrics?metric=load&from=-1m", known)
            for of, name in (("vms", "web"), ("hosts", "h1")):
                _, top = await client.call(at.api, "GET", f"/v1/top?of={of}")
                assert [one["name"] for one in top["items"]] == [name]
                assert top["items"][0]["memory_mib"] > 0

        for at in pair:
            path = at.state / "images" / DIGEST.removeprefix("sha256:")
            async with asyncio.timeout(PATIENCE_S):
                while not path.exists():  # noqa: ASYNC110 - another process makes it
                    await asyncio.sleep(0.05)
            assert path.read_bytes() == IMAGE
        for url in (one.link, two.link):
            dialer.turn(dialer.urls.index(url) - dialer.urls.index(dialer.url))
            target = tmp_path / "fetched"
            target.unlink(missing_ok=True)
            await dialer.fetch(DIGEST, target, lambda _: None)
            assert target.read_bytes() == IMAGE


@pytest.mark.timeout(180)
async def test_a_host_learns_of_a_controller_that_comes_later_and_is_taken_over_by_it(
    pair: tuple[Process, Process], tmp_path: Path
) -> None:
    one, two = pair
    token = one.command("token", "--name", "root").stdout.strip()
    one.start()
    await one.ready()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=40)) as http, AsyncExitStack() as stack:
        client = Client(http, token)
        dialer = await have_host(client, stack, one, 1, tmp_path)
        assert dialer.urls == (one.link,)
        two.start()
        await two.ready()
        async with asyncio.timeout(PATIENCE_S):
            while set(dialer.urls) != {one.link, two.link}:  # noqa: ASYNC110 - it is told over its link
                await asyncio.sleep(0.05)
        await one.kill()
        await client.until(
            two.api, "/v1/hosts/h1", lambda _, host: host["resource"]["status"]["state"] == "ready", limit_s=40
        )
        assert dialer.url == two.link


async def test_a_restored_database_is_begun_anew_once_all_controllers_are_stopped(
    client: Client, pair: tuple[Process, Process], tmp_path: Path
) -> None:
    one, two = pair
    async with AsyncExitStack() as stack:
        await have_project(client, one)
        await have_host(client, stack, one, 1, tmp_path)
        assert await one.stop() == 0
        refused = one.command("restored")
        assert refused.returncode == 1
        assert f"controllers run on this database: {two.link}" in refused.stderr
        assert await two.stop() == 0
        done = one.command("restored")
        assert "hosts take this database's word from now on" in done.stdout, done.stderr
        for process in pair:
            process.start()
            await process.ready()
        await client.make(two.api, f"{P}/vms", "web", image="disk", size="small")
        await running(client, one, "web")


async def test_a_token_that_one_revokes_is_refused_by_the_other_and_its_watch_ends(
    client: Client, pair: tuple[Process, Process]
) -> None:
    one, two = pair
    await have_project(client, one)
    made = await client.make(one.api, f"{P}/tokens", "bot", role="admin")
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as http:
        bot = Client(http, made["revealed"])
        await bot.until(two.api, P, lambda status, _: status == 200)
        watched = bot.watch(two.api, "")
        await anext(watched)
        status, body = await client.call(one.api, "DELETE", f"{P}/tokens/bot")
        assert status == 202, body
        _, refusal = await bot.until(two.api, P, lambda status, _: status == 401)
        assert "revoked" in refusal["detail"]
        async with asyncio.timeout(PATIENCE_S):
            assert [word async for word, _ in watched if word == "token"] == []


@pytest.mark.timeout(180)
async def test_either_may_be_killed_and_everything_goes_on(
    client: Client, pair: tuple[Process, Process], tmp_path: Path
) -> None:
    one, two = pair
    async with AsyncExitStack() as stack:
        await have_project(client, one)
        dialers = [await have_host(client, stack, pair[number % 2], number, tmp_path) for number in range(2)]
        for turn, (dies, lives) in enumerate(((one, two), (two, one))):
            await client.until(lives.api, f"{P}/images/disk", lambda status, _: status == 200)
            for number in range(3):
                await client.make(dies.api, f"{P}/vms", f"vm{turn}-{number}", image="disk", size="small")
            await dies.kill()
            for number in range(3):
                await running(client, lives, f"vm{turn}-{number}")
            assert {dialer.url for dialer in dialers} == {lives.link}
            dies.start()
            await dies.ready()
        await client.until(one.api, "/v1/operations?state=open", lambda _, body: not body["items"])
        for name in [f"vm{turn}-{number}" for turn in range(2) for number in range(3)]:
            status, body = await client.call(two.api, "DELETE", f"{P}/vms/{name}")
            assert status == 202, body
        await client.until(one.api, f"{P}/vms", lambda _, body: not body["items"])
        assert await one.stop() == 0
        assert await two.stop() == 0
