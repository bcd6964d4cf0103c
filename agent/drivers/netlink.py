"""The devices of a network, through pyroute2: bridge, VXLAN device, gateway pair, taps, and their entries.

The only module that imports pyroute2. All functions block and speak to the network namespace of the calling thread:
call them in a lane. Each opens its own socket (under 1 ms), so none outlives its namespace.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pyroute2
from pyroute2.netlink.exceptions import NetlinkError

from agent.drivers import netns
from agent.drivers.links import (
    Bridge,
    Entries,
    Inner,
    Outer,
    Pins,
    Segment,
    Tap,
    Tunnel,
    Vxlan,
)
from agent.drivers.rtnetlink import (
    NTF_MASTER,
    NTF_SELF,
    NTF_STICKY,
    NUD_NOARP,
    NUD_PERMANENT,
    Change,
    Entry,
    Link,
    Rtnetlink,
    add_fdb,
    add_neighbour,
    remove_fdb,
    remove_neighbour,
)
from common import names
from common.errors import Temporary
from common.ids import Id

_NO_DEVICE = 19
_EXISTS = 17
_UP = 0x1


def see(network: Id, taps: Iterable[str]) -> Segment:
    """Look at all of a network: its devices, what is plugged into its bridge, these taps, and its entries."""
    bridge, vxlan, outer = names.bridge(network), names.vxlan(network), names.gateway_outer(network)
    with _translated(f"looking at {network}"), _route() as ip, Rtnetlink() as rt:
        bridge_link, vxlan_link, outer_link = _find(ip, bridge), _find(ip, vxlan), _find(ip, outer)
        plugged = {} if bridge_link is None else {link.name: link for link in rt.links(bridge_link["index"])}
        index_names = {link.device: link.name for link in plugged.values()}
        if bridge_link is not None:
            index_names[bridge_link["index"]] = bridge
        guests = _taps(ip, bridge, {*plugged} - {vxlan, outer}, taps)
        pins = Pins(forwards=frozenset(_pinned(rt, plugged, {*guests, outer})))
        entries = Entries() if vxlan_link is None else _entries(rt, vxlan_link)
        space = names.router_namespace(network)
        inode = netns.inode(space)
        shapes = Segment(
            bridge=_bridge(bridge_link),
            vxlan=_vxlan(vxlan_link, index_names),
            outer=_outer(outer_link, index_names),
            namespace=inode,
            half_namespace=inode is None and (netns.DIRECTORY / space).exists(),
            taps=guests,
            entries=entries,
            pins=pins,
        )
    return shapes if shapes.namespace is None else _with_inside(shapes, network)


def ensure_bridge(name: str, wanted: Bridge) -> None:
    """Make the bridge exist as wanted."""
    with _translated(f"bridge {name}"), _route() as ip:
        options = {"br_stp_state": int(wanted.stp), "br_mcast_snooping": int(wanted.snooping)}
        if _find(ip, name) is None:
            _add(ip, ifname=name, kind="bridge", **options)
        _silence(name)
        _reverse_path(name).write_text("1")
        index = _index(ip, name)
        ip.link("set", index=index, kind="bridge", **options)
        ip.link("set", index=index, mtu=wanted.mtu, state="up")


def ensure_vxlan(name: str, wanted: Vxlan) -> None:
    """Make the VXLAN device exist in its bridge as wanted. Another tunnel under that name has to go first."""
    with _translated(f"VXLAN device {name}"), _route() as ip:
        if _find(ip, name) is None:
            tunnel = wanted.tunnel
            _add(
                ip,
                ifname=name,
                kind="vxlan",
                vxlan_id=tunnel.vni,
                vxlan_local=tunnel.local,
                vxlan_port=tunnel.port,
                vxlan_learning=int(tunnel.learning),
                vxlan_proxy=int(tunnel.proxy),
                mtu=wanted.mtu,
            )
        _silence(name)
        index = _index(ip, name)
        ip.link("set", index=index, mtu=wanted.mtu, master=_index(ip, wanted.bridge))
        ip.brport(
            "set",
            index=index,
            learning=int(wanted.port_learning),
            unicast_flood=int(wanted.unicast_flood),
            mcast_flood=int(wanted.multicast_flood),
            bcast_flood=int(wanted.broadcast_flood),
        )
        ip.link("set", index=index, state="up")


def ensure_gateway(network: Id, outer: Outer, inner: Inner) -> None:
    """Make the gateway pair exist: one end in the bridge, the other with its addresses in the router namespace."""
    name, far, space = names.gateway_outer(network), names.gateway_inner(network), names.router_namespace(network)
    with _translated(f"gateway {name}"), _route() as ip:
        if _find(ip, name) is None:
            with (netns.DIRECTORY / space).open("rb") as handle:
                _add(ip, ifname=name, kind="veth", peer={"ifname": far, "net_ns_fd": handle.fileno()})
        _silence(name)
        index = _index(ip, name)
        ip.link("set", index=index, mtu=outer.mtu, master=_index(ip, outer.bridge), state="up")
    netns.inside(space, lambda: _ensure_inner(far, inner))


def plug(taps: Iterable[str], bridge: str) -> None:
    """Plug taps into a bridge. One that has gone meanwhile is passed over."""
    with _translated(f"plugging taps into {bridge}"), _route() as ip:
        master = _index(ip, bridge)
        for tap in taps:
            if (link := _find(ip, tap)) is not None:
                ip.link("set", index=link["index"], master=master)


def remove_link(name: str) -> None:
    """Make the device not exist."""
    with _translated(f"removing {name}"), _route() as ip:
        link = _find(ip, name)
        if link is not None:
            with suppress(_Gone):
                _delete(ip, link["index"])


def change_entries(vxlan: str, remove: Entries, add: Entries) -> None:
    """Remove, then add entries of a VXLAN device and its bridge port, in packed batches."""
    with _translated(f"entries of {vxlan}"), _route() as ip, Rtnetlink() as rt:
        link = _find(ip, vxlan)
        if link is None:
            return
        rt.apply(_entry_changes(link["index"], remove, add))


def change_pins(network: Id, remove: Pins, add: Pins) -> None:
    """Remove, then add static entries of local devices, in the bridge and in the router namespace."""
    space, inner = names.router_namespace(network), names.gateway_inner(network)
    with _translated(f"entries of {network}'s own ports"), Rtnetlink() as rt:
        indices = {link.name: link.device for link in rt.links()} if remove.forwards or add.forwards else {}
        changes = [remove_fdb(indices[dev], mac, NTF_MASTER) for dev, mac in remove.forwards if dev in indices]
        changes += [add_fdb(indices[dev], mac, NTF_MASTER | NTF_STICKY) for dev, mac in add.forwards if dev in indices]
        rt.apply(changes)
    if (remove.neighbours or add.neighbours) and netns.inode(space) is not None:
        netns.inside(space, lambda: _change_neighbours(inner, remove, add))


def pin(network: Id, tap: str, address: str, mac: str) -> bool:
    """Make sure that this address and MAC lead to this tap and nowhere else; False where it is not plugged in."""
    with _translated(f"pinning {tap}"), _route() as ip:
        link, bridge = _find(ip, tap), _find(ip, names.bridge(network))
        if link is None or bridge is None or link.get_attr("IFLA_MASTER") != bridge["index"]:
            return False
    change_pins(network, Pins(), Pins(forwards=frozenset({(tap, mac)}), neighbours=frozenset({(address, mac)})))
    return True


def links() -> tuple[Link, ...]:
    """Return all devices of this namespace."""
    with _translated("listing devices"), Rtnetlink() as rt:
        return rt.links()


def static_entries(link: Link) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
    """Return a device's static FDB entries and its permanent neighbours."""
    with _translated(f"listing entries of {link.name}"), Rtnetlink() as rt:
        fdb = tuple(entry for entry in rt.fdb(link.device) if entry.state & NUD_NOARP)
        return fdb, tuple(entry for entry in rt.neighbours(link.device) if entry.state & NUD_PERMANENT)


def _route() -> Any:
    """Open a netlink socket in this thread's namespace, to be used in `with`. pyroute2 has no types."""
    return pyroute2.IPRoute()  # type: ignore[attr-defined, no-untyped-call]


class _Gone(Exception):
    """The device went while we looked at it."""


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Turn pyroute2's errors into ours: all of them may pass, so all are Temporary."""
    try:
        yield
    except NetlinkError as err:
        raise Temporary(f"{what}: the kernel refused: {err}") from err
    except (OSError, TimeoutError, KeyError) as err:
        raise Temporary(f"{what}: {err}") from err


def _find(ip: Any, name: str) -> Any:
    """Return the link message of a device, None where there is none."""
    try:
        return next(iter(ip.link("get", ifname=name)), None)
    except NetlinkError as err:
        if err.code == _NO_DEVICE:
            return None
        raise


def _index(ip: Any, name: str) -> int:
    link = _find(ip, name)
    if link is None:
        raise Temporary(f"device {name} does not exist (yet): it will be made, or has just gone")
    return int(link["index"])


def _add(ip: Any, **attributes: Any) -> None:
    """Create a device; one of that name already there is success."""
    try:
        ip.link("add", **attributes)
    except NetlinkError as err:
        # A VNI in use gives the same code as a name in use: only the latter is success.
        if err.code != _EXISTS or _find(ip, attributes["ifname"]) is None:
            raise


def _delete(ip: Any, index: int) -> None:
    try:
        ip.link("del", index=index)
    except NetlinkError as err:
        if err.code == _NO_DEVICE:
            raise _Gone from err
        raise


def _silence(name: str) -> None:
    """Keep IPv6 autoconfiguration off a device; /proc/sys/net is that of the calling thread's namespace."""
    switch = Path("/proc/sys/net/ipv6/conf") / name / "disable_ipv6"
    with suppress(FileNotFoundError):  # a kernel without IPv6
        switch.write_text("1")


def _reverse_path(name: str) -> Path:
    """Return the switch that drops IPv4 packets from where no route leads back to their sender.

    A host answers for each of its addresses on each of its devices, one without an address included: a guest could
    send to the underlay's, its tunnels' port as well. No route leads to a bridge, so strict is to drop all (RFC 3704).
    """
    return Path("/proc/sys/net/ipv4/conf") / name / "rp_filter"


def _ensure_inner(name: str, wanted: Inner) -> None:
    for every in ("all", "default", name):
        _silence(every)
    with _translated(f"gateway {name}"), _route() as ip:
        ip.link("set", index=_index(ip, "lo"), state="up")
        index = _index(ip, name)
        ip.link("set", index=index, address=wanted.mac, mtu=wanted.mtu)
        seen = _addresses(ip, index)
        for address in seen - wanted.addresses:
            host, _, length = address.partition("/")
            ip.addr("del", index=index, address=host, prefixlen=int(length))
        for address in wanted.addresses - seen:
            host, _, length = address.partition("/")
            ip.addr("add", index=index, address=host, prefixlen=int(length))
        ip.link("set", index=index, state="up")


def _addresses(ip: Any, index: int) -> frozenset[str]:
    found = ip.get_addr(family=2, index=index)
    return frozenset(f"{entry.get_attr('IFA_LOCAL')}/{entry['prefixlen']}" for entry in found)


def _with_inside(shapes: Segment, network: Id) -> Segment:
    """Add what is seen inside the router namespace."""
    space, name = names.router_namespace(network), names.gateway_inner(network)

    def look() -> Segment:
        with _translated(f"looking into {space}"), _route() as ip, Rtnetlink() as rt:
            link, loopback = _find(ip, name), _find(ip, "lo")
            if link is None:
                return shapes
            known = (entry for entry in rt.neighbours(link["index"]) if entry.state & NUD_PERMANENT)
            neighbours = frozenset((entry.address, entry.mac) for entry in known)
            return msgspec.structs.replace(
                shapes,
                inner=_inner(ip, link, loopback),
                inner_device=link["index"],
                pins=Pins(forwards=shapes.pins.forwards, neighbours=neighbours),
            )

    return netns.inside(space, look)


def _change_neighbours(device: str, remove: Pins, add: Pins) -> None:
    with _translated(f"neighbours of {device}"), _route() as ip, Rtnetlink() as rt:
        link = _find(ip, device)
        if link is None:
            return
        index = link["index"]
        kept = {address for address, _ in add.neighbours}
        gone = (remove_neighbour(index, address) for address, _ in remove.neighbours if address not in kept)
        rt.apply([*gone, *(add_neighbour(index, address, mac) for address, mac in add.neighbours)])


def _entry_changes(index: int, remove: Entries, add: Entries) -> Iterator[Change]:
    for mac in {mac for mac, _ in remove.tunnels}:
        yield remove_fdb(index, mac, NTF_SELF)
    for mac in remove.forwards:
        yield remove_fdb(index, mac, NTF_MASTER)
    kept = {address for address, _ in add.neighbours}
    for address, _ in remove.neighbours:
        if address not in kept:
            yield remove_neighbour(index, address)
    for mac, vtep in add.tunnels:
        # One message can say both: the same device, MAC and state.
        yield add_fdb(index, mac, NTF_SELF | (NTF_MASTER | NTF_STICKY if mac in add.forwards else 0), vtep)
    for mac in add.forwards - {mac for mac, _ in add.tunnels}:
        yield add_fdb(index, mac, NTF_MASTER | NTF_STICKY)
    for address, mac in add.neighbours:
        yield add_neighbour(index, address, mac)


def _entries(rt: Rtnetlink, link: Any) -> Entries:
    fdb, neighbours = rt.fdb(link["index"]), rt.neighbours(link["index"])
    return Entries(
        tunnels=frozenset((entry.mac, entry.address) for entry in fdb if not entry.flags & NTF_MASTER),
        forwards=frozenset(entry.mac for entry in fdb if _is_sticky(entry)),
        neighbours=frozenset((entry.address, entry.mac) for entry in neighbours if entry.state & NUD_PERMANENT),
    )


def _pinned(rt: Rtnetlink, plugged: dict[str, Link], devices: set[str]) -> Iterator[tuple[str, str]]:
    for name in sorted(devices & plugged.keys()):
        yield from ((name, entry.mac) for entry in rt.fdb(plugged[name].device) if _is_sticky(entry))


def _is_sticky(entry: Entry) -> bool:
    return bool(entry.flags & NTF_MASTER and entry.flags & NTF_STICKY and entry.state & NUD_NOARP)


def _taps(ip: Any, bridge: str, plugged: set[str], asked: Iterable[str]) -> dict[str, Tap]:
    found = {name: Tap(bridge=bridge, up=True) for name in plugged}
    for name in asked:
        link = None if name in plugged else _find(ip, name)
        if link is not None:
            found[name] = Tap(bridge="", up=bool(link["flags"] & _UP))
    return found


def _bridge(link: Any) -> Bridge | None:
    if link is None:
        return None
    options = _options(link, "IFLA_INFO_DATA")
    return Bridge(
        mtu=link.get_attr("IFLA_MTU"),
        up=bool(link["flags"] & _UP),
        stp=bool(options.get("IFLA_BR_STP_STATE")),
        snooping=bool(options.get("IFLA_BR_MCAST_SNOOPING")),
        closed=_reverse_path(link.get_attr("IFLA_IFNAME")).read_text().strip() == "1",
    )


def _vxlan(link: Any, bridges: dict[int, str]) -> Vxlan | None:
    if link is None:
        return None
    options, port = _options(link, "IFLA_INFO_DATA"), _options(link, "IFLA_INFO_SLAVE_DATA")
    return Vxlan(
        tunnel=Tunnel(
            vni=options.get("IFLA_VXLAN_ID", 0),
            local=options.get("IFLA_VXLAN_LOCAL", ""),
            port=options.get("IFLA_VXLAN_PORT", 0),
            learning=bool(options.get("IFLA_VXLAN_LEARNING")),
            proxy=bool(options.get("IFLA_VXLAN_PROXY")),
        ),
        mtu=link.get_attr("IFLA_MTU"),
        bridge=bridges.get(link.get_attr("IFLA_MASTER") or 0, ""),
        up=bool(link["flags"] & _UP),
        port_learning=bool(port.get("IFLA_BRPORT_LEARNING")),
        unicast_flood=bool(port.get("IFLA_BRPORT_UNICAST_FLOOD")),
        multicast_flood=bool(port.get("IFLA_BRPORT_MCAST_FLOOD")),
        broadcast_flood=bool(port.get("IFLA_BRPORT_BCAST_FLOOD")),
    )


def _outer(link: Any, bridges: dict[int, str]) -> Outer | None:
    if link is None:
        return None
    bridge = bridges.get(link.get_attr("IFLA_MASTER") or 0, "")
    return Outer(mtu=link.get_attr("IFLA_MTU"), bridge=bridge, up=bool(link["flags"] & _UP))


def _inner(ip: Any, link: Any, loopback: Any) -> Inner:
    return Inner(
        mac=link.get_attr("IFLA_ADDRESS"),
        mtu=link.get_attr("IFLA_MTU"),
        addresses=_addresses(ip, link["index"]),
        up=bool(link["flags"] & _UP),
        loopback_up=bool(loopback["flags"] & _UP),
    )


def _options(link: Any, which: str) -> dict[str, Any]:
    """Return one nest of a link's kind-specific attributes by name; empty where it has none."""
    nest = link.get_attr("IFLA_LINKINFO")
    inner = None if nest is None else nest.get_attr(which)
    return {} if inner is None or isinstance(inner, str | bytes) else dict(inner["attrs"])
