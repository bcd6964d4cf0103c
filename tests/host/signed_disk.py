"""A disk that boots by UEFI, under Secure Boot too: Debian's signed shim, GRUB and kernel, with tiny's initramfs.

It has one partition, of FAT. Nothing is mounted or installed: packages are downloaded and unpacked.
"""

import gzip
import hashlib
from pathlib import Path

from lab import debian, guest
from lab.commands import run
from lab.layout import ROOT

PART_MIB = 32
_MIB = 1 << 20
_GRUB = f"""set timeout=0
linux /vmlinuz {guest.CMDLINE}
initrd /initrd
boot
"""


def signed_disk(build: Path = ROOT / "build" / "guest", *, forged: bool = False) -> Path:
    """Return the raw disk, made now unless it is there. `forged`: one bit of its boot loader is another."""
    debian.tools()
    kernel = guest.unpacked(guest.kernel_package(build))
    inputs = (Path(__file__), Path(guest.__file__), *sorted(guest.SOURCES.iterdir()), kernel.vmlinuz)
    stamp = hashlib.sha256(b"".join(path.read_bytes() for path in inputs)).hexdigest()[:16]
    disk = build / f"signed-{stamp}{'-forged' if forged else ''}.raw"
    if disk.exists():
        return disk
    part = disk.with_suffix(".part")
    part.write_bytes(bytes((PART_MIB + 2) * _MIB))
    run(["sfdisk", "-q", str(part)], stdin=f"label: gpt\nstart=1MiB, size={PART_MIB}MiB, type=U\n")
    files = {
        "EFI/BOOT/BOOTX64.EFI": _loader(build, forged=forged),
        "EFI/BOOT/grubx64.efi": _file(build, "grub-efi-amd64-signed", "**/grubx64.efi.signed"),
        "EFI/debian/grub.cfg": _GRUB.encode(),
        "vmlinuz": kernel.vmlinuz.read_bytes(),
        "initrd": gzip.compress(guest.cpio(guest.entries(kernel.modules)), mtime=0),  # GRUB reads slowly
    }
    _fill(part, files)
    for old in build.glob("signed-*.raw"):
        if stamp not in old.name:
            old.unlink()
    part.rename(disk)
    return disk


def _fill(disk: Path, files: dict[str, bytes]) -> None:
    """Make the partition's file system, and put files into it."""
    fat = disk.with_suffix(".fat")
    fat.unlink(missing_ok=True)
    run(["mkfs.vfat", "-C", str(fat), str(PART_MIB * 1024)])
    run(["mmd", "-i", str(fat), "::EFI", "::EFI/BOOT", "::EFI/debian"])
    source = disk.with_suffix(".file")
    for name, content in files.items():
        source.write_bytes(content)
        run(["mcopy", "-i", str(fat), str(source), f"::{name}"])
    with disk.open("r+b") as out:
        out.seek(_MIB)
        out.write(fat.read_bytes())
    source.unlink()
    fat.unlink()


def _loader(build: Path, *, forged: bool) -> bytes:
    content = bytearray(_file(build, "shim-signed", "**/shimx64.efi.signed"))
    if forged:
        at = content.index(b"This program cannot be run in DOS mode")
        content[at] ^= 1
    return bytes(content)


def _file(build: Path, package: str, pattern: str) -> bytes:
    (path,) = guest.package_folder(build, package).glob(pattern)
    return path.read_bytes()
