"""Idempotency-Key: a request that is sent again is carried out once, and answered as it was."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from api_world import P, Reply, World, world


async def send(cloud: World, method: str, path: str, body: object = None, *, key: str, **more: Any) -> Reply:
    headers = {"Idempotency-Key": key, **more.pop("headers", {})}
    return await cloud.call(method, path, body, headers=headers, **more)


def operations(cloud: World, name: str) -> list[str]:
    return [op.verb for op in cloud.store.seen.operations() if op.name == name]


async def test_the_same_request_again_gets_the_first_answer_and_makes_nothing(cloud: World) -> None:
    body = {"name": "n", "spec": {"cidr": "10.7.0.0/24"}}
    first = await send(cloud, "POST", f"{P}/a/networks", body, key="k1")
    again = await send(cloud, "POST", f"{P}/a/networks", dict(reversed(body.items())), key="k1")

    assert (first.status, again.status) == (202, 202)
    assert again.json == first.json
    assert again.headers["Location"] == first.headers["Location"]
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers
    assert operations(cloud, "n") == ["create"]


async def test_without_a_key_the_same_request_is_another_one(cloud: World) -> None:
    await cloud.make(f"{P}/a/networks", "n")

    assert (await cloud.call("POST", f"{P}/a/networks", {"name": "n"})).status == 409


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", f"{P}/a/networks", {"name": "other"}),
        ("POST", f"{P}/a/networks", {"name": "n", "labels": {"x": "y"}}),
        ("POST", f"{P}/b/networks", {"name": "n"}),
        ("DELETE", f"{P}/a/networks/n", None),
    ],
)
async def test_a_key_that_stands_for_another_request_is_refused_with_words(
    cloud: World, method: str, path: str, body: object
) -> None:
    await send(cloud, "POST", f"{P}/a/networks", {"name": "n"}, key="k1")
    reply = await send(cloud, method, path, body, key="k1")

    assert reply.status == 409
    assert reply.json["code"] == "idempotency-key-reused"
    assert "k1" in reply.json["detail"]
    assert "fresh key" in reply.json["fix"]
    assert operations(cloud, "n") == ["create"]
    assert operations(cloud, "other") == []


async def test_a_key_belongs_to_its_caller(cloud: World) -> None:
    mine = await send(cloud, "POST", f"{P}/a/networks", {"name": "n"}, key="k1", as_="a-member")
    theirs = await send(cloud, "POST", f"{P}/b/networks", {"name": "n"}, key="k1", as_="b-member")

    assert (mine.status, theirs.status) == (202, 202)
    assert mine.json["operation"]["id"] != theirs.json["operation"]["id"]


async def test_many_at_once_make_one(cloud: World) -> None:
    replies = await asyncio.gather(
        *(send(cloud, "POST", f"{P}/a/networks", {"name": "n"}, key="k1") for _ in range(20))
    )

    assert {reply.status for reply in replies} == {202}
    assert len({reply.json["operation"]["id"] for reply in replies}) == 1
    assert operations(cloud, "n") == ["create"]


async def test_changes_verbs_and_deletions_are_done_once_too(cloud: World) -> None:
    host = await cloud.host("h1")
    row = await cloud.vm("a", "web", host)
    one = f"{P}/a/vms/web"
    tag = {"If-Match": f'"{row.generation}"'}
    change = {"labels": {"tier": "web"}}
    for method, path, body, more in (
        ("PATCH", one, change, {"headers": tag}),
        ("POST", f"{one}/reboot", None, {}),
        ("DELETE", one, None, {}),
    ):
        replies = [await send(cloud, method, path, body, key=method, **more) for _ in range(2)]
        assert [reply.status for reply in replies] == [202, 202], replies
        assert replies[0].json == replies[1].json

    assert operations(cloud, "web") == ["create", "set", "reboot", "delete"]


async def test_a_deletion_is_answered_again_when_the_thing_is_long_gone(cloud: World) -> None:
    await cloud.make(f"{P}/a/keypairs", "k", {"public_key": "ssh-ed25519 AAAA"})
    first = await send(cloud, "DELETE", f"{P}/a/keypairs/k", key="k1")
    await cloud.settled(first.json["operation"]["id"])
    again = await send(cloud, "DELETE", f"{P}/a/keypairs/k", key="k1")

    assert again.status == 202
    assert again.json["operation"]["id"] == first.json["operation"]["id"]


async def test_a_secret_is_shown_once_and_kept_nowhere(cloud: World, tmp_path: Path) -> None:
    body = {"name": "ci", "spec": {"role": "member"}}
    first = await send(cloud, "POST", f"{P}/a/tokens", body, key="k1")
    again = await send(cloud, "POST", f"{P}/a/tokens", body, key="k1")
    host = [await send(cloud, "POST", "/v1/hosts", {"name": "h9"}, key="k2") for _ in range(2)]

    assert first.json["revealed"].startswith("skt_")
    assert "revealed" not in again.json
    assert "delete token ci and make it again" in again.json["revealed_before"]
    assert "skerry host token h9" in host[1].json["revealed_before"]
    secret = first.json["revealed"].encode()
    assert not any(secret in path.read_bytes() for path in (tmp_path / "test.db", tmp_path / "test.db-wal"))


async def test_a_refused_request_is_not_remembered(cloud: World) -> None:
    body = {"name": "k", "spec": {"public_key": "ssh-ed25519 AAAA"}}
    await cloud.make(f"{P}/a/keypairs", "k", {"public_key": "ssh-ed25519 BBBB"})
    refused = await send(cloud, "POST", f"{P}/a/keypairs", body, key="k1")
    gone = await cloud.call("DELETE", f"{P}/a/keypairs/k")
    await cloud.settled(gone.json["operation"]["id"])
    taken = await send(cloud, "POST", f"{P}/a/keypairs", body, key="k1")

    assert (refused.status, taken.status) == (409, 202)


async def test_a_key_outlives_the_process_and_ends_after_a_day(tmp_path: Path) -> None:
    async with world(tmp_path) as cloud:
        await cloud.make("/v1/projects", "a")
        first = await send(cloud, "POST", f"{P}/a/networks", {"name": "n"}, key="k1")
        before = cloud.clock.now
    async with world(tmp_path) as cloud:
        cloud.clock.now = before
        again = await send(cloud, "POST", f"{P}/a/networks", {"name": "n"}, key="k1")
        other = await send(cloud, "POST", f"{P}/a/networks", {"name": "m"}, key="k1")
        cloud.clock.now += 24 * 3600
        await cloud.store.tidy()
        free = await send(cloud, "POST", f"{P}/a/networks", {"name": "m"}, key="k1")

    assert again.json["operation"]["id"] == first.json["operation"]["id"]
    assert (other.status, free.status) == (409, 202)


@pytest.mark.parametrize("key", ["", "a b", "k" * 256, "ключ"])
async def test_a_bad_key_is_refused(cloud: World, key: str) -> None:
    reply = await send(cloud, "POST", f"{P}/a/networks", {"name": "n"}, key=key)

    assert reply.status == 400
    assert reply.json["errors"][0]["field"] == "Idempotency-Key"
