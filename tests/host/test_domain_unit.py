"""Volumes and domains on a real libvirtd: a guest's whole life, its accidents, and an agent that comes and goes."""

import asyncio
import hashlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.console import Consoles
from agent.drivers.images import ImageCache, Progress
from agent.drivers.libvirt import Libvirt
from agent.drivers.place import Place
from agent.inventory import find_place
from agent.kinds.domain import Domains
from agent.kinds.unit import UnitKey
from agent.kinds.volume import Volumes
from agent.loop import Loop
from agent.memory import open_memory
from agent.telemetry import Telemetry
from common import names
from common.documents import (
    AnyDoc,
    Desired,
    DomainDoc,
    DomainSeen,
    GuestMetadata,
    ImageRef,
    Nic,
    Report,
    VolumeDoc,
    VolumeSeen,
    key_of,
)
from common.errors import NotFound, Temporary
from common.faults import Died, Faults
from common.ids import Id, Revision, child_id, new_id
from common.protocol import DesiredBatch, HostEvent
from lab.cloud import Lab
from lab.guest import tiny
from lab.host import Host
from lab.layout import ROOT
from lab.underlay import ensure_underlay

pytestmark = [pytest.mark.host, pytest.mark.timeout(180)]

BOOT_S = 60.0


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """Give a namespace host with a libvirtd of its own; the agent is this process, outside."""
    lab = Lab(f"d{os.getpid()}")
    try:
        ensure_underlay(lab.layout)
        found = Host(lab.layout, "h1")
        found.plug_in(agent=False)
        yield found
    finally:
        lab.down()


@pytest.fixture(scope="module")
def image() -> Path:
    return tiny(ROOT / "build" / "guest")


@pytest.fixture
def state() -> Iterator[Path]:
    """Give a directory that QEMU's user can enter, which pytest's own is not."""
    path = Path(tempfile.mkdtemp(prefix="skerry-domain-", dir="/tmp"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


class Reached:
    """The host's hypervisor, as reached from outside its mount namespace."""

    def __init__(self, libvirt: Libvirt, host: Host) -> None:
        self._libvirt, self._host = libvirt, host

    def __getattr__(self, verb: str) -> Any:
        return getattr(self._libvirt, verb)

    async def console_pty(self, vm: Id) -> str:
        return str(self._host.inside(await self._libvirt.console_pty(vm)))


class Inbox:
    """What a controller would have heard."""

    def __init__(self) -> None:
        self.reports: dict[str, Report] = {}
        self.events: list[HostEvent] = []
        self.moved = asyncio.Event()

    def report(self, report: Report) -> None:
        self.reports[report.key] = report
        self.moved.set()

    def event(self, event: HostEvent) -> None:
        self.events.append(event)
        self.moved.set()


class Agent:
    """The compute and storage side of an agent, in this process."""

    def __init__(
        self, loop: Loop, libvirt: Reached, place: Place, kinds: tuple[Volumes, Domains], inbox: Inbox
    ) -> None:
        self.loop, self.libvirt, self.place, self.inbox = loop, libvirt, place, inbox
        self.volumes, self.domains = kinds
        self.consoles = Consoles(place, libvirt)  # type: ignore[arg-type]
        self.events = inbox.events
        self._revision = int(time.time() * 1000)

    async def want(self, *docs: AnyDoc, gone: bool = False) -> None:
        self._revision += 1
        items = tuple(Desired(key=key_of(d), revision=Revision(self._revision), doc=d, gone=gone) for d in docs)
        self.loop.changed(await self.loop.memory.apply(DesiredBatch(items=items)))

    async def until(self, doc: AnyDoc, so: Callable[[Report], object], limit_s: float = BOOT_S) -> Report:
        async with asyncio.timeout(limit_s):
            while True:
                self.inbox.moved.clear()
                report = self.inbox.reports.get(key_of(doc))
                if report is not None and report.revision >= self._revision_of(doc) and so(report):
                    return report
                await self.inbox.moved.wait()

    def _revision_of(self, doc: AnyDoc) -> int:
        item = self.loop.memory.items.get(key_of(doc))
        return item.revision if item is not None else 0

    async def done(self, doc: AnyDoc, limit_s: float = BOOT_S) -> Report:
        return await self.until(doc, lambda report: report.done, limit_s)

    async def state(self, doc: AnyDoc, state: str, limit_s: float = BOOT_S) -> DomainSeen:
        def so(report: Report) -> bool:
            return report.done and isinstance(report.seen, DomainSeen) and report.seen.state == state

        seen = (await self.until(doc, so, limit_s)).seen
        assert isinstance(seen, DomainSeen)
        return seen

    async def log_says(self, vm: Id, text: str, times: int = 1, limit_s: float = BOOT_S) -> bytes:
        async with asyncio.timeout(limit_s):
            while True:
                log = await self.consoles.read_log(vm, 1 << 20)
                if log.count(text.encode()) >= times:
                    return log
                await asyncio.sleep(0.1)


@asynccontextmanager
async def agent(host: Host, state: Path, image: Path, faults: Faults | None = None) -> AsyncIterator[Agent]:
    """Run an agent's compute and storage side over the state directory, until the block ends."""
    place, inbox, faults = find_place(state, state / "volumes"), Inbox(), faults or Faults()
    loop: Loop

    async def fetch(_digest: str, destination: Path, progress: Progress) -> None:
        await asyncio.to_thread(shutil.copyfile, image, destination)
        progress(1)

    def connected() -> None:
        loop.poke_all()

    memory = await open_memory(state / "memory.db")
    async with Libvirt(
        host.libvirt_uri(),
        run_dir=host.inside("/run/libvirt/qemu"),
        lib_dir=host.inside("/var/lib/libvirt/qemu"),
        on_event=lambda vm: loop.poke(UnitKey(f"domain/{vm}")),
        on_connected=connected,
    ) as libvirt:
        reached: Any = Reached(libvirt, host)
        images = ImageCache(place.images, fetch, faults)
        volumes = Volumes(place, images, reached, report=inbox.report, clock=time.time, faults=faults)
        domains = Domains(
            place,
            images,
            reached,
            announce=inbox.event,
            clock=time.time,
            faults=faults,
            link_exists=lambda name: name in devices(host),
        )
        loop = Loop(memory=memory, kinds=(volumes, domains), sink=inbox.report)
        found = Agent(loop, reached, place, (volumes, domains), inbox)
        tasks = [asyncio.create_task(libvirt.watch()), asyncio.create_task(loop.run())]
        try:
            yield found
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await memory.close()


def devices(host: Host) -> set[str]:
    """Name the network devices of the host, from outside."""
    lines = Path(f"/proc/{host.init()}/net/dev").read_text().splitlines()[2:]
    return {line.partition(":")[0].strip() for line in lines}


def machine(image: Path, **changes: Any) -> tuple[DomainDoc, VolumeDoc]:
    """Return the documents of a new machine with one disk and no NIC."""
    content = image.read_bytes()
    ref = ImageRef(digest=f"sha256:{hashlib.sha256(content).hexdigest()}", format="kernel", size_bytes=len(content))
    vm = new_id("vm")
    volume = VolumeDoc(id=child_id(vm, "vol"), size_gib=1, image=ref)
    doc = DomainDoc(
        id=vm,
        name="web",
        project="p",
        vcpus=1,
        memory_mib=256,
        kernel=ref,
        volumes=(volume.id,),
        nics=(),
        power="running",
        start_generation=1,
        boot_generation=1,
        restart="on-crash",
        stop_grace_s=15,
        nocloud=False,
        metadata=GuestMetadata(
            instance_id=vm,
            hostname="web",
            project="p",
            public_keys=(("me", "ssh-ed25519 A"),),
            user_data="#!",
            host="h",
        ),
    )
    return msgspec.structs.replace(doc, **changes), volume


def changed(doc: DomainDoc, **changes: Any) -> DomainDoc:
    return msgspec.structs.replace(doc, **changes)


def qemu(host: Host, vm: Id) -> int:
    """Return the number, out here, of a running domain's QEMU process."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if words.startswith(b"/usr/bin/qemu-system") and f"guest={vm},".encode() in words:
            return int(path.parent.name)
    raise AssertionError(f"{vm} has no QEMU process on {host.name}")


async def removed(agent: Agent, doc: DomainDoc, volume: VolumeDoc) -> None:
    """Wish both gone, and see that nothing is left of them."""
    await agent.want(doc, volume, gone=True)
    await agent.done(doc)
    await agent.done(volume)
    assert await agent.libvirt.look(doc.id) is None
    found = [f.name for kind in (agent.domains, agent.volumes) for f in await kind.survey()]
    assert [name for name in found if doc.id in name or volume.id in name] == []


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
            await _typed(one, b"root\n", b"# ")
            await _typed(one, b"echo sum $((40+2))\n", b"sum 42")
            assert b"sum 42" in await two.read()

        sample = await Telemetry(a.place, a.libvirt, time.time).sample()  # type: ignore[arg-type]
        (guest,) = sample.guests
        assert guest.vm == doc.id
        assert guest.cpu_ns > 10**8
        assert guest.memory_used_mib > 10

        found = {(f.what, f.name): f.owner for f in (*await a.domains.survey(), *await a.volumes.survey())}
        assert found[("domain", doc.id)] == doc.id
        assert found[("disk", f"{volume.id}.qcow2")] == volume.id
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


async def _typed(watcher: Any, keys: bytes, answer: bytes) -> None:
    """Type until the answer comes: QEMU takes up to a second to notice that somebody has opened the pty."""
    said = b""
    for _ in range(10):
        await watcher.write(keys)
        try:
            async with asyncio.timeout(3):
                while answer not in said:
                    said += await watcher.read()
                return
        except TimeoutError:
            continue
    raise AssertionError(f"the console answered {said!r}")


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
            await _typed(console, b"root\n", b"# ")
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
