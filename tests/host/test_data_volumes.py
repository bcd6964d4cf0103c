"""Data volumes on a real libvirtd: a running guest gets one, sees it grow, loses it, and finds what was kept of it."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from common.documents import DataDisk, DomainDoc, DomainSeen, Report, SnapshotDoc, SnapshotRef, VolumeDoc, VolumeSeen
from common.ids import Id, new_id
from lab.host import Host
from tests.host.compute import Agent, agent, changed, machine, qemu, removed, typed

pytestmark = [pytest.mark.host, pytest.mark.timeout(240)]


@contextlib.asynccontextmanager
async def shell(a: Agent, doc: DomainDoc, boots: int = 1) -> AsyncIterator["Shell"]:
    """Log in on the console, once it has come up so often."""
    await a.log_says(doc.id, "tiny login:", times=boots)
    async with a.consoles.attach(doc.id) as console:
        await typed(console, b"\nroot\n", b"# ")
        yield Shell(console)


class Shell:
    """Runs commands in a guest."""

    def __init__(self, console: object) -> None:
        self._console = console

    async def ask(self, command: str) -> str:
        """Return what a command prints."""
        for _ in range(6):
            await self._console.write(f'echo "<$({command})>"\n'.encode())  # type: ignore[attr-defined]
            said = b""
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(8):
                    while not (found := re.search(rb"<([^<>$]*)>", said)):
                        said += await self._console.read()  # type: ignore[attr-defined]
                    return found[1].decode().strip()
        raise AssertionError(f"{command}: {said!r}")

    async def disk(self, volume: Id, limit_s: float = 20) -> str:
        """Return the name that the guest has for a disk, by its serial number."""
        until = time.monotonic() + limit_s
        while not (found := await self.ask(f"grep -l {volume} /sys/block/*/serial | cut -d/ -f4")):
            assert time.monotonic() < until, f"the guest has no disk {volume}"
            await asyncio.sleep(0.2)
        return found


def data_volume(size_gib: int = 1) -> VolumeDoc:
    return VolumeDoc(id=new_id("vol"), size_gib=size_gib, image=None, data=True)


def has(doc: DomainDoc, *volumes: VolumeDoc) -> DomainDoc:
    return changed(doc, data=tuple(DataDisk(volume=one.id, reverts=one.reverts) for one in volumes))


def with_data(*volumes: VolumeDoc) -> object:
    def so(report: Report) -> bool:
        seen = report.seen
        return report.done and isinstance(seen, DomainSeen) and seen.data == tuple(one.id for one in volumes)

    return so


async def test_a_data_volume_comes_goes_grows_and_is_reverted(host: Host, state: Path, image: Path) -> None:
    doc, root = machine(image)
    data = data_volume()
    async with agent(host, state, image) as a:
        await a.want(doc, root)
        async with shell(a, doc) as guest:
            pid = qemu(host, doc.id)
            attached = has(doc, data)
            await a.want(data, attached)
            await a.until(attached, with_data(data))  # type: ignore[arg-type]
            name = await guest.disk(data.id)
            assert await guest.ask(f"head -c8 /dev/{name} | tr -d '\\0'") == ""
            await guest.ask(f"echo first >/dev/{name}; sync")

            before = SnapshotDoc(id=new_id("snap"), volume=data.id)
            await a.want(before)
            await a.done(before)  # while the guest runs with the disk
            await guest.ask(f"echo second >/dev/{name}; sync")

            twin = VolumeDoc(
                id=new_id("vol"), size_gib=1, image=None, data=True, snapshot=SnapshotRef(id=before.id, volume=data.id)
            )
            both = has(doc, data, twin)
            await a.want(twin, both)
            await a.until(both, with_data(data, twin))  # type: ignore[arg-type]
            its = await guest.disk(twin.id)
            assert await guest.ask(f"head -1 /dev/{its} | tr -d '\\0'") == "first", "cloned while the guest wrote on"
            await guest.ask(f"echo own >/dev/{its}; sync")
            assert await guest.ask(f"head -1 /dev/{name} | tr -d '\\0'") == "second"
            await a.want(attached)
            await a.until(attached, with_data(data))  # type: ignore[arg-type]
            await a.want(twin, gone=True)
            await a.done(twin)

            bigger = msgspec.structs.replace(data, size_gib=2)
            await a.want(bigger)
            await a.until(bigger, lambda r: r.done and isinstance(r.seen, VolumeSeen) and r.seen.size_gib == 2)
            assert await guest.ask(f"cat /sys/block/{name}/size") == str(2 << 21)

            await a.want(doc)
            await a.until(doc, with_data())  # type: ignore[arg-type]
            assert await guest.ask(f"cat /sys/block/*/serial | grep -c {data.id}") == "0"

            after = SnapshotDoc(id=new_id("snap"), volume=data.id)
            await a.want(after)
            await a.done(after)  # of a disk that nobody has
            reverted = msgspec.structs.replace(bigger, reverts=1, revert_to=before.id)
            again = has(doc, reverted)
            await a.want(again, reverted)
            await a.until(again, with_data(reverted))  # type: ignore[arg-type]
            seen = (await a.done(reverted)).seen
            assert isinstance(seen, VolumeSeen)
            assert seen.size_gib == 2, "it was reverted to a smaller one, and grew again"
            name = await guest.disk(data.id)
            assert await guest.ask(f"head -1 /dev/{name} | tr -d '\\0'") == "first"
            assert qemu(host, doc.id) == pid, "the guest ran on through all of it"

            found = {one.name: one for one in await a.volumes.survey()}
            assert (found[before.id].what, found[before.id].owner, found[before.id].detail) == (
                "snapshot", before.id, data.id,
            )  # fmt: skip
            await a.want(before, gone=True)
            await a.done(before)
            assert before.id not in {one.name for one in await a.volumes.survey()}
        rebooted = changed(again, boot_generation=2)
        await a.want(rebooted)
        await a.until(rebooted, with_data(reverted))  # type: ignore[arg-type]
        async with shell(a, rebooted, boots=2) as guest:
            assert await guest.disk(data.id)
        await removed(a, rebooted, root)
        await a.want(after, gone=True)
        await a.done(after)
        await a.want(reverted, gone=True)
        await a.done(reverted)
        assert [one.name for one in await a.volumes.survey() if one.what != "image"] == []


async def test_a_guest_that_does_not_let_go_is_told_of_and_loses_the_disk_with_its_power(
    host: Host, state: Path, image: Path
) -> None:
    doc, root = machine(image, stop_grace_s=0)
    data = data_volume()
    doc = has(doc, data)
    async with agent(host, state, image) as a:
        await a.want(doc, root, data)
        await a.state(doc, "running")
        alone = has(doc)
        await a.want(alone)  # its firmware does not listen yet
        clinging = await a.until(alone, lambda r: isinstance(r.seen, DomainSeen) and r.seen.data_note)
        assert clinging.done
        assert isinstance(clinging.seen, DomainSeen)
        assert f"has not let go of volume {data.id}" in clinging.seen.data_note
        stopped = changed(alone, power="stopped")
        await a.want(stopped)
        await a.until(stopped, with_data())  # type: ignore[arg-type]
        await a.want(data, gone=True)
        await a.done(data)
        await removed(a, stopped, root)
