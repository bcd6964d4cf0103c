"""Machines that are changed on a real libvirtd: another size, a new disk, a rescue, a share of the host."""

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from agent.drivers.hypervisor import Sharing
from agent.kinds.balloon import HostMemory
from agent.kinds.unit import UnitKey
from common.documents import DomainDoc, DomainSeen, key_of
from common.ids import child_id
from lab.host import Host
from tests.host.compute import Agent, agent, asked, changed, machine, qemu, removed

pytestmark = [pytest.mark.host, pytest.mark.timeout(240)]


WRITE = "echo mine >/dev/vda; sync"


def read(disk: str) -> str:
    return f"head -c4 /dev/{disk}"


async def test_a_resize_takes_effect_at_the_next_boot_and_is_told_till_then(
    host: Host, state: Path, image: Path
) -> None:
    doc, volume = machine(image)
    async with agent(host, state, image) as a:
        await a.want(doc, volume)
        await a.log_says(doc.id, "tiny login:")
        larger = changed(doc, vcpus=2, memory_mib=384)
        bigger = msgspec.structs.replace(volume, size_gib=2)
        await a.want(larger, bigger)
        seen = await a.state(larger, "running")
        assert (seen.vcpus, seen.memory_mib) == (1, 256)
        pid = qemu(host, doc.id)

        rebooted = changed(larger, boot_generation=2)
        await a.want(rebooted)
        seen = await a.state(rebooted, "running")
        assert (seen.vcpus, seen.memory_mib) == (2, 384)
        assert qemu(host, doc.id) != pid
        log = (await a.log_says(doc.id, "tiny login:", times=2)).decode()
        assert re.search(r"2 CPUs?, 3\d\d MiB", log)
        assert "disk vda 2048 MiB" in log
        await removed(a, rebooted, bigger)


async def test_a_rebuilt_machine_has_a_new_disk_and_the_old_one_is_gone(host: Host, state: Path, image: Path) -> None:
    doc, volume = machine(image, stop_grace_s=0)
    async with agent(host, state, image) as a:
        await a.want(doc, volume)
        await a.log_says(doc.id, "tiny login:")
        await asked(a, doc, WRITE)
        assert await asked(a, doc, read("vda")) == "mine"

        without = changed(doc, power="stopped", volumes=(), kernel=None, boot_generation=2)
        await a.want(without)
        await a.want(volume, gone=True)
        await a.done(volume)
        assert not a.place.volume_file(volume.id).exists()
        await a.state(without, "stopped")

        new = msgspec.structs.replace(volume, id=child_id(doc.id, "vol", "root 1"))
        rebuilt = changed(doc, volumes=(new.id,), boot_generation=2)
        await a.want(rebuilt, new)
        await a.state(rebuilt, "running")
        await a.log_says(doc.id, "tiny login:", times=2)
        assert await asked(a, doc, read("vda")) == ""
        await removed(a, rebuilt, new)


async def test_in_rescue_the_own_disk_is_the_second_and_keeps_what_is_on_it(
    host: Host, state: Path, image: Path
) -> None:
    doc, volume = machine(image, stop_grace_s=2)
    rescue = msgspec.structs.replace(volume, id=child_id(doc.id, "vol", "rescue 1"))
    async with agent(host, state, image) as a:
        await a.want(doc, volume)
        await a.log_says(doc.id, "tiny login:")
        await asked(a, doc, WRITE)
        assert await asked(a, doc, read("vda")) == "mine"

        rescued = changed(doc, volumes=(rescue.id, volume.id), boot_generation=2)
        await a.want(rescued, rescue)
        await a.state(rescued, "running")
        await a.log_says(doc.id, "tiny login:", times=2)
        assert await asked(a, doc, read("vdb")) == "mine"

        back = changed(doc, boot_generation=3)
        await a.want(back)
        await a.want(rescue, gone=True)
        await a.state(back, "running")
        await a.done(rescue)
        assert not a.place.volume_file(rescue.id).exists()
        await a.log_says(doc.id, "tiny login:", times=3)
        assert await asked(a, doc, read("vda")) == "mine"
        await removed(a, back, volume)


async def test_without_the_kernels_cpu_groups_it_runs_on_and_says_what_has_no_effect(
    host: Host, state: Path, image: Path
) -> None:
    doc, volume = machine(image, cpu_weight=50)
    async with agent(host, state, image) as a:
        await a.want(doc, volume)
        note = (await a.state(doc, "running")).note
        assert note.startswith("its CPU weight and cap have no effect, since its host can't share out CPUs: ")
        await removed(a, doc, volume)


@contextlib.contextmanager
def cpu_groups(host: Host) -> Iterator[None]:
    """Have the kernel's CPU groups where the host's libvirtd looks for them: its own /sys has none."""
    there = "mkdir -p /sys/fs/cgroup/cpu && mount -t cgroup -o cpu cgroup /sys/fs/cgroup/cpu"
    second = "umount /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup"
    host.run(["sh", "-c", f"mount -t tmpfs tmpfs /sys/fs/cgroup && {{ {there}; }} || {{ {second}; }}"])
    try:
        yield
    finally:
        host.run(["sh", "-c", "rmdir /sys/fs/cgroup/cpu/machine; umount -R /sys/fs/cgroup || true"])


async def test_cpu_weight_and_cap_change_while_it_runs(host: Host, state: Path, image: Path) -> None:
    doc, volume = machine(image)
    with cpu_groups(host):
        async with agent(host, state, image) as a:
            await a.want(doc, volume)
            await a.state(doc, "running")
            pid = qemu(host, doc.id)
            for weight, cap in ((50, 40), (300, 150), (100, None)):
                shared = changed(doc, cpu_weight=weight, cpu_cap_percent=cap)
                await a.want(shared)
                assert (await a.state(shared, "running")).note == ""
                live = await a.libvirt.look(doc.id)
                assert live is not None
                assert live.sharing == Sharing(weight=weight, cap_percent=cap)
            assert qemu(host, doc.id) == pid
            await removed(a, doc, volume)


async def test_a_guest_lends_memory_while_its_host_is_short_of_it(host: Host, state: Path, image: Path) -> None:
    short = [False]

    def memory() -> HostMemory:
        return HostMemory(total_mib=1000, available_mib=50 if short[0] else 900)

    doc, volume = machine(image, memory_min_mib=160)
    async with agent(host, state, image, host_memory=memory) as a:
        await a.want(doc, volume)
        await a.log_says(doc.id, "tiny login:")
        before = await memory_kib(a, doc)
        short[0] = True

        def lends(seen: object) -> bool:
            return isinstance(seen, DomainSeen) and 160 <= seen.balloon_mib < 256

        await looked_at(a, doc, lends)
        during = await memory_kib(a, doc)
        assert during < before - (16 << 10)
        short[0] = False
        await looked_at(a, doc, lambda seen: isinstance(seen, DomainSeen) and seen.balloon_mib == 0)
        assert await memory_kib(a, doc) == before
        await removed(a, doc, volume)


async def memory_kib(a: Agent, doc: DomainDoc) -> int:
    return int((await asked(a, doc, "grep MemTotal /proc/meminfo")).split()[1])


async def looked_at(a: Agent, doc: DomainDoc, so: Callable[[object], bool]) -> None:
    """Have the agent look again and again until what it sees is so."""
    async with asyncio.timeout(60):
        while True:
            report = a.inbox.reports.get(key_of(doc))
            if report is not None and so(report.seen):
                return
            a.loop.poke(UnitKey(f"domain/{doc.id}"))
            await asyncio.sleep(1)
