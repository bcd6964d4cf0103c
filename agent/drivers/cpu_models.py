"""CPUs in what libvirt writes: XML in and out, plain data between."""

import xml.etree.ElementTree as ET

from common.errors import Temporary
from common.protocol import GuestCpus

ARCH, MACHINE = "x86_64", "q35"
TYPES = {"kvm": "kvm", "tcg": "qemu"}
"""libvirt's names for what runs guests."""

BASE = "qemu64"
"""A model that every x86-64 host can give. What a guest has beyond it is named flag by flag, so that libvirt starts it
with those or not at all."""

_BASE_FLAGS = frozenset(
    {
        "apic", "clflush", "cmov", "cx16", "cx8", "de", "fpu", "fxsr", "lahf_lm", "lm", "mca", "mce", "mmx",
        "msr", "mtrr", "nx", "pae", "pat", "pge", "pni", "pse", "pse36", "sep", "sse", "sse2", "svm",
        "syscall", "tsc",
    }
)  # fmt: skip
"""QEMU's and libvirt's ideas of it, together."""


def host_model(capabilities: str) -> str:
    """Return the CPU that is most like the host's, from a hypervisor's capabilities. Raises Temporary without one."""
    found = ET.fromstring(capabilities).find("cpu/mode[@name='host-model'][@supported='yes']")  # noqa: S314 (libvirt's)
    if found is None or found.find("model") is None:
        raise Temporary("libvirt knows no model of this host's CPU")
    cpu = ET.Element("cpu")
    ET.SubElement(cpu, "arch").text = ARCH
    cpu.extend(found)
    return ET.tostring(cpu, encoding="unicode")


def guest_cpus(model: str, expanded: str) -> GuestCpus:
    """Read what a host can give from its model, and from libvirt's answer with all of the model's features written out.

    The answer has also those that the model says this host lacks of it.
    """
    root = ET.fromstring(expanded)  # noqa: S314 (libvirt's)
    lacks = {one.get("name") for one in ET.fromstring(model).iterfind("feature[@policy='disable']")}  # noqa: S314
    has = {one.get("name", "") for one in root.iterfind("feature") if one.get("policy", "require") == "require"}
    return GuestCpus(vendor=root.findtext("vendor", ""), flags=tuple(sorted(has - lacks)))


def cpu_element(flags: frozenset[str]) -> ET.Element:
    """Return the part of a definition that gives a guest exactly these flags."""
    cpu = ET.Element("cpu", mode="custom", match="exact", check="partial")
    ET.SubElement(cpu, "model", fallback="forbid").text = BASE
    for name in sorted(flags | _BASE_FLAGS):
        ET.SubElement(cpu, "feature", policy="require" if name in flags else "disable", name=name)
    return cpu
