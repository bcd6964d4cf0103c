"""What `skerry-agent doctor` makes of what was seen of a machine: a pure function a check, each with its way out."""

import re
from collections.abc import Callable

import msgspec

from common.checkup import Finding, Room, check_clock, check_files, check_room, fail, ok, warn
from common.firmware import ABILITIES
from common.protocol import Capability

PROGRAMS = {
    "kernel": ((6, 1), "linux-image-amd64"),
    "libvirt": ((9, 0), "libvirt-daemon-system"),
    "qemu": ((7, 2), "qemu-system-x86"),
    "dnsmasq": ((2, 89), "dnsmasq-base"),
    "nft": ((1, 0, 6), "nftables"),
}
"""What Skerry is tried with, Debian 12's, and the package it comes from."""

NEEDED = {
    "netns": "a kernel with CONFIG_NET_NS, and root: Debian's has it",
    "bridge": "modprobe bridge; Debian's kernel has it",
    "vxlan": "modprobe vxlan; Debian's kernel has it",
    "tun": "modprobe tun; Debian's kernel has it",
    "nftables": "apt-get install nftables; modprobe nf_tables nft_ct",
    "qemu": "apt-get install qemu-system-x86",
    "qemu-img": "apt-get install qemu-utils",
    "genisoimage": "apt-get install genisoimage",
    "dnsmasq": "apt-get install dnsmasq-base",
}
"""What no machine runs without, by the inventory's name of it, and where it comes from."""

LEAST_MTU = 1330
"""Guests get 50 less, and IPv6 needs 1280."""
GOOD_MTU = 1550
SKEW_WARN_S = 2.0
SKEW_FAIL_S = 60.0
"""A host whose clock is so far off is not believed: the controller refuses its figures."""
POOL_WARN_PERCENT = 80.0
POOL_FAIL_PERCENT = 95.0
UNIT = "skerry-agent"


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """The identity file as it lies there."""

    path: str
    problem: str = ""
    """Why it can't be used."""
    open_to_others: bool = False
    url: str = ""
    name: str = ""
    renew_at: float = 0
    expires_at: float = 0


class Underlay(msgspec.Struct, frozen=True, kw_only=True):
    """The network between the hosts, as this one has it."""

    address: str
    mtu: int
    problem: str = ""
    """Why it has no address there."""
    fits: bool | None = None
    """Whether packets of that size reach the controller's machine; None: it answers no ping, or was not asked."""
    strict: bool = True
    """No interface's packets pass that did not come from where they say: rp_filter is not 2 for all."""
    port_held_by_process: bool = False
    """A program, and not the kernel's VXLAN, has UDP 4789."""


class Controller(msgspec.Struct, frozen=True, kw_only=True):
    """What came of asking it."""

    url: str
    problem: str = ""
    """Why it did not answer."""
    untrusted: str = ""
    """What is wrong with the certificate that it shows."""
    refuses: str = ""
    """Why it does not take this host's certificate."""
    skew_s: float | None = None
    """This machine's clock less the controller's."""


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """How the agent itself is kept running."""

    systemd: bool
    enabled: bool
    running: bool


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """Where volumes lie."""

    group: str = ""
    """The volume group; empty: they are files."""
    thin_pool: str = ""
    problem: str = ""
    """Why it can't be looked at; `missing`: the group has no such pool."""
    missing: bool = False
    data_percent: float = 0.0
    metadata_percent: float = 0.0


class Devices(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel offers QEMU."""

    kvm: bool
    kvm_opens: bool
    vhost_net: bool


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """All that is looked at: the face of a machine."""

    now: float
    root: bool
    flags: tuple[str, ...]
    devices: Devices
    capabilities: tuple[Capability, ...]
    versions: dict[str, str]
    libvirt_problem: str
    """Why the daemon at [libvirt] uri does not answer; empty: it does."""
    underlay: Underlay
    controller: Controller | None
    """None: the machine has not joined, and none was named."""
    identity: Identity | None
    clock_kept: bool
    pool: Pool
    rooms: tuple[Room, ...]
    closed: tuple[str, ...]
    """Directories on the way to the disks that QEMU's user may not enter."""
    open_files: int
    service: Service


def examine(sight: Sight) -> tuple[Finding, ...]:
    """Return what every check finds, in the order in which one would look."""
    found = [finding for check in CHECKS if (finding := check(sight)) is not None]
    return (*found, *(check_room(room) for room in sight.rooms))


def root(sight: Sight) -> Finding:
    """Without root half of what follows would be found missing for no other reason."""
    if sight.root:
        return ok("root", "may look at everything")
    return fail("root", "this is not root: what follows may be wrong", "run it as root, as the agent runs")


def kvm(sight: Sight) -> Finding:
    """Decided by the CPU's flags: the device alone opens on machines whose guests never start."""
    if not {"svm", "vmx"} & set(sight.flags):
        return warn(
            "kvm",
            "the CPU shows neither vmx nor svm: machines are emulated, ten times slower",
            "switch on Intel VT-x or AMD-V in the firmware; in a virtual machine, nested virtualisation on its host",
        )
    if not sight.devices.kvm:
        return fail("kvm", "the CPU can, and there is no /dev/kvm", "modprobe kvm_intel (Intel) or kvm_amd (AMD)")
    if not sight.devices.kvm_opens:
        return fail("kvm", "/dev/kvm can't be opened", "see its mode (ls -l /dev/kvm): root:kvm, 0660")
    return ok("kvm", "machines run on the CPU itself")


def vhost(sight: Sight) -> Finding:
    """Without it every packet of a guest takes the way through QEMU."""
    if sight.devices.vhost_net:
        return ok("vhost-net", "the kernel carries guests' packets")
    return warn(
        "vhost-net",
        "there is no /dev/vhost-net: QEMU carries guests' packets, slower",
        "modprobe vhost_net; echo vhost_net >/etc/modules-load.d/skerry.conf",
    )


def needed(sight: Sight) -> Finding:
    """All that no machine runs without, tried out."""
    missing = [one for one in sight.capabilities if one.name in NEEDED and not one.works]
    if not missing:
        return ok("needed", f"{', '.join(NEEDED)} work")
    says = "; ".join(f"{one.name} does not work ({one.detail})" for one in missing)
    return fail("needed", says, "; ".join(dict.fromkeys(NEEDED[one.name] for one in missing)))


def conntrack(sight: Sight) -> Finding:
    """Security groups that know connections need it in the bridge, in one way or the other."""
    works = {one.name for one in sight.capabilities if one.works}
    if "bridge-conntrack" in works:
        return ok("bridge conntrack", "the kernel tracks connections in bridges")
    if "bridge-netfilter" in works:
        return warn(
            "bridge conntrack",
            "only by br_netfilter, which sends each packet through one firewall more",
            "modprobe nf_conntrack_bridge (a kernel of 5.3 or newer); Debian's kernel has it",
        )
    return fail(
        "bridge conntrack",
        "the kernel tracks no connections in bridges: rules of security groups would not hold",
        "modprobe nf_conntrack_bridge; where the kernel has none: modprobe br_netfilter",
    )


def shares(sight: Sight) -> Finding:
    """Weights and caps of CPU time need the kernel's groups."""
    found = next((one for one in sight.capabilities if one.name == "cpu-sharing"), None)
    if found is None or found.works:
        return ok("cpu shares", "weights and caps work")
    return warn(
        "cpu shares",
        f"weights and caps do not work: {found.detail}",
        "boot with cgroup v2 (systemd's default: no systemd.unified_cgroup_hierarchy=0 on the kernel's command line)",
    )


def firmware(sight: Sight) -> Finding | None:
    """What only some machines ask for."""
    told = [one for one in sight.capabilities if one.name in ABILITIES]
    missing = [one for one in told if not one.works]
    if not told:
        return None
    if not missing:
        return ok("firmware", "guests can have UEFI, Secure Boot and TPMs")
    says = "; ".join(f"{ABILITIES[one.name].gives}: {one.detail}" for one in missing)
    packages = " ".join(sorted({ABILITIES[one.name].package for one in missing}))
    return warn(
        "firmware",
        f"machines that ask for it are placed on other hosts: {says}",
        f"apt-get install {packages}; systemctl restart {UNIT}",
    )


def versions(sight: Sight) -> Finding:
    """What is older than what Skerry is tried with may work; nobody knows."""
    missing = [name for name in PROGRAMS if not numbers(sight.versions.get(name, ""))]
    if missing:
        packages = " ".join(PROGRAMS[name][1] for name in missing)
        return fail("versions", f"no version is known of {', '.join(missing)}", f"apt-get install {packages}")
    old = [
        f"{name} {sight.versions[name]}"
        for name, (least, _) in PROGRAMS.items()
        if numbers(sight.versions[name]) < least
    ]
    if old:
        return warn("versions", f"older than what Skerry is tried with: {', '.join(old)}", "upgrade to Debian 12")
    return ok("versions", ", ".join(f"{name} {sight.versions[name]}" for name in PROGRAMS))


def numbers(text: str) -> tuple[int, ...]:
    """Return the first version in a text: `QEMU emulator version 7.2.22 (Debian …)` is (7, 2, 22)."""
    found = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def libvirt(sight: Sight) -> Finding:
    """The daemon at the configured address."""
    if not sight.libvirt_problem:
        return ok("libvirtd", "answers")
    return fail(
        "libvirtd",
        f"does not answer: {sight.libvirt_problem}",
        "systemctl enable --now libvirtd; see journalctl -u libvirtd, and [libvirt] uri",
    )


def address(sight: Sight) -> Finding:
    """Where other hosts tunnel to, and how large a packet may be."""
    there = sight.underlay
    if there.problem:
        return fail("underlay", there.problem, "set [underlay] address in /etc/skerry/agent.toml to one of its own")
    if not there.address:
        return warn(
            "underlay",
            "its address is that of the route to the controller, which is not known before the machine has joined",
            "skerry-agent doctor https://CONTROLLER:8443, or set [underlay] address",
        )
    if there.mtu < LEAST_MTU:
        return fail(
            "underlay",
            f"{there.address} has an MTU of {there.mtu}: guests would get {there.mtu - 50}, less than IPv6 needs",
            f"raise the interface's MTU to {LEAST_MTU} at least; 1550 or more lets guests keep 1500",
        )
    if there.fits is False:
        return fail(
            "underlay",
            f"packets of {there.mtu} bytes, the interface's MTU, do not reach the controller's machine; small ones do",
            "set the MTU of interfaces and switches alike; lower this interface's where the way takes less",
        )
    if there.mtu < GOOD_MTU:
        return warn(
            "underlay",
            f"{there.address} has an MTU of {there.mtu}: guests get {there.mtu - 50}",
            "jumbo frames on all hosts and switches (1550 or more, such as 9000) let guests keep 1500",
        )
    return ok("underlay", f"{there.address}, MTU {there.mtu}")


def spoofing(sight: Sight) -> Finding:
    """A loose filter would let guests reach what no route leads to."""
    if sight.underlay.strict:
        return ok("rp_filter", "net.ipv4.conf.all.rp_filter is not 2")
    return fail(
        "rp_filter",
        "net.ipv4.conf.all.rp_filter is 2: networks of guests would take packets that are not theirs",
        "echo net.ipv4.conf.all.rp_filter=0 >/etc/sysctl.d/60-skerry.conf; sysctl --system",
    )


def tunnel_port(sight: Sight) -> Finding:
    """VXLAN's port, on which no program may sit."""
    if not sight.underlay.port_held_by_process:
        return ok("UDP 4789", "free for tunnels")
    return fail("UDP 4789", "a program has it, so no tunnel works", "ss -ulnp sport = 4789 says which: stop it")


def joined(sight: Sight) -> Finding:
    """Who this host is, and for how long."""
    one = sight.identity
    if one is None:
        return warn(
            "identity",
            "this machine has not joined a cloud",
            "skerry host create NAME (an operator), then here: skerry-agent join URL TOKEN",
        )
    if one.problem:
        return fail(
            "identity",
            f"{one.path} can't be used: {one.problem}",
            "skerry host token NAME (an operator), then here: skerry-agent join --force URL TOKEN",
        )
    if one.open_to_others:
        return fail("identity", f"others than root may read {one.path}, a private key", f"chmod 600 {one.path}")
    left_days = (one.expires_at - sight.now) / 86400
    if left_days <= 0:
        return fail(
            "identity",
            f"the certificate of {one.name} ran out {-left_days:.0f} days ago",
            f"skerry host token {one.name} (an operator), then here: skerry-agent join --force {one.url} TOKEN",
        )
    if sight.now > one.renew_at + 86400:
        return warn(
            "identity",
            f"the certificate of {one.name} is good for {left_days:.0f} days and should have been renewed by now",
            "journalctl -u skerry-agent -g certificate says why it was not; it is tried every 10 minutes",
        )
    return ok("identity", f"{one.name}, good for {left_days:.0f} days")


def controller(sight: Sight) -> Finding | None:
    """Whether it answers, is who it says, and takes this host."""
    there = sight.controller
    if there is None:
        return None
    if there.problem:
        return fail(
            "controller",
            f"{there.url} can't be reached: {there.problem}",
            "see that it runs, and that firewalls let this machine reach its TCP port (8443)",
        )
    if there.untrusted:
        return fail(
            "controller",
            f"{there.url} shows a certificate that does not hold: {there.untrusted}",
            "have [link] names in controller.toml hold the name in that URL; if it does, someone is in between",
        )
    if there.refuses:
        return fail(
            "controller",
            f"{there.url} does not take this host: {there.refuses}",
            "skerry host token NAME (an operator), then here: skerry-agent join --force URL TOKEN",
        )
    return ok("controller", f"{there.url} answers")


def skew(sight: Sight) -> Finding | None:
    """Two clocks that differ: certificates not good yet, figures that are refused."""
    if sight.controller is None or sight.controller.skew_s is None:
        return None
    off = sight.controller.skew_s
    way = "ahead of" if off > 0 else "behind"
    says = f"this machine's clock is {abs(off):.0f} s {way} the controller's"
    fix = "set both by a time service (systemd-timesyncd, chrony): timedatectl shows which of them is wrong"
    if abs(off) > SKEW_FAIL_S:
        return fail("clock skew", f"{says}: its figures are refused", fix)
    if abs(off) > SKEW_WARN_S:
        return warn("clock skew", says, fix)
    return ok("clock skew", f"less than {SKEW_WARN_S:g} s from the controller's")


def pool(sight: Sight) -> Finding:
    """A thin pool that is full has its guests' writes fail."""
    there = sight.pool
    if not there.group:
        return ok("pool", "volumes are files")
    name = f"{there.group}/{there.thin_pool}"
    if there.problem:
        return fail(
            "pool",
            f"volume group {there.group} can't be looked at: {there.problem}",
            f"apt-get install lvm2 thin-provisioning-tools; vgcreate {there.group} /dev/DISK; see [pool] volume_group",
        )
    if there.missing:
        return fail(
            "pool",
            f"volume group {there.group} has no thin pool {there.thin_pool}",
            f"lvcreate --type thin-pool -l 90%FREE -n {there.thin_pool} {there.group}, or see [pool] thin_pool",
        )
    fullest = max(there.data_percent, there.metadata_percent)
    says = f"{name} holds {there.data_percent:.0f} % data and {there.metadata_percent:.0f} % metadata"
    if fullest >= POOL_FAIL_PERCENT:
        return fail("pool", f"{says}: guests' writes fail soon", _extend(there))
    if fullest >= POOL_WARN_PERCENT:
        return warn("pool", says, _extend(there))
    return ok("pool", says)


def _extend(there: Pool) -> str:
    name = f"{there.group}/{there.thin_pool}"
    return f"vgextend {there.group} /dev/DISK; lvextend -l +90%FREE {name}; lvextend --poolmetadatasize +1G {name}"


def way_in(sight: Sight) -> Finding:
    """QEMU and dnsmasq run under users of their own, and have to get to their files."""
    if not sight.closed:
        return ok("directories", "QEMU's user gets to the disks")
    return fail(
        "directories",
        f"QEMU's user can't get to the disks: {', '.join(sight.closed)} closed to others",
        f"chmod o+x {' '.join(sight.closed)}",
    )


def service(sight: Sight) -> Finding:
    """That the agent runs, and will after the next boot."""
    if sight.service.systemd and not sight.service.enabled:
        return fail(
            "service",
            f"{UNIT} is not enabled: after a reboot no machine would start",
            f"systemctl enable --now {UNIT}",
        )
    if sight.identity is not None and not sight.service.running:
        return fail(
            "service",
            "the agent does not run",
            f"systemctl start {UNIT}; journalctl -u {UNIT} -n 20 says why it ended",
        )
    return ok("service", "runs" if sight.service.running else "starts when the machine has joined")


def clock(sight: Sight) -> Finding:
    """Whether something keeps the clock right."""
    return check_clock(sight.clock_kept)


def files(sight: Sight) -> Finding:
    """Whether enough files may be open."""
    return check_files(sight.open_files, UNIT)


CHECKS: tuple[Callable[[Sight], Finding | None], ...] = (
    root,
    kvm,
    vhost,
    needed,
    conntrack,
    shares,
    versions,
    libvirt,
    firmware,
    address,
    spoofing,
    tunnel_port,
    clock,
    joined,
    controller,
    skew,
    service,
    pool,
    way_in,
    files,
)
