"""A kernel's network that behaves like Linux, in memory: what hangs on a device goes with it."""

from collections.abc import Callable, Iterable

import msgspec

from agent.drivers.dhcp import DnsmasqFiles, Lease, Served
from agent.drivers.links import Bridge, Entries, Inner, Outer, Pins, Segment, Tap, Vxlan
from agent.kinds.network_plan import (
    ChangeEntries,
    ChangePins,
    EnsureBridge,
    EnsureGateway,
    EnsureVxlan,
    PlugTaps,
    RemoveDevice,
)
from common import names
from common.errors import Temporary
from common.ids import Id
from common.protocol import Found


class Network(msgspec.Struct, kw_only=True):
    """What one network has on one host."""

    bridge: Bridge | None = None
    vxlan: Vxlan | None = None
    namespace: int | None = None
    half_namespace: bool = False
    outer: Outer | None = None
    inner: Inner | None = None
    tunnels: set[tuple[str, str]] = msgspec.field(default_factory=set)
    forwards: set[str] = msgspec.field(default_factory=set)
    neighbours: dict[str, str] = msgspec.field(default_factory=dict)
    pins: dict[str, str] = msgspec.field(default_factory=dict)
    """MAC -> device: a bridge has one entry for a MAC."""
    inner_neighbours: dict[str, str] = msgspec.field(default_factory=dict)
    served: DnsmasqFiles | None = None
    """What the running dnsmasq was told; None: none runs."""
    directory: bool = False
    leases: set[Lease] = msgspec.field(default_factory=set)


Halfway = Callable[[str], None]
"""Told of points at which a process may die with the work half done."""

DeviceStep = EnsureBridge | EnsureVxlan | EnsureGateway | PlugTaps | ChangeEntries | ChangePins | RemoveDevice


class Kernel:
    """The devices, namespaces and dnsmasq processes of one machine. All is gone with the power."""

    def __init__(self) -> None:
        self.networks: dict[Id, Network] = {}
        self.taps: dict[str, Tap] = {}
        self._inodes = 4026531840

    def power_cut(self) -> None:
        """Nothing of it survives."""
        self.networks.clear()
        self.taps.clear()

    # --- looking ----------------------------------------------------------------------------------------------------

    def see(self, network: Id, taps: Iterable[str]) -> Segment:
        """Look at all of a network."""
        own, bridge = self.networks.get(network, Network()), names.bridge(network)
        seen = {name: tap for name, tap in self.taps.items() if tap.bridge == bridge and own.bridge}
        seen |= {name: self.taps[name] for name in taps if name in self.taps}
        devices = {*(name for name, tap in seen.items() if tap.bridge == bridge)}
        if own.outer and own.outer.bridge:
            devices.add(names.gateway_outer(network))
        return Segment(
            bridge=own.bridge,
            vxlan=own.vxlan,
            namespace=own.namespace,
            half_namespace=own.half_namespace,
            outer=own.outer,
            inner=own.inner,
            taps=seen,
            entries=Entries(
                tunnels=frozenset(own.tunnels),
                forwards=frozenset(own.forwards),
                neighbours=frozenset(own.neighbours.items()),
            ),
            pins=Pins(
                forwards=frozenset((device, mac) for mac, device in own.pins.items() if device in devices),
                neighbours=frozenset(own.inner_neighbours.items()),
            ),
        )

    def served(self, network: Id) -> Served:
        """Look at a network's dnsmasq."""
        own = self.networks.get(network, Network())
        return Served(
            running=own.served is not None,
            conf=own.served.conf_digest if own.served else "",
            hosts=own.served.hosts_digest if own.served else "",
            leases=frozenset(own.leases),
            leftovers=own.directory,
        )

    def has_bridge(self, bridge: str) -> bool:
        """Say whether a bridge exists."""
        return any(own.bridge and names.bridge(network) == bridge for network, own in self.networks.items())

    # --- changing ---------------------------------------------------------------------------------------------------

    def change(self, step: DeviceStep) -> None:
        """Carry out a step of netlink."""
        own, bridge = self.networks.setdefault(step.network, Network()), names.bridge(step.network)
        match step:
            case EnsureBridge():
                own.bridge = step.bridge
            case EnsureVxlan():
                self._ensure_vxlan(own, step.vxlan)
            case EnsureGateway():
                if own.namespace is None or own.bridge is None:
                    raise Temporary(f"namespace or bridge of {step.network} is missing")
                own.outer, own.inner = step.outer, step.inner
            case PlugTaps():
                for tap in step.taps:
                    if tap in self.taps and own.bridge:
                        self.taps[tap] = Tap(bridge=bridge, up=self.taps[tap].up)
            case ChangeEntries():
                _change_entries(own, step.remove, step.add)
            case ChangePins():
                self._change_pins(own, step)
            case RemoveDevice():
                self.remove_device(step.device)

    def _ensure_vxlan(self, own: Network, wanted: Vxlan) -> None:
        if own.bridge is None:
            raise Temporary(f"bridge {wanted.bridge} does not exist")
        if own.vxlan and own.vxlan.tunnel != wanted.tunnel:
            raise Temporary("a VXLAN device's tunnel can't be changed")
        if own.vxlan is None or own.vxlan.bridge != wanted.bridge:
            own.forwards.clear()
        own.vxlan = wanted

    def _change_pins(self, own: Network, step: ChangePins) -> None:
        devices = {*self.taps, names.gateway_outer(step.network)}
        for device, mac in step.remove.forwards:
            if own.pins.get(mac) == device:
                del own.pins[mac]
        for device, mac in step.add.forwards:
            if device in devices:
                own.pins[mac] = device
        if own.inner:
            for address, _ in step.remove.neighbours:
                own.inner_neighbours.pop(address, None)
            own.inner_neighbours.update(step.add.neighbours)

    def remove_device(self, device: str) -> None:
        """Remove a bridge, a VXLAN device or a gateway pair, with all that hangs on it."""
        for network, own in self.networks.items():
            if device == names.bridge(network):
                self._remove_bridge(network, own)
            elif device == names.vxlan(network):
                own.vxlan = None
                own.tunnels.clear()
                own.forwards.clear()
                own.neighbours.clear()
            elif device == names.gateway_outer(network):
                self._remove_gateway(own)
        self.sweep()

    def _remove_bridge(self, network: Id, own: Network) -> None:
        own.bridge = None
        own.forwards.clear()
        own.pins.clear()
        if own.vxlan:
            own.vxlan = msgspec.structs.replace(own.vxlan, bridge="")
        if own.outer:
            own.outer = msgspec.structs.replace(own.outer, bridge="")
        for name, tap in self.taps.items():
            if tap.bridge == names.bridge(network):
                self.taps[name] = Tap(bridge="", up=tap.up)

    def _remove_gateway(self, own: Network) -> None:
        own.outer = own.inner = None
        own.inner_neighbours.clear()
        own.pins = {mac: device for mac, device in own.pins.items() if not device.startswith("g-")}

    def add_tap(self, tap: str, bridge: str) -> None:
        """A domain starts."""
        self.taps[tap] = Tap(bridge=bridge, up=True)

    def remove_tap(self, tap: str) -> None:
        """A domain ends."""
        self.taps.pop(tap, None)
        for own in self.networks.values():
            own.pins = {mac: device for mac, device in own.pins.items() if device != tap}

    def ensure_namespace(self, network: Id, halfway: Halfway) -> int:
        """Make a router namespace; the name comes first, as in `ip netns add`."""
        own = self.networks.setdefault(network, Network())
        if own.namespace is None:
            own.half_namespace = True
            halfway("namespace-named")
            self._inodes += 1
            own.namespace, own.half_namespace = self._inodes, False
        return own.namespace

    def remove_namespace(self, network: Id) -> None:
        """Remove it with all that is in it."""
        own = self.networks.setdefault(network, Network())
        own.namespace, own.half_namespace, own.served = None, False, None
        self._remove_gateway(own)
        self.sweep()

    def ensure_dnsmasq(self, network: Id, files: DnsmasqFiles, halfway: Halfway) -> None:
        """Run dnsmasq on these files; the directory comes first."""
        own = self.networks.setdefault(network, Network())
        own.directory = True
        halfway("dnsmasq-directory")
        own.served = files

    def remove_dnsmasq(self, network: Id) -> None:
        """No dnsmasq, no files."""
        own = self.networks.setdefault(network, Network())
        own.served, own.directory = None, False
        own.leases.clear()
        self.sweep()

    def release(self, network: Id, leases: Iterable[Lease]) -> None:
        """These leases don't exist."""
        self.networks.setdefault(network, Network()).leases -= set(leases)

    def lease(self, macs: Iterable[str]) -> None:
        """Guests with these MACs ask for their addresses."""
        wanted = set(macs)
        for own in self.networks.values():
            for line in own.served.dhcp_hosts.splitlines() if own.served else ():
                mac, address, *_ = line.split(",")
                if mac in wanted:
                    own.leases.add(Lease(mac=mac, address=address))

    def sweep(self) -> None:
        """Forget networks of which nothing is left."""
        for network in [network for network, own in self.networks.items() if own == Network()]:
            del self.networks[network]

    # --- the auditor's view -----------------------------------------------------------------------------------------

    def survey(self, owner_of_mac: dict[str, Id]) -> Iterable[Found]:
        """List everything, as `agent.kinds.network` words it."""
        for network, own in sorted(self.networks.items()):
            for what, name, there in (
                ("bridge", names.bridge(network), own.bridge),
                ("vxlan", names.vxlan(network), own.vxlan),
                ("veth", names.gateway_outer(network), own.outer),
                ("veth", names.gateway_inner(network), own.inner),
                ("namespace", names.router_namespace(network), own.namespace or own.half_namespace),
                ("dnsmasq", f"/run/skerry-agent/networks/{network}", own.directory),
            ):
                if there:
                    yield Found(what=what, name=name, owner=network)
            yield from _survey_entries(network, own, owner_of_mac)
        for tap in sorted(self.taps):
            yield Found(what="tap", name=tap, owner=names.owner_of(tap))


def _survey_entries(network: Id, own: Network, owner_of_mac: dict[str, Id]) -> Iterable[Found]:
    vxlan, inner = names.vxlan(network), names.gateway_inner(network)
    for mac in sorted({mac for mac, _ in own.tunnels} | own.forwards):
        yield Found(what="fdb", name=f"{mac} {vxlan}", owner=owner_of_mac.get(mac))
    for mac, device in sorted(own.pins.items()):
        owner = network if device.startswith("g-") else owner_of_mac.get(mac)
        yield Found(what="fdb", name=f"{mac} {device}", owner=owner)
    for device, entries in ((vxlan, own.neighbours), (inner, own.inner_neighbours)):
        for address, mac in sorted(entries.items()):
            yield Found(what="neighbour", name=f"{address} {mac} {device}", owner=owner_of_mac.get(mac))
    for lease in sorted(own.leases, key=lambda lease: (lease.address, lease.mac)):
        owner = owner_of_mac.get(lease.mac)
        yield Found(what="lease", name=f"{lease.mac} {lease.address}", owner=owner, detail=network)


def _change_entries(own: Network, remove: Entries, add: Entries) -> None:
    if own.vxlan is None:
        return
    gone = {mac for mac, _ in remove.tunnels} | {mac for mac, _ in add.tunnels}
    own.tunnels = {(mac, vtep) for mac, vtep in own.tunnels if mac not in gone} | set(add.tunnels)
    own.forwards -= remove.forwards
    if own.vxlan.bridge:
        own.forwards |= add.forwards
    for address, _ in remove.neighbours:
        own.neighbours.pop(address, None)
    own.neighbours.update(add.neighbours)
