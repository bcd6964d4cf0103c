"""The planner of networks: compare what should be with what is seen, and name the next step. Pure.

The order of the steps is the order of dependence, so a network that was half built when the agent died is finished
by the same list: bridge, VXLAN device, router namespace, gateway, taps, entries, dnsmasq, metadata.
"""

from ipaddress import IPv4Network
from pathlib import Path

import msgspec

from agent.drivers import dhcp
from agent.drivers.dhcp import DnsmasqFiles, Lease, Served
from agent.drivers.links import (
    GATEWAY_MAC,
    METADATA_ADDRESS,
    Bridge,
    Entries,
    Inner,
    Outer,
    Pins,
    Segment,
    Tunnel,
    Vxlan,
)
from agent.kinds.unit import Do, Settled, Wait, Wish
from common import names
from common.documents import Desired, NetworkDoc, NetworkSeen, PortDoc, Report
from common.ids import HostId, Id

WAIT_FOR_TAPS_S = 2.0
WAIT_FOR_NETWORK_S = 30.0


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """The host this is planned for."""

    host: HostId
    underlay: str
    """Its tunnel endpoint address."""
    run_dir: Path


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A network as it is seen."""

    segment: Segment = Segment()
    served: Served = Served()
    listener: int | None = None
    """The inode of the namespace in which the metadata service listens for this network; None: it doesn't."""


# --- steps --------------------------------------------------------------------------------------------------------


class NetworkStep(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The base of all steps: each states a result, and may be applied twice."""

    network: Id


class EnsureBridge(NetworkStep, frozen=True):
    """The bridge is so."""

    bridge: Bridge


class EnsureVxlan(NetworkStep, frozen=True):
    """The VXLAN device is so."""

    vxlan: Vxlan


class EnsureNamespace(NetworkStep, frozen=True):
    """The router namespace exists."""


class EnsureGateway(NetworkStep, frozen=True):
    """The gateway is so."""

    outer: Outer
    inner: Inner


class PlugTaps(NetworkStep, frozen=True):
    """These taps are in the bridge."""

    taps: tuple[str, ...]


class ChangeEntries(NetworkStep, frozen=True):
    """The ways to guests elsewhere: the whole difference in one step."""

    remove: Entries
    add: Entries


class ChangePins(NetworkStep, frozen=True):
    """The ways to guests here: the whole difference in one step."""

    remove: Pins
    add: Pins


class EnsureDnsmasq(NetworkStep, frozen=True):
    """dnsmasq runs on these files, on the gateway's inner device of that index."""

    files: DnsmasqFiles
    device: int


class ReleaseLeases(NetworkStep, frozen=True):
    """These leases don't exist."""

    leases: frozenset[Lease]


class EnsureMetadataListener(NetworkStep, frozen=True):
    """The metadata service listens in the router namespace."""


class RemoveMetadataListener(NetworkStep, frozen=True):
    """It does not listen for this network."""


class RemoveDnsmasq(NetworkStep, frozen=True):
    """No dnsmasq, no files."""


class RemoveNamespace(NetworkStep, frozen=True):
    """No router namespace."""


class RemoveDevice(NetworkStep, frozen=True):
    """No device of that name."""

    device: str


DeviceStep = EnsureBridge | EnsureVxlan | EnsureGateway | PlugTaps | ChangeEntries | ChangePins | RemoveDevice
"""Steps of netlink alone."""

ServiceStep = (
    EnsureNamespace
    | EnsureDnsmasq
    | ReleaseLeases
    | EnsureMetadataListener
    | RemoveMetadataListener
    | RemoveDnsmasq
    | RemoveNamespace
)
"""Steps that start and stop what serves the network."""

AnyStep = DeviceStep | ServiceStep

Outcome = Do[AnyStep] | Wait | Settled


# --- the wish -----------------------------------------------------------------------------------------------------


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    """The live ports of a wish, by where they are."""

    local: tuple[PortDoc, ...]
    remote: tuple[PortDoc, ...]


def network_of(wish: Wish) -> Id:
    """Return the id of the network a unit is about."""
    return Id(wish.unit.partition("/")[2])


def ports_of(wish: Wish, host: HostId) -> Ports:
    """Return the live ports of a wish."""
    live = [item.doc for item in wish.items.values() if isinstance(item.doc, PortDoc) and not item.gone]
    return Ports(
        local=tuple(port for port in live if port.host == host),
        remote=tuple(port for port in live if port.host != host),
    )


def taps_of(wish: Wish, host: HostId) -> tuple[str, ...]:
    """Return the names of the taps that the local ports have, or will have."""
    return tuple(names.tap(port.vm, port.index) for port in ports_of(wish, host).local)


def wanted_entries(ports: Ports) -> Entries:
    """Return the entries by which guests elsewhere are reached."""
    return Entries(
        tunnels=frozenset((port.mac, port.vtep) for port in ports.remote),
        forwards=frozenset(port.mac for port in ports.remote),
        neighbours=frozenset((port.address, port.mac) for port in ports.remote),
    )


def wanted_pins(network: Id, ports: Ports, segment: Segment) -> Pins:
    """Return the entries that tie the gateway and each local guest to its own device. A guest that is off has none."""
    forwards = {(names.gateway_outer(network), GATEWAY_MAC)}
    for port in ports.local:
        tap = names.tap(port.vm, port.index)
        if tap in segment.taps:
            forwards.add((tap, port.mac))
    return Pins(forwards=frozenset(forwards), neighbours=frozenset((port.address, port.mac) for port in ports.local))


# --- the plan -----------------------------------------------------------------------------------------------------


def plan(wish: Wish, seen: Seen, place: Place) -> Outcome:
    """Decide the next step for one network and its ports."""
    item = _network_item(wish)
    if item is None or not isinstance(item.doc, NetworkDoc):
        return _without_network(wish, seen)
    if item.gone:
        return _removal(wish, seen)
    ports = ports_of(wish, place.host)
    do = (
        _devices(item.doc, seen.segment, place)
        or _entries(item.doc.id, ports, seen.segment)
        or _services(item.doc, ports, seen, place)
    )
    if do is not None:
        return do
    count = NetworkSeen(ports=len(ports.local) + len(ports.remote))
    return Settled(reports=tuple(_done(one, count) for one in wish.items.values()))


def _network_item(wish: Wish) -> Desired | None:
    return next((item for item in wish.items.values() if isinstance(item.doc, NetworkDoc)), None)


def _done(item: Desired, count: NetworkSeen | None = None) -> Report:
    seen = count if isinstance(item.doc, NetworkDoc) and not item.gone else None
    return Report(key=item.key, revision=item.revision, done=True, seen=seen)


def _devices(doc: NetworkDoc, segment: Segment, place: Place) -> Do[AnyStep] | None:
    """Return the next step towards the network's devices."""
    network, bridge_name = doc.id, names.bridge(doc.id)
    bridge = Bridge(mtu=doc.mtu)
    if segment.bridge != bridge:
        return Do(EnsureBridge(network=network, bridge=bridge), f"making bridge {bridge_name}")
    vxlan = Vxlan(tunnel=Tunnel(vni=doc.vni, local=place.underlay), mtu=doc.mtu, bridge=bridge_name)
    if segment.vxlan is not None and segment.vxlan.tunnel != vxlan.tunnel:
        say = f"removing {names.vxlan(network)}: it is a tunnel with another VNI or address"
        return Do(RemoveDevice(network=network, device=names.vxlan(network)), say)
    if segment.vxlan != vxlan:
        return Do(EnsureVxlan(network=network, vxlan=vxlan), f"making VXLAN device {names.vxlan(network)}")
    if segment.namespace is None:
        return Do(EnsureNamespace(network=network), "making the router namespace")
    outer = Outer(mtu=doc.mtu, bridge=bridge_name)
    inner = _inner(doc)
    if segment.outer is not None and segment.inner is None:
        say = f"removing {names.gateway_outer(network)}: its other end is not in the router namespace"
        return Do(RemoveDevice(network=network, device=names.gateway_outer(network)), say)
    if segment.outer != outer or segment.inner != inner:
        return Do(EnsureGateway(network=network, outer=outer, inner=inner), f"making the gateway {doc.gateway}")
    return None


def _inner(doc: NetworkDoc) -> Inner:
    length = IPv4Network(doc.cidr, strict=False).prefixlen
    addresses = frozenset({f"{doc.gateway}/{length}", f"{METADATA_ADDRESS}/32"})
    return Inner(mac=GATEWAY_MAC, mtu=doc.mtu, addresses=addresses)


def _entries(network: Id, ports: Ports, segment: Segment) -> Do[AnyStep] | None:
    """Return the next step towards the ways to guests, elsewhere and here."""
    ours = {names.tap(port.vm, port.index) for port in ports.local}
    # A tap that is not up yet is being plugged in by libvirt, which takes it for an error when we were quicker.
    stray = sorted(name for name, tap in segment.taps.items() if name in ours and tap.up and not tap.bridge)
    if stray:
        return Do(PlugTaps(network=network, taps=tuple(stray)), f"plugging in {', '.join(stray)} again")
    remove, add = entries_difference(segment.entries, wanted_entries(ports))
    if remove != Entries() or add != Entries():
        say = f"changing the entries of {len(add.tunnels | add.neighbours)} ports on other hosts"
        return Do(ChangeEntries(network=network, remove=remove, add=add), say)
    wanted = wanted_pins(network, ports, segment)
    gone = _pins_minus(segment.pins, wanted)
    new = _pins_minus(wanted, segment.pins)
    if gone != Pins() or new != Pins():
        return Do(ChangePins(network=network, remove=gone, add=new), "tying local guests to their own devices")
    return None


def entries_difference(seen: Entries, wanted: Entries) -> tuple[Entries, Entries]:
    """Return what to remove and what to add, so that `wanted` is there and nothing else.

    A MAC with another destination is replaced in place, without a gap: the kernel allows a unicast MAC only one.
    """
    macs = {mac for mac, _ in wanted.tunnels}
    remove = Entries(
        tunnels=frozenset((mac, vtep) for mac, vtep in seen.tunnels if mac not in macs),
        forwards=seen.forwards - wanted.forwards,
        neighbours=_unwanted_neighbours(seen.neighbours, wanted.neighbours),
    )
    add = Entries(
        tunnels=wanted.tunnels - seen.tunnels,
        forwards=wanted.forwards - seen.forwards,
        neighbours=wanted.neighbours - seen.neighbours,
    )
    return remove, add


def _unwanted_neighbours(
    seen: frozenset[tuple[str, str]], wanted: frozenset[tuple[str, str]]
) -> frozenset[tuple[str, str]]:
    """Return the neighbours to remove: an address that stays is replaced in place."""
    addresses = {address for address, _ in wanted}
    return frozenset((address, mac) for address, mac in seen if address not in addresses)


def _pins_minus(one: Pins, other: Pins) -> Pins:
    return Pins(forwards=one.forwards - other.forwards, neighbours=one.neighbours - other.neighbours)


def _services(doc: NetworkDoc, ports: Ports, seen: Seen, place: Place) -> Do[AnyStep] | None:
    """Return the next step towards DHCP, DNS and metadata."""
    network, served = doc.id, seen.served
    directory = place.run_dir / "networks" / network
    files = dhcp.files(doc, ports.local, (*ports.local, *ports.remote), directory)
    ensure = EnsureDnsmasq(network=network, files=files, device=seen.segment.inner_device)
    if not served.running or served.conf != files.conf_digest or served.device != ensure.device:
        return Do(ensure, "starting DHCP and DNS")
    if served.hosts != files.hosts_digest:
        return Do(ensure, "telling DHCP and DNS of the ports")
    wanted = {Lease(mac=port.mac, address=port.address) for port in ports.local}
    if stale := served.leases - wanted:
        return Do(ReleaseLeases(network=network, leases=stale), f"releasing {len(stale)} leases of gone ports")
    if seen.listener != seen.segment.namespace:
        return Do(EnsureMetadataListener(network=network), "opening the metadata service")
    return None


def _removal(wish: Wish, seen: Seen) -> Outcome:
    """Take the network away, once no guest is plugged into it."""
    network, segment = network_of(wish), seen.segment
    if plugged := sorted(name for name, tap in segment.taps.items() if tap.bridge):
        message = f"waiting for {', '.join(plugged)} to leave bridge {names.bridge(network)}"
        reports = tuple(Report(key=one.key, revision=one.revision, done=False, message=message) for one in _all(wish))
        return Wait(message=message, seconds=WAIT_FOR_TAPS_S, reports=reports)
    if seen.listener is not None:
        return Do(RemoveMetadataListener(network=network), "closing the metadata service")
    if seen.served.leftovers:
        return Do(RemoveDnsmasq(network=network), "stopping DHCP and DNS")
    for device, there in (
        (names.gateway_outer(network), segment.outer is not None),
        (names.vxlan(network), segment.vxlan is not None),
        (names.bridge(network), segment.bridge is not None),
    ):
        if there:
            return Do(RemoveDevice(network=network, device=device), f"removing {device}")
    if segment.namespace is not None or segment.half_namespace:
        return Do(RemoveNamespace(network=network), "removing the router namespace")
    return Settled(reports=tuple(_done(one) if one.gone else _orphaned(one) for one in _all(wish)))


def _all(wish: Wish) -> tuple[Desired, ...]:
    return tuple(wish.items.values())


def _orphaned(item: Desired) -> Report:
    problem = "its network has been removed from this host"
    return Report(key=item.key, revision=item.revision, done=False, problem=problem)


def _without_network(wish: Wish, seen: Seen) -> Outcome:
    """Ports without a network: live ones wait for it; what is left of gone ones is removed all the same."""
    network = network_of(wish)
    gone = [item.doc for item in _all(wish) if item.gone and isinstance(item.doc, PortDoc)]
    macs = {port.mac for port in gone}
    entries, pins = seen.segment.entries, seen.segment.pins
    stale = Entries(
        tunnels=frozenset(pair for pair in entries.tunnels if pair[0] in macs),
        forwards=entries.forwards & macs,
        neighbours=frozenset(pair for pair in entries.neighbours if pair[1] in macs),
    )
    if stale != Entries():
        return Do(ChangeEntries(network=network, remove=stale, add=Entries()), "removing entries of gone ports")
    loose = Pins(
        forwards=frozenset(pair for pair in pins.forwards if pair[1] in macs),
        neighbours=frozenset(pair for pair in pins.neighbours if pair[1] in macs),
    )
    if loose != Pins():
        return Do(ChangePins(network=network, remove=loose, add=Pins()), "removing entries of gone ports")
    if leases := frozenset(lease for lease in seen.served.leases if lease.mac in macs):
        return Do(ReleaseLeases(network=network, leases=leases), "releasing leases of gone ports")
    message = f"waiting for network {network}, which has not been sent to this host yet"
    reports = tuple(
        _done(one) if one.gone else Report(key=one.key, revision=one.revision, done=False, message=message)
        for one in _all(wish)
    )
    if all(one.gone for one in _all(wish)):
        return Settled(reports=reports)
    return Wait(message=message, seconds=WAIT_FOR_NETWORK_S, reports=reports)
