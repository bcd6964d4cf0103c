"""Dry runs: the same code as the real thing up to the commit, and nothing kept."""

import asyncio
from typing import Any

import pytest
from api_world import P, Reply, World
from sqlalchemy import select
from test_openapi import DOCUMENT, schema

from common.kinds import KINDS
from common.kinds.kind import Scope
from controller.api.routes import ROUTES
from controller.store import tables
from controller.store.tx import Tx


async def rehearse(cloud: World, method: str, path: str, body: object = None, **more: Any) -> Reply:
    return await cloud.call(method, f"{path}{'&' if '?' in path else '?'}dry_run=true", body, **more)


async def everything(cloud: World) -> dict[str, list[Any]]:
    """Return every row of every table, but for the queue's leases and the last revision, which may skip numbers."""

    def read(tx: Tx) -> dict[str, list[Any]]:
        return {
            table.name: sorted(tuple(row) for row in tx.run(select(table)).all())
            for table in tables.METADATA.sorted_tables
            if table.name not in ("queue", "sequence")
        }

    found: dict[str, list[Any]] = {}
    while (now := await cloud.store._writer.submit(read)) != found:  # the loop may still be at work
        found = now
        await asyncio.sleep(0.1)
    return found


async def test_a_dry_create_shows_host_and_address_and_keeps_nothing(cloud: World) -> None:
    await cloud.host("h1")
    await cloud.needs("a")
    before = await everything(cloud)
    body = {"name": "web", "labels": {"tier": "web"}, "spec": {"image": "disk", "size": "small"}}
    reply = await rehearse(cloud, "POST", f"{P}/a/vms", body, headers={"Idempotency-Key": "k1"})
    after = await everything(cloud)

    assert reply.status == 200, reply.raw
    found = reply.json
    schema("DryRun").validate(found)
    assert found["dry_run"] is True
    assert (found["resource"]["name"], found["resource"]["generation"]) == ("web", 1)
    assert found["names"][found["resource"]["spec"]["size"]] == "small"
    assert [check["name"] for check in found["checks"]] == ["role", "references", "rules", "books"]
    assert (found["next"]["what"], found["next"]["host"]) == ("placed", "h1")
    assert found["effects"] == [
        "reserves 1 vCPU, 512 MiB of memory and 1 GiB of disk on host h1",
        "takes address 10.20.0.2 of network default",
    ]
    assert "revealed" not in found
    assert before == after
    assert cloud.store.seen.named("vm", "a", "web") is None
    assert (await cloud.call("POST", f"{P}/a/vms", body, headers={"Idempotency-Key": "k1"})).status == 202


async def test_where_no_host_fits_the_refusal_is_shown_with_its_costs(cloud: World) -> None:
    await cloud.host("h1", memory_mib=600)
    await cloud.needs("a")
    reply = await rehearse(cloud, "POST", f"{P}/a/vms", {"name": "web", "spec": {"image": "disk", "size": "small"}})

    following = reply.json["next"]
    assert (reply.status, following["what"], following["host"]) == (200, "blocked", "")
    assert following["message"] == "none of 1 host fits"
    assert [cost["constraint"] for cost in following["why"]["costs"]] == ["memory"]
    assert "MiB of memory less" in following["why"]["smallest_change"]


async def test_a_full_subnet_is_seen_before_it_is_met(cloud: World) -> None:
    host = await cloud.host("h1", threads=64, memory_mib=65536)
    await cloud.make(f"{P}/a/networks", "default", {"cidr": "10.9.0.0/29"})
    for number in range(5):
        await cloud.vm("a", f"v{number}", host)
    reply = await rehearse(cloud, "POST", f"{P}/a/vms", {"name": "web", "spec": {"image": "disk", "size": "small"}})

    assert reply.json["next"]["what"] == "blocked"
    assert reply.json["next"]["why"]["summary"] == "subnet 10.9.0.0/29 has no free address: all 5 are taken"


async def test_a_dry_deletion_names_all_that_goes_along(cloud: World) -> None:
    host = await cloud.host("h1")
    row = await cloud.vm("a", "web", host)
    before = await everything(cloud)
    reply = await rehearse(cloud, "DELETE", f"{P}/a/vms/web?now=true")
    after = await everything(cloud)

    assert reply.status == 200
    assert reply.json["effects"] == [
        "destroys the domain of vm web on host h1",
        "deletes volume web, which it made",
        "destroys the volume of volume web on host h1",
        "gives back 1 vCPU, 512 MiB of memory and 1 GiB of disk on host h1",
        "gives back address 10.20.0.2 of network default",
    ]
    assert reply.json["resource"]["deleted_at"] is not None
    assert before == after
    assert cloud.store.seen.get(row.id).deleted_at is None  # type: ignore[union-attr]


async def test_dry_changes_and_verbs_show_what_would_change(cloud: World) -> None:
    host = await cloud.host("h1")
    row = await cloud.vm("a", "web", host)
    headers = {"If-Match": f'"{row.generation}"'}
    body = {"labels": {"tier": "web"}, "spec": {"restart": "never"}}
    changed = await rehearse(cloud, "PATCH", f"{P}/a/vms/web", body, headers=headers)
    stopped = await rehearse(cloud, "POST", f"{P}/a/vms/web/stop")

    assert changed.json["changes"] == {
        "spec.restart": {"before": "on-crash", "after": "never"},
        "labels": {"before": {}, "after": {"tier": "web"}},
    }
    assert stopped.json["changes"] == {"spec.power": {"before": "running", "after": "stopped"}}
    assert stopped.json["next"] == {"what": "step", "message": "asking host h1", "host": "", "why": None}
    assert cloud.store.seen.get(row.id) == row


async def test_a_dry_cancel_says_what_it_would_overtake(cloud: World) -> None:
    await cloud.needs("a")
    made = await cloud.make(f"{P}/a/vms", "web", {"image": "disk", "size": "small"})
    operation = made["operation"]["id"]
    reply = await rehearse(cloud, "POST", f"/v1/operations/{operation}/cancel")

    assert reply.json["effects"] == [f"cancels operation {operation} (create vm web)"]
    assert (await cloud.call("GET", f"/v1/operations/{operation}")).json["state"] in ("running", "blocked")


async def test_secrets_are_not_made_for_nothing(cloud: World) -> None:
    made = [
        await rehearse(cloud, "POST", f"{P}/a/tokens", {"name": "ci", "spec": {"role": "reader"}}),
        await rehearse(cloud, "POST", "/v1/hosts", {"name": "h9"}),
    ]
    await cloud.make("/v1/hosts", "h1")
    made.append(await rehearse(cloud, "POST", "/v1/hosts/h1/token"))

    assert [reply.status for reply in made] == [200] * 3
    assert not any(b"skt_" in reply.raw or b"skj_" in reply.raw for reply in made)
    gone = await rehearse(cloud, "DELETE", f"{P}/a/tokens/a-reader")
    assert gone.json["effects"] == ["revokes token a-reader at once"]
    assert (await cloud.call("GET", "/v1/me", as_="a-reader")).status == 200


async def test_a_dry_upload_reads_the_bytes_and_keeps_none(cloud: World) -> None:
    await cloud.make(f"{P}/a/images", "disk", {"format": "raw"})
    headers = {"Content-Type": "application/octet-stream"}
    dry = await cloud.call("PUT", f"{P}/a/images/disk/content?dry_run=true", data=b"\x01" * 1024, headers=headers)
    bad = await cloud.call("PUT", f"{P}/a/images/disk/content?dry_run=true", data=b"", headers=headers)

    assert dry.status == 200, dry.raw
    assert dry.json["changes"]["spec.size_bytes"] == {"before": 0, "after": 1024}
    assert bad.status == 400
    assert (await cloud.call("GET", f"{P}/a/images/disk")).json["resource"]["spec"]["digest"] == ""
    assert (await cloud.blobs.sweep(lambda: ()))[0] in dry.json["resource"]["spec"]["digest"]


@pytest.mark.parametrize(
    ("as_", "asked", "headers"),
    [
        ("a-member", ("POST", f"{P}/a/networks", {"name": "n"}), {}),
        ("a-reader", ("POST", f"{P}/a/networks", {"name": "m"}), {}),
        ("a-member", ("POST", f"{P}/a/networks", {"name": "m", "spec": {"cidr": "x"}}), {}),
        ("a-member", ("POST", f"{P}/a/vms", {"name": "m", "spec": {"image": "none", "size": "none"}}), {}),
        ("a-member", ("PATCH", f"{P}/a/networks/n", {"labels": {}}), {}),
        ("a-member", ("PATCH", f"{P}/a/networks/n", {"labels": {}}), {"If-Match": '"9"'}),
        ("a-member", ("DELETE", f"{P}/a/networks/none", None), {}),
        ("root", ("DELETE", "/v1/projects/a", None), {}),
        ("root", ("POST", "/v1/operations/op-000000000000/cancel", None), {}),
        (None, ("POST", f"{P}/a/networks", {"name": "m"}), {}),
    ],
)
async def test_a_dry_run_is_refused_as_the_real_one_is_and_is_no_event(
    cloud: World, as_: str | None, asked: tuple[str, str, Any], headers: dict[str, str]
) -> None:
    await cloud.make(f"{P}/a/networks", "n")
    dry = await rehearse(cloud, *asked, as_=as_, headers=headers)
    events = (await cloud.call("GET", "/v1/events?result=denied")).json["items"]
    events += (await cloud.call("GET", "/v1/events?result=conflict")).json["items"]
    real = await cloud.call(*asked, as_=as_, headers=headers)

    assert dry.status == real.status >= 400
    assert {**dry.json, "request": ""} == {**real.json, "request": ""}
    assert events == []


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.create is not None], ids=lambda kind: kind.name)
async def test_every_kind_can_be_rehearsed(cloud: World, kind: Any) -> None:
    await cloud.needs("a")
    await cloud.make(f"{P}/a/images", "tiny", {"format": "kernel"})
    await cloud.make(f"{P}/a/vms", "db", {"image": "disk", "size": "small"})
    await cloud.make(f"{P}/a/volumes", "data", {"size_gib": 1, "vm": "db"})
    await cloud.make("/v1/users", "bob")
    await cloud.make("/v1/regions", "north")
    await cloud.make("/v1/zones", "z1", {"region": "north"})
    base = f"/v1/{kind.plural}" if kind.scope is Scope.CLOUD else f"{P}/a/{kind.plural}"
    path = base.replace("/a/", "/{project}/")
    example = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]
    before = cloud.store.seen.revision
    example = {**example, "name": "rehearsed"}
    reply = await rehearse(cloud, "POST", base, example)

    assert reply.status == 200, reply.raw
    schema("DryRun").validate(reply.json)
    assert cloud.store.seen.named(kind.name, "" if kind.scope is Scope.CLOUD else "a", "rehearsed") is None
    assert before <= cloud.store.seen.revision


def test_every_mutating_route_says_that_it_can_be_rehearsed() -> None:
    for route in ROUTES:
        if route.action in ("login", "logout"):
            continue
        if route.mutates and (route.kind is None or route.need is not None):
            operation = DOCUMENT["paths"][route.path][route.method.lower()]
            assert "dry_run" in [parameter["name"] for parameter in operation["parameters"]], route.name
            assert {"200", "202"} <= set(operation["responses"]), route.name


async def test_a_flag_is_true_or_false(cloud: World) -> None:
    odd = await cloud.call("POST", f"{P}/a/networks?dry_run=yes", {"name": "n"})
    real = await cloud.call("POST", f"{P}/a/networks?dry_run=false", {"name": "n"})

    assert (odd.status, odd.json["errors"][0]["field"], real.status) == (400, "dry_run", 202)
