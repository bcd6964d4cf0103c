"""Things of all kinds: made, listed, changed, deleted, over HTTP."""

import asyncio

import msgspec
from api_world import FINGERPRINT, P, World

from common.kinds import KINDS
from common.kinds.kind import Scope
from controller.store.writes import PutEnrolment


async def test_a_create_is_accepted_with_an_operation_that_ends(cloud: World) -> None:
    reply = await cloud.call(
        "POST", f"{P}/a/networks", {"name": "back", "spec": {"cidr": "10.9.0.0/24"}}, as_="a-member"
    )

    assert reply.status == 202
    made = reply.json
    assert made["resource"]["spec"] == {"cidr": "10.9.0.0/24"}
    assert made["resource"]["project"] == "a"
    assert made["operation"]["verb"] == "create"
    assert made["operation"]["actor"] == "a/a-member"
    assert "previous_spec" not in made["operation"]
    assert made["names"][made["resource"]["id"]] == "back"
    assert reply.headers["Location"] == f"/v1/operations/{made['operation']['id']}"
    assert (await cloud.settled(made["operation"]["id"]))["finished_at"] > 0


async def test_a_thing_is_found_by_name_and_by_id_with_its_status_in_full(cloud: World) -> None:
    made = await cloud.make(f"{P}/a/networks", "back")
    identity = made["resource"]["id"]

    by_name = await cloud.call("GET", f"{P}/a/networks/back", as_="a-reader")
    by_id = await cloud.call("GET", f"{P}/a/networks/{identity}", as_="a-reader")

    assert by_name.status == by_id.status == 200
    assert by_name.json["resource"]["id"] == by_id.json["resource"]["id"] == identity
    assert by_name.headers["ETag"] == f'"{by_name.json["resource"]["generation"]}"'
    assert {"state", "message", "why"} <= set(by_name.json["resource"]["status"])


async def test_every_kind_lists_and_answers_404_with_what_there_is(cloud: World) -> None:
    for kind in KINDS:
        base = f"/v1/{kind.plural}" if kind.scope is Scope.CLOUD else f"{P}/a/{kind.plural}"

        listed = await cloud.call("GET", base)
        missing = await cloud.call("GET", f"{base}/nothing-here")

        assert listed.status == 200
        assert set(listed.json) == {"items", "names", "next", "revision"}
        assert missing.status == 404
        assert missing.json["code"] == "not-found"
        assert "nothing-here" in missing.json["detail"]


async def test_pages_give_every_thing_once_in_the_order_of_names(cloud: World) -> None:
    names = [f"net-{number:02}" for number in range(7)]
    for name in reversed(names):
        await cloud.make(f"{P}/a/networks", name)

    found: list[str] = []
    after = ""
    while True:
        page = (await cloud.call("GET", f"{P}/a/networks?limit=3" + (f"&after={after}" if after else ""))).json
        found += [item["name"] for item in page["items"]]
        assert len(page["items"]) <= 3
        after = page["next"]
        if after is None:
            break

    assert found == names
    plain = (await cloud.call("GET", f"{P}/a/networks?after=net-04")).json
    assert [item["name"] for item in plain["items"]] == ["net-05", "net-06"]


async def test_lists_filter_by_label_state_and_prefix(cloud: World) -> None:
    await cloud.make(f"{P}/a/networks", "web-1", labels={"env": "test", "tier": "web"})
    await cloud.make(f"{P}/a/networks", "web-2", labels={"env": "live", "tier": "web"})
    done = await cloud.make(f"{P}/a/networks", "db-1", labels={"env": "test"})
    await cloud.settled(done["operation"]["id"])

    async def names(query: str) -> list[str]:
        return [item["name"] for item in (await cloud.call("GET", f"{P}/a/networks?{query}")).json["items"]]

    assert await names("label=env=test") == ["db-1", "web-1"]
    assert await names("label=env=test&label=tier=web") == ["web-1"]
    assert await names("label=env=") == []
    assert await names("name=web") == ["web-1", "web-2"]
    assert "db-1" in await names("state=active")
    assert await names("state=nonsense") == []


async def test_public_images_of_other_projects_are_listed_and_found_but_not_changed(cloud: World) -> None:
    await cloud.make(f"{P}/system/images", "debian", {"format": "raw", "public": True})
    await cloud.make(f"{P}/system/images", "secret", {"format": "raw"})
    await cloud.make(f"{P}/a/images", "debian", {"format": "raw"}, as_="a-member")

    listed = (await cloud.call("GET", f"{P}/a/images?limit=1", as_="a-reader")).json
    rest = (await cloud.call("GET", f"{P}/a/images?after={listed['next']}", as_="a-reader")).json
    from_b = await cloud.call("GET", f"{P}/b/images/debian", as_="b-reader")
    hidden = await cloud.call("GET", f"{P}/b/images/secret", as_="b-reader")
    deleted = await cloud.call("DELETE", f"{P}/b/images/debian", as_="b-admin")

    assert sorted(item["project"] for item in listed["items"] + rest["items"]) == ["a", "system"]
    assert from_b.json["resource"]["project"] == "system"
    assert hidden.status == 404
    assert deleted.status == 403
    assert "project system" in deleted.json["detail"]


async def test_a_change_needs_if_match_and_the_present_generation(cloud: World) -> None:
    await cloud.make("/v1/projects", "shop", {"description": "old"})
    etag = (await cloud.call("GET", "/v1/projects/shop")).headers["ETag"]
    body = {"spec": {"description": "new"}, "labels": {"env": "live"}}

    without = await cloud.call("PATCH", "/v1/projects/shop", body)
    changed = await cloud.call("PATCH", "/v1/projects/shop", body, headers={"If-Match": etag})
    stale = await cloud.call("PATCH", "/v1/projects/shop", body, headers={"If-Match": etag})
    anything = await cloud.call("PATCH", "/v1/projects/shop", body, headers={"If-Match": "*"})

    assert (without.status, without.json["code"]) == (428, "precondition-required")
    assert etag in without.json["fix"]
    assert changed.status == 202
    assert changed.json["resource"]["spec"]["description"] == "new"
    assert changed.json["resource"]["labels"] == {"env": "live"}
    assert changed.headers["ETag"] != etag
    assert (stale.status, stale.json["code"]) == (412, "precondition-failed")
    assert anything.status == 202


async def test_a_patch_leaves_absent_fields_alone(cloud: World) -> None:
    await cloud.make("/v1/hosts", "h1", {"cpu_overcommit": 2.0, "schedulable": False}, labels={"rack": "r1"})

    patched = await cloud.call("PATCH", "/v1/hosts/h1", {"spec": {"schedulable": True}}, headers={"If-Match": "*"})

    assert patched.json["resource"]["spec"]["cpu_overcommit"] == 2.0
    assert patched.json["resource"]["spec"]["schedulable"] is True
    assert patched.json["resource"]["labels"] == {"rack": "r1"}


async def test_a_new_join_token_leaves_the_tunnels_to_a_host_as_they_are(cloud: World) -> None:
    host = await cloud.host("h1")
    joined = msgspec.structs.replace(
        cloud.store.seen.enrolment(host.id), certificate_serial="ab", vtep="10.0.0.1", underlay_mtu=9000
    )
    await cloud.store.step((PutEnrolment(enrolment=joined),), (), "")

    again = await cloud.call("POST", "/v1/hosts/h1/token")

    assert again.status in (200, 202)
    now = cloud.store.seen.enrolment(host.id)
    assert now.certificate_serial == ""
    assert now.join_digest not in ("", joined.join_digest)
    assert (now.vtep, now.underlay_mtu) == ("10.0.0.1", 9000)


async def test_fixed_and_server_set_fields_are_refused_by_name(cloud: World) -> None:
    await cloud.make(f"{P}/a/images", "disk", {"format": "raw"})

    fixed = await cloud.call("PATCH", f"{P}/a/images/disk", {"spec": {"format": "qcow2"}}, headers={"If-Match": "*"})
    forged = await cloud.call("POST", f"{P}/a/images", {"name": "x", "spec": {"digest": "sha256:" + "0" * 64}})

    assert fixed.status == 400
    assert fixed.json["errors"][0]["field"] == "spec.format"
    assert forged.status == 400
    assert forged.json["errors"][0]["field"] == "spec.digest"


async def test_a_delete_ends_and_frees_the_name(cloud: World) -> None:
    await cloud.make(f"{P}/a/networks", "back")

    deleted = await cloud.call("DELETE", f"{P}/a/networks/back", as_="a-member")
    await cloud.settled(deleted.json["operation"]["id"])

    assert deleted.status == 202
    assert deleted.json["resource"]["deleted_at"] > 0
    assert (await cloud.call("GET", f"{P}/a/networks/back")).status == 404
    assert (await cloud.call("POST", f"{P}/a/networks", {"name": "back"})).status == 202


async def test_a_taken_name_is_a_conflict_and_one_of_two_racers_wins(cloud: World) -> None:
    await cloud.make(f"{P}/a/networks", "back")
    taken = await cloud.call("POST", f"{P}/a/networks", {"name": "back"})

    racers = await asyncio.gather(*(cloud.call("POST", f"{P}/a/networks", {"name": "race"}) for _ in range(8)))

    assert (taken.status, taken.json["code"]) == (409, "conflict")
    assert "back" in taken.json["detail"]
    assert sorted(reply.status for reply in racers) == [202] + [409] * 7


async def test_verbs_and_deletes_get_through_while_others_change_the_thing(cloud: World) -> None:
    await cloud.make("/v1/projects", "shop")

    async def change(number: int) -> int:
        body = {"spec": {"description": str(number)}}
        return (await cloud.call("PATCH", "/v1/projects/shop", body, headers={"If-Match": "*"})).status

    *changes, deleted = await asyncio.gather(
        *(change(number) for number in range(4)), cloud.call("DELETE", "/v1/projects/shop")
    )

    assert deleted.status == 202
    assert set(changes) <= {202, 409}


async def test_hosts_and_tokens_reveal_their_secret_once(cloud: World) -> None:
    host = await cloud.make("/v1/hosts", "h1")
    again = await cloud.call("POST", "/v1/hosts/h1/token")
    token = await cloud.make(f"{P}/a/tokens", "ci", {"role": "reader"}, as_="a-admin")
    shown = await cloud.call("GET", f"{P}/a/tokens/ci")

    secret, _, fingerprint = host["revealed"].partition(".")
    assert secret.startswith("skj_")
    assert fingerprint == FINGERPRINT
    assert again.json["revealed"].endswith(f".{FINGERPRINT}")
    assert again.json["revealed"] != host["revealed"]
    assert token["revealed"].startswith("skt_")
    assert token["revealed"].encode() not in shown.raw
    assert "revealed" not in shown.json


async def test_verbs_change_the_spec_that_says_them(cloud: World) -> None:
    await cloud.needs("a")
    await cloud.make(f"{P}/a/vms", "web", {"image": "disk", "size": "small"}, as_="a-member")

    stopped = await cloud.call("POST", f"{P}/a/vms/web/stop", as_="a-member")
    started = await cloud.call("POST", f"{P}/a/vms/web/start", {}, as_="a-member")
    stale = await cloud.call("POST", f"{P}/a/vms/web/reboot", as_="a-member", headers={"If-Match": '"1"'})
    with_body = await cloud.call("POST", f"{P}/a/vms/web/reboot", {"now": True}, as_="a-member")

    assert stopped.json["resource"]["spec"]["power"] == "stopped"
    assert stopped.json["operation"]["verb"] == "stop"
    assert started.json["resource"]["spec"]["start_generation"] == 2
    assert stale.status == 412
    assert with_body.status == 400


async def test_names_stand_behind_every_id_of_an_answer(cloud: World) -> None:
    await cloud.needs("a")
    vm = await cloud.make(f"{P}/a/vms", "web", {"image": "disk", "size": "small"}, as_="a-member")

    spec, names = vm["resource"]["spec"], vm["names"]
    assert names[spec["image"]] == "disk"
    assert names[spec["size"]] == "small"
    assert names[spec["networks"][0]] == "default"


async def test_a_reference_that_is_not_there_names_the_field_and_what_there_is(cloud: World) -> None:
    await cloud.needs("a")

    reply = await cloud.call("POST", f"{P}/a/vms", {"name": "web", "spec": {"image": "disk", "size": "huge"}})

    assert reply.status == 404
    assert reply.json["errors"][0]["field"] == "spec.size"
    assert "small" in reply.json["fix"]
