"""On a real libvirtd, with OVMF and swtpm: what Secure Boot starts and what not, and what a TPM holds for how long."""

import hashlib
import re
from pathlib import Path

import pytest

from agent.drivers.tpms import LOGS, TPMS
from agent.sight import guest_firmware
from common.documents import DomainDoc, ImageRef, VolumeDoc
from common.firmware import ABILITIES, TPM
from common.ids import child_id
from lab.host import Host
from tests.host.compute import Agent, agent, changed, machine, removed
from tests.host.signed_disk import signed_disk

pytestmark = [pytest.mark.host, pytest.mark.timeout(400)]

SECURE = "skerry-tiny: firmware UEFI, Secure Boot is on"
STARTS = re.compile(r"TPM started (\d+) times")
UEFI_S = 180.0
"""Firmware takes ten seconds on an emulated CPU, if nobody else wants it."""


def booting(disk: Path, **changes: object) -> tuple[DomainDoc, VolumeDoc]:
    """Return the documents of a machine that boots from a disk."""
    content = disk.read_bytes()
    ref = ImageRef(digest=f"sha256:{hashlib.sha256(content).hexdigest()}", format="raw", size_bytes=len(content))
    doc, volume = machine(disk, kernel=None, memory_mib=512, stop_grace_s=0, **changes)
    return doc, VolumeDoc(id=volume.id, size_gib=1, image=ref)


def left(host: Host, a: Agent) -> list[str]:
    """Name what is kept of firmware and TPMs on the host."""
    folders = (host.inside(str(TPMS)), host.inside(str(LOGS)), a.place.variables)
    return [path.name for folder in folders if folder.exists() for path in folder.iterdir()]


async def test_agent_and_doctor_see_what_can_be_had_and_what_not(host: Host, state: Path, image: Path) -> None:
    async def told(a: Agent) -> list[set[str]]:
        asked = await a.libvirt.guest_firmware("tcg")
        seen = await guest_firmware(host.libvirt_uri())
        return [{name for name, why in asked.items() if not why}, {one.name for one in seen if one.works}]

    async with agent(host, state, image) as a:
        assert await told(a) == [set(ABILITIES)] * 2
        host.run(["mount", "-t", "tmpfs", "none", "/usr/share/qemu/firmware"])
        try:
            assert await told(a) == [{TPM}] * 2
        finally:
            host.run(["umount", "/usr/share/qemu/firmware"])


async def test_a_tpm_keeps_what_it_holds_over_stop_and_start_until_its_disk_is_made_anew(
    host: Host, state: Path, image: Path
) -> None:
    doc, volume = machine(image, tpm=True, stop_grace_s=0)
    async with agent(host, state, image) as a:

        async def starts(boots: int) -> list[int]:
            log = await a.log_says(doc.id, "tiny login:", times=boots, limit_s=UEFI_S)
            return [int(found) for found in STARTS.findall(log.decode(errors="replace"))]

        await a.want(doc, volume)
        (first,) = await starts(1)
        stopped = changed(doc, power="stopped")
        await a.want(stopped)
        await a.state(stopped, "stopped")
        again = changed(stopped, power="running", start_generation=2)
        await a.want(again)
        assert await starts(2) == [first, first + 1]

        other = VolumeDoc(id=child_id(doc.id, "vol", "root 1"), size_gib=1, image=volume.image)
        rebuilt = changed(again, boot_generation=2, volumes=(other.id,))
        await a.want(rebuilt, other)
        await a.want(volume, gone=True)
        assert await starts(3) == [first, first + 1, first]
        await a.done(volume)
        assert {("TPM", doc.id), ("TPM's log", doc.id)} <= {(one.detail, one.owner) for one in await a.domains.survey()}
        await removed(a, rebuilt, other)
        assert left(host, a) == []


async def test_secure_boot_starts_what_is_signed(host: Host, state: Path) -> None:
    disk = signed_disk()
    doc, volume = booting(disk, firmware="uefi-secure", tpm=True)
    async with agent(host, state, disk) as a:
        await a.want(doc, volume)
        seen = await a.state(doc, "running")
        assert (seen.firmware, seen.tpm) == ("uefi-secure", True)
        log = await a.log_says(doc.id, "TPM started", limit_s=UEFI_S)
        assert SECURE.encode() in log
        assert ("UEFI's variables", volume.id) in {(one.detail, one.owner) for one in await a.volumes.survey()}
        await removed(a, doc, volume)
        assert left(host, a) == []


async def test_secure_boot_refuses_a_forged_loader_that_plain_uefi_starts(host: Host, state: Path) -> None:
    disk = signed_disk(forged=True)
    doc, volume = booting(disk, firmware="uefi-secure")
    async with agent(host, state, disk) as a:
        await a.want(doc, volume)
        log = await a.log_says(doc.id, "Access Denied", limit_s=UEFI_S)
        assert b"skerry-tiny" not in log

        plain = changed(doc, firmware="uefi", boot_generation=2)
        await a.want(plain)
        log = await a.log_says(doc.id, "skerry-tiny: firmware UEFI", limit_s=UEFI_S)
        assert SECURE.encode() not in log
        await removed(a, plain, volume)
        assert left(host, a) == []
