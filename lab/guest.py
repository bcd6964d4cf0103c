"""The guest image `tiny`: Debian's cloud kernel and a busybox initramfs, packed as Skerry's image format `kernel`.

The same inputs give the same bytes (sorted names, times 0), so the image's digest is stable. Nothing is installed:
the kernel's package is downloaded and unpacked under build/guest.
"""

import hashlib
import io
import re
import stat
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from common.errors import Temporary
from common.run import CommandFailed
from lab.commands import run

SOURCES = Path(__file__).parent / "tiny"
BUSYBOX = Path("/bin/busybox")
CMDLINE = "console=ttyS0 quiet random.trust_cpu=on panic=5"
MODULES = ("virtio_pci", "virtio_net", "virtio_blk", "virtio-rng", "virtio_balloon", "evdev", "button", "isofs")
FOUND_LATER = ("efivarfs",)
"""Loaded only where there is something for them."""
_PLACES = {
    "init": ("init", 0o755),
    "say": ("lib/tiny/say", 0o644),
    "network": ("lib/tiny/network", 0o755),
    "lease": ("lib/tiny/lease", 0o755),
    "metadata": ("lib/tiny/metadata", 0o755),
    "inittab": ("etc/inittab", 0o644),
    "issue": ("etc/issue", 0o644),
    "plugged": ("lib/tiny/plugged", 0o755),
    "firmware": ("lib/tiny/firmware", 0o755),
    "power": ("etc/acpi/PWRF/00000080", 0o755),
}
_FOLDERS = ("dev", "proc", "sys", "run", "tmp", "root", "www", "mnt", "bin", "sbin", "usr/bin", "usr/sbin", "var/log")


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One file of the initramfs. `mode` holds type and permission bits; a symbolic link's content is its target."""

    path: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


class Kernel(NamedTuple):
    """An unpacked kernel package."""

    vmlinuz: Path
    modules: Path


def tiny(build: Path) -> Path:
    """Return the path of the image `tiny`, made now if it is missing or its inputs have changed.

    Raises Temporary when busybox-static is missing or the kernel's package can't be had.
    """
    build.mkdir(parents=True, exist_ok=True)
    if not BUSYBOX.exists():
        raise Temporary(f"{BUSYBOX} is missing; install Debian's package busybox-static (`make up` does)")
    package = kernel_package(build)
    image, note = build / "tiny.tar", build / "tiny.inputs"
    inputs = _digest(package)
    if image.exists() and note.exists() and note.read_text() == inputs:
        return image
    part = build / "tiny.tar-part"
    part.write_bytes(pack(unpacked(package)))
    note.unlink(missing_ok=True)
    part.rename(image)
    note.write_text(inputs)
    return image


def kernel_package(build: Path) -> Path:
    """Return Debian's newest cloud kernel as a .deb: the one kept in `build`, else downloaded by apt."""
    kept = sorted(build.glob("linux-image-*.deb"))
    return kept[-1] if kept else _downloaded(build, _kernel_name())


def package_folder(build: Path, name: str) -> Path:
    """Return the folder in `build` into which a Debian package is unpacked, downloaded where there is none."""
    kept = sorted(build.glob(f"{name}_*.deb"))
    return _unpacked(kept[-1] if kept else _downloaded(build, name))


def _downloaded(build: Path, name: str) -> Path:
    folder = build / "part"
    folder.mkdir(exist_ok=True)
    run(["apt-get", "-o", "APT::Sandbox::User=root", "download", name], timeout_s=300, folder=folder)
    (package,) = folder.glob(f"{name}_*.deb")
    return package.rename(build / package.name)


def _kernel_name() -> str:
    """Ask apt what the metapackage stands for; update its lists when it has never heard of it."""
    architecture = run(["dpkg", "--print-architecture"]).strip()
    question = ["apt-cache", "depends", f"linux-image-cloud-{architecture}"]
    for last in (False, True):
        try:
            found = re.search(r"Depends: (linux-image-\S+)", run(question))
        except CommandFailed:
            found = None
        if found:
            return found[1]
        if not last:
            run(["apt-get", "-q", "update"], timeout_s=300)
    raise Temporary(f"apt knows no linux-image-cloud-{architecture}; check /etc/apt/sources.list and `apt-get update`")


def unpacked(package: Path) -> Kernel:
    """Unpack a kernel's package beside itself, once, and return where its parts are."""
    folder = _unpacked(package)
    (vmlinuz,) = folder.glob("boot/vmlinuz-*")
    (modules,) = folder.glob("lib/modules/*")
    return Kernel(vmlinuz, modules)


def _unpacked(package: Path) -> Path:
    folder = package.with_suffix("")
    if not folder.exists():
        part = package.with_suffix(".part")
        run(["rm", "-rf", str(part)])
        run(["dpkg-deb", "-x", str(package), str(part)], timeout_s=120)
        part.rename(folder)
    return folder


def pack(kernel: Kernel) -> bytes:
    """Return the image: a tar of `vmlinuz`, `initrd` and `cmdline`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in (
            ("cmdline", CMDLINE.encode() + b"\n"),
            ("initrd", cpio(entries(kernel.modules))),
            ("vmlinuz", kernel.vmlinuz.read_bytes()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def entries(modules: Path) -> Iterator[Entry]:
    """Yield every file of the initramfs."""
    files: dict[str, Entry] = {
        path: Entry(path=path, mode=stat.S_IFREG | mode, content=(SOURCES / name).read_bytes())
        for name, (path, mode) in _PLACES.items()
    }
    order: list[str] = []
    at_boot = load_order(modules, MODULES)
    for module in (*at_boot, *load_order(modules, FOUND_LATER)):
        place = f"lib/modules/{module.name}"
        files[place] = Entry(path=place, mode=stat.S_IFREG | 0o644, content=module.read_bytes())
        if module in at_boot:
            order.append(f"/{place}\n")
    texts = {
        "lib/tiny/modules": "".join(order),
        "etc/passwd": "root::0:0:root:/root:/bin/sh\n",
        "etc/group": "root:x:0:\n",
        "etc/hosts": "127.0.0.1 localhost\n",
        "etc/profile": 'export PATH=/sbin:/bin:/usr/sbin:/usr/bin PS1="\\h:\\w# "\n',
        "www/index.html": "hello\n",
    }
    for path, text in texts.items():
        files[path] = Entry(path=path, mode=stat.S_IFREG | 0o644, content=text.encode())
    files["bin/busybox"] = Entry(path="bin/busybox", mode=stat.S_IFREG | 0o755, content=BUSYBOX.read_bytes())
    for applet in run([str(BUSYBOX), "--list-full"]).split():
        if applet != "bin/busybox":
            files[applet] = Entry(path=applet, mode=stat.S_IFLNK | 0o777, content=b"/bin/busybox")
    # The kernel opens it for process 1 before anything is mounted.
    files["dev/console"] = Entry(path="dev/console", mode=stat.S_IFCHR | 0o600, device=(5, 1))
    yield from (Entry(path=path, mode=stat.S_IFDIR | 0o755) for path in _folders(files))
    yield from files.values()


def _folders(files: Iterable[str]) -> set[str]:
    paths = {str(parent) for name in (*files, *(f"{folder}/x" for folder in _FOLDERS)) for parent in Path(name).parents}
    return paths - {"."}


def load_order(modules: Path, wanted: Iterable[str]) -> list[Path]:
    """Return the files of the wanted modules and of what they depend on, what is depended on first.

    Raises Temporary for a module that this kernel lacks.
    """
    known = {path.stem.replace("-", "_"): path for path in modules.rglob("*.ko")}
    order: list[Path] = []

    def add(name: str) -> None:
        path = known.get(name.replace("-", "_"))
        if path is None:
            raise Temporary(f"the kernel under {modules} has no module {name}; take another kernel package")
        if path in order:
            return
        for other in _depends(path):
            add(other)
        order.append(path)

    for name in wanted:
        add(name)
    return order


def _depends(module: Path) -> list[str]:
    """Read a module's `depends=` from its .modinfo section, as modinfo does."""
    found = re.search(rb"\0depends=([^\0]*)\0", module.read_bytes())
    return [name for name in found[1].decode().split(",") if name] if found else []


def cpio(files: Iterable[Entry]) -> bytes:
    """Return a cpio archive as the kernel reads it (format `newc`: Documentation/driver-api/early-userspace)."""
    out = bytearray()
    for inode, entry in enumerate(sorted(files, key=lambda entry: entry.path), start=1):
        out += _record(entry, inode)
    out += _record(Entry(path="TRAILER!!!", mode=0), 0)
    return bytes(out) + b"\0" * (-len(out) % 512)


def _record(entry: Entry, inode: int) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, *entry.device, len(name), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name
    head += b"\0" * (-len(head) % 4)
    return head + entry.content + b"\0" * (-len(entry.content) % 4)


def _digest(package: Path) -> str:
    """Name everything that the image is made of."""
    digest = hashlib.sha256(package.name.encode())
    for path in (BUSYBOX, Path(__file__), *(SOURCES / name for name in sorted(_PLACES))):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
