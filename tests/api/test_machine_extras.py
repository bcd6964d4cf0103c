"""What is asked of a machine or a host through the link: console, serial log, audit."""

import asyncio

import aiohttp
import pytest
from aiohttp import WSMsgType, WSServerHandshakeError
from api_world import Host, P, World

from common.ids import Id
from controller.fleet.audit import Difference
from tests.patience import PATIENCE_S

CONSOLE = f"{P}/a/vms/web/console"


@pytest.fixture
async def host(cloud: World) -> Host:
    """Give a host with machine web of project a on it."""
    host = await cloud.host("h1")
    await cloud.vm("a", "web", host, as_="a-member")
    return host


def attach(cloud: World, as_: str = "a-member", path: str = CONSOLE) -> aiohttp.client._WSRequestContextManager:
    return cloud.client.ws_connect(path, headers={"Authorization": f"Bearer {cloud.tokens[as_]}"})


async def test_a_console_carries_bytes_both_ways(cloud: World, host: Host) -> None:
    async with attach(cloud) as socket:
        for typed in (b"hello\n", b"\xff\x00", b"x" * 60_000):
            await socket.send_bytes(typed)
            got = b""
            async with asyncio.timeout(PATIENCE_S):
                while len(got) < len(typed):
                    got += (await socket.receive_bytes()) or b""
            assert got == typed.upper()

    await cloud.until(lambda: host.consoles[0].ended is not None)
    assert bytes(host.typed).startswith(b"hello\n")


async def test_a_console_that_the_host_ends_is_closed_in_order_with_the_reason(cloud: World, host: Host) -> None:
    async with attach(cloud) as socket:
        await socket.send_bytes(b"a")
        await socket.receive_bytes()
        host.consoles[0].close("the guest powered off")
        message = await socket.receive(timeout=5)

    assert message.type is WSMsgType.CLOSE
    assert message.data == 1000
    assert "the guest powered off" in (message.extra or "")


async def test_text_frames_are_answered_with_a_problem_and_the_console_goes_on(cloud: World, host: Host) -> None:
    async with attach(cloud) as socket:
        await socket.send_str("ls")
        problem = await socket.receive_json(timeout=5)
        await socket.send_bytes(b"a")
        got = await socket.receive_bytes(timeout=5)

    assert problem["code"] == "invalid"
    assert "binary" in problem["detail"]
    assert got == b"A"


async def test_a_console_ends_when_its_token_is_revoked(cloud: World, host: Host) -> None:
    async with attach(cloud) as socket:
        await socket.send_bytes(b"a")
        await socket.receive_bytes()
        await cloud.call("DELETE", f"{P}/a/tokens/a-member", as_="a-admin")
        await socket.send_bytes(b"rm -rf /\n")
        problem = await socket.receive_json(timeout=5)
        end = await socket.receive(timeout=5)

    assert problem["code"] == "unauthenticated"
    assert end.type is WSMsgType.CLOSE
    assert b"rm" not in host.typed


async def test_a_frame_over_the_limit_ends_the_console(cloud: World, host: Host) -> None:
    async with attach(cloud) as socket:
        await socket.send_bytes(b"x" * 100_000)
        message = await socket.receive(timeout=5)

    assert message.type is WSMsgType.CLOSE
    assert message.data == 1009


async def test_a_stop_of_the_process_closes_consoles(cloud: World, host: Host) -> None:
    async with attach(cloud) as socket:
        await socket.send_bytes(b"a")
        await socket.receive_bytes()
        async with asyncio.timeout(PATIENCE_S):
            stopping = asyncio.create_task(cloud.client.server.runner.shutdown())  # type: ignore[attr-defined]
            message = await socket.receive(timeout=5)
            await stopping

    assert message.type is WSMsgType.CLOSE
    assert message.data == 1001


async def test_a_console_is_refused_before_the_upgrade_where_it_can_not_be(cloud: World, host: Host) -> None:
    with pytest.raises(WSServerHandshakeError) as by_reader:
        await attach(cloud, "a-reader")
    with pytest.raises(WSServerHandshakeError) as of_others:
        await attach(cloud, "b-member")
    with pytest.raises(WSServerHandshakeError) as missing:
        await attach(cloud, path=f"{P}/a/vms/nothing/console")
    plain = await cloud.call("GET", CONSOLE, as_="a-member")
    del cloud.fleet.hosts[host.id]
    with pytest.raises(WSServerHandshakeError) as gone:
        await attach(cloud)

    assert by_reader.value.status == 403
    assert of_others.value.status == 403
    assert missing.value.status == 404
    assert plain.status == 400
    assert "skerry console" in plain.json["fix"]
    assert gone.value.status == 503


async def test_the_serial_log_is_given_as_it_is(cloud: World, host: Host) -> None:
    vm = cloud.store.seen.named("vm", "a", "web")
    assert vm is not None
    host.serial[vm.id] = b"booting\r\n\xff" * 20_000

    whole = await cloud.call("GET", f"{P}/a/vms/web/log", as_="a-reader", headers={"X-Request-Id": "look-1"})
    tail = await cloud.call("GET", f"{P}/a/vms/web/log?tail_bytes=4", as_="a-reader")
    most = await cloud.call("GET", f"{P}/a/vms/web/log?tail_bytes=1048576", as_="a-reader")
    too_much = await cloud.call("GET", f"{P}/a/vms/web/log?tail_bytes=1048577", as_="a-reader")

    assert whole.headers["Content-Type"].startswith("text/plain")
    assert len(whole.raw) == 65536
    assert tail.raw == host.serial[vm.id][-4:]
    assert most.raw == host.serial[vm.id]
    assert too_much.status == 400
    assert host.asked[0] == "look-1"


async def test_a_machine_on_no_host_and_a_host_that_is_away_are_told_apart(cloud: World, host: Host) -> None:
    await cloud.make(f"{P}/a/images", "empty", {"format": "raw"})
    await cloud.make(f"{P}/a/vms", "unplaced", {"image": "empty", "size": "small"}, as_="a-member")
    no_log = await cloud.call("GET", f"{P}/a/vms/web/log")
    del cloud.fleet.hosts[host.id]

    unplaced = await cloud.call("GET", f"{P}/a/vms/unplaced/log")
    away = await cloud.call("GET", f"{P}/a/vms/web/log")

    assert no_log.status == 404
    assert (unplaced.status, unplaced.json["code"]) == (409, "conflict")
    assert "skerry why vm unplaced" in unplaced.json["fix"]
    assert (away.status, away.json["code"]) == (503, "temporary")
    assert "h1" in away.json["detail"]
    assert away.headers["Retry-After"]


async def test_an_audit_lists_every_difference_for_the_system_project_only(cloud: World, host: Host) -> None:
    await cloud.token("watcher", "system", "reader")
    clean = await cloud.call("GET", "/v1/hosts/h1/audit", as_="watcher")
    cloud.fleet.differences = (
        Difference(problem="orphan", what="tap", name="t0abc", owner=Id("vm-abcdefghjkmn"), owner_name=""),
    )
    dirty = await cloud.call("GET", "/v1/hosts/h1/audit", as_="watcher")
    tenant = await cloud.call("GET", "/v1/hosts/h1/audit", as_="a-admin")
    missing = await cloud.call("GET", "/v1/hosts/h9/audit")

    assert clean.json == {"host": "h1", "clean": True, "items": []}
    assert dirty.json["clean"] is False
    assert dirty.json["items"][0]["name"] == "t0abc"
    assert tenant.status == 403
    assert missing.status == 404
