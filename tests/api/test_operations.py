"""Operations: waiting for them, listing them, taking wishes back; and why a machine is not as wished."""

import asyncio

import pytest
from aiohttp.test_utils import TestClient
from api_world import P, World

from tests.patience import PATIENCE_S

VM = {"image": "disk", "size": "small"}


async def test_a_wait_ends_when_the_operation_does(cloud: World) -> None:
    host = await cloud.host("h1")
    await cloud.needs("a")
    made = await cloud.make(f"{P}/a/vms", "web", VM, as_="a-member")
    operation = made["operation"]["id"]
    await cloud.until(lambda: cloud.store.seen.owned_documents(made["resource"]["id"]))

    waiting = asyncio.create_task(cloud.call("GET", f"/v1/operations/{operation}?wait_s=30", as_="a-reader"))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    while not waiting.done():
        host.settle()
        await asyncio.sleep(0.01)

    assert (await waiting).json["state"] == "done"


async def test_a_wait_ends_at_any_change_against_what_was_seen(cloud: World) -> None:
    host = await cloud.host("h1")
    await cloud.needs("a")
    made = await cloud.make(f"{P}/a/vms", "web", VM, as_="a-member")
    await cloud.until(lambda: cloud.store.seen.owned_documents(made["resource"]["id"]))
    path = f"/v1/operations/{made['operation']['id']}"
    host.settle()
    host.say("domain/", message="fetching image", progress=0.25)
    await asyncio.sleep(0.1)
    seen = (await cloud.call("GET", path)).json["revision"]

    waiting = asyncio.create_task(cloud.call("GET", f"{path}?wait_s=30&seen={seen}"))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    host.say("domain/", message="fetching image", progress=0.5)
    changed = (await waiting).json

    assert changed["revision"] > seen
    assert changed["progress"] == 0.5
    assert changed["message"] == "fetching image"


async def test_a_wait_without_news_ends_in_time_with_what_there_is(cloud: World) -> None:
    await cloud.needs("a")
    await cloud.host("h1")
    made = await cloud.make(f"{P}/a/vms", "web", VM, as_="a-member")
    path = f"/v1/operations/{made['operation']['id']}"
    await cloud.until(lambda: cloud.store.seen.owned_documents(made["resource"]["id"]))
    await asyncio.sleep(0.1)

    reply = await cloud.call("GET", f"{path}?wait_s=1")

    assert reply.status == 200
    assert reply.json["state"] == "running"


async def test_opening_a_host_wakes_what_found_none(cloud: World) -> None:
    await cloud.host("h1")
    await cloud.needs("a")
    closed = await cloud.call("PATCH", "/v1/hosts/h1", {"spec": {"schedulable": False}}, headers={"If-Match": "*"})
    await cloud.settled(closed.json["operation"]["id"], "done")
    made = await cloud.make(f"{P}/a/vms", "web", VM, as_="a-member")
    operation = await cloud.settled(made["operation"]["id"], "blocked")
    assert "skerry host set h1 --schedulable" in operation["why"]["smallest_change"]

    await cloud.call("PATCH", "/v1/hosts/h1", {"spec": {"schedulable": True}}, headers={"If-Match": "*"})

    await cloud.until(lambda: cloud.store.seen.placement(made["resource"]["id"]))


async def test_a_machine_without_a_host_is_blocked_and_all_three_say_why_alike(cloud: World) -> None:
    await cloud.host("h1", memory_mib=600)
    await cloud.needs("a")
    made = await cloud.make(f"{P}/a/vms", "web", VM, as_="a-member")

    operation = await cloud.settled(made["operation"]["id"], "blocked")
    shown = (await cloud.call("GET", f"{P}/a/vms/web", as_="a-reader")).json["resource"]["status"]
    why = (await cloud.call("GET", f"{P}/a/vms/web/why", as_="a-reader")).json

    assert operation["why"]["costs"]
    assert operation["why"] == shown["why"] == why["why"]
    assert operation["message"] == shown["message"] == why["message"] == why["why"]["summary"]
    assert why["name"] == "web"
    assert why["state"] == "blocked"
    assert [op["id"] for op in why["operations"]] == [made["operation"]["id"]]
    assert [event["action"] for event in why["events"]] == ["vm.create", "vm.blocked"]


async def test_why_names_what_a_machine_waits_for(cloud: World) -> None:
    host = await cloud.host("h1")
    await cloud.needs("a")
    await cloud.make(f"{P}/a/images", "empty", {"format": "raw"})
    without = await cloud.make(f"{P}/a/vms", "one", {"image": "empty", "size": "small"}, as_="a-member")
    await cloud.make(f"{P}/a/vms", "two", VM, as_="a-member")
    await cloud.until(lambda: any(one.key.startswith("volume/") for one in cloud.store.seen.documents(host.id)))
    await cloud.until(lambda: cloud.store.seen.get(without["resource"]["id"]).status.state == "waiting")
    host.say("volume/", message="fetching image", progress=0.4)

    first = (await cloud.call("GET", f"{P}/a/vms/one/why", as_="a-reader")).json
    second = (await cloud.call("GET", f"{P}/a/vms/two/why", as_="a-reader")).json

    assert any("image empty is empty" in step and "skerry image upload" in step for step in first["steps"])
    assert any("h1" in step and "fetching image (40%)" in step for step in second["steps"])


async def test_a_machine_as_wished_waits_for_nothing(cloud: World) -> None:
    host = await cloud.host("h1")
    await cloud.vm("a", "web", host, as_="a-member")

    why = (await cloud.call("GET", f"{P}/a/vms/web/why", as_="a-reader")).json

    assert why["state"] == "running"
    assert why["steps"] == []
    assert why["why"] is None
    assert why["operations"] == []


async def test_a_host_that_went_away_is_named_in_why(cloud: World) -> None:
    host = await cloud.host("h1")
    await cloud.vm("a", "web", host, as_="a-member")
    view = cloud.store.seen.host(host.id)
    view.connected, view.since = False, cloud.clock()

    why = (await cloud.call("GET", f"{P}/a/vms/web/why", as_="a-reader")).json

    assert any("host h1" in step and "is not connected since 2027" in step for step in why["steps"])


async def test_a_volume_says_what_it_waits_for(cloud: World) -> None:
    host = await cloud.host("h1")
    await cloud.vm("a", "web", host, as_="a-member")
    made = await cloud.make(f"{P}/a/volumes", "data", {"size_gib": 1, "vm": "web"}, as_="a-member")
    key = f"volume/{made['resource']['id']}"
    await cloud.until(lambda: any(one.key == key for one in cloud.store.seen.documents(host.id)))
    host.say(key, problem="the pool is broken")

    why = (await cloud.call("GET", f"{P}/a/volumes/data/why", as_="a-reader")).json

    assert why["name"] == "data"
    assert any("host h1, volume data" in step and "the pool is broken" in step for step in why["steps"])


async def test_operations_are_listed_newest_first_and_filtered(cloud: World) -> None:
    made = [await cloud.make(f"{P}/a/networks", f"n{number}") for number in range(5)]
    for one in made:
        await cloud.settled(one["operation"]["id"])
    await cloud.make(f"{P}/b/networks", "other")

    first = (await cloud.call("GET", "/v1/operations?limit=3", as_="a-reader")).json
    second = (await cloud.call("GET", f"/v1/operations?limit=3&after={first['next']}", as_="a-reader")).json
    of_one = (await cloud.call("GET", f"/v1/operations?resource={made[2]['resource']['id']}")).json
    still_open = (await cloud.call("GET", "/v1/operations?state=open&project=a")).json
    done = (await cloud.call("GET", "/v1/operations?state=done&project=a&limit=1000")).json

    assert [op["name"] for op in first["items"] + second["items"]] == ["n4", "n3", "n2", "n1", "n0"]
    assert second["next"] is None
    assert [op["name"] for op in of_one["items"]] == ["n2"]
    assert still_open["items"] == []
    assert {op["state"] for op in done["items"]} == {"done"}


@pytest.mark.parametrize(
    "query", ["state=finished", "after=op-nothing", "limit=0", "colour=red", "wait_s=61", "wait_s=-1", "seen=x"]
)
async def test_bad_queries_of_operations_are_refused(cloud: World, query: str) -> None:
    made = await cloud.make(f"{P}/a/networks", "n")
    one = query.startswith(("wait", "seen"))
    path = f"/v1/operations/{made['operation']['id']}" if one else "/v1/operations"

    reply = await cloud.call("GET", f"{path}?{query}")

    assert reply.status == 400
    assert reply.json["errors"][0]["field"] == query.partition("=")[0]


async def test_cancelling_a_create_deletes_it(cloud: World) -> None:
    await cloud.needs("a")
    made = await cloud.make(f"{P}/a/vms", "web", VM, as_="a-member")
    path = f"/v1/operations/{made['operation']['id']}"
    await cloud.settled(made["operation"]["id"], "blocked")

    by_reader = await cloud.call("POST", f"{path}/cancel", as_="a-reader")
    by_member = await cloud.call("POST", f"{path}/cancel", as_="a-member")
    await cloud.settled(by_member.json["operation"]["id"])
    again = await cloud.call("POST", f"{path}/cancel", as_="a-member")

    assert by_reader.status == 403
    assert by_member.status == 202
    assert by_member.json["operation"]["verb"] == "delete"
    assert (await cloud.call("GET", path)).json["state"] == "cancelled"
    assert (await cloud.call("GET", f"{P}/a/vms/web")).status == 404
    assert (again.status, again.json["code"]) == (409, "conflict")


async def test_a_delete_can_not_be_taken_back(cloud: World) -> None:
    host = await cloud.host("h1")
    await cloud.vm("a", "web", host)
    deleted = await cloud.call("DELETE", f"{P}/a/vms/web", as_="a-member")

    reply = await cloud.call("POST", f"/v1/operations/{deleted.json['operation']['id']}/cancel", as_="a-member")

    assert reply.status == 409
    assert "can't be taken back" in reply.json["detail"]


async def test_an_operation_that_is_not_there_is_said_so(cloud: World) -> None:
    for method, path in (("GET", "/v1/operations/op-000000000000"), ("POST", "/v1/operations/x/cancel")):
        reply = await cloud.call(method, path)
        assert (reply.status, reply.json["code"]) == (404, "not-found")


async def test_a_stop_of_the_process_ends_waits_at_once(cloud: World) -> None:
    await cloud.needs("a")
    await cloud.host("h1")
    made = await cloud.make(f"{P}/a/vms", "web", VM, as_="a-member")
    await cloud.until(lambda: cloud.store.seen.owned_documents(made["resource"]["id"]))
    client: TestClient[object, object] = cloud.client
    waiting = asyncio.create_task(cloud.call("GET", f"/v1/operations/{made['operation']['id']}?wait_s=60"))
    await asyncio.sleep(0.1)

    async with asyncio.timeout(PATIENCE_S):
        await client.server.runner.shutdown()
        reply = await waiting

    assert reply.status == 200
