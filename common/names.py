"""Every name Skerry gives to something outside its store, derived from the owner's id and nothing else.

Because a name contains its owner's id, an orphan can be found and named (`owner_of`). Network devices have
15 characters (IFNAMSIZ - 1), which is why an id's body has 12.
"""

import hashlib
import re

from common.ids import BODY_LENGTH, Id, body

_DEVICE = re.compile(rf"^(?:t\d|b-|x-|g-|r-)(?P<body>[0-9a-z]{{{BODY_LENGTH}}})$")
_VM_DEVICE = re.compile(rf"^t\d(?P<body>[0-9a-z]{{{BODY_LENGTH}}})$")


def domain_name(vm: Id) -> str:
    """Return the libvirt domain's name: the VM's id."""
    return vm


def domain_uuid(vm: Id) -> str:
    """Return the domain's UUID, which is also its SMBIOS uuid and serial.

    It starts with `ec2`, the mark by which cloud-init takes a machine for an EC2 one and asks for a metadata token.
    """
    digest = hashlib.sha256(f"domain:{vm}".encode()).hexdigest()
    raw = "ec2" + digest[:29]
    return f"{raw[:8]}-{raw[8:12]}-4{raw[13:16]}-8{raw[17:20]}-{raw[20:32]}"


def tap(vm: Id, nic: int) -> str:
    """Return the tap device's name of a VM's nth NIC (0 to 9)."""
    if not 0 <= nic <= 9:
        raise ValueError(f"a VM has NICs 0 to 9, not {nic}")
    return f"t{nic}{body(vm)}"


def mac(vm: Id, nic: int) -> str:
    """Return the NIC's MAC address: locally administered (02:…), derived from the VM's id."""
    digest = hashlib.sha256(f"mac:{vm}:{nic}".encode()).digest()
    return "02:" + ":".join(f"{byte:02x}" for byte in digest[:5])


def bridge(network: Id) -> str:
    """Return the name of a network's bridge on a host."""
    return f"b-{body(network)}"


def vxlan(network: Id) -> str:
    """Return the name of a network's VXLAN device on a host."""
    return f"x-{body(network)}"


def gateway_outer(network: Id) -> str:
    """Return the name of the veth end that is plugged into the network's bridge."""
    return f"g-{body(network)}"


def gateway_inner(network: Id) -> str:
    """Return the name of the veth end inside the network's router namespace."""
    return f"r-{body(network)}"


def router_namespace(network: Id) -> str:
    """Return the name of the namespace that serves a network's gateway, DHCP, DNS and metadata on a host."""
    return network


def volume_file(volume: Id) -> str:
    """Return the file name of a file-backed volume."""
    return f"{volume}.qcow2"


def logical_volume(volume: Id) -> str:
    """Return the name of a logical volume: that of a disk, or of a snapshot of one."""
    return volume


def revert_note(volume: Id) -> str:
    """Return the name of the file beside a file-backed volume that says how often it was reverted."""
    return f"{volume}.reverts"


def variables_file(disk: Id, firmware: str) -> str:
    """Return the name of the file that keeps UEFI's variables for a machine that boots from a disk."""
    return f"{disk}.{firmware}"


def part(name: str) -> str:
    """Return the name under which something is built before it is renamed: existing means finished."""
    return f"{name}-part"


def owner_of(name: str) -> Id | None:
    """Return the id of the owner of an outside name (device, namespace, domain or file), None for a stranger's."""
    stem = name.removesuffix("-part").removesuffix(".qcow2").removesuffix(".iso").removesuffix(".log")
    stem = stem.removesuffix(".reverts").removesuffix(".uefi").removesuffix(".uefi-secure")
    if found := _DEVICE.match(stem):
        prefix = "vm" if _VM_DEVICE.match(stem) else "net"
        return Id(f"{prefix}-{found['body']}")
    if re.match(rf"^(?:vm|vol|snap|net|img)-[0-9a-z]{{{BODY_LENGTH}}}$", stem):
        return Id(stem)
    return None
