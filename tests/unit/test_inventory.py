"""What a host has and can do; what its console and its logs give; its vector of metrics."""

import os
import pty
import tty
from pathlib import Path

import pytest

from agent import console
from agent.console import Consoles
from agent.drivers import machine
from agent.drivers.file_pool import FilePool
from agent.drivers.hypervisor import DomainUsage
from agent.drivers.place import Place
from agent.inventory import find_place, mtu_of, take_inventory, virtualisation
from agent.telemetry import Telemetry
from common.codec import from_pack, to_pack
from common.errors import Invalid, NotFound, Temporary
from common.firmware import ABILITIES, SECURE_BOOT, TPM, UEFI
from common.ids import Id
from common.protocol import CPU_MODEL, GuestCpus, Metrics, Nic

VM = Id("vm-0123456789ab")


class Hypervisor:
    """A console that is a pty of this test, and one running guest."""

    def __init__(self) -> None:
        self.guest, slave = pty.openpty()
        tty.setraw(slave)
        self.path = os.ttyname(slave)
        self.slave = slave
        self.asked = 0
        self.firmware: dict[str, str] | None = None

    async def console_pty(self, vm: Id) -> str:
        self.asked += 1
        if vm != VM:
            raise NotFound(f"{vm} is not running")
        return self.path

    async def guest_cpu(self, _virtualisation: str) -> GuestCpus:
        raise Temporary("libvirtd does not answer")

    async def guest_firmware(self, _virtualisation: str) -> dict[str, str]:
        if self.firmware is None:
            raise Temporary("libvirtd does not answer")
        return self.firmware

    async def usage(self) -> tuple[DomainUsage, ...]:
        def one(name: str) -> DomainUsage:
            return DomainUsage(
                name=name,
                cpu_ns=5,
                memory_used_mib=64,
                disk_read_bytes=1,
                disk_write_bytes=2,
                net_rx_bytes=3,
                net_tx_bytes=4,
            )

        return one(VM), one("somebody-elses")

    def close(self) -> None:
        for descriptor in (self.guest, self.slave):
            if descriptor >= 0:
                os.close(descriptor)
        self.guest = self.slave = -1


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return find_place(tmp_path, tmp_path / "volumes")


@pytest.fixture
def hypervisor() -> object:
    found = Hypervisor()
    yield found
    found.close()


def test_kvm_is_decided_by_flags_and_device_together(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch()
    assert virtualisation(("fpu", "svm"), device) == "kvm"
    assert virtualisation(("fpu",), device) == "tcg"
    assert virtualisation(("vmx",), tmp_path / "none") == "tcg"


def test_cpu_is_read_from_cpuinfo(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Wonder 9000\nflags\t\t: sse svm sse\n\nprocessor\t: 1\n")
    found = machine.cpu(cpuinfo)
    assert found.model == "Wonder 9000"
    assert found.flags == ("sse", "svm")


def pool(place: Place) -> FilePool:
    return FilePool(place, None, None)  # type: ignore[arg-type]


async def test_inventory_describes_this_machine(place: Place, hypervisor: Hypervisor) -> None:
    found = await take_inventory(place, pool(place), "127.0.0.1", hypervisor)  # type: ignore[arg-type]
    assert found.memory_mib > 100
    assert found.cpu_threads >= 1
    assert found.virtualisation == place.virtualisation
    works = {capability.name: capability for capability in found.capabilities}
    assert works["qemu-img"].works
    assert found.guest_cpu is None
    assert (works[CPU_MODEL].works, works[CPU_MODEL].detail) == (False, "libvirtd does not answer")
    assert works["pool"].detail == f"files in {place.volumes}"
    assert works["cow-clones"].works or "clones of snapshots are copies" in works["cow-clones"].detail
    assert [path for path in place.volumes.iterdir() if path.name.startswith("reflink")] == []
    assert found.disk_gib > 0
    assert {"kvm", "vxlan", "bridge", "netns", "tun", "dnsmasq", "lvm-thin", "bridge-conntrack"} <= set(works)
    assert all(capability.works or capability.detail for capability in found.capabilities)
    assert not ABILITIES.keys() & set(works)


async def test_what_guests_can_be_started_with_is_what_libvirt_says(place: Place, hypervisor: Hypervisor) -> None:
    hypervisor.firmware = {UEFI: "", SECURE_BOOT: "unable to find any firmware", TPM: ""}
    found = await take_inventory(place, pool(place), "127.0.0.1", hypervisor)  # type: ignore[arg-type]
    told = {one.name: (one.works, one.detail) for one in found.capabilities if one.name in ABILITIES}
    assert told == {UEFI: (True, ""), SECURE_BOOT: (False, "unable to find any firmware"), TPM: (True, "")}


def test_an_underlay_address_of_nobody_is_refused_with_those_there_are() -> None:
    nics = (Nic(name="eth0", mac="", mtu=1400, addresses=("192.0.2.2",)),)
    assert mtu_of("192.0.2.2", nics) == 1400
    with pytest.raises(Invalid, match=r"eth0 \(192\.0\.2\.2\)"):
        mtu_of("192.0.2.3", nics)


def test_directories_can_be_entered_but_not_listed_by_qemu(place: Place) -> None:
    assert {path.stat().st_mode & 0o777 for path in (place.volumes, place.images, place.logs, place.seeds)} == {0o711}


async def test_the_vector_has_the_host_and_skerrys_guests(place: Place, hypervisor: Hypervisor) -> None:
    sample = await Telemetry(pool(place), hypervisor, lambda: 12.5).sample()  # type: ignore[arg-type]
    assert sample.at == 12.5
    assert [guest.vm for guest in sample.guests] == [VM]
    assert sample.guests[0].net_tx_bytes == 4
    assert sample.host.guests_running == 1
    assert sample.host.agent_rss_mib > 1
    assert from_pack(to_pack(sample), Metrics, "metrics") == sample


async def test_two_watchers_share_a_console_and_both_type(place: Place, hypervisor: Hypervisor) -> None:
    consoles = Consoles(place, hypervisor)  # type: ignore[arg-type]
    async with consoles.attach(VM) as one, consoles.attach(VM) as two:
        os.write(hypervisor.guest, b"login: ")
        assert await one.read() == b"login: "
        assert await two.read() == b"login: "
        await one.write(b"ro")
        await two.write(b"ot\r")
        typed = b""
        while len(typed) < 5:
            typed += os.read(hypervisor.guest, 100)
        assert typed == b"root\r"
    assert hypervisor.asked == 1


async def test_a_console_ends_when_the_domain_does(place: Place, hypervisor: Hypervisor) -> None:
    consoles = Consoles(place, hypervisor)  # type: ignore[arg-type]
    async with consoles.attach(VM) as watcher:
        os.write(hypervisor.guest, b"bye")
        assert await watcher.read() == b"bye"
        hypervisor.close()
        assert await watcher.read() == b""
        with pytest.raises(NotFound):
            await watcher.write(b"x")


async def test_attaching_to_a_stopped_machine_is_refused(place: Place, hypervisor: Hypervisor) -> None:
    with pytest.raises(NotFound):
        async with Consoles(place, hypervisor).attach(Id("vm-zzzzzzzzzzzz")):  # type: ignore[arg-type]
            pass


async def test_a_slow_watcher_loses_the_oldest_bytes_and_is_told() -> None:
    watcher = console.Watcher(None)  # type: ignore[arg-type]
    for number in range(40):
        watcher.feed(bytes([65 + number % 26]) * 10_000)
    found = await watcher.read()
    assert found.startswith(b"\r\n[140000 bytes left out]\r\n")
    assert len(found) < console.MOST_KEPT_BYTES + 100
    assert found.endswith(b"N")


async def test_the_log_is_read_over_its_rotated_files(place: Place, hypervisor: Hypervisor) -> None:
    consoles = Consoles(place, hypervisor)  # type: ignore[arg-type]
    assert await consoles.read_log(VM, 100) == b""
    log = place.serial_log(VM)
    log.write_bytes(b"newest")
    log.with_name(log.name + ".0").write_bytes(b"middle ")
    log.with_name(log.name + ".1").write_bytes(b"oldest ")
    assert await consoles.read_log(VM, 100) == b"oldest middle newest"
    assert await consoles.read_log(VM, 10) == b"dle newest"
    assert await consoles.read_log(VM, 0) == b""
