"""The libvirt XML of a domain, as a pure function of its document and of what the host offers."""

import hashlib
import xml.etree.ElementTree as ET

import msgspec

from agent.drivers import cpu_models, firmware
from agent.drivers.hypervisor import NAMESPACE
from agent.drivers.place import BootFiles, DiskSource, Place
from common import names
from common.documents import DomainDoc, Nic
from common.growth import MEMORY_SLOTS
from common.ids import Id

BOOT_TARGETS = ("vda", "vdb")
"""A root disk; in rescue another one before it."""

DATA_TARGETS = tuple(f"vd{letter}" for letter in "cdefghij")
"""Of data volumes, as many as a machine may have. Guests number their disks by themselves."""

_OWN_DEVICES = 3
"""On slots of their own beside disks and NICs: serial bus, random numbers, balloon."""

DEFAULT_CMDLINE = "console=ttyS0"

ET.register_namespace("skerry", NAMESPACE)


class DomainXml(msgspec.Struct, frozen=True, kw_only=True):
    """A definition and the digest of it that tells whether a stopped domain has to be redefined."""

    text: str
    shape: str


def metadata_xml(doc: DomainDoc, shape: str) -> str:
    """Return the metadata element: whose domain it is, which wishes it was started for, what it was defined from."""
    attributes = {
        "owner": doc.id,
        "start_generation": str(doc.start_generation),
        "boot_generation": str(doc.boot_generation),
        "shape": shape,
    }
    return ET.tostring(ET.Element(f"{{{NAMESPACE}}}domain", attributes), encoding="unicode")


def domain_xml(doc: DomainDoc, place: Place, boot: BootFiles | None) -> DomainXml:
    """Return the domain's definition. `boot` is the unpacked kernel image where the document asks for one."""
    root = ET.Element("domain", type="kvm" if place.virtualisation == "kvm" else "qemu")
    _add(root, "name", names.domain_name(doc.id))
    _add(root, "uuid", names.domain_uuid(doc.id))
    _add(root, "title", f"{doc.project}/{doc.name}")
    _room(root, doc)
    os, features = _boot(root, doc, boot), _add(root, "features")
    _add(features, "acpi")
    _add(features, "apic")
    if doc.volumes:  # without a disk it is off
        variables = place.variables_file(doc.volumes[0], doc.firmware)
        firmware.write(os, features, doc.firmware, str(variables))
    _cpu(root, doc, place)
    _add(root, "clock", offset="utc")
    _add(root, "on_poweroff", "destroy")
    _add(root, "on_reboot", "restart")
    _add(root, "on_crash", "restart" if doc.restart == "on-crash" else "destroy")
    _devices(root, doc, place)
    shape = hashlib.sha256(ET.tostring(root)).hexdigest()[:16]
    _add(root, "metadata").append(ET.fromstring(metadata_xml(doc, shape)))  # noqa: S314 (our own text)
    return DomainXml(text=ET.tostring(root, encoding="unicode"), shape=shape)


def _room(root: ET.Element, doc: DomainDoc) -> None:
    """Have vCPUs and memory, and room for more while it runs."""
    if doc.memory_max_mib > doc.memory_mib:
        _add(root, "maxMemory", str(doc.memory_max_mib), slots=str(MEMORY_SLOTS), unit="MiB")
    _add(root, "memory", str(doc.memory_mib), unit="MiB")
    if doc.vcpus_max > doc.vcpus:
        _add(root, "vcpu", str(doc.vcpus_max), current=str(doc.vcpus))
    else:
        _add(root, "vcpu", str(doc.vcpus))


def _cpu(root: ET.Element, doc: DomainDoc, place: Place) -> None:
    if doc.cpu is not None:
        cpu = cpu_models.cpu_element(frozenset(doc.cpu.flags))
        root.append(cpu)
    else:
        cpu = _add(root, "cpu", mode="host-passthrough" if place.virtualisation == "kvm" else "maximum")
    if doc.memory_max_mib > doc.memory_mib:
        # Memory is plugged into a NUMA node: there has to be one.
        numa, last = _add(cpu, "numa"), max(doc.vcpus, doc.vcpus_max) - 1
        _add(numa, "cell", id="0", cpus=f"0-{last}", memory=str(doc.memory_mib), unit="MiB")


def _boot(root: ET.Element, doc: DomainDoc, boot: BootFiles | None) -> ET.Element:
    uuid = names.domain_uuid(doc.id)
    sysinfo = _add(root, "sysinfo", type="smbios")
    system = _add(sysinfo, "system")
    # cloud-init takes a machine for an EC2 one only where uuid and serial are equal and start with ec2.
    for key, value in (("manufacturer", "Skerry"), ("product", "VM"), ("serial", uuid), ("uuid", uuid)):
        _add(system, "entry", value, name=key)
    os = _add(root, "os")
    _add(os, "type", "hvm", arch="x86_64", machine="q35")
    if boot:
        _add(os, "kernel", boot.kernel)
        _add(os, "initrd", boot.initrd)
        _add(os, "cmdline", boot.cmdline or DEFAULT_CMDLINE)
    else:
        _add(os, "boot", dev="hd")
    _add(os, "smbios", mode="sysinfo")
    return os


def _devices(root: ET.Element, doc: DomainDoc, place: Place) -> None:
    devices = _add(root, "devices")
    data = (one.volume for one in doc.data)
    targets = (*zip(doc.volumes, BOOT_TARGETS, strict=False), *zip(data, DATA_TARGETS, strict=False))
    for volume, target in targets:
        _disk(devices, place.disk(volume), volume, target, direct_io=place.direct_io)
    _slots(devices, doc)
    if doc.nocloud:
        # A disk like the others, no CD-ROM: cloud kernels have virtio and often no driver for q35's SATA (Debian's).
        seed = _add(devices, "disk", type="file", device="disk")
        _add(seed, "driver", name="qemu", type="raw")
        _add(seed, "source", file=str(place.seed_file(doc.id)))
        _add(seed, "target", dev="vdz", bus="virtio")
        _add(seed, "readonly")
    for nic in doc.nics:
        _nic(devices, doc.id, nic)
    serial = _add(devices, "serial", type="pty")
    _add(serial, "log", file=str(place.serial_log(doc.id)), append="on")
    _add(serial, "target", type="isa-serial", port="0")
    console = _add(devices, "console", type="pty")
    _add(console, "target", type="serial", port="0")
    channel = _add(devices, "channel", type="unix")
    _add(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    rng = _add(devices, "rng", model="virtio")
    _add(rng, "backend", "/dev/urandom", model="random")
    balloon = _add(devices, "memballoon", model="virtio")
    _add(balloon, "stats", period="10")
    if doc.tpm:
        firmware.tpm(devices)
    _add(devices, "controller", type="usb", model="none")
    _add(_add(devices, "video"), "model", type="none")
    _add(devices, "panic", model="isa")


def _slots(devices: ET.Element, doc: DomainDoc) -> None:
    """Give q35 a root port for each device, and as many more as data volumes may come: it takes no new ports while it
    runs. Their number is the same whichever of them are there at boot."""
    seed = 1 if doc.nocloud else 0
    needed = _OWN_DEVICES + len(doc.volumes) + seed + len(doc.nics) + len(DATA_TARGETS)
    for index in range(1, needed + 1):
        _add(devices, "controller", type="pci", index=str(index), model="pcie-root-port")


def disk_xml(source: DiskSource, volume: Id, target: str, *, direct_io: bool) -> str:
    """Return a disk's part of a definition, for a domain that runs."""
    devices = ET.Element("devices")
    _disk(devices, source, volume, target, direct_io=direct_io)
    return ET.tostring(devices[0], encoding="unicode")


def _disk(devices: ET.Element, source: DiskSource, volume: Id, target: str, *, direct_io: bool) -> None:
    disk = _add(devices, "disk", type=source.type, device="disk")
    caching = {"cache": "none", "io": "native"} if direct_io else {"cache": "writeback"}
    _add(disk, "driver", name="qemu", type=source.format, discard="unmap", **caching)
    _add(disk, "source", **{"file" if source.type == "file" else "dev": source.path})
    _add(disk, "target", dev=target, bus="virtio")
    # Guests find it as /dev/disk/by-id/virtio-<serial>; virtio takes 20 characters.
    _add(disk, "serial", volume[:20])


def _nic(devices: ET.Element, vm: Id, nic: Nic) -> None:
    interface = _add(devices, "interface", type="bridge")
    _add(interface, "mac", address=nic.mac)
    _add(interface, "source", bridge=names.bridge(nic.network))
    _add(interface, "target", dev=names.tap(vm, nic.index))
    _add(interface, "model", type="virtio")
    _add(interface, "mtu", size=str(nic.mtu))


def _add(parent: ET.Element, tag: str, text: str | None = None, /, **attributes: str) -> ET.Element:
    """Append an element. XML 1.0 has no place for most control characters: they are left out of texts."""
    element = ET.SubElement(parent, tag, attributes)
    if text is not None:
        element.text = "".join(c for c in text if c >= " " or c in "\t\n")
    return element
