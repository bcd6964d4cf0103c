"""A host that leaves the cloud: drained with its machines' owners asked, removed when nothing is on it, or lost."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from api_world import Host, World
from click.testing import CliRunner, Result

from controller.cli import leaving
from controller.cli.main import root

Typed = Callable[..., Awaitable[Result]]


@pytest.fixture
def typed(cloud: World, monkeypatch: pytest.MonkeyPatch) -> Typed:
    """Run the command in a thread, where it has a loop of its own."""
    monkeypatch.setattr(leaving, "LOOK_AGAIN_S", 0.05)
    environment = {
        "SKERRY_URL": f"http://127.0.0.1:{cloud.client.port}",
        "SKERRY_TOKEN": cloud.tokens["root"],
        "SKERRY_PROJECT": "a",
    }

    async def run(*words: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, root(), list(words), env=environment)

    return run


def schedulable(cloud: World, host: Host) -> bool:
    row = cloud.store.seen.get(host.id)
    assert row is not None
    return bool(row.spec.schedulable)


def gone_dark(cloud: World, host: Host) -> None:
    """Have a host not be connected any more."""
    cloud.store.seen.host(host.id).connected = False
    cloud.loop.host_changed(host.id)


async def while_settling(cloud: World, host: Host, command: Awaitable[Result]) -> Result:
    """Have the host do what it is told for as long as a command runs."""
    running = asyncio.ensure_future(command)
    while not running.done():
        host.settle()
        await asyncio.sleep(0.02)
    return await running


async def test_a_dry_drain_shows_what_would_be_and_changes_nothing(cloud: World, typed: Typed) -> None:
    host = await cloud.host("h1")
    await cloud.vm("a", "web", host)

    done = await typed("host", "drain", "h1", "--stop-vms", "--dry-run")

    assert done.exit_code == 0, done.output
    assert "is stopped, and stays" in done.output
    assert "dry run" in done.output
    assert schedulable(cloud, host)


async def test_no_machine_is_stopped_without_consent(cloud: World, typed: Typed) -> None:
    host = await cloud.host("h1")
    vm = await cloud.vm("a", "web", host)

    done = await typed("host", "drain", "h1")

    assert done.exit_code == 4
    assert not schedulable(cloud, host)
    assert "still on there: vm web of a" in done.output
    assert "skerry host drain h1 --stop-vms" in done.output
    now = cloud.store.seen.get(vm.id)
    assert now is not None
    assert now.spec.power == "running"


async def test_with_consent_it_waits_until_nothing_runs(cloud: World, typed: Typed) -> None:
    host = await cloud.host("h1")
    vm = await cloud.vm("a", "web", host)

    done = await while_settling(cloud, host, typed("host", "drain", "h1", "--stop-vms"))

    assert done.exit_code == 0, done.output
    assert "nothing runs on it" in done.output
    now = cloud.store.seen.get(vm.id)
    assert now is not None
    assert now.status.state == "stopped"
    again = await typed("host", "drain", "h1")
    assert again.exit_code == 0, again.output
    assert "stays, off" in again.output


async def test_a_machine_that_does_not_stop_in_time_is_named(cloud: World, typed: Typed) -> None:
    host = await cloud.host("h1")
    await cloud.vm("a", "web", host)

    done = await typed("host", "drain", "h1", "--stop-vms", "--timeout", "0.2")

    assert done.exit_code == 5
    assert "not stopped yet: vm web of a" in done.output


async def test_a_host_with_machines_is_not_removed(cloud: World, typed: Typed) -> None:
    host = await cloud.host("h1")
    await cloud.vm("a", "web", host)

    done = await typed("host", "remove", "h1")

    assert done.exit_code == 4
    assert "is in use: vm web of a" in done.output
    assert "skerry host remove h1 --force" in done.output
    row = cloud.store.seen.get(host.id)
    assert row is not None
    assert row.deleted_at is None


async def test_force_is_not_for_a_host_that_answers(cloud: World, typed: Typed) -> None:
    host = await cloud.host("h1")
    vm = await cloud.vm("a", "web", host)
    await cloud.until(lambda: (row := cloud.store.seen.get(host.id)) and row.status.state == "ready")

    done = await typed("host", "remove", "h1", "--force")

    assert done.exit_code == 4
    assert "it answers" in done.output
    assert cloud.store.seen.get(vm.id) is not None


async def test_a_lost_host_goes_with_what_was_on_it(cloud: World, typed: Typed) -> None:
    host = await cloud.host("h1")
    vm = await cloud.vm("a", "web", host)
    gone_dark(cloud, host)
    await cloud.until(lambda: (row := cloud.store.seen.get(host.id)) and row.status.state not in ("ready", "cordoned"))

    dry = await typed("host", "remove", "h1", "--force", "--dry-run")
    there = cloud.store.seen.get(vm.id)
    done = await typed("host", "remove", "h1", "--force")

    assert dry.exit_code == 0, dry.output
    assert "is given up, with its disks" in dry.output
    assert there is not None
    assert done.exit_code == 0, done.output
    assert "its certificate is refused from now on" in done.output
    assert cloud.store.seen.get(host.id) is None
    assert cloud.store.seen.get(vm.id) is None


async def test_what_is_protected_is_not_given_up_either(cloud: World, typed: Typed) -> None:
    host = await cloud.host("h1")
    vm = await cloud.vm("a", "web", host)
    protecting = await typed("vm", "set", "web", "--protected")
    gone_dark(cloud, host)
    await cloud.until(lambda: (row := cloud.store.seen.get(host.id)) and row.status.state not in ("ready", "cordoned"))

    done = await typed("host", "remove", "h1", "--force")

    assert protecting.exit_code == 0, protecting.output
    assert done.exit_code == 4
    assert "vm web of a: protected" in done.output
    assert cloud.store.seen.get(vm.id) is not None


async def test_an_empty_host_is_removed(cloud: World, typed: Typed) -> None:
    host = await cloud.host("h1")
    done = await while_settling(cloud, host, typed("host", "remove", "h1"))
    assert done.exit_code == 0, done.output
    assert cloud.store.seen.get(host.id) is None
