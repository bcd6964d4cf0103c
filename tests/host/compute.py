"""An agent's compute and storage over a real libvirtd, for tests: its units, its reports, and guests' consoles."""

import asyncio
import contextlib
import hashlib
import re
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from agent.console import Consoles
from agent.drivers.file_pool import FilePool
from agent.drivers.images import ImageCache, Progress
from agent.drivers.libvirt import Libvirt
from agent.drivers.place import Place
from agent.drivers.pool import Pool
from agent.drivers.tpms import LOGS, TPMS, Tpms
from agent.inventory import find_place
from agent.kinds.balloon import HostMemory
from agent.kinds.domain import Domains, host_memory
from agent.kinds.unit import UnitKey
from agent.kinds.volume import Volumes
from agent.loop import Loop
from agent.memory import open_memory
from common.documents import (
    AnyDoc,
    Desired,
    DomainDoc,
    DomainSeen,
    GuestMetadata,
    ImageRef,
    Report,
    VolumeDoc,
    key_of,
)
from common.faults import Faults
from common.ids import Id, Revision, child_id, new_id
from common.protocol import DesiredBatch, HostEvent
from lab.host import Host

BOOT_S = 60.0


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
        self, loop: Loop, libvirt: Reached, place: Place, kinds: tuple[Pool, Volumes, Domains], inbox: Inbox
    ) -> None:
        self.loop, self.libvirt, self.place, self.inbox = loop, libvirt, place, inbox
        self.pool, self.volumes, self.domains = kinds
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
async def agent(
    host: Host,
    state: Path,
    image: Path,
    faults: Faults | None = None,
    host_memory: Callable[[], HostMemory] = host_memory,
) -> AsyncIterator[Agent]:
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
        pool = FilePool(place, images, reached)
        volumes = Volumes(place, pool, images, reached, report=inbox.report, clock=time.time, faults=faults)
        domains = Domains(
            place,
            pool,
            images,
            reached,
            Tpms(host.inside(str(TPMS)), host.inside(str(LOGS))),
            announce=inbox.event,
            clock=time.time,
            faults=faults,
            link_exists=lambda name: name in devices(host),
            host_memory=host_memory,
        )
        loop = Loop(memory=memory, kinds=(volumes, domains), sink=inbox.report)
        found = Agent(loop, reached, place, (pool, volumes, domains), inbox)
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


async def typed(watcher: Any, keys: bytes, answer: bytes) -> None:
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


async def asked(a: Agent, doc: DomainDoc, command: str) -> str:
    """Type a command on the console and return what it prints."""
    async with a.consoles.attach(doc.id) as console:
        await typed(console, b"\nroot\n", b"# ")
        for _ in range(10):
            await console.write(f'echo "<$({command})>"\n'.encode())
            said = b""
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5):
                    while not (found := re.search(rb"<([^<>$]*)>", said)):
                        said += await console.read()
                    return found[1].decode()
        raise AssertionError(f"{command}: {said!r}")
