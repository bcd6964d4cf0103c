"""The disks of domains, in what libvirt and QEMU write: XML and JSON in, plain data out."""

import xml.etree.ElementTree as ET

import msgspec

from agent.drivers.hypervisor import LiveDisk
from common import ids
from common.errors import Temporary
from common.ids import Id

QUERY = '{"execute":"query-block"}'
"""What QEMU is asked for its disks by."""


def volumes(domain: str) -> tuple[LiveDisk, ...]:
    """Return the volumes of a domain, by their serial numbers."""
    found = []
    for disk in ET.fromstring(domain).iterfind("devices/disk"):  # noqa: S314 (libvirt's)
        serial, target = disk.findtext("serial", ""), disk.find("target")
        if ids.is_id(serial, "vol") and target is not None:
            found.append(LiveDisk(volume=Id(serial), target=target.get("dev", "")))
    return tuple(found)


def uses(domain: str, path: str) -> bool:
    """Say whether a domain has a disk at a path."""
    sources = ET.fromstring(domain).iterfind("devices/disk/source")  # noqa: S314 (libvirt's)
    return any(path in (source.get("file"), source.get("dev")) for source in sources)


def at(domain: str, target: str) -> str | None:
    """Return the disk of this target, as a domain has it."""
    disks = ET.fromstring(domain).iterfind("devices/disk")  # noqa: S314 (libvirt's)
    found = next((disk for disk in disks if disk.find(f"target[@dev='{target}']") is not None), None)
    return None if found is None else ET.tostring(found, encoding="unicode")


def target_of(disk: str) -> str:
    """Return a disk's target."""
    found = ET.fromstring(disk).find("target")  # noqa: S314 (our own)
    return found.get("dev", "") if found is not None else ""


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of a disk of QEMU's."""

    file: str
    name: str = msgspec.field(name="node-name")

    def order(self, command: str, name: str) -> str:
        """Return the order to do something to the snapshot of this name inside."""
        return msgspec.json.encode({"execute": command, "arguments": {"device": self.name, "name": name}}).decode()


class _Block(msgspec.Struct, frozen=True, kw_only=True):
    inserted: Node | None = None


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """QEMU's, with its disks."""

    blocks: list[_Block] = msgspec.field(name="return", default_factory=list)


class _Error(msgspec.Struct, frozen=True, kw_only=True):
    desc: str = ""


class _Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """QEMU's, of an order."""

    error: _Error | None = None


def node_of(answer: str, path: str) -> Node:
    """Find the disk at a path in QEMU's answer to `QUERY`. Raises Temporary where it has none."""
    blocks = msgspec.json.decode(answer, type=_Answer).blocks
    node = next((one.inserted for one in blocks if one.inserted and one.inserted.file == path), None)
    if node is None:
        raise Temporary(f"QEMU has no disk {path}")
    return node


def complaint(answer: str) -> str:
    """Return what QEMU says is wrong with an order; empty: nothing."""
    error = msgspec.json.decode(answer, type=_Outcome).error
    return (error.desc or "it failed") if error else ""
