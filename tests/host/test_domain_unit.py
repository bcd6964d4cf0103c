"""Volumes and domains on a real libvirtd: a guest's whole life, its accidents, and an agent that comes and goes."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from agent.kinds.unit import UnitKey
from agent.telemetry import Telemetry
from common import names
from common.documents import (
    DomainDoc,
    Nic,
    VolumeDoc,
    VolumeSeen,
    key_of,
)
from common.errors import NotFound, Temporary
from common.faults import Died, Faults
from common.ids import new_id
from lab.host import Host
from tests.host.compute import BOOT_S, Agent, agent, changed, devices, machine, qemu, removed, typed

pytestmark = [pytest.mark.host, pytest.mark.timeout(180)]


async def test_the_whole_life_of_a_machine(host: Host, state: Path, image: Path) -> None:
    doc, volume = machine(image)
    async with agent(host, state, image) as a:
        await a.want(doc, volume)
        seen = await a.state(doc, "running")
        assert abs(time.time() - seen.started_at) < 30
        disk = (await a.done(volume)).seen
        assert isinstance(disk, VolumeSeen)
        assert disk.size_gib == 1
        await a.log_says(doc.id, "tiny login:")
        assert b"disk vda 1024 MiB" in await a.consoles.read_log(doc.id, 1 << 20)

        async with a.consoles.attach(doc.id) as one, a.consoles.attach(doc.id) as two:
            await typed(one, b"root\n", b"# ")
            await typed(one, b"echo sum $((40+2))\n", b"sum 42")
            assert b"sum 42" in await two.read()

        sample = await Telemetry(a.pool, a.libvirt, time.time).sample()  # type: ignore[arg-type]
        (guest,) = sample.guests
        assert guest.vm == doc.id
        assert guest.cpu_ns > 10**8
        assert guest.memory_used_mib > 10

        found = {(f.what, f.name): f.owner for f in (*await a.domains.survey(), *await a.volumes.survey())}
        assert found[("domain", doc.id)] == doc.id
        assert found[("disk", volume.id)] == volume.id
        assert found[("file", f"{doc.id}.log")] == doc.id

        pid = qemu(host, doc.id)
        bigger = msgspec.structs.replace(volume, size_gib=2)
        await a.want(bigger)
        await a.until(bigger, lambda r: r.done and isinstance(r.seen, VolumeSeen) and r.seen.size_gib == 2)
        assert qemu(host, doc.id) == pid

        rebooted = changed(doc, boot_generation=2)
        await a.want(rebooted)
        assert (await a.state(rebooted, "running")).boot_generation == 2
        assert qemu(host, doc.id) != pid
        log = await a.log_says(doc.id, "tiny login:", times=2)
        assert b"disk vda 2048 MiB" in log

        stopped = changed(rebooted, power="stopped")
        asked = time.monotonic()
        await a.want(stopped)
        await a.state(stopped, "stopped")
        assert time.monotonic() - asked < doc.stop_grace_s  # its guest obeyed
        with pytest.raises(NotFound):
            async with a.consoles.attach(doc.id):
                pass

        again = changed(stopped, power="running", start_generation=2)
        await a.want(again)
        assert (await a.state(again, "running")).start_generation == 2
        await removed(a, again, bigger)


async def test_a_machine_whose_qemu_is_killed_runs_again(host: Host, state: Path, image: Path) -> None:
    doc, volume = machine(image)
    async with agent(host, state, image) as a:
        await a.want(doc, volume)
        await a.state(doc, "running")
        for sent in (signal.SIGKILL, signal.SIGTERM):
            pid = qemu(host, doc.id)
            revived = len(a.events) + 1
            os.kill(pid, sent)
            await a.until(doc, lambda _, n=revived: len(a.events) >= n)  # type: ignore[misc]
            await a.state(doc, "running")
            assert qemu(host, doc.id) != pid
        assert [event.action for event in a.events] == ["domain.revived"] * 2
        await removed(a, doc, volume)


async def test_restart_never_leaves_a_killed_machine_off(host: Host, state: Path, image: Path) -> None:
    doc, volume = machine(image, restart="never")
    async with agent(host, state, image) as a:
        await a.want(doc, volume)
        await a.state(doc, "running")
        os.kill(qemu(host, doc.id), signal.SIGKILL)
        await a.state(doc, "crashed")
        await removed(a, doc, volume)


async def test_a_guest_that_powers_itself_off_stays_off_until_it_is_started(
    host: Host, state: Path, image: Path
) -> None:
    doc, volume = machine(image)
    async with agent(host, state, image) as a:
        await a.want(doc, volume)
        await a.log_says(doc.id, "tiny login:")
        async with a.consoles.attach(doc.id) as console:
            await typed(console, b"root\n", b"# ")
            await console.write(b"poweroff -f\n")
            while await console.read():
                pass
        await a.state(doc, "stopped-by-guest")
    async with agent(host, state, image) as a:
        await a.state(doc, "stopped-by-guest")
        started = changed(doc, start_generation=2)
        await a.want(started)
        await a.state(started, "running")
        await removed(a, started, volume)


async def test_a_deaf_guest_is_cut_off_after_its_grace(host: Host, state: Path, image: Path) -> None:
    doc, volume = machine(image, stop_grace_s=2)
    async with agent(host, state, image) as a:
        await a.want(doc, volume)
        await a.state(doc, "running")
        stopped = changed(doc, power="stopped")
        asked = time.monotonic()
        await a.want(stopped)  # its firmware and kernel do not listen yet
        await a.state(stopped, "stopped")
        assert time.monotonic() - asked >= 1.9
        await removed(a, stopped, volume)


async def test_a_new_agent_touches_nothing(host: Host, state: Path, image: Path) -> None:
    doc, volume = machine(image)
    async with agent(host, state, image) as a:
        await a.want(doc, volume)
        before = await a.state(doc, "running")
    pid = qemu(host, doc.id)
    points: list[str] = []
    async with agent(host, state, image, Faults(points.append)) as a:
        assert await a.state(doc, "running") == before
        await a.done(volume)
        assert qemu(host, doc.id) == pid
        assert points == []
        await removed(a, doc, volume)


async def test_a_restarted_libvirtd_is_found_again(host: Host, state: Path, image: Path) -> None:
    doc, volume = machine(image)
    async with agent(host, state, image) as a:
        await a.want(doc, volume)
        await a.state(doc, "running")
        pid = qemu(host, doc.id)
        host.kill("libvirtd")
        stopped = changed(doc, power="stopped", stop_grace_s=0)
        await asyncio.sleep(0.5)
        assert qemu(host, doc.id) == pid
        await a.want(stopped)
        await a.state(stopped, "stopped")
        started = changed(stopped, power="running", start_generation=2)
        await a.want(started)
        await a.state(started, "running")
        os.kill(qemu(host, doc.id), signal.SIGKILL)  # only an event tells of this before the slow timer
        await a.until(started, lambda _: a.events, limit_s=10)
        await removed(a, started, volume)


async def test_a_machine_waits_for_its_bridge_and_its_tap_has_its_name(host: Host, state: Path, image: Path) -> None:
    network = new_id("net")
    doc, volume = machine(image, nocloud=True)
    doc = changed(doc, nics=(Nic(index=0, network=network, mac=names.mac(doc.id, 0), mtu=1350),))
    async with agent(host, state, image) as a:
        await a.want(doc, volume)
        report = await a.until(doc, lambda r: "waiting" in r.message)
        assert network in report.message
        bridge = names.bridge(network)
        host.run(["ip", "link", "add", bridge, "mtu", "1350", "type", "bridge"])
        host.run(["ip", "link", "set", bridge, "up"])
        a.loop.poke(UnitKey(key_of(doc)))
        await a.state(doc, "running")
        tap = names.tap(doc.id, 0)
        shown = host.run(["ip", "link", "show", tap])
        assert f"master {bridge}" in shown
        assert "mtu 1350" in shown
        assert a.place.seed_file(doc.id).stat().st_size > 0
        await removed(a, doc, volume)
        assert tap not in devices(host)
        host.run(["ip", "link", "delete", bridge])


async def test_a_death_at_any_step_is_repaired_by_the_next_agent(host: Host, state: Path, image: Path) -> None:
    doc, volume = machine(image, nocloud=True)
    points: list[str] = []
    async with agent(host, state, image, Faults(points.append)) as a:
        await a.want(doc, volume)
        await a.state(doc, "running")
        await removed(a, doc, volume)
    mine = [point for point in dict.fromkeys(points) if point.startswith("domain.")]
    assert {"domain.define", "domain.start.done", "domain.undefine", "domain.remove-files.done"} <= set(mine)
    for deadly in mine:
        doc, volume = machine(image, nocloud=True)

        async def live(a: Agent, doc: DomainDoc = doc, volume: VolumeDoc = volume) -> None:
            await a.want(doc, volume)
            await a.state(doc, "running")
            await removed(a, doc, volume)

        await _dying_at(deadly, host, state, image, live)
        async with agent(host, state, image) as a:
            await a.want(doc, volume)
            await a.state(doc, "running")
            await removed(a, doc, volume)


async def _dying_at(
    deadly: str, host: Host, state: Path, image: Path, live: Callable[[Agent], Awaitable[None]]
) -> None:
    """Live until the planted death: from there on, no step is taken."""
    dead = asyncio.Event()

    def hook(point: str) -> None:
        if dead.is_set() or point == deadly:
            dead.set()
            raise Died

    async with agent(host, state, image, Faults(hook)) as a:
        life = asyncio.create_task(live(a))
        await asyncio.wait_for(dead.wait(), BOOT_S)
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)


async def test_what_libvirt_left_of_a_run_that_a_power_cut_ended_goes_with_the_machine(
    host: Host, state: Path, image: Path
) -> None:
    doc, volume = machine(image)
    left = [
        host.inside(f"/var/lib/libvirt/qemu/{folder}domain-99-{names.domain_name(doc.id)}")
        for folder in ("", "channel/target/")
    ]
    async with agent(host, state, image) as a:
        await a.want(doc, volume)
        await a.state(doc, "running")
        for folder in left:
            folder.mkdir(parents=True)
            (folder / "master-key.aes").touch()
        await removed(a, doc, volume)
    assert [folder for folder in left if folder.exists()] == []


async def test_errors_of_libvirt_become_ours(host: Host, state: Path, image: Path) -> None:
    async with agent(host, state, image) as a:
        nobody = new_id("vm")
        assert await a.libvirt.look(nobody) is None
        with pytest.raises(NotFound):
            await a.libvirt.start(nobody)
        await a.libvirt.destroy(nobody)
        await a.libvirt.undefine(nobody)
    with pytest.raises(Temporary):
        await a.libvirt.look(nobody)
