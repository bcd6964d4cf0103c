"""Firmware and TPMs in what libvirt writes and reads: XML in and out, plain data between."""

import xml.etree.ElementTree as ET
from typing import Literal, NamedTuple

from agent.drivers import cpu_models
from common.firmware import SECURE_BOOT, UEFI, Firmware

EMULATED = "emulator"
"""libvirt's name for a TPM that is a program on the host (swtpm)."""


class Started(NamedTuple):
    """What a run was started with."""

    firmware: Firmware | Literal[""]
    """Empty: it is off."""
    tpm: bool


def write(os: ET.Element, features: ET.Element, firmware: Firmware, variables: str) -> None:
    """Write firmware into a definition. `variables`: the file that keeps UEFI's; libvirt makes it where it is missing.

    libvirt chooses among the host's firmwares by these features: with Secure Boot, one whose variables hold
    Microsoft's keys from the start, else there would be nothing that anybody's loader is checked against.
    """
    if firmware == "bios":
        return
    secure = firmware == "uefi-secure"
    os.set("firmware", "efi")
    wanted = ET.SubElement(os, "firmware")
    for feature in ("secure-boot", "enrolled-keys"):
        ET.SubElement(wanted, "feature", enabled="yes" if secure else "no", name=feature)
    if variables:
        ET.SubElement(os, "nvram").text = variables
    if secure:
        # UEFI's variables can be changed by the firmware only, which is in a mode of the CPU of its own then.
        ET.SubElement(os, "loader", secure="yes")
        ET.SubElement(features, "smm", state="on")


def tpm(devices: ET.Element) -> None:
    """Write a TPM into a definition's devices."""
    chip = ET.SubElement(devices, "tpm", model="tpm-crb")
    ET.SubElement(chip, "backend", type=EMULATED, version="2.0")


def started(domain: str) -> Started:
    """Read what a run was started with."""
    root = ET.fromstring(domain)  # noqa: S314 (libvirt's)
    loader, has_tpm = root.find("os/loader"), root.find("devices/tpm") is not None
    if loader is None or loader.get("type") != "pflash":
        return Started("bios", has_tpm)
    return Started("uefi-secure" if loader.get("secure") == "yes" else "uefi", has_tpm)


def probes(domain_type: str) -> dict[str, str]:
    """Return of each ability that is firmware a definition that libvirt takes just where it finds such firmware."""
    return {UEFI: _probe(domain_type, "uefi"), SECURE_BOOT: _probe(domain_type, "uefi-secure")}


def _probe(domain_type: str, firmware: Firmware) -> str:
    root = ET.Element("domain", type=domain_type)
    ET.SubElement(root, "name").text = "probe"
    ET.SubElement(root, "memory", unit="MiB").text = "128"
    os = ET.SubElement(root, "os")
    ET.SubElement(os, "type", arch=cpu_models.ARCH, machine=cpu_models.MACHINE).text = "hvm"
    features = ET.SubElement(root, "features")
    ET.SubElement(features, "acpi")
    write(os, features, firmware, "")
    return ET.tostring(root, encoding="unicode")


def emulates_tpm(capabilities: str) -> bool:
    """Say, from a hypervisor's capabilities, whether it can give guests TPMs."""
    found = ET.fromstring(capabilities).find("devices/tpm[@supported='yes']")  # noqa: S314 (libvirt's)
    return found is not None and any(one.text == EMULATED for one in found.iterfind("enum[@name='backendModel']/value"))
