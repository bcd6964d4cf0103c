"""The audit trail: who did what with which result, chained so that nobody changes history unseen."""

from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config as AlembicConfig
from api_world import P, World, world

from controller.store.database import MIGRATIONS, migrate, open_database


async def events(cloud: World, query: str, *, as_: str = "root") -> list[dict[str, Any]]:
    reply = await cloud.call("GET", f"/v1/events?limit=1000&{query}", as_=as_)
    assert reply.status == 200, reply.raw
    items: list[dict[str, Any]] = reply.json["items"]
    return items


async def verified(cloud: World, query: str = "") -> dict[str, Any]:
    found: dict[str, Any] = (await cloud.call("GET", f"/v1/audit/verify{query}")).json
    return found


# --- what is in it ------------------------------------------------------------------------------------------------


async def test_a_mutation_is_seen_as_accepted_and_as_done_under_its_request(cloud: World) -> None:
    made = await cloud.call("POST", f"{P}/a/networks", {"name": "n"}, headers={"X-Request-Id": "req-mine"})
    await cloud.settled(made.json["operation"]["id"])
    found = await events(cloud, "request=req-mine")

    assert [(one["action"], one["result"]) for one in found] == [
        ("network.create", "accepted"),
        ("operation.done", "done"),
        ("network.active", ""),
    ]
    assert found[0]["before"] is None
    assert found[0]["after"]["cidr"]
    assert found[0]["actor"] == "system/root"


@pytest.mark.parametrize(
    ("as_", "asked", "result", "action"),
    [
        ("a-reader", ("POST", f"{P}/a/networks", {"name": "m"}), "denied", "network.create"),
        ("a-reader", ("DELETE", f"{P}/a/networks/n", None), "denied", "network.delete"),
        ("a-member", ("POST", f"{P}/a/networks", {"name": "n"}), "conflict", "network.create"),
        ("a-member", ("DELETE", f"{P}/b/networks/n", None), "denied", "network.delete"),
        ("a-admin", ("DELETE", "/v1/projects/a", None), "denied", "project.delete"),
        ("root", ("DELETE", "/v1/projects/a", None), "conflict", "project.delete"),
    ],
)
async def test_a_refused_mutation_is_an_event_too(
    cloud: World, as_: str, asked: tuple[str, str, object], result: str, action: str
) -> None:
    await cloud.make(f"{P}/a/networks", "n")
    refused = await cloud.call(*asked, as_=as_)
    (event,) = await events(cloud, f"result={result}")

    assert refused.status in (403, 409)
    assert event["action"] == action
    assert event["actor"].endswith(as_)
    assert event["message"] == refused.json["detail"]
    assert event["request"] == refused.headers["X-Request-Id"]


async def test_a_stale_change_is_a_conflict_in_the_history_with_the_spec_as_it_stands(cloud: World) -> None:
    await cloud.make("/v1/projects", "shop", {"description": "mine"})
    headers = {"If-Match": '"7"'}
    await cloud.call("PATCH", "/v1/projects/shop", {"spec": {"description": "theirs"}}, headers=headers)
    (event,) = await events(cloud, "result=conflict")

    assert (event["action"], event["name"]) == ("project.set", "shop")
    assert event["before"]["description"] == "mine"
    assert event["after"] is None


async def test_reading_and_nonsense_are_no_events(cloud: World) -> None:
    for method, path, body, as_ in (
        ("GET", f"{P}/b/networks", None, "a-reader"),
        ("POST", f"{P}/a/networks", {"nome": "n"}, "a-member"),
        ("DELETE", f"{P}/a/networks/none", None, "a-member"),
        ("POST", f"{P}/a/networks", {"name": "n"}, None),
    ):
        assert (await cloud.call(method, path, body, as_=as_)).status >= 400

    assert await events(cloud, "actor=a/a-member") == await events(cloud, "actor=a/a-reader") == []


async def test_a_tenant_sees_what_it_tried_and_not_what_was_tried_on_it(cloud: World) -> None:
    await cloud.call("POST", f"{P}/b/networks", {"name": "n"}, as_="a-member")

    assert [one["actor"] for one in await events(cloud, "result=denied", as_="a-reader")] == ["a/a-member"]
    assert await events(cloud, "result=denied", as_="b-admin") == []
    assert (await cloud.call("GET", "/v1/audit/verify", as_="a-admin")).status == 403


async def test_filters_are_the_same_for_pages_and_for_streams(cloud: World) -> None:
    await cloud.make(f"{P}/a/networks", "n", as_="a-member")
    moment = cloud.clock.now
    await cloud.make(f"{P}/a/networks", "m", as_="a-admin")
    await cloud.make(f"{P}/a/keypairs", "n", {"public_key": "ssh-ed25519 AAAA"}, as_="a-admin")
    names = {
        "actor=a/a-member&action=network.create": ["n"],
        "action=network.cre*": ["n", "m"],
        "action=NETWORK.cre*": [],
        "kind=keypair&result=accepted": ["n"],
        "name=n&result=accepted": ["n", "n"],
        f"since={moment:.3f}&result=accepted": ["m", "n"],
        "since=2001-01-01&kind=network&result=accepted": ["n", "m"],
        "since=2101-01-01": [],
        "project=b&kind=network": [],
    }
    for query, wanted in names.items():
        found = await events(cloud, query)
        assert [one["name"] for one in found] == wanted, query
        if wanted:
            headers = {"Authorization": f"Bearer {cloud.tokens['root']}"}
            async with cloud.client.get(f"/v1/events?follow=true&{query}", headers=headers) as stream:
                text = ""
                while text.count("\ndata: ") < len(wanted):
                    text += (await stream.content.readline()).decode()
            assert text.count("event: ") == len(wanted)


# --- the chain ----------------------------------------------------------------------------------------------------


async def test_the_chain_is_verified_over_http_and_by_a_noted_head(cloud: World) -> None:
    found = await verified(cloud)
    last = next(one for one in await events(cloud, "") if one["seq"] == found["head"]["seq"])
    noted = f"seq={last['seq']}&hash={last['hash']}"

    assert (found["intact"], found["first_bad"]) == (True, None)
    assert found["events"] == found["head"]["seq"]
    assert found["head"]["hash"] == last["hash"]
    assert (await verified(cloud, f"?{noted}"))["intact"] is True
    assert (await verified(cloud, f"?seq={last['seq']}&hash={'0' * 64}"))["first_bad"] == last["seq"]


@pytest.mark.parametrize("query", ["seq=5", "hash=" + "0" * 64, "seq=5&hash=x", "seq=0&hash=" + "0" * 64])
async def test_half_a_head_is_refused(cloud: World, query: str) -> None:
    assert (await cloud.call("GET", f"/v1/audit/verify?{query}")).status == 400


async def test_the_migration_chains_what_was_there_and_it_can_be_verified(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'test.db'}")
    config = AlembicConfig()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        for number in range(1, 1203):
            connection.exec_driver_sql(
                "INSERT INTO event (at, actor, request, action, kind, resource, project, name, message, before, after) "
                "VALUES (?, 'é', 'r', 'vm.create', 'vm', 'vm-1', 'a', 'web', 'm', '', '{}')",
                (number,),
            )
    migrate(engine)
    engine.dispose()
    async with world(tmp_path) as cloud:
        found = await verified(cloud)
        await cloud.make("/v1/projects", "a")
        later = await verified(cloud)

    assert found["intact"] is True
    assert found["events"] > 1202
    assert later["intact"] is True
    assert later["events"] > found["events"]
