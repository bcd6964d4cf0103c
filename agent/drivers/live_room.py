"""How far a domain that runs can grow, in what libvirt writes: XML in and out, plain data between."""

import xml.etree.ElementTree as ET
from typing import NamedTuple

_KIB = {"KiB": 1, "MiB": 1 << 10, "GiB": 1 << 20}


class Most(NamedTuple):
    """What a run can be given; 0: nothing more than it has."""

    vcpus: int
    memory_mib: int
    slots: int


def most(domain: str) -> Most:
    """Read what a domain was started with room for."""
    root = ET.fromstring(domain)  # noqa: S314 (libvirt's)
    memory = root.find("maxMemory")
    if memory is None:
        return Most(int(root.findtext("vcpu", "0")), 0, 0)
    kib = int(memory.text or 0) * _KIB[memory.get("unit", "KiB")]
    used = len(root.findall("devices/memory"))
    return Most(int(root.findtext("vcpu", "0")), kib >> 10, max(0, int(memory.get("slots", "0")) - used))


def memory_xml(memory_mib: int) -> str:
    """Return so much memory as a device that is put into a slot."""
    memory = ET.Element("memory", model="dimm")
    target = ET.SubElement(memory, "target")
    ET.SubElement(target, "size", unit="MiB").text = str(memory_mib)
    ET.SubElement(target, "node").text = "0"
    return ET.tostring(memory, encoding="unicode")
