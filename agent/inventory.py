"""What this host has and can do, found by trying, not by version."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from agent.drivers import files, machine
from agent.drivers.hypervisor import Hypervisor, Virtualisation
from agent.drivers.place import Place
from agent.drivers.pool import Pool
from agent.drivers.shown import GIB
from common.errors import Invalid, SkerryError
from common.protocol import CPU_MODEL, HOT_PLUG, Capability, GuestCpus, Inventory, Nic
from common.run import CommandFailed, run

_IN_NAMESPACE = ("unshare", "--net", "--")
"""What is tried in a network namespace goes with it when the command ends."""

_ADD_PROBE = ("ip", "link", "add", "probe", "type")

_CT_IN_BRIDGE = b"table bridge probe { chain probe { type filter hook forward priority 0; ct state new accept; }; }\n"
_NFT = b"table inet probe { chain probe { type filter hook forward priority 0; ct state new accept; }; }\n"


MOST_MTU = 65535


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """A command that works exactly where the capability does. `says` has to be in what it prints."""

    name: str
    argv: tuple[str, ...]
    stdin: bytes | None = None
    says: str = ""


PROBES = (
    Probe(name="netns", argv=(*_IN_NAMESPACE, "true")),
    Probe(name="bridge", argv=(*_IN_NAMESPACE, *_ADD_PROBE, "bridge")),
    Probe(name="vxlan", argv=(*_IN_NAMESPACE, *_ADD_PROBE, "vxlan", "id", "1", "dstport", "4789", "nolearning")),
    Probe(name="tun", argv=(*_IN_NAMESPACE, "ip", "tuntap", "add", "dev", "probe", "mode", "tap")),
    Probe(name="nftables", argv=(*_IN_NAMESPACE, "nft", "-f", "-"), stdin=_NFT),
    Probe(name="bridge-conntrack", argv=(*_IN_NAMESPACE, "nft", "-f", "-"), stdin=_CT_IN_BRIDGE),
    Probe(name="bridge-netfilter", argv=(*_IN_NAMESPACE, "cat", "/proc/sys/net/bridge/bridge-nf-call-iptables")),
    Probe(name="qemu", argv=("qemu-system-x86_64", "--version")),
    Probe(name="qemu-img", argv=("qemu-img", "--version")),
    Probe(name="genisoimage", argv=("genisoimage", "-version")),
    Probe(name="dnsmasq", argv=("dnsmasq", "--version")),
    Probe(name="lvm-thin", argv=("dmsetup", "targets"), says="thin-pool"),
)


def virtualisation(flags: Sequence[str], device: Path = Path("/dev/kvm")) -> Literal["kvm", "tcg"]:
    """Return how machines are run. The device alone proves nothing: it opens on hosts whose guests never start."""
    return "kvm" if {"svm", "vmx"} & set(flags) and os.access(device, os.R_OK | os.W_OK) else "tcg"


def find_place(state_dir: Path, pool: Path, volume_group: str = "") -> Place:
    """Return where this host keeps things and how it runs machines, with the directories made."""
    pool.mkdir(parents=True, exist_ok=True)
    place = Place(
        volumes=pool,
        images=state_dir / "images",
        logs=state_dir / "consoles",
        seeds=state_dir / "seeds",
        variables=state_dir / "variables",
        vouchers=state_dir / "vouchers",
        virtualisation=virtualisation(machine.cpu().flags),
        direct_io=bool(volume_group) or files.takes_direct_io(pool),
        volume_group=volume_group,
    )
    place.prepare()
    return place


async def take_inventory(place: Place, pool: Pool, vtep: str, hypervisor: Hypervisor) -> Inventory:
    """Look at this host. `vtep` is the address that other hosts tunnel to.

    Raises Invalid where no interface has that address.
    """
    underlay_mtu = mtu_of(vtep, machine.nics(with_loopback=True))
    tried = await try_all()
    cpu = machine.cpu()
    kvm = Capability(name="kvm", works=place.virtualisation == "kvm", detail=_kvm_detail(place.virtualisation))
    lies = f"thin pool in volume group {place.volume_group}" if place.volume_group else f"files in {place.volumes}"
    direct_io = Capability(name="direct-io", works=place.direct_io, detail=f"O_DIRECT: {lies}")
    driver = Capability(name="pool", works=True, detail=lies)
    clones = _clones(place)
    unshared = machine.cpu_sharing()
    sharing = Capability(name="cpu-sharing", works=not unshared, detail=unshared or "CPU weights and caps")
    model, guest_cpu = await _guest_cpu(hypervisor, place.virtualisation)
    given = await _guest_firmware(hypervisor, place.virtualisation)
    use = await pool.use()
    plugs = Capability(name=HOT_PLUG, works=True, detail="vCPUs and memory for guests that run")
    own = (kvm, direct_io, driver, clones, sharing, model, plugs, *given)
    return Inventory(
        cpu_model=cpu.model,
        cpu_flags=cpu.flags,
        cpu_threads=cpu.threads,
        memory_mib=machine.memory_mib(),
        disk_gib=use.size_bytes // GIB,
        nics=machine.nics(),
        capabilities=tuple(sorted((*own, *tried), key=lambda found: found.name)),
        virtualisation=place.virtualisation,
        kernel=machine.kernel(),
        boot_id=machine.boot_id(),
        vtep=vtep,
        underlay_mtu=underlay_mtu,
        guest_cpu=guest_cpu,
    )


async def _guest_cpu(hypervisor: Hypervisor, virtualisation: Virtualisation) -> tuple[Capability, GuestCpus | None]:
    """Ask what CPU guests can have. An agent always says that it knows of this, whether libvirt answers or not."""
    try:
        found = await hypervisor.guest_cpu(virtualisation)
    except SkerryError as err:
        return Capability(name=CPU_MODEL, works=False, detail=err.detail[:200]), None
    return Capability(name=CPU_MODEL, works=True, detail=f"{len(found.flags)} flags, {found.vendor}"), found


async def _guest_firmware(hypervisor: Hypervisor, virtualisation: Virtualisation) -> tuple[Capability, ...]:
    """Ask what firmware and TPMs guests can have; nothing is said of them while libvirt does not answer."""
    try:
        found = await hypervisor.guest_firmware(virtualisation)
    except SkerryError:
        return ()
    return tuple(Capability(name=name, works=not why, detail=why[:200]) for name, why in found.items())


async def try_all() -> tuple[Capability, ...]:
    """Try what the kernel and the programs of this host can do."""
    return tuple(await asyncio.gather(*(_try(probe) for probe in PROBES)))


def mtu_of(address: str, nics: Sequence[Nic]) -> int:
    """Return the MTU of the interface that has this address, as far as one IP packet goes: loopback has one more.

    Raises Invalid where none has.
    """
    for nic in nics:
        if address in nic.addresses:
            return min(nic.mtu, MOST_MTU)
    has = ", ".join(f"{nic.name} ({', '.join(nic.addresses)})" for nic in nics if nic.addresses)
    raise Invalid(
        f"underlay address {address} is on no interface of this host, which has {has or 'no addresses'}",
        fix="set [underlay] address to one of them",
    )


def _clones(place: Place) -> Capability:
    """Say whether a clone of a snapshot shares its blocks."""
    shares = bool(place.volume_group) or files.shares_blocks(place.volumes)
    copies = f"the file system of {place.volumes} shares no blocks (XFS and Btrfs do): clones of snapshots are copies"
    return Capability(name="cow-clones", works=shares, detail="" if shares else copies)


def _kvm_detail(found: str) -> str:
    return "" if found == "kvm" else "no svm or vmx among the CPU's flags, or no /dev/kvm: machines run under TCG"


async def _try(probe: Probe) -> Capability:
    try:
        said = await run(probe.argv, stdin=probe.stdin, timeout_s=10)
    except CommandFailed as err:
        reason = (err.output.strip().splitlines() or [err.detail])[0]
        return Capability(name=probe.name, works=False, detail=reason[:200])
    if probe.says not in said:
        return Capability(name=probe.name, works=False, detail=f"`{' '.join(probe.argv)}` does not list {probe.says}")
    first = (said.splitlines() or [""])[0] if probe.argv[0] not in ("unshare", "dmsetup") else ""
    return Capability(name=probe.name, works=True, detail=first[:120])
