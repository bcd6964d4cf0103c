"""Bad requests: each is refused with a problem document that names what is wrong, and changes nothing."""

import asyncio
import io
import json
from collections.abc import Mapping
from typing import Any

import pytest
from api_world import P, World

JSON = {"Content-Type": "application/json"}
NETWORKS = f"{P}/a/networks"

BODIES: dict[str, tuple[bytes, int, str]] = {
    "broken": (b'{"name": "x"', 400, "can't be read"),
    "empty": (b"", 400, "is empty"),
    "not an object": (b"[]", 400, "Expected `object`"),
    "no name": (b"{}", 400, "name"),
    "unknown field": (b'{"name": "x", "colour": "red"}', 400, "colour"),
    "unknown spec field": (b'{"name": "x", "spec": {"colour": "red"}}', 400, "colour"),
    "wrong type": (b'{"name": "x", "spec": {"cidr": 7}}', 400, "cidr"),
    "bad pattern": (b'{"name": "x", "spec": {"cidr": "ten"}}', 400, "cidr"),
    "null for text": (b'{"name": null}', 400, "name"),
    "upper-case name": (b'{"name": "Web"}', 400, "name: expected lower-case letters, digits and dashes"),
    "empty name": (b'{"name": ""}', 400, "name"),
    "name with a slash": (b'{"name": "a/b"}', 400, "name"),
    "name with a newline": (b'{"name": "a\\n"}', 400, "name"),
    "long name": (b'{"name": "' + b"a" * 64 + b'"}', 400, "name"),
    "bad label key": (b'{"name": "x", "labels": {"A B": "c"}}', 400, "labels, key: expected lower-case"),
    "label not text": (b'{"name": "x", "labels": {"a": 1}}', 400, "labels"),
    "not UTF-8": (b'{"name": "\xff"}', 400, "UTF-8"),
    "lone surrogate": (b'{"name": "\\ud800"}', 400, "can't be read"),
    "nested without end": (b'{"name": "x", "spec": {"cidr": ' + b"[" * 100_000, 400, "nested"),
    "huge number": (b'{"name": "x", "spec": {"cidr": ' + b"9" * 400 + b"}}", 400, "cidr"),
    "two documents": (b'{"name": "x"}{"name": "y"}', 400, "can't be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", BODIES, ids=str)
async def test_a_bad_body_is_refused_in_words(cloud: World, case: str) -> None:
    raw, status, word = BODIES[case]

    reply = await cloud.call("POST", NETWORKS, data=raw, headers=JSON)

    problem = reply.json
    assert reply.status == status, problem
    assert reply.headers["Content-Type"].startswith("application/problem+json")
    assert problem["status"] == status
    assert problem["type"] == f"urn:skerry:problem:{problem['code']}"
    assert problem["request"] == reply.headers["X-Request-Id"]
    assert word in problem["detail"]
    assert list((await cloud.call("GET", NETWORKS)).json["items"]) == []


async def test_out_of_bounds_numbers_name_the_field_and_the_bound(cloud: World) -> None:
    for spec, field, bound in (
        ({"vcpus": 0, "memory_mib": 512, "disk_gib": 1}, "vcpus", ">= 1"),
        ({"vcpus": 257, "memory_mib": 512, "disk_gib": 1}, "vcpus", "<= 256"),
        ({"vcpus": 1, "memory_mib": 1.5, "disk_gib": 1}, "memory_mib", "int"),
        ({"vcpus": True, "memory_mib": 512, "disk_gib": 1}, "vcpus", "int"),
        ({"vcpus": 1, "memory_mib": 512, "disk_gib": 2**70}, "disk_gib", ""),
    ):
        reply = await cloud.call("POST", "/v1/sizes", {"name": "s", "spec": spec})

        assert reply.status == 400, spec
        assert field in reply.json["errors"][0]["field"]
        assert bound in reply.json["detail"]


async def test_a_body_over_the_limit_is_refused_with_the_limit(cloud: World) -> None:
    announced = await cloud.call("POST", NETWORKS, data=io.BytesIO(b" " * (1024 * 1024 + 1)), headers=JSON)

    async def unannounced() -> Any:
        for _ in range(40):
            yield b" " * 32768

    chunked = await cloud.call("POST", NETWORKS, data=unannounced(), headers=JSON)

    for reply in (announced, chunked):
        assert (reply.status, reply.json["code"]) == (413, "too-large")
        assert "1048576" in reply.json["detail"]


async def test_another_content_type_is_refused_with_the_right_one(cloud: World) -> None:
    for given in ({"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}, {}):
        reply = await cloud.call("POST", NETWORKS, data=b'{"name": "x"}', headers=given)

        assert (reply.status, reply.json["code"]) == (415, "unsupported-media-type")
        assert "application/json" in reply.json["fix"]


@pytest.mark.parametrize(
    "query",
    [
        "limit=0", "limit=1001", "limit=ten", "limit=-1", "limit=1e3", "limit=9999999999999999999999",
        "after=%00", "after=../../etc", "after=a%0A", "after=a,b,c", "after=a,vm-UPPER", "after=" + "a" * 300,
        "label=env", "label==x", "label=A=b", "label=a%20b=c", "limti=3", "state=x&colour=red",
    ],
)  # fmt: skip
async def test_a_bad_list_query_names_the_parameter(cloud: World, query: str) -> None:
    reply = await cloud.call("GET", f"{NETWORKS}?{query}")

    assert (reply.status, reply.json["code"]) == (400, "invalid")
    assert reply.json["errors"][0]["field"] == query.rsplit("&", maxsplit=1)[-1].partition("=")[0]
    assert reply.json["fix"]


async def test_unknown_addresses_and_methods_are_problem_documents(cloud: World) -> None:
    missing = await cloud.call("GET", "/v1/nothing")
    root = await cloud.call("GET", "/", as_=None)
    method = await cloud.call("PUT", NETWORKS, {"name": "x"})
    extra = await cloud.call("DELETE", "/v1/me")

    assert (missing.status, missing.json["code"]) == (404, "not-found")
    assert root.status == 404
    assert (method.status, method.json["code"]) == (405, "method-not-allowed")
    assert method.headers["Allow"] == "GET,POST"
    assert "GET, POST" in method.json["detail"]
    assert extra.status == 405
    for reply in (missing, root, method, extra):
        assert reply.headers["Content-Type"].startswith("application/problem+json")
        assert reply.headers["X-Request-Id"]


async def test_a_project_that_is_not_there_is_said_so(cloud: World) -> None:
    listed = await cloud.call("GET", f"{P}/nowhere/vms")
    made = await cloud.call("POST", f"{P}/nowhere/networks", {"name": "x"})

    assert listed.status == made.status == 404
    assert "nowhere" in listed.json["detail"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer skt_short"},
        {"Authorization": "Bearer skt_" + "0" * 64},
        {"Authorization": "Basic cm9vdDpyb290"},
        {"Authorization": "skt_" + "0" * 64},
    ],
)
async def test_without_a_good_token_nothing_is_told(cloud: World, headers: Mapping[str, str]) -> None:
    for method, path in (("GET", "/v1/hosts"), ("POST", NETWORKS), ("GET", f"{P}/nowhere/vms"), ("GET", "/v1/events")):
        reply = await cloud.call(method, path, as_=None, headers=headers)

        assert (reply.status, reply.json["code"]) == (401, "unauthenticated")
        assert reply.headers["WWW-Authenticate"].startswith("Bearer")
        assert "nowhere" not in reply.json["detail"]


async def test_a_deleted_token_is_good_for_nothing_at_once(cloud: World) -> None:
    before = await cloud.call("GET", "/v1/me", as_="a-member")
    await cloud.call("DELETE", f"{P}/a/tokens/a-member", as_="a-admin")

    after = await cloud.call("GET", "/v1/me", as_="a-member")

    who = {name: before.json[name] for name in ("actor", "project", "domain", "role", "link_url")}
    assert who == {"actor": "a/a-member", "project": "a", "domain": "default", "role": "member", "link_url": ""}
    assert after.status == 401


async def test_a_request_id_is_taken_over_where_it_is_harmless(cloud: World) -> None:
    given = await cloud.call("GET", "/v1/me", headers={"X-Request-Id": "ci-42.a_b"})
    harmful = await cloud.call("GET", "/v1/me", headers={"X-Request-Id": 'a"b c' + "x" * 100})
    made = await cloud.make(f"{P}/a/networks", "x")

    assert given.headers["X-Request-Id"] == "ci-42.a_b"
    assert harmful.headers["X-Request-Id"].startswith("req-")
    assert made["operation"]["request"].startswith("req-")


async def test_a_bug_is_told_without_its_details_and_logged_with_the_id(
    cloud: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> object:
        raise RuntimeError("the password is hunter2")

    monkeypatch.setattr(cloud.store.seen, "of_kind", broken)

    reply = await cloud.call("GET", NETWORKS)

    assert (reply.status, reply.json["code"]) == (500, "internal")
    assert b"hunter2" not in reply.raw
    assert reply.headers["X-Request-Id"] in reply.json["detail"]


async def test_many_bad_and_good_requests_on_one_connection(cloud: World) -> None:
    async def one(number: int) -> int:
        good = number % 2 == 0
        data = json.dumps({"name": f"n{number}"}).encode() if good else b"{"
        return (await cloud.call("POST", NETWORKS, data=data, headers=JSON)).status

    statuses = await asyncio.gather(*(one(number) for number in range(20)))

    assert statuses == [202, 400] * 10
