"""What netlink shows of one network on a host, and what it should show: the same frozen structs for both.

Plain data, no I/O: planners compare these, `agent.drivers.netlink` reads and applies them.
"""

from collections.abc import Mapping

import msgspec

VXLAN_PORT = 4789
"""IANA's UDP port of VXLAN."""

METADATA_ADDRESS = "169.254.169.254"

GATEWAY_MAC = "02:00:00:00:00:01"
"""Of every network's gateway on every host: a guest that moves finds the same one. `names.mac` gives it to no guest
but by a chance of 2^-40."""


class Shape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of all shapes."""


class Bridge(Shape, frozen=True):
    """A network's bridge."""

    mtu: int
    up: bool = True
    stp: bool = False
    snooping: bool = False
    """Multicast snooping: its queries are noise where nothing is flooded."""
    closed: bool = True
    """The host neither takes a guest's packet for its own nor routes it on, whatever address it is sent to."""


class Tunnel(Shape, frozen=True):
    """What can't be changed on a VXLAN device once it is there."""

    vni: int
    local: str
    port: int = VXLAN_PORT
    learning: bool = False
    proxy: bool = True
    """Answer ARP from the static neighbour entries."""


class Vxlan(Shape, frozen=True):
    """A network's VXLAN device, as a port of its bridge."""

    tunnel: Tunnel
    mtu: int
    bridge: str
    """Empty: in no bridge."""
    up: bool = True
    port_learning: bool = False
    unicast_flood: bool = False
    multicast_flood: bool = False
    broadcast_flood: bool = True
    """ARP requests have to reach the device for `proxy` to answer them; it has no default entry to send them on by."""


class Inner(Shape, frozen=True):
    """The gateway's end inside the router namespace, with its loopback."""

    mac: str
    mtu: int
    addresses: frozenset[str]
    """With prefix length: 10.20.0.1/24."""
    up: bool = True
    loopback_up: bool = True


class Outer(Shape, frozen=True):
    """The gateway's end in the bridge."""

    mtu: int
    bridge: str
    up: bool = True


class Tap(Shape, frozen=True):
    """A guest's NIC on the host."""

    bridge: str
    up: bool


class Entries(Shape, frozen=True):
    """Where the MACs and addresses of guests on other hosts are."""

    tunnels: frozenset[tuple[str, str]] = frozenset()
    """FDB of the VXLAN device: (MAC, tunnel endpoint)."""
    forwards: frozenset[str] = frozenset()
    """Static, sticky FDB entries of the bridge for its VXLAN port: MACs."""
    neighbours: frozenset[tuple[str, str]] = frozenset()
    """Permanent neighbours of the VXLAN device, from which it answers ARP: (address, MAC)."""


class Pins(Shape, frozen=True):
    """Which MAC is behind which local device, so that no guest can pass for another one."""

    forwards: frozenset[tuple[str, str]] = frozenset()
    """Static, sticky FDB entries of the bridge: (device, MAC)."""
    neighbours: frozenset[tuple[str, str]] = frozenset()
    """Permanent neighbours in the router namespace: (address, MAC)."""


class Segment(Shape, frozen=True):
    """All that netlink shows of one network. None: it does not exist."""

    bridge: Bridge | None = None
    vxlan: Vxlan | None = None
    namespace: int | None = None
    """The router namespace's inode: another number is another namespace."""
    half_namespace: bool = False
    """Its name is there without a namespace: making it was cut short."""
    outer: Outer | None = None
    inner: Inner | None = None
    inner_device: int = 0
    """The index of the inner end: another number is another device, to which no daemon is bound. 0: none."""
    taps: Mapping[str, Tap] = {}
    """The taps asked for, and everything else that is plugged into the bridge."""
    entries: Entries = Entries()
    pins: Pins = Pins()
