"""An own look at a host, by other means than the agent's: what bears an id or a MAC of Skerry's has to be wanted."""

import re
from collections.abc import Iterable, Iterator

from agent.drivers.links import GATEWAY_MAC
from common.ids import Id, child_id
from common.names import mac
from lab.host import Host

_ID = re.compile(r"\b(?:vm|vol|net)-[0-9a-hjkmnp-tv-z]{12}\b")
_DEVICE = re.compile(r"(?<![\w-])(?P<kind>t\d|[bxgr]-)(?P<body>[0-9a-hjkmnp-tv-z]{12})\b")
_MAC = re.compile(r"\b02(?::[0-9a-f]{2}){5}\b")
_NICS = 8
_WITH_MACS = frozenset({"fdb", "neighbour", "inside", "lease"})

LOOKS = {
    "domain": "virsh -q list --all --name",
    "process": "ps -ww -eo args | grep -E '^(/usr/bin/)?(qemu-system|dnsmasq|.*busybox)' || true",
    "file": "find /srv /run /etc/libvirt /var/lib/libvirt -not -path '*/log/*' 2>/dev/null || true",
    "device": "ip -o link",
    "fdb": "bridge fdb show",
    "neighbour": "ip neigh show | grep -v 'dev eth0' || true",
    "namespace": "ip netns list",
    # A namespace that goes while it is looked at is no error: whether it is gone is seen by "namespace".
    "inside": "for space in $(ip netns list | cut -d' ' -f1); do ip netns exec $space ip -o link || continue; "
    "ip netns exec $space ip neigh show nud permanent || continue; done",
    "lease": "find /run -name 'leases*' -o -name 'dhcp-hosts*' -o -path '*/networks/*/hosts' | xargs -r cat",
}
"""What is looked at, and the line of shell that shows it."""


def listing(host: Host) -> Iterator[tuple[str, str]]:
    """Yield every line of every look."""
    for what, script in LOOKS.items():
        for line in host.run(["sh", "-c", script], timeout_s=60).splitlines():
            if line.strip():
                yield what, line.strip()


def strangers(host: Host, wanted: Iterable[str]) -> list[str]:
    """Return every line on a host that names a VM, volume or network which is not wanted: what has leaked."""
    lines = list(listing(host))
    known = set(wanted)
    bodies = {one.partition("-")[2] for one in known}
    # The kernel gives devices random addresses, one in 64 of which look like ours.
    macs = {found for _, line in lines for found in re.findall(r"link/ether (\S+)", line)} | {GATEWAY_MAC}
    macs |= {mac(Id(vm), nic) for vm in known if vm.startswith("vm-") for nic in range(_NICS)}
    return [f"{what}: {line}" for what, line in lines if _names_other(what, line, known, bodies, macs)]


def _names_other(what: str, line: str, known: set[str], bodies: set[str], macs: set[str]) -> bool:
    ids = set(_ID.findall(line)) - known
    devices = {one["body"] for one in _DEVICE.finditer(line)} - bodies
    others = set(_MAC.findall(line)) - macs if what in _WITH_MACS else set()
    return bool(ids or devices or others)


def of_vm(host: Host, vm: str) -> list[str]:
    """Return every line on a host that names a VM or its root volume."""
    words = {vm, child_id(Id(vm), "vol"), vm.partition("-")[2], mac(Id(vm), 0)}
    return [f"{what}: {line}" for what, line in listing(host) if any(word in line for word in words)]
