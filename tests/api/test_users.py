"""Users: passwords, sessions, roles that are bound, and what ends at once."""

import asyncio
from pathlib import Path

import aiohttp
import pytest
from api_world import P, World, world

from controller.config import parse
from tests.patience import PATIENCE_S


@pytest.fixture
async def people(cloud: World) -> World:
    """Give user bob of the default domain, logged in as `bob`, with no role yet."""
    made = await cloud.make("/v1/users", "bob")
    await log_in(cloud, "bob", made["revealed"])
    return cloud


async def log_in(cloud: World, user: str, password: str) -> None:
    reply = await cloud.call("POST", "/v1/login", {"user": user, "password": password}, as_=None)
    assert reply.status == 200, reply.raw
    cloud.tokens[user] = reply.json["token"]


async def test_a_user_logs_in_with_the_first_password_and_says_who_it_is(people: World) -> None:
    me = (await people.call("GET", "/v1/me", as_="bob")).json

    assert (me["actor"], me["project"], me["domain"], me["role"]) == ("bob@default", "", "default", "none")
    assert me["expires_at"] == pytest.approx(people.clock.now + 12 * 3600, abs=60)
    assert people.tokens["bob"].startswith("sks_")


async def test_a_user_may_do_what_bindings_give_from_their_commit_to_their_end(people: World) -> None:
    before = await people.call("POST", f"{P}/a/networks", {"name": "one"}, as_="bob")
    await people.make(f"{P}/a/bindings", "bob", {"user": "bob", "role": "member"}, as_="a-admin")
    there = await people.call("POST", f"{P}/a/networks", {"name": "one"}, as_="bob")
    elsewhere = await people.call("POST", f"{P}/b/networks", {"name": "one"}, as_="bob")
    await people.call("DELETE", f"{P}/a/bindings/bob", as_="a-admin")
    after = await people.call("GET", f"{P}/a/networks", as_="bob")

    assert (before.status, there.status, elsewhere.status, after.status) == (403, 202, 403, 403)
    assert "bob@default lacks network.create on networks in project a: it is no role anywhere" in before.json["detail"]
    events = (await people.call("GET", "/v1/events?actor=bob@default", as_="a-admin")).json["items"]
    assert [event["action"] for event in events] == ["network.create"]


async def test_a_wrong_password_and_no_such_user_are_the_same(people: World) -> None:
    said = [
        (await people.call("POST", "/v1/login", {"user": user, "password": "wrong wrong"}, as_=None))
        for user in ("bob", "nobody")
    ]

    assert [reply.status for reply in said] == [401, 401]
    assert said[0].json | {"request": ""} == said[1].json | {"request": ""}


async def test_logins_under_one_name_are_few(people: World) -> None:
    replies = [
        await people.call("POST", "/v1/login", {"user": "eve", "password": "wrong wrong"}, as_=None) for _ in range(11)
    ]

    assert [reply.status for reply in replies].count(401) == 10
    assert (replies[-1].status, replies[-1].json["code"]) == (429, "rate-limited")
    assert int(replies[-1].headers["Retry-After"]) > 1


async def test_logging_out_ends_this_session_and_no_other(people: World) -> None:
    made = await people.make("/v1/users", "eve")
    await log_in(people, "eve", made["revealed"])
    first = people.tokens["eve"]
    await log_in(people, "eve", made["revealed"])

    out = await people.call("POST", "/v1/logout", as_="eve")

    assert out.status == 200
    assert (await people.call("GET", "/v1/me", as_="eve")).status == 401
    people.tokens["eve"] = first
    assert (await people.call("GET", "/v1/me", as_="eve")).status == 200
    assert (await people.call("POST", "/v1/logout", as_="a-admin")).status == 409


async def test_a_session_expires_and_says_so(tmp_path: Path) -> None:
    async with world(tmp_path, parse("[api]\nsession_hours = 1\n", "x")) as cloud:
        made = await cloud.make("/v1/users", "bob")
        await log_in(cloud, "bob", made["revealed"])
        cloud.clock.now += 3601

        late = await cloud.call("GET", "/v1/me", as_="bob")

    assert late.status == 401
    assert "the session of user bob has expired" in late.json["detail"]
    assert "skerry login" in late.json["fix"]


async def test_a_new_password_ends_all_sessions_and_the_one_before(people: World) -> None:
    first = (await people.make("/v1/users", "eve"))["revealed"]
    await log_in(people, "eve", first)
    path, new = "/v1/users/eve/password", "a better password"

    short = await people.call("PUT", path, {"password": "short", "current": first}, as_="eve")
    blind = await people.call("PUT", path, {"password": new, "current": "wrong wrong"}, as_="eve")
    others = await people.call("PUT", "/v1/users/bob/password", {"password": new}, as_="eve")
    done = await people.call("PUT", path, {"password": new, "current": first}, as_="eve")

    assert (short.status, blind.status, others.status, done.status) == (400, 403, 404, 202)
    assert (await people.call("GET", "/v1/me", as_="eve")).status == 401
    old = await people.call("POST", "/v1/login", {"user": "eve", "password": first}, as_=None)
    assert old.status == 401
    await log_in(people, "eve", new)
    for text in (await people.call("GET", "/v1/events?limit=1000")).raw, done.raw:
        assert new.encode() not in text
        assert b"argon2" not in text


async def test_a_user_who_is_disabled_is_out_at_once_and_can_not_come_back(people: World) -> None:
    await people.call("PATCH", "/v1/users/bob", {"spec": {"enabled": False}}, headers={"If-Match": "*"})

    assert (await people.call("GET", "/v1/me", as_="bob")).status == 401


async def test_a_domains_admin_manages_its_projects_users_roles_and_tokens(people: World) -> None:
    await people.make("/v1/domains", "acme")
    lead = await people.make("/v1/users", "lead", {"domain": "acme", "role": "admin"})
    await log_in(people, "lead", lead["revealed"])

    await people.make("/v1/projects", "rockets", as_="lead")
    await people.make("/v1/users", "wile", as_="lead")
    await people.make("/v1/roles", "starter", {"grants": [{"actions": ["vm.start"]}]}, as_="lead")
    await people.make(f"{P}/rockets/tokens", "ci", {"custom_role": "starter"}, as_="lead")
    await people.make(f"{P}/rockets/bindings", "wile", {"user": "wile", "role": "reader"}, as_="lead")
    refused = {
        path: (await people.call("POST", path, body, as_="lead")).status
        for path, body in (
            ("/v1/domains", {"name": "other"}),
            ("/v1/projects", {"name": "x", "spec": {"domain": "default"}}),
            ("/v1/hosts", {"name": "x"}),
            (f"{P}/a/tokens", {"name": "x"}),
            (f"{P}/system/tokens", {"name": "x"}),
            ("/v1/projects?y", {"name": "a"}),
        )
    }
    listed = {
        kind: [one["name"] for one in (await people.call("GET", f"/v1/{kind}", as_="lead")).json["items"]]
        for kind in ("domains", "projects", "users", "roles")
    }

    assert listed == {"domains": ["acme"], "projects": ["rockets"], "users": ["lead", "wile"], "roles": ["starter"]}
    assert set(refused.values()) <= {400, 403, 404, 409}
    gone = await people.call("DELETE", f"{P}/rockets/bindings/wile", as_="lead")
    assert gone.status == 202
    await people.settled(gone.json["operation"]["id"])
    gone = await people.call("DELETE", "/v1/users/wile", as_="lead")
    operation = f"/v1/operations/{gone.json['operation']['id']}?wait_s=5"
    assert (await people.call("GET", operation, as_="lead")).json["state"] == "done"


async def test_an_expired_token_says_so_and_cuts_its_streams_and_consoles(cloud: World) -> None:
    host = await cloud.host("h1")
    await cloud.vm("a", "web", host)
    made = await cloud.make(f"{P}/a/tokens", "short", {"role": "member", "expires_in": "30s"})
    bearer = {"Authorization": f"Bearer {made['revealed']}"}
    cloud.clock.now += 29
    async with (
        cloud.client.ws_connect(f"{P}/a/vms/web/console", headers=bearer) as console,
        cloud.client.get("/v1/watch", headers=bearer) as watch,
    ):
        await cloud.make(f"{P}/a/networks", "wakes-them-up")
        cloud.clock.now += 5
        await cloud.make(f"{P}/a/networks", "wakes-them-again")
        async with asyncio.timeout(PATIENCE_S):
            told = await console.receive()
            ended = await watch.content.read()

    assert told.type is aiohttp.WSMsgType.TEXT
    assert "has expired" in told.data
    assert b"event: problem" in ended
    assert b"token short of project a has expired" in ended


@pytest.mark.parametrize("how", ["token", "binding"])
async def test_an_idle_console_is_cut_when_the_right_to_it_goes(people: World, how: str) -> None:
    cloud = people
    host = await cloud.host("h1")
    await cloud.vm("a", "web", host)
    await cloud.make(f"{P}/a/bindings", "bob", {"user": "bob", "role": "member"})
    who = "a-member" if how == "token" else "bob"
    bearer = {"Authorization": f"Bearer {cloud.tokens[who]}"}
    async with cloud.client.ws_connect(f"{P}/a/vms/web/console", headers=bearer) as console:
        await console.send_bytes(b"x")
        assert (await console.receive()).data == b"X"

        await cloud.call("DELETE", f"{P}/a/{how}s/{'a-member' if how == 'token' else 'bob'}")

        async with asyncio.timeout(PATIENCE_S):
            told = await console.receive()
            end = await console.receive()
    assert told.type is aiohttp.WSMsgType.TEXT
    assert end.type is aiohttp.WSMsgType.CLOSE


async def test_a_token_for_single_actions_on_single_things_does_only_those(cloud: World) -> None:
    only = [
        {"actions": ["network.read", "network.delete"], "names": ["mine"]},
        {"actions": ["network.create"], "labels": {"env": "dev"}},
    ]
    made = await cloud.make(f"{P}/a/tokens", "narrow", {"role": "member", "only": only})
    cloud.tokens["narrow"] = made["revealed"]
    for name in ("mine", "other"):
        await cloud.make(f"{P}/a/networks", name)

    listed = await cloud.call("GET", f"{P}/a/networks", as_="narrow")
    live = await cloud.call("POST", f"{P}/a/networks", {"name": "x"}, as_="narrow")
    dev = await cloud.call("POST", f"{P}/a/networks", {"name": "x", "labels": {"env": "dev"}}, as_="narrow")
    unseen = await cloud.call("DELETE", f"{P}/a/networks/other", as_="narrow")
    gone = await cloud.call("DELETE", f"{P}/a/networks/mine", as_="narrow")
    images = await cloud.call("GET", f"{P}/a/images", as_="narrow")

    assert [one["name"] for one in listed.json["items"]] == ["mine"]
    assert (live.status, dev.status, unseen.status, gone.status, images.status) == (403, 202, 404, 202, 403)
    assert "the token is one for other actions only" in images.json["detail"]


async def test_what_is_private_is_for_who_may_change_the_thing(cloud: World) -> None:
    host = await cloud.host("h1")
    await cloud.needs("a")
    secret = "#!/bin/sh\necho private-words"
    await cloud.make(f"{P}/a/vms", "web", {"image": "disk", "size": "small", "user_data": secret})
    vm = cloud.store.seen.named("vm", "a", "web")
    assert vm is not None
    await cloud.until(lambda: cloud.store.seen.named("host", "", "h1").status.address)  # type: ignore[union-attr]

    reader = await cloud.call("GET", f"{P}/a/vms/web", as_="a-reader")
    member = await cloud.call("GET", f"{P}/a/vms/web", as_="a-member")
    history = await cloud.call("GET", "/v1/events?limit=1000")
    tenants_host = await cloud.call("GET", "/v1/hosts/h1", as_="a-admin")
    operators_host = await cloud.call("GET", "/v1/hosts/h1")

    assert "user_data" not in reader.json["resource"]["spec"]
    assert member.json["resource"]["spec"]["user_data"] == secret
    assert b"private-words" not in history.raw
    assert "address" not in tenants_host.json["resource"]["status"]
    assert b"10.0.0.1" not in tenants_host.raw
    assert operators_host.json["resource"]["status"]["address"] == "10.0.0.1"
    assert host.id
