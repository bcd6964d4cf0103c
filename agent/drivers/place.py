"""Where a host keeps what belongs to domains and volumes, and what it calls each of them."""

from pathlib import Path
from typing import Literal

import msgspec

from common import names
from common.firmware import Firmware
from common.ids import Id


class DiskSource(msgspec.Struct, frozen=True, kw_only=True):
    """What QEMU opens for a disk."""

    path: str
    type: Literal["file", "block"]
    format: Literal["qcow2", "raw"]


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where things lie, and how this host runs machines. QEMU has to be able to enter all directories but vouchers."""

    volumes: Path
    """The pool: one qcow2 file per volume, where there is no volume group for them."""
    images: Path
    """The image cache."""
    logs: Path
    """Serial console logs, written by virtlogd."""
    seeds: Path
    """NoCloud disks."""
    variables: Path
    """What UEFI keeps for machines: a file for each disk that is booted from, and each sort of firmware."""
    vouchers: Path
    """Certificates by which guests prove who they are."""
    virtualisation: Literal["kvm", "tcg"]
    direct_io: bool
    """Whether the pool takes O_DIRECT: then the host caches nothing that the guest caches already."""
    volume_group: str = ""
    """That of the thin pool that volumes lie in; empty: they are files."""

    def volume_file(self, volume: Id) -> Path:
        """Return a file-backed volume's disk."""
        return self.volumes / names.volume_file(volume)

    def disk(self, volume: Id) -> DiskSource:
        """Return what QEMU opens for a volume."""
        if self.volume_group:
            return DiskSource(
                path=f"/dev/{self.volume_group}/{names.logical_volume(volume)}", type="block", format="raw"
            )
        return DiskSource(path=str(self.volume_file(volume)), type="file", format="qcow2")

    def serial_log(self, vm: Id) -> Path:
        """Return a VM's serial log; virtlogd rotates it to `<file>.0`, `<file>.1`, …"""
        return self.logs / f"{vm}.log"

    def seed_file(self, vm: Id) -> Path:
        """Return a VM's NoCloud disk."""
        return self.seeds / f"{vm}.iso"

    def variables_file(self, disk: Id, firmware: Firmware) -> Path:
        """Return what UEFI keeps for a machine that boots from a disk."""
        return self.variables / names.variables_file(disk, firmware)

    def voucher_file(self, vm: Id) -> Path:
        """Return a VM's voucher."""
        return self.vouchers / f"{vm}.pem"

    def prepare(self) -> None:
        """Make the directories: QEMU, under its own user, may enter them but not list them."""
        for directory in (self.volumes, self.images, self.logs, self.seeds, self.variables):
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(0o711)


class BootFiles(msgspec.Struct, frozen=True, kw_only=True):
    """An unpacked kernel image."""

    kernel: str
    initrd: str
    cmdline: str
    """Empty where the image brings none."""
