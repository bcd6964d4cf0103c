"""A real Debian with cloud-init as a disk that boots by itself, made by mmdebstrap and kept in build/debian.

The disk has a boot partition (FAT, syslinux, kernel and initrd) and a root partition (ext4). Nothing is mounted and no
loop device is used: the parts are made as files and put together.
"""

import hashlib
import shutil
from pathlib import Path

from lab import debian
from lab.commands import run
from lab.layout import ROOT

PACKAGES = (
    "linux-image-cloud-amd64",
    "systemd-sysv",
    "udev",
    "dbus",
    "iproute2",
    "isc-dhcp-client",
    "openssh-server",
    "cloud-init",
)
MBR = Path("/usr/lib/syslinux/mbr/mbr.bin")
BOOT_MIB, ROOT_MIB, FIRST_MIB = 96, 1600, 1
BOOT_CODE_BYTES = 440
"""Of the first sector; what follows is the disk's signature and the partition table."""

_CONFIG = """DEFAULT linux
LABEL linux
  KERNEL vmlinuz
  INITRD initrd.img
  APPEND root=LABEL=debian-root ro console=ttyS0 quiet
"""
_FSTAB = "LABEL=debian-root / ext4 defaults 0 1\n"
_MIB = 1 << 20


def debian_disk(folder: Path = ROOT / "build" / "debian") -> Path:
    """Return the path of the qcow2 disk, made now (a minute or two) unless it is there."""
    debian.tools()
    stamp = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    disk = folder / f"debian-{stamp}.qcow2"
    if disk.exists():
        return disk
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    root = folder / "root"
    debian.bootstrap(root, PACKAGES)
    (root / "etc" / "fstab").write_text(_FSTAB)
    parts = (_boot_partition(folder, root), _root_partition(folder, root))
    raw = _put_together(folder / "disk.raw", *parts)
    part = disk.with_suffix(".part")
    run(["qemu-img", "convert", "-O", "qcow2", str(raw), str(part)], timeout_s=300)
    part.rename(disk)
    for made in (*parts, raw):
        made.unlink()
    shutil.rmtree(root)
    return disk


def _boot_partition(folder: Path, root: Path) -> Path:
    """Make the FAT partition from which syslinux boots."""
    file, config = folder / "boot.fat", folder / "syslinux.cfg"
    config.write_text(_CONFIG)
    run(["mkfs.vfat", "-C", str(file), str(BOOT_MIB * 1024)])
    (kernel,) = (root / "boot").glob("vmlinuz-*")
    (initrd,) = (root / "boot").glob("initrd.img-*")
    for source, name in ((kernel, "vmlinuz"), (initrd, "initrd.img"), (config, "syslinux.cfg")):
        run(["mcopy", "-i", str(file), str(source), f"::{name}"])
    run(["syslinux", "--install", str(file)])
    return file


def _root_partition(folder: Path, root: Path) -> Path:
    return debian.ext4(root, folder / "root.ext4", ROOT_MIB, label="debian-root")


def _put_together(disk: Path, boot: Path, root: Path) -> Path:
    """Write boot sector, partition table and partitions into one file."""
    with disk.open("wb") as file:
        file.truncate((FIRST_MIB + BOOT_MIB + ROOT_MIB + 1) * _MIB)
    table = f"label: dos\n{FIRST_MIB}MiB {BOOT_MIB}MiB c *\n{FIRST_MIB + BOOT_MIB}MiB {ROOT_MIB}MiB L\n"
    run(["sfdisk", "-q", str(disk)], stdin=table)
    with disk.open("r+b") as file:
        file.write(MBR.read_bytes()[:BOOT_CODE_BYTES])
    for part, start in ((boot, FIRST_MIB), (root, FIRST_MIB + BOOT_MIB)):
        words = ["dd", f"if={part}", f"of={disk}", "bs=1M", f"seek={start}", "conv=notrunc,sparse", "status=none"]
        run(words, timeout_s=300)
    return disk
