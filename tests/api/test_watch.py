"""`/v1/watch`: what changes is told, and a reader that was away misses nothing."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from api_world import P, World, world
from test_events import Reader

from tests.patience import PATIENCE_S


@asynccontextmanager
async def watching(
    cloud: World, query: str = "", *, as_: str = "root", headers: dict[str, str] | None = None
) -> AsyncIterator[Reader]:
    """Watch."""
    sent = {"Authorization": f"Bearer {cloud.tokens[as_]}", **(headers or {})}
    async with cloud.client.get(f"/v1/watch{query}", headers=sent) as response:
        assert response.status == 200, await response.read()
        yield Reader(response)


class Mirror:
    """What a client believes, from nothing but the watch."""

    def __init__(self) -> None:
        self.things: dict[str, dict[str, Any]] = {}
        self.operations: dict[str, str] = {}
        self.place = 0

    def take(self, event: dict[str, Any]) -> None:
        data = event["data"]
        match event["event"]:
            case "put":
                self.things[data["resource"]["id"]] = data["resource"]
            case "gone":
                self.things.pop(data["id"], None)
            case "operation":
                self.operations[data["operation"]["id"]] = data["operation"]["state"]
        self.place = int(event.get("id", self.place))

    async def until_bookmark(self, reader: Reader) -> None:
        while (event := await reader.next())["event"] != "bookmark":
            self.take(event)
        self.take(event)

    async def until(self, reader: Reader, name: str, event: str = "put") -> None:
        while True:
            found = await reader.next()
            self.take(found)
            if found["event"] == event and name in (found["data"].get("name"), _name(found)):
                return


def _name(event: dict[str, Any]) -> str:
    return str(event["data"].get("resource", {}).get("name", ""))


def really(cloud: World, kind: str = "network") -> dict[str, tuple[int, Any]]:
    return {row.id: (row.generation, row.deleted_at) for row in cloud.store.seen.of_kind(kind)}


def believed(mirror: Mirror, kind: str = "network") -> dict[str, tuple[int, Any]]:
    return {one["id"]: (one["generation"], one["deleted_at"]) for one in mirror.things.values() if one["kind"] == kind}


async def deleted(cloud: World, path: str) -> None:
    gone = await cloud.call("DELETE", path)
    assert gone.status == 202, gone.raw
    await cloud.settled(gone.json["operation"]["id"])


async def test_without_a_place_it_begins_with_all_there_is_and_goes_on(cloud: World) -> None:
    await cloud.make(f"{P}/a/networks", "old")
    mirror = Mirror()
    async with watching(cloud) as reader:
        await mirror.until_bookmark(reader)
        assert {"old", "a", "b", "a-admin"} <= {one["name"] for one in mirror.things.values()}
        made = await cloud.make(f"{P}/a/networks", "new")
        await mirror.until(reader, "new")
        await deleted(cloud, f"{P}/a/networks/new")
        await mirror.until(reader, "new", "gone")
        await deleted(cloud, f"{P}/a/networks/old")
        await mirror.until(reader, "old", "gone")

    assert made["operation"]["id"] in mirror.operations
    assert believed(mirror) == {}


async def test_a_list_and_a_watch_from_its_revision_miss_nothing(cloud: World) -> None:
    await cloud.make(f"{P}/a/networks", "one")
    listed = (await cloud.call("GET", f"{P}/a/networks")).json
    await cloud.make(f"{P}/a/networks", "two")
    await deleted(cloud, f"{P}/a/networks/one")
    mirror = Mirror()
    mirror.things = {one["id"]: one for one in listed["items"]}
    async with watching(cloud, f"?from={listed['revision']}&kind=network") as reader:
        await mirror.until_bookmark(reader)

    assert {one["name"] for one in mirror.things.values()} == {"two"}
    assert believed(mirror) == really(cloud)


async def test_a_reader_that_is_cut_off_at_any_event_resumes_without_loss(cloud: World) -> None:
    for number in range(4):
        await cloud.make(f"{P}/a/images", f"n{number}")
    async with watching(cloud, "?kind=image") as reader:
        mirror = Mirror()
        await mirror.until_bookmark(reader)
    changed = await cloud.call("PATCH", f"{P}/a/images/n1", {"labels": {"x": "y"}}, headers={"If-Match": "*"})
    assert changed.status == 202
    await deleted(cloud, f"{P}/a/images/n2")
    await cloud.make(f"{P}/a/images", "n4")
    cuts = 0
    done = False
    while not done:  # read one event, lose the connection, come back
        async with watching(cloud, "?kind=image", headers={"Last-Event-ID": str(mirror.place)}) as reader:
            event = await reader.next()
            mirror.take(event)
            done = event["event"] == "bookmark"
            cuts += 1

    assert cuts > 3
    assert believed(mirror, "image") == really(cloud, "image")
    assert {one["name"] for one in mirror.things.values()} == {"n0", "n1", "n3", "n4"}


async def test_deletions_are_told_also_after_a_restart_of_the_controller(tmp_path: Path) -> None:
    mirror = Mirror()
    async with world(tmp_path) as cloud:
        await cloud.make("/v1/projects", "a")
        for name in ("stays", "goes"):
            await cloud.make(f"{P}/a/networks", name)
        async with watching(cloud, "?kind=network") as reader:
            await mirror.until_bookmark(reader)
        await deleted(cloud, f"{P}/a/networks/goes")
    async with world(tmp_path) as cloud, watching(cloud, f"?kind=network&from={mirror.place}") as reader:
        await mirror.until_bookmark(reader)
        assert believed(mirror) == really(cloud)

    assert [one["name"] for one in mirror.things.values()] == ["stays"]


async def test_things_of_one_commit_are_told_again_whole_where_the_reader_is_cut_off_within(cloud: World) -> None:
    host = await cloud.host("h1")
    await cloud.vm("a", "web", host)
    async with watching(cloud) as reader:
        events = []
        while not events or events[-1]["event"] != "bookmark":
            events.append(await reader.next())

    by_revision: dict[int, list[dict[str, Any]]] = {}
    for event in events:
        by_revision.setdefault(event["data"]["revision"], []).append(event)
    assert max(len(group) for group in by_revision.values()) > 1
    for revision, group in by_revision.items():
        assert [one.get("id") for one in group if one["event"] != "bookmark"][:-1] == [None] * (
            len([one for one in group if one["event"] != "bookmark"]) - 1
        )
        assert group[-1]["id"] == str(revision)


async def test_filters_by_kind_project_and_label(cloud: World) -> None:
    await cloud.make(f"{P}/a/networks", "web", labels={"tier": "web"})
    await cloud.make(f"{P}/a/networks", "db", labels={"tier": "db"})
    await cloud.make(f"{P}/b/networks", "web", labels={"tier": "web"})
    wanted = {
        "?kind=network&project=a": {"a/web", "a/db"},
        "?kind=network&label=tier=web": {"a/web", "b/web"},
        "?kind=network&kind=project&project=b": {"b/web"},
        "?kind=project": {"/a", "/b", "/system"},
    }
    for query, names in wanted.items():
        mirror = Mirror()
        async with watching(cloud, query) as reader:
            await mirror.until_bookmark(reader)
        assert {f"{one['project']}/{one['name']}" for one in mirror.things.values()} == names, query
        assert mirror.operations == {}


async def test_what_loses_its_label_is_gone_for_those_who_watch_by_it(cloud: World) -> None:
    await cloud.make(f"{P}/a/images", "n", labels={"tier": "web"})
    mirror = Mirror()
    async with watching(cloud, "?kind=image&label=tier=web") as reader:
        await mirror.until_bookmark(reader)
        assert len(mirror.things) == 1
        await cloud.call("PATCH", f"{P}/a/images/n", {"labels": {}}, headers={"If-Match": "*"})
        await mirror.until(reader, "n", "gone")

    assert mirror.things == {}


async def test_a_tenant_sees_its_own_the_clouds_and_what_is_public_until_it_is_not(cloud: World) -> None:
    await cloud.make("/v1/sizes", "small", {"vcpus": 1, "memory_mib": 512, "disk_gib": 1})
    await cloud.make(f"{P}/b/images", "shared", {"public": True})
    await cloud.make(f"{P}/b/images", "secret")
    await cloud.make(f"{P}/b/networks", "theirs")
    await cloud.make(f"{P}/a/networks", "mine")
    mirror, owner = Mirror(), Mirror()
    async with watching(cloud, as_="a-reader") as reader, watching(cloud, as_="b-reader") as other:
        await mirror.until_bookmark(reader)
        await owner.until_bookmark(other)
        assert {one["name"] for one in mirror.things.values()} == {"small", "shared", "mine", "a"}
        assert not any(one["kind"] == "token" for one in mirror.things.values())
        assert (await cloud.call("GET", "/v1/operations", as_="a-reader")).json["items"]
        place = mirror.place
        await cloud.call("PATCH", f"{P}/b/images/shared", {"spec": {"public": False}}, headers={"If-Match": "*"})
        await mirror.until(reader, "shared", "gone")
        await owner.until(other, "shared")
    late = Mirror()
    async with watching(cloud, f"?from={place}", as_="a-reader") as reader:
        while (event := await reader.next())["event"] != "bookmark":
            late.take(event)
            if event["event"] == "gone":
                assert event["data"]["name"] == "shared"
        await deleted(cloud, f"{P}/b/images/secret")
        await deleted(cloud, f"{P}/b/images/shared")
        await cloud.make(f"{P}/a/networks", "last")
        while (event := await reader.next())["event"] != "put" or _name(event) != "last":
            assert "secret" not in str(event)

    assert {one["name"] for one in mirror.things.values()} == {"small", "mine", "a"}
    assert "shared" in {one["name"] for one in owner.things.values()}


async def test_a_slow_reader_gets_the_newest_state_and_no_holes(cloud: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.store.store.WATCH_BATCHES", 0)
    mirror = Mirror()
    async with watching(cloud, "?kind=network") as reader:
        await mirror.until_bookmark(reader)
        for number in range(6):
            await cloud.make(f"{P}/a/networks", f"n{number}")
        await deleted(cloud, f"{P}/a/networks/n3")
        await cloud.make(f"{P}/a/networks", "last")
        await mirror.until(reader, "last")

    assert {one["name"] for one in mirror.things.values()} == {"n0", "n1", "n2", "n4", "n5", "last"}


async def test_a_reader_that_was_away_too_long_is_told_to_start_again(
    cloud: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("rows", "working", "graves"):
        monkeypatch.setattr(f"controller.store.{module}.GRAVES_KEPT", 2)
    async with watching(cloud, "?kind=network") as reader:
        mirror = Mirror()
        await mirror.until_bookmark(reader)
    for number in range(6):
        await cloud.make(f"{P}/a/networks", f"n{number}")
        await deleted(cloud, f"{P}/a/networks/n{number}")
    await cloud.store.tidy()
    async with watching(cloud, f"?kind=network&from={mirror.place}") as reader:
        event = await reader.next()
        with pytest.raises(EOFError):
            await reader.next()

    assert event["event"] == "resync"
    assert "list again" in event["data"]["why"]


async def test_a_revision_that_was_never_given_is_no_place_to_go_on_from(
    cloud: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.api.watch.BEHIND_S", 0.05)
    async with watching(cloud, "?from=999999999") as reader:
        event = await reader.next()

    assert event["event"] == "resync"
    assert "older copy" in event["data"]["why"]


async def test_bookmarks_come_while_nothing_happens_and_it_ends_with_the_token(tmp_path: Path) -> None:
    async with world(tmp_path, heartbeat_s=0.05) as cloud:
        await cloud.make("/v1/projects", "a")
        await cloud.token("t", "a", "reader")
        async with watching(cloud, "?kind=host", as_="t") as reader:
            first = await reader.next()
            second = await reader.next()
            await cloud.call("DELETE", f"{P}/a/tokens/t")
            async with asyncio.timeout(PATIENCE_S):
                while (event := await reader.next())["event"] != "problem":
                    pass

    assert [first["event"], second["event"]] == ["bookmark", "bookmark"]
    assert event["data"]["code"] == "unauthenticated"


async def test_a_reader_that_takes_nothing_is_cut_off(cloud: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.api.stream.STALL_S", 0.2)
    assert cloud.client.port is not None
    small = socket.socket()
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    small.connect(("127.0.0.1", cloud.client.port))
    _, writer = await asyncio.open_connection(sock=small, limit=1)
    head = f"GET /v1/watch HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {cloud.tokens['root']}\r\n\r\n"
    writer.write(head.encode())
    await cloud.until(lambda: cloud.store._feed._watches)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    async with asyncio.timeout(PATIENCE_S):
        number = 0
        while cloud.store._feed._watches:
            labels = {f"k{index}": "x" * 250 for index in range(60)}
            await cloud.make(f"{P}/a/networks", f"n{number}", labels=labels)
            number += 1
    writer.close()


@pytest.mark.parametrize(
    ("query", "field"),
    [("from=x", "from"), ("kind=ship", "kind"), ("label=x", "label"), ("state=running", "state")],
)
async def test_bad_queries_are_refused(cloud: World, query: str, field: str) -> None:
    reply = await cloud.call("GET", f"/v1/watch?{query}")

    assert (reply.status, reply.json["errors"][0]["field"]) == (400, field)


async def test_another_project_is_denied(cloud: World) -> None:
    assert (await cloud.call("GET", "/v1/watch?project=b", as_="a-admin")).status == 403
