"""On a real libvirtd: the CPU that a guest sees is the one that was computed, and a guest that runs is given more."""

import re
from pathlib import Path

import pytest

from common.cpus import LEVELS, level_of
from common.documents import DomainDoc, GuestCpu
from lab.host import Host
from tests.host.compute import Agent, agent, asked, changed, machine, qemu, removed

pytestmark = [pytest.mark.host, pytest.mark.timeout(240)]

UP = "skerry-tiny: up in"
"""Once a boot; the prompt comes with every key."""


async def flags_seen(a: Agent, doc: DomainDoc) -> set[str]:
    """Return the flags that the guest's kernel says it has."""
    return set((await asked(a, doc, "sed -n 's/^flags.*: //p;/^flags/q' /proc/cpuinfo")).split())


async def test_a_guest_sees_the_flags_that_hosts_share_and_no_others(host: Host, state: Path, image: Path) -> None:
    async with agent(host, state, image) as a:
        can = await a.libvirt.guest_cpu("tcg")
        assert level_of(frozenset(can.flags)) in LEVELS
        less = set(can.flags) - {"avx2", "aes", "svm", "vaes"}
        doc, volume = machine(image, cpu=GuestCpu(wish="shared", flags=tuple(sorted(less))), stop_grace_s=0)
        await a.want(doc, volume)
        await a.log_says(doc.id, UP)
        seen = await flags_seen(a, doc)
        assert {"sse4_2", "popcnt", "ssse3"} <= seen
        assert not {"avx2", "aes", "svm"} & seen

        all_of_it = changed(doc, cpu=GuestCpu(wish="shared", flags=can.flags), boot_generation=2)
        await a.want(all_of_it)
        await a.state(all_of_it, "running")
        await a.log_says(doc.id, UP, times=2)
        assert {"avx2", "aes"} <= await flags_seen(a, all_of_it)
        await removed(a, all_of_it, volume)


async def test_a_guest_that_runs_is_given_vcpus_and_memory_and_has_them_after_a_restart(
    host: Host, state: Path, image: Path
) -> None:
    doc, volume = machine(image, memory_mib=1024, vcpus_max=4, memory_max_mib=4096, stop_grace_s=0)
    async with agent(host, state, image) as a:
        can = await a.libvirt.guest_cpu("tcg")
        doc = changed(doc, cpu=GuestCpu(wish="shared", flags=can.flags))
        await a.want(doc, volume)
        await a.log_says(doc.id, UP)
        pid = qemu(host, doc.id)

        grown = changed(doc, vcpus=3, memory_mib=1536, vcpus_max=12, memory_max_mib=6144)
        await a.want(grown)
        seen = await a.state(grown, "running")
        assert (seen.vcpus, seen.memory_mib, seen.note) == (3, 1536, "")
        assert (seen.vcpus_max, seen.memory_max_mib, seen.memory_slots) == (4, 4096, 15)
        log = (await a.log_says(doc.id, "now 3 CPU, 14")).decode()
        assert re.search(r"now 3 CPU, 14\d\d MiB", log)
        assert qemu(host, doc.id) == pid

        beyond = changed(grown, vcpus=8)
        await a.want(beyond)
        seen = await a.state(beyond, "running")
        assert seen.vcpus == 3

        rebooted = changed(grown, boot_generation=2)
        await a.want(rebooted)
        seen = await a.state(rebooted, "running")
        assert (seen.vcpus, seen.memory_mib, seen.vcpus_max) == (3, 1536, 12)
        log = (await a.log_says(doc.id, UP, times=2)).decode()
        assert re.search(r"3 CPU, 14\d\d MiB, kernel up", log)
        await removed(a, rebooted, volume)
