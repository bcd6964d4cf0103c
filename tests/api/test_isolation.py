"""Roles and projects: what a token may do, and that it learns nothing of other projects."""

import pytest
from api_world import P, World

SECRET = "zebra"
"""Part of every name in project b: no token of project a may ever read it."""


@pytest.fixture
async def furnished(cloud: World) -> World:
    """Give project b a machine, a network, an image, a keypair and a token, all with a telling name."""
    host = await cloud.host("h1")
    await cloud.needs("b")
    await cloud.make(f"{P}/b/networks", f"{SECRET}-net")
    await cloud.make(f"{P}/b/images", f"{SECRET}-image", {"format": "raw"})
    await cloud.make(f"{P}/b/keypairs", f"{SECRET}-key", {"public_key": "ssh-ed25519 AAAAC3Nza me"})
    await cloud.token(f"{SECRET}-token", "b", "reader")
    await cloud.vm("b", f"{SECRET}-vm", host)
    cloud.measure(host, ())
    return cloud


async def test_a_project_never_learns_names_of_another(furnished: World) -> None:
    cloud = furnished
    ids = {row.name: row.id for row in cloud.store.seen if row.project == "b"}
    operations = [operation.id for operation in cloud.store.seen.operations() if operation.project == "b"]
    paths = [
        "/v1/hosts", "/v1/hosts/h1", "/v1/hosts/h1/audit", "/v1/sizes", "/v1/operations?limit=1000", "/v1/events",
        "/v1/events?project=b", "/v1/projects", "/v1/operations?project=b", "/v1/projects/nope",
        *(f"{P}/{project}/{plural}" for project in "ab" for plural in ("vms", "images", "networks", "tokens")),
        *(f"{P}/a/vms/{one}" for one in ids.values()),
        *(f"{P}/b/vms/{one}" for one in ids.values()),
        *(f"{P}/a/{plural}/{one}" for plural in ("images", "networks", "keypairs", "tokens") for one in ids.values()),
        *(f"/v1/operations/{one}" for one in operations),
        *(f"/v1/operations?after={one}" for one in operations),
    ]  # fmt: skip

    for role in ("a-admin", "a-member", "a-reader"):
        for path in paths:
            reply = await cloud.call("GET", path, as_=role)
            assert SECRET.encode() not in reply.raw, (role, path)
            if "/b" in path or path.endswith("=b"):
                assert reply.status in (200, 403, 404), path
                assert reply.status != 200 or reply.json.get("items") == [], path


async def test_a_project_can_do_nothing_in_another(furnished: World) -> None:
    cloud = furnished
    vm = cloud.store.seen.named("vm", "b", f"{SECRET}-vm")
    network = cloud.store.seen.named("network", "b", f"{SECRET}-net")
    operation = next(op.id for op in cloud.store.seen.operations() if op.project == "b")
    assert vm is not None
    assert network is not None
    before = {row.id: row.generation for row in cloud.store.seen if row.project == "b"}
    body = {"name": "mine", "spec": {"image": "disk", "size": "small", "networks": [network.id]}}
    await cloud.needs("a")

    tries = [
        ("POST", f"{P}/b/networks", {"name": "x"}, 403),
        ("DELETE", f"{P}/b/vms/{vm.id}", None, 403),
        ("DELETE", f"{P}/a/vms/{vm.id}", None, 404),
        ("POST", f"{P}/a/vms/{vm.id}/stop", None, 404),
        ("PATCH", f"{P}/a/vms/{vm.id}", {"labels": {}}, 404),
        ("GET", f"{P}/a/vms/{vm.id}/console", None, 400),
        ("GET", f"{P}/a/vms/{vm.id}/log", None, 404),
        ("GET", f"{P}/b/vms/{vm.id}/log", None, 403),
        ("GET", f"{P}/a/vms/{vm.id}/why", None, 404),
        ("POST", f"{P}/a/vms", body, 404),
        ("POST", f"/v1/operations/{operation}/cancel", None, 404),
        ("POST", f"{P}/b/tokens", {"name": "x", "spec": {"role": "admin"}}, 403),
        ("POST", f"{P}/system/tokens", {"name": "x", "spec": {"role": "admin"}}, 403),
        ("PUT", f"{P}/b/images/disk/content", None, 403),
        ("POST", "/v1/projects", {"name": "x"}, 403),
        ("DELETE", "/v1/projects/b", None, 403),
        ("DELETE", "/v1/projects/a", None, 403),
        ("POST", "/v1/hosts", {"name": "x"}, 403),
        ("POST", "/v1/hosts/h1/token", None, 403),
        ("PATCH", "/v1/hosts/h1", {"spec": {"schedulable": False}}, 403),
        ("DELETE", "/v1/sizes/small", None, 403),
        ("POST", f"{P}/a/vms", {"name": "y", "spec": {"image": "disk", "size": "small", "host": "h1"}}, 403),
        ("POST", f"{P}/a/images", {"name": "y", "spec": {"public": True}}, 403),
    ]
    for method, path, sent, status in tries:
        reply = await cloud.call(method, path, sent, as_="a-admin", headers={"If-Match": "*"})
        assert reply.status == status, (method, path, reply.raw)
        assert SECRET.encode() not in reply.raw, (method, path)

    assert {row.id: row.generation for row in cloud.store.seen if row.project == "b"} == before


async def test_what_each_role_may_do_in_its_project(cloud: World) -> None:
    allowed = {
        "a-reader": {"list": 200, "make": 403, "delete": 403, "tokens": 403, "new token": 403, "images": 200},
        "a-member": {"list": 200, "make": 202, "delete": 202, "tokens": 403, "new token": 403, "images": 200},
        "a-admin": {"list": 200, "make": 202, "delete": 202, "tokens": 200, "new token": 202, "images": 200},
    }
    for role, wanted in allowed.items():
        name = role.replace("a-", "n")
        await cloud.make(f"{P}/a/networks", f"{name}-old")
        got = {
            "list": (await cloud.call("GET", f"{P}/a/networks", as_=role)).status,
            "make": (await cloud.call("POST", f"{P}/a/networks", {"name": name}, as_=role)).status,
            "delete": (await cloud.call("DELETE", f"{P}/a/networks/{name}-old", as_=role)).status,
            "tokens": (await cloud.call("GET", f"{P}/a/tokens", as_=role)).status,
            "new token": (await cloud.call("POST", f"{P}/a/tokens", {"name": name}, as_=role)).status,
            "images": (await cloud.call("GET", f"{P}/a/images", as_=role)).status,
        }
        assert got == wanted, role


async def test_a_refusal_says_which_role_it_takes_and_whom_to_ask(cloud: World) -> None:
    reply = await cloud.call("POST", f"{P}/a/networks", {"name": "x"}, as_="a-reader")

    assert reply.json["code"] == "denied"
    assert "lacks network.create" in reply.json["detail"]
    assert "member has it" in reply.json["fix"]
    assert "admin of project a" in reply.json["fix"]


async def test_events_and_operations_of_tokens_are_for_admins(cloud: World) -> None:
    for_reader = await cloud.call("GET", "/v1/events?limit=1000", as_="a-reader")
    for_admin = await cloud.call("GET", "/v1/events?limit=1000", as_="a-admin")
    operations = await cloud.call("GET", "/v1/operations", as_="a-reader")

    assert not [item for item in for_reader.json["items"] if item["kind"] == "token"]
    assert {item["project"] for item in for_admin.json["items"]} == {"a"}
    assert [item for item in for_admin.json["items"] if item["kind"] == "token"]
    assert operations.json["items"] == []


async def test_operators_see_every_project(cloud: World) -> None:
    projects = (await cloud.call("GET", "/v1/projects")).json
    mine = (await cloud.call("GET", "/v1/projects", as_="a-reader")).json
    events = (await cloud.call("GET", "/v1/events?limit=1000")).json

    assert [item["name"] for item in projects["items"]] == ["a", "b", "system"]
    assert [item["name"] for item in mine["items"]] == ["a"]
    assert {"", "a", "b"} <= {item["project"] for item in events["items"]}


async def test_deleting_a_public_image_tells_no_names_of_other_projects(cloud: World) -> None:
    await cloud.host("h1")
    await cloud.needs("a")
    await cloud.call("PATCH", f"{P}/a/images/disk", {"spec": {"public": True}}, headers={"If-Match": "*"})
    await cloud.make(f"{P}/b/networks", "default")
    await cloud.make(f"{P}/b/vms", f"{SECRET}-vm", {"image": "disk", "size": "small"}, as_="b-member")

    reply = await cloud.call("DELETE", f"{P}/a/images/disk", as_="a-admin")

    assert reply.status == 409
    assert SECRET.encode() not in reply.raw
    assert "1 of other projects" in reply.json["detail"]
