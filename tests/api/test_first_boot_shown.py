"""What a host says of a first boot: shown with the machine, explained, and one event however often it is said."""

import click
import msgspec
import pytest
from api_world import Host, P, World
from test_history_api import fleet, link

from common.boots import FirstBoot, Leg
from common.documents import DocKey, DomainSeen, Report
from common.kinds.vm import VM
from common.protocol import Reports
from controller.cli.render import said
from controller.cli.why import Why, _print
from controller.store.rows import EventQuery

REACHED = Leg(name="address", state="reached", seconds=4.1)
PENDING = FirstBoot(verdict="pending", legs=(REACHED, Leg(name="metadata")))
FAILED = FirstBoot(
    verdict="failed",
    legs=(REACHED, Leg(name="metadata", state="failed", why="it asked the metadata service for nothing in 300 s")),
    log="Kernel panic - not syncing",
)


async def test_a_verdict_is_one_event_and_stays_with_the_machine(
    cloud: World, capsys: pytest.CaptureFixture[str]
) -> None:
    host: Host = await cloud.host("h1")
    vm, hosts, session = await cloud.vm("a", "web", host), fleet(cloud), link(host)
    document = cloud.store.seen.document(host.id, DocKey(f"domain/{vm.id}"))
    assert document is not None

    async def say(number: int, boot: FirstBoot | None) -> None:
        seen = DomainSeen(state="running", start_generation=1, boot_generation=1, started_at=1.0, first_boot=boot)
        report = Report(key=document.key, revision=document.revision, done=True, seen=seen)
        await hosts.received(session, Reports(number=number, reports=(report,)))
        cloud.loop.poke(vm.id)
        await cloud.until(lambda: cloud.store.seen.get(vm.id).status.first_boot == boot)  # type: ignore[union-attr]

    await say(1, PENDING)
    await say(2, FAILED)
    await say(3, FAILED)
    cloud.store.seen.host(host.id).reports.clear()  # as after a restart of the controller
    await say(4, FAILED)

    (event,) = await cloud.store.events(0, 10, EventQuery(resource=vm.id, action="vm.first-boot"))
    assert event.message.startswith("failed at metadata: it asked the metadata service for nothing in 300 s")
    assert event.actor == host.id
    resource = (await cloud.call("GET", f"{P}/a/vms/web", as_="a-reader")).json["resource"]
    assert resource["status"]["first_boot"]["verdict"] == "failed"
    text = said(resource["status"]["first_boot"], "status.first_boot", {}, 0.0)
    assert text.endswith("before that an address by DHCP after 4.1 s")
    raw = (await cloud.call("GET", f"{P}/a/vms/web/why", as_="a-reader")).raw
    capsys.readouterr()
    with click.Context(click.Command("why")):
        _print(msgspec.json.decode(raw, type=Why), VM.name)
    printed = capsys.readouterr().out
    assert "first boot: failed at metadata" in printed
    assert "  Kernel panic - not syncing" in printed


def test_a_leg_that_this_command_does_not_know_is_no_error() -> None:
    newer = {"verdict": "passed", "legs": [{"name": "cloud-init", "state": "reached"}]}
    assert said(newer, "status.first_boot", {}, 0.0) == "passed"
