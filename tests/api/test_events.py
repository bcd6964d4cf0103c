"""The history: page by page, and as a stream that resumes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from api_world import P, World, world

from tests.patience import PATIENCE_S


class Reader:
    """Reads a stream of server-sent events."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.comments = 0

    async def next(self) -> dict[str, Any]:
        """Give the next event: id, event, data."""
        found: dict[str, Any] = {}
        async with asyncio.timeout(PATIENCE_S):
            while line := (await self.response.content.readline()).decode():
                if line.startswith(":"):
                    self.comments += 1
                elif line == "\n" and found:
                    return found
                elif line != "\n":
                    name, _, value = line.rstrip("\n").partition(": ")
                    found[name] = msgspec.json.decode(value) if name == "data" else value
        raise EOFError


@asynccontextmanager
async def following(
    cloud: World, query: str = "", *, as_: str = "root", headers: dict[str, str] | None = None
) -> AsyncIterator[Reader]:
    """Follow the events."""
    sent = {"Authorization": f"Bearer {cloud.tokens[as_]}", "Accept": "text/event-stream", **(headers or {})}
    async with cloud.client.get(f"/v1/events{query}", headers=sent) as response:
        assert response.status == 200, await response.read()
        assert response.headers["Content-Type"].startswith("text/event-stream")
        yield Reader(response)


async def test_events_tell_who_did_what_with_the_spec_before_and_after(cloud: World) -> None:
    await cloud.make("/v1/projects", "shop", {"description": "old"})
    await cloud.call("PATCH", "/v1/projects/shop", {"spec": {"description": "new"}}, headers={"If-Match": "*"})

    items = (await cloud.call("GET", "/v1/events?limit=1000")).json["items"]
    change = next(item for item in items if item["action"] == "project.set")

    assert change["actor"] == "system/root"
    assert change["before"]["description"] == "old"
    assert change["after"]["description"] == "new"
    assert change["name"] == "shop"
    assert [item["seq"] for item in items] == sorted(item["seq"] for item in items)


async def test_pages_of_events_lose_and_repeat_none(cloud: World) -> None:
    for number in range(6):
        await cloud.make(f"{P}/a/networks", f"n{number}")
    whole = (await cloud.call("GET", "/v1/events?project=a&limit=1000", as_="a-admin")).json["items"]

    after, found = 0, []
    while True:
        page = (await cloud.call("GET", f"/v1/events?limit=4&after={after}", as_="a-admin")).json
        if not page["items"]:
            break
        found += page["items"]
        after = page["next"]

    assert [item["seq"] for item in found[: len(whole)]] == [item["seq"] for item in whole]


async def test_a_stream_gives_the_past_and_then_what_happens(cloud: World) -> None:
    await cloud.make(f"{P}/a/networks", "old")
    async with following(cloud, as_="a-member") as reader:
        while (event := await reader.next())["data"]["name"] != "old":
            pass
        await cloud.make(f"{P}/a/networks", "new")
        while (event := await reader.next())["data"]["name"] != "new":
            pass

    assert event["event"] == "network.create"
    assert int(event["id"]) == event["data"]["seq"]


async def test_a_stream_resumes_behind_the_last_event_that_was_read(cloud: World) -> None:
    await cloud.make(f"{P}/a/networks", "one")
    await cloud.make(f"{P}/a/networks", "two")
    items = (await cloud.call("GET", "/v1/events?limit=1000", as_="a-member")).json["items"]
    last = next(item["seq"] for item in items if item["name"] == "one" and item["action"] == "network.create")
    following_seq = next(item["seq"] for item in items if item["seq"] > last)

    async with following(cloud, "?after=0", as_="a-member", headers={"Last-Event-ID": str(last)}) as reader:
        first = await reader.next()
    async with following(cloud, f"?after={last}", as_="a-member") as reader:
        second = await reader.next()

    assert first["data"]["seq"] == second["data"]["seq"] == following_seq


async def test_a_stream_shows_a_project_its_own_only(cloud: World) -> None:
    async with following(cloud, as_="a-reader") as reader:
        await cloud.make(f"{P}/b/networks", "theirs")
        await cloud.make("/v1/sizes", "small", {"vcpus": 1, "memory_mib": 512, "disk_gib": 1})
        await cloud.make(f"{P}/a/networks", "mine")
        seen = []
        while not seen or seen[-1]["name"] != "mine":
            seen.append((await reader.next())["data"])

    assert {event["project"] for event in seen} == {"a"}


async def test_two_streams_both_get_everything_in_order(cloud: World) -> None:
    async with following(cloud) as one, following(cloud) as other:
        await asyncio.gather(*(cloud.make(f"{P}/a/networks", f"n{number}") for number in range(20)))
        for reader in (one, other):
            seqs, names = [], set()
            while len(names) < 20:
                event = await reader.next()
                seqs.append(int(event["id"]))
                if event["event"] == "network.create":
                    names.add(event["data"]["name"])
            assert seqs == sorted(set(seqs))


async def test_a_stream_that_is_too_slow_reads_what_it_lost_from_the_table(
    cloud: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.store.store.WATCH_BATCHES", 0)
    async with following(cloud) as reader:
        for number in range(5):
            await cloud.make(f"{P}/a/networks", f"n{number}")
        seqs, names = [], []
        while len(names) < 5:
            event = await reader.next()
            seqs.append(int(event["id"]))
            names += [event["data"]["name"]] if event["event"] == "network.create" else []

    assert names == [f"n{number}" for number in range(5)]
    assert seqs == sorted(set(seqs))


async def test_a_stream_ends_when_its_token_is_revoked(cloud: World) -> None:
    async with following(cloud, as_="a-reader") as reader:
        await cloud.call("DELETE", f"{P}/a/tokens/a-reader", as_="a-admin")
        while (event := await reader.next())["event"] != "problem":
            pass
        with pytest.raises(EOFError):
            await reader.next()

    assert event["data"]["code"] == "unauthenticated"


async def test_a_quiet_stream_has_a_heartbeat_and_ends_when_the_process_stops(tmp_path: Path) -> None:
    async with world(tmp_path, heartbeat_s=0.05) as cloud, following(cloud) as reader:
        while reader.comments < 4:
            line = await reader.response.content.readline()
            reader.comments += line.startswith(b": still here")
        async with asyncio.timeout(PATIENCE_S):
            await cloud.client.server.runner.shutdown()  # type: ignore[attr-defined]
            assert await reader.response.content.read() is not None


@pytest.mark.parametrize(
    ("query", "headers", "field"),
    [
        ("after=x", {}, "after"),
        ("limit=5000", {}, "limit"),
        ("follow=maybe", {}, "follow"),
        ("sinse=1", {}, "sinse"),
        ("since=yesterday", {}, "since"),
        ("result=maybe", {}, "result"),
        ("follow=true", {"Last-Event-ID": "x"}, "Last-Event-ID"),
    ],
)
async def test_bad_queries_of_events_are_refused(cloud: World, query: str, headers: dict[str, str], field: str) -> None:
    reply = await cloud.call("GET", f"/v1/events?{query}", headers=headers)

    assert reply.status == 400
    assert reply.json["errors"][0]["field"] == field
