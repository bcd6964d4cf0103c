"""Quotas over HTTP: who sees and sets them, the same refusal for dry and real, and limits that everybody has."""

from pathlib import Path

import msgspec
import pytest
from api_world import P, World, world

from controller.config import Config, QuotaSection

GIB = 1 << 30


async def limit(cloud: World, path: str, quota: dict[str, int | None], as_: str = "root") -> int:
    reply = await cloud.call("PATCH", path, {"spec": {"quota": quota}}, as_=as_, headers={"If-Match": "*"})
    return reply.status


async def test_a_tenant_reads_its_quota_and_operators_set_it(cloud: World) -> None:
    assert await limit(cloud, f"{P}/a", {"networks": 2}) == 202
    assert await limit(cloud, f"{P}/a", {"networks": 20}, as_="a-admin") == 403
    shown = await cloud.call("GET", f"{P}/a/quota", as_="a-reader")
    items = {one["counter"]: one for one in shown.json["items"]}
    assert (items["networks"]["used"], items["networks"]["limit"], items["networks"]["source"]) == (0, 2, "project")
    assert (items["tokens"]["used"], items["tokens"]["limit"], items["tokens"]["source"]) == (3, None, "default")
    assert (await cloud.call("GET", f"{P}/a/quota", as_="b-reader")).status == 404
    assert (await cloud.call("GET", "/v1/domains/default/quota", as_="a-admin")).status == 403
    assert (await cloud.call("GET", "/v1/audit/quotas", as_="a-admin")).status == 403


async def test_a_dry_run_shows_the_quota_after_and_is_refused_as_the_real_one(cloud: World) -> None:
    await limit(cloud, f"{P}/a", {"networks": 1})
    await limit(cloud, "/v1/domains/default", {"networks": 5})
    dry = await cloud.call("POST", f"{P}/a/networks?dry_run=true", {"name": "n"})
    assert [(one["of"], one["used"], one["after"], one["limit"]) for one in dry.json["quota"]] == [
        ("project", 0, 1, 1), ("domain", 0, 1, 5),
    ]  # fmt: skip
    tenant = await cloud.call("POST", f"{P}/a/networks?dry_run=true", {"name": "n"}, as_="a-member")
    assert [one["of"] for one in tenant.json["quota"]] == ["project"]
    await cloud.make(f"{P}/a/networks", "n", as_="a-member")
    answers = [
        await cloud.call("POST", f"{P}/a/networks{query}", {"name": "m"}, as_="a-member")
        for query in ("?dry_run=true", "")
    ]
    problems = [{**answer.json, "request": ""} for answer in answers]
    assert problems[0] == problems[1]
    assert (answers[0].status, problems[0]["code"]) == (403, "quota-exceeded")
    assert problems[0]["shortfalls"] == [
        {"of": "project", "name": "a", "counter": "networks", "limit": 1, "used": 1, "asked": 1}
    ]
    dry = await cloud.call("DELETE", f"{P}/a/networks/n?dry_run=true")
    assert dry.json["quota"][0]["after"] == 0


async def test_a_lowered_limit_is_said_on_the_project(cloud: World) -> None:
    await cloud.make(f"{P}/a/networks", "n")
    assert await limit(cloud, f"{P}/a", {"networks": 0}) == 202
    await cloud.until(lambda: "over its quota (networks 1 of 0)" in _project(cloud).status.message)


def _project(cloud: World) -> object:
    found = cloud.store.seen.named("project", "", "a")
    assert found
    return found


async def test_an_upload_over_the_quota_is_refused_before_its_bytes(cloud: World) -> None:
    await cloud.make(f"{P}/a/images", "disk", {"format": "raw"})
    await limit(cloud, f"{P}/a", {"image_gib": 0})
    sent: list[bytes] = []

    async def body() -> object:  # pragma: no cover - not asked for
        sent.append(b"")
        yield b"\x00"

    headers = {"Content-Length": str(3 * GIB), "Expect": "100-continue"}
    reply = await cloud.call("PUT", f"{P}/a/images/disk/content", data=body(), headers=headers)
    assert (reply.status, reply.json["shortfalls"][0]["asked"]) == (403, 3)
    assert not sent


async def test_defaults_hold_for_projects_without_limits_of_their_own(tmp_path: Path) -> None:
    config = msgspec.structs.replace(Config(), quota=QuotaSection(default={"networks": 1}))
    async with world(tmp_path, config) as cloud:
        await cloud.make(P, "shop")
        await cloud.make(P, "big", {"quota": {"networks": None}})
        for project, most in (("shop", 1), ("big", 3), ("system", 3)):
            made = [await cloud.call("POST", f"{P}/{project}/networks", {"name": f"n{n}"}) for n in range(3)]
            assert sum(one.status == 202 for one in made) == most
        metrics = (await cloud.call("GET", "/metrics", as_=None)).raw.decode()
        assert 'skerry_quota_limit{counter="networks",name="shop",of="project"} 1.0' in metrics
        assert 'skerry_quota_used{counter="networks",name="big",of="project"} 3.0' in metrics
        audit = await cloud.call("GET", "/v1/audit/quotas")
        assert audit.json["items"] == []


@pytest.mark.parametrize("quota", [{"cows": 1}, {"vms": -1}, {"vms": "many"}])
async def test_limits_that_mean_nothing_are_refused(cloud: World, quota: dict[str, int | None]) -> None:
    assert await limit(cloud, f"{P}/a", quota) == 400
