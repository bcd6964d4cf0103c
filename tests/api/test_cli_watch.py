"""`skerry watch` and `list --watch` against a controller: what is printed, and that a broken stream is taken up."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import aiohttp
import click
import pytest
from api_world import P, World

from common.secret import Secret
from controller.cli import watch
from controller.cli.client import Client, Query
from controller.cli.settings import Connection
from controller.cli.watch import Choice, follow
from tests.patience import PATIENCE_S


@asynccontextmanager
async def printing(
    cloud: World, query: Query, *, place: int = 0, form: str = "table", choice: Choice | None = None
) -> AsyncIterator[asyncio.Task[None]]:
    """Follow in a task that ends with the block."""
    url = f"http://127.0.0.1:{cloud.client.port}"
    connection = Connection(url=url, token=Secret(cloud.tokens["root"]), project="a", ca="", context="")
    context = click.Context(click.Command("watch"))
    context.meta["skerry.form"] = form
    with context:
        async with Client(connection) as client, asyncio.TaskGroup() as tasks:
            task: asyncio.Task[None] = tasks.create_task(follow(client, query, place, choice or Choice()))
            yield task
            task.cancel()


async def printed(capsys: pytest.CaptureFixture[str], so_far: str, *words: str) -> str:
    """Wait until these words were printed."""
    async with asyncio.timeout(PATIENCE_S):
        while not all(word in so_far for word in words):
            await asyncio.sleep(0.02)
            lines = capsys.readouterr().out.splitlines(keepends=True)
            so_far += "".join(line for line in lines if line[:1] == "{" or line[2:3] == ":")  # the rest is the log
    return so_far


async def test_lines_tell_what_there_is_what_changes_and_what_goes(
    cloud: World, capsys: pytest.CaptureFixture[str]
) -> None:
    await cloud.make(f"{P}/a/networks", "old")
    query = (("kind", "network"), ("kind", "operation"), ("project", "a"))
    async with printing(cloud, query):
        text = await printed(capsys, "", "network   a/old")
        made = await cloud.make(f"{P}/a/networks", "new", {"cidr": "10.9.0.0/24"})
        text = await printed(capsys, text, "network   a/new  state=active", "cidr=10.9.0.0/24", made["operation"]["id"])
        await cloud.call("DELETE", f"{P}/a/networks/new")
        text = await printed(capsys, text, "network   a/new  gone", "delete network new  done")

    assert "bookmark" not in text


async def test_json_is_an_object_a_line(cloud: World, capsys: pytest.CaptureFixture[str]) -> None:
    await cloud.make(f"{P}/a/networks", "n")
    async with printing(cloud, (("kind", "network"),), form="json"):
        text = await printed(capsys, "", '"name":"n"')

    found = [json.loads(line) for line in text.splitlines()]
    assert {one["event"] for one in found} == {"put"}
    assert found[-1]["resource"]["name"] == "n"
    assert found[-1]["revision"] > 0


async def test_a_list_goes_on_from_its_revision_and_by_its_own_filters(
    cloud: World, capsys: pytest.CaptureFixture[str]
) -> None:
    await cloud.make(f"{P}/a/networks", "web-1")
    listed = (await cloud.call("GET", f"{P}/a/networks")).json
    choice = Choice(prefix="web", state="active")
    async with printing(cloud, (("kind", "network"),), place=listed["revision"], choice=choice):
        await cloud.make(f"{P}/a/networks", "db-1", {"cidr": "10.9.0.0/24"})
        await cloud.make(f"{P}/a/networks", "web-2", {"cidr": "10.9.1.0/24"})
        text = await printed(capsys, "", "web-2")

    assert "db-1" not in text
    assert "state=accepted" not in text


async def test_a_stream_that_breaks_is_taken_up_and_one_that_is_too_old_begins_again(
    cloud: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "RETRY_S", 0.05)
    monkeypatch.setattr("controller.api.watch.BEHIND_S", 0.05)
    await cloud.make(f"{P}/a/networks", "one")
    async with printing(cloud, (("kind", "network"),), place=10**9):
        text = await printed(capsys, "", "a/one")
        for transport in [one.transport for one in cloud.client.server.handler.connections]:  # type: ignore[attr-defined]
            transport.abort()
        with suppress(aiohttp.ClientError):
            await cloud.call("GET", "/healthz")  # the test's own connection broke as well
        await cloud.make(f"{P}/a/networks", "two", {"cidr": "10.9.0.0/24"})
        text = await printed(capsys, text, "a/two")

    assert text.count("a/one") == 1 + text.count("a/one  gone")
