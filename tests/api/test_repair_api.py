"""Audit and repair of a host over the API and the command; the audit that goes on all the time."""

from typing import Any

import pytest
from api_world import Host, P, World
from click.testing import CliRunner

from common.documents import VolumeDoc
from common.ids import HostId, Id, RequestId
from controller.cli import repair as module
from controller.cli.main import root
from controller.fleet.audit import Difference
from controller.fleet.auditor import Auditor

STRAY = Id("vol-zzzzzzzzzzzz")
ORPHAN = Difference(problem="orphan", what="disk", name=STRAY, owner=STRAY, owner_name="")
FOREIGN = Difference(problem="orphan", what="domain", name="somebodys", owner=None, owner_name="")


def tombstones(cloud: World, host: Host) -> list[tuple[str, bool, str]]:
    return [(one.key, one.gone, one.request) for one in cloud.store.seen.documents(host.id)]


async def test_a_dry_repair_shows_the_plan_and_the_real_one_carries_it_out(cloud: World) -> None:
    host = await cloud.host("h1")
    cloud.fleet.differences = (ORPHAN, FOREIGN)
    dry = await cloud.call("POST", "/v1/hosts/h1/repair?dry_run=true")
    nothing = tombstones(cloud, host)
    plan = dry.json["plan"]
    real = await cloud.call("POST", f"/v1/hosts/h1/repair?plan={plan}", headers={"X-Request-Id": "req-mine"})
    events = (await cloud.call("GET", "/v1/events?action=host.repair")).json["items"]

    assert (dry.status, real.status) == (200, 202), (dry.raw, real.raw)
    assert [(one["action"], one["difference"]["name"]) for one in dry.json["repairs"]] == [
        ("destroy", ORPHAN.name),
        ("leave", "somebodys"),
    ]
    assert nothing == []
    assert real.json["repairs"] == dry.json["repairs"]
    assert real.json["operation"]["verb"] == "repair"
    assert tombstones(cloud, host) == [(f"volume/{STRAY}", True, "req-mine")]
    assert events[0]["message"] == "2 differences, 1 repairs"
    assert events[0]["result"] == "accepted"


async def test_a_plan_that_was_shown_is_carried_out_or_none(cloud: World) -> None:
    host = await cloud.host("h1")
    cloud.fleet.differences = (ORPHAN,)
    plan = (await cloud.call("POST", "/v1/hosts/h1/repair?dry_run=true")).json["plan"]
    cloud.fleet.differences = (ORPHAN, FOREIGN)
    refused = await cloud.call("POST", f"/v1/hosts/h1/repair?plan={plan}")

    assert refused.status == 409
    assert "differs in other ways" in refused.json["detail"]
    assert tombstones(cloud, host) == []


async def test_what_got_an_owner_meanwhile_is_not_destroyed(cloud: World, monkeypatch: pytest.MonkeyPatch) -> None:
    host = await cloud.host("h1")
    made = await cloud.make(f"{P}/a/networks", "n")
    owned = Id(made["resource"]["id"])
    cloud.fleet.differences = (Difference(problem="orphan", what="namespace", name=owned, owner=owned, owner_name=""),)
    monkeypatch.setattr(
        cloud.store.seen, "get", lambda _id, get=cloud.store.seen.get: None if _id == owned else get(_id)
    )
    refused = await cloud.call("POST", "/v1/hosts/h1/repair")

    assert refused.status == 409
    assert "has an owner by now" in refused.json["detail"]
    assert tombstones(cloud, host) == []


async def test_repairs_are_the_operators(cloud: World) -> None:
    await cloud.host("h1")
    await cloud.token("watcher", "system", "reader")

    assert (await cloud.call("POST", "/v1/hosts/h1/repair", as_="a-admin")).status == 403
    assert (await cloud.call("POST", "/v1/hosts/h1/repair", as_="watcher")).status == 403
    assert (await cloud.call("GET", "/v1/audit", as_="a-admin")).status == 403
    assert (await cloud.call("GET", "/v1/audit", as_="watcher")).status == 200


# --- the audit that goes on ---------------------------------------------------------------------------------------


def auditor(cloud: World) -> Auditor:
    return Auditor(cloud.store, cloud.fleet.audit, cloud.clock, every_s=1.0, settle_s=0.0)


async def overview(cloud: World) -> Any:
    return (await cloud.call("GET", "/v1/audit")).json


async def test_the_overview_says_since_when_wish_and_reality_agree(cloud: World) -> None:
    one, two = await cloud.host("h1"), await cloud.host("h2")
    never = await overview(cloud)
    found = auditor(cloud)
    for host in (one, two):
        await found.look(host.id)
    clean = await overview(cloud)
    await found.look(one.id)
    still = await overview(cloud)
    cloud.fleet.differences = (ORPHAN, FOREIGN)
    await found.look(two.id)
    worse = await overview(cloud)
    cloud.fleet.differences = ()
    await found.look(two.id)
    again = await overview(cloud)
    actions = [one["action"] for one in (await cloud.call("GET", "/v1/events?limit=1000&kind=host")).json["items"]]

    assert (never["since"], never["differences"]) == (None, 0)
    assert clean["differences"] == still["differences"] == again["differences"] == 0
    assert clean["since"] == still["since"]
    assert worse["differences"] == 2
    assert {host["host"]: host["differences"] for host in worse["hosts"]} == {"h1": 0, "h2": 2}
    assert again["since"] > worse["since"] > clean["since"]
    audits = [action for action in actions if action in ("host.differs", "host.agrees")]
    assert audits == ["host.differs", "host.agrees"]
    assert b'skerry_host_differences{host="h2"} 0.0' in (await cloud.call("GET", "/metrics")).raw


async def test_work_that_is_under_way_is_no_difference(cloud: World) -> None:
    host = await cloud.host("h1")
    answers = [(ORPHAN, FOREIGN), (FOREIGN,)]

    async def audit(_host: HostId, _request: RequestId) -> tuple[Difference, ...]:
        return answers.pop(0)

    await Auditor(cloud.store, audit, cloud.clock, every_s=1.0, settle_s=0.0).look(host.id)

    assert (await overview(cloud))["differences"] == 1


async def test_the_command_shows_the_plan_then_does_it_and_waits(cloud: World, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio  # noqa: PLC0415 - the command runs its own loop in a thread

    monkeypatch.setattr(module, "LOOK_AGAIN_S", 0.05)
    host = await cloud.host("h1")
    cloud.fleet.differences = (ORPHAN,)
    environment = {
        "SKERRY_URL": f"http://127.0.0.1:{cloud.client.port}",
        "SKERRY_TOKEN": cloud.tokens["root"],
        "SKERRY_PROJECT": "a",
    }

    async def run(*words: str) -> Any:
        return await asyncio.to_thread(CliRunner().invoke, root(), list(words), env=environment)

    dry = await run("audit", "repair", "h1", "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "destroy" in dry.output
    assert tombstones(cloud, host) == []

    running = asyncio.ensure_future(run("audit", "repair", "h1", "--wait"))
    await cloud.until(lambda: tombstones(cloud, host))
    assert isinstance(next(iter(cloud.store.seen.documents(host.id))).doc, VolumeDoc)
    cloud.fleet.differences = ()
    done = await running
    assert done.exit_code == 0, done.output
    assert "the repair is accepted" in done.output
    assert "differences: 0" in done.output

    await auditor(cloud).look(host.id)
    status = await run("status")
    assert "differences" in status.output
    assert "0 since " in status.output
    nothing = await run("audit", "repair", "h1")
    assert "wish and reality agree" in nothing.output
