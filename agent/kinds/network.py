"""Networks on a host: bridge, VXLAN device, router namespace with gateway, DHCP, DNS and metadata, and their ports."""

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar, assert_never

from agent.drivers import netlink, netns
from agent.drivers.dnsmasq import Dnsmasq
from agent.drivers.links import METADATA_ADDRESS
from agent.drivers.rtnetlink import NTF_MASTER, Link
from agent.drivers.vigil import Vigil
from agent.kinds.network_plan import (
    AnyStep,
    ChangeEntries,
    ChangePins,
    DeviceStep,
    EnsureBridge,
    EnsureDnsmasq,
    EnsureGateway,
    EnsureMetadataListener,
    EnsureNamespace,
    EnsureVxlan,
    Outcome,
    Place,
    PlugTaps,
    ReleaseLeases,
    RemoveDevice,
    RemoveDnsmasq,
    RemoveMetadataListener,
    RemoveNamespace,
    Seen,
    ServiceStep,
    network_of,
    plan,
    taps_of,
)
from agent.kinds.unit import Wish
from agent.metadata import AskedAt, Guest, Lookup, MetadataService, VoucherOf
from common import names
from common.errors import Temporary
from common.faults import Faults
from common.ids import HostId, Id
from common.protocol import Found

T = TypeVar("T")

OwnerOfMac = Callable[[str], Id | None]
"""MAC -> the VM whose port it is, as far as the documents on the agent's disk tell."""

_LANE_TIMEOUT_S = 30.0
_METADATA_PORT = 80
_CONNECT_TIMEOUT_S = 1.0


class Networks:
    """The network units of one host. Close it at the end; what it made on the host stays.

    `ended` is told of a network whose dnsmasq, once seen, is no more.
    """

    name = "network"

    def __init__(
        self,
        *,
        host_id: HostId,
        underlay: str,
        run_dir: Path,
        lookup: Lookup,
        owner_of_mac: OwnerOfMac,
        faults: Faults,
        voucher: VoucherOf = lambda _vm: None,
        ended: Callable[[Id], None] = lambda _network: None,
    ) -> None:
        self._place = Place(host=host_id, underlay=underlay, run_dir=run_dir)
        self._faults = faults
        self._owner_of_mac = owner_of_mac
        self._dnsmasq = Dnsmasq(run_dir)
        self._vigil = Vigil(ended)
        self._metadata = MetadataService(lookup, self._pin, voucher)
        # One thread for all netlink calls: they are short, and in order.
        self._lane = ThreadPoolExecutor(max_workers=1, thread_name_prefix="netlink")

    async def close(self) -> None:
        """Close listeners and lane. Devices, namespaces and dnsmasq go on serving."""
        self._vigil.close()
        await self._metadata.close_all()
        self._lane.shutdown(wait=False, cancel_futures=True)

    async def observe(self, wish: Wish) -> Seen:
        """Look at one network, its services, and the taps of its local ports."""
        network, taps = network_of(wish), taps_of(wish, self._place.host)
        segment = await self._in_lane(lambda: netlink.see(network, taps))
        served = await self._in_lane(lambda: self._dnsmasq.see(network))
        self._vigil.watch(network, served.pid)
        return Seen(segment=segment, served=served, listener=self._metadata.listening(network))

    def plan(self, wish: Wish, seen: Seen, now: float) -> Outcome:  # noqa: ARG002 - nothing here depends on time
        """Decide the next step. Pure."""
        return plan(wish, seen, self._place)

    async def apply(self, step: AnyStep) -> None:
        """Carry out one step. Raises Temporary where it could not be done now."""
        point = f"network.{type(step).__name__}"
        self._faults.reached(f"{point}.before")
        if isinstance(step, DeviceStep):
            await self._in_lane(lambda: _change_devices(step))
        else:
            await self._serve(step)
        self._faults.reached(f"{point}.after")

    async def leased_at(self, network: Id, mac: str) -> float | None:
        """Return when an address was last given to a MAC."""
        return await self._in_lane(lambda: self._dnsmasq.leased_at(network, mac))

    def asked(self, vm: Id) -> AskedAt:
        """Return when a machine of this host first asked the metadata service."""
        return self._metadata.asked(vm)

    async def unreachable(self, network: Id, address: str, port: int) -> str:
        """Try a TCP connection from a network's gateway. Return why there is none; empty: there was one."""
        try:
            probe = await self._in_lane(lambda: netns.inside(names.router_namespace(network), _tcp_socket))
        except Temporary as err:
            return err.detail
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await asyncio.get_running_loop().sock_connect(probe, (address, port))
            return ""
        except ConnectionRefusedError:
            return f"nothing listened on port {port} of {address}"
        except (TimeoutError, OSError) as err:
            return f"port {port} of {address} gave no answer ({type(err).__name__})"
        finally:
            probe.close()

    async def survey(self) -> tuple[Found, ...]:
        """List everything of networks on this host, orphans included."""
        devices = await self._in_lane(self._survey_devices)
        services = await self._in_lane(self._survey_services)
        return (*devices, *services)

    async def _serve(self, step: ServiceStep) -> None:
        network = step.network
        match step:
            case EnsureNamespace():
                await netns.ensure(names.router_namespace(network))
            case EnsureDnsmasq(files=files, device=device):
                await self._dnsmasq.ensure(network, files, device)
            case ReleaseLeases(leases=leases):
                await self._dnsmasq.release(network, leases)
            case EnsureMetadataListener():
                await self._listen(network)
            case RemoveMetadataListener():
                await self._metadata.close(network)
            case RemoveDnsmasq():
                await self._dnsmasq.remove(network)
            case RemoveNamespace():
                await netns.remove(names.router_namespace(network))
            case _:
                assert_never(step)

    async def _listen(self, network: Id) -> None:
        """Open the metadata listener on a socket of the router namespace, in place of one of an earlier namespace."""
        await self._metadata.close(network)
        space = names.router_namespace(network)
        inode = netns.inode(space)
        if inode is None:
            raise Temporary(f"network namespace {space} has gone; it will be made again")
        bound = await self._in_lane(lambda: netns.inside(space, _metadata_socket))
        try:
            await self._metadata.open(network, bound, inode)
        except BaseException:
            bound.close()
            raise

    async def _pin(self, network: Id, guest: Guest) -> bool:
        """Tie the address and MAC a guest asks from to its own tap, at the moment it asks."""
        nic = guest.asked
        tap = names.tap(guest.vm, nic.index)
        return await self._in_lane(lambda: netlink.pin(network, tap, nic.address, nic.mac))

    async def _in_lane(self, work: Callable[[], T]) -> T:
        """Run blocking work in the lane. Raises Temporary where it does not end in time."""
        try:
            async with asyncio.timeout(_LANE_TIMEOUT_S):
                return await asyncio.get_running_loop().run_in_executor(self._lane, work)
        except TimeoutError as err:
            raise Temporary(f"the kernel did not answer netlink calls within {_LANE_TIMEOUT_S:.0f} s") from err

    def _survey_devices(self) -> tuple[Found, ...]:
        found: list[Found] = []
        for link in netlink.links():
            owner = names.owner_of(link.name)
            what = _KINDS_BY_PREFIX.get(link.name[:2])
            if owner is None:
                continue
            if what is not None:
                found.append(Found(what=what, name=link.name, owner=owner))
            found += self._survey_entries(link, "")
        return tuple(found)

    def _survey_services(self) -> tuple[Found, ...]:
        found: list[Found] = []
        for space in netns.listed():
            owner = names.owner_of(space)
            if owner is None:
                continue
            found.append(Found(what="namespace", name=space, owner=owner))
            if netns.inode(space) is not None:
                found += netns.inside(space, self._survey_inside)
        for network in self._dnsmasq.networks():
            served = self._dnsmasq.see(network)
            detail = "running" if served.running else "not running"
            found.append(
                Found(what="dnsmasq", name=str(self._dnsmasq.directory(network)), owner=network, detail=detail)
            )
            for lease in sorted(served.leases, key=lambda lease: (lease.address, lease.mac)):
                name = f"{lease.mac} {lease.address}"
                found.append(Found(what="lease", name=name, owner=self._owner_of_mac(lease.mac), detail=network))
        return tuple(found)

    def _survey_inside(self) -> list[Found]:
        """List the devices and permanent neighbours of a router namespace, from within."""
        found: list[Found] = []
        for link in netlink.links():
            owner = names.owner_of(link.name)
            if owner is not None:
                found.append(Found(what="veth", name=link.name, owner=owner, detail=f"in namespace {owner}"))
                found += self._survey_entries(link, f"in namespace {owner}")
        return found

    def _survey_entries(self, link: Link, where: str) -> list[Found]:
        """List the static entries of a device. The gateway's own belong to its network."""
        fdb, neighbours = netlink.static_entries(link)
        found = []
        for entry in fdb:
            place = "bridge" if entry.flags & NTF_MASTER else f"tunnel to {entry.address}"
            found.append(
                Found(what="fdb", name=f"{entry.mac} {link.name}", owner=self._owner(entry.mac, link), detail=place)
            )
        for entry in neighbours:
            name = f"{entry.address} {entry.mac} {link.name}"
            found.append(Found(what="neighbour", name=name, owner=self._owner(entry.mac, link), detail=where))
        return found

    def _owner(self, mac: str, link: Link) -> Id | None:
        if link.name.startswith("g-"):
            return names.owner_of(link.name)
        return self._owner_of_mac(mac)


_KINDS_BY_PREFIX = {"b-": "bridge", "x-": "vxlan", "g-": "veth", "r-": "veth"}


def _change_devices(step: DeviceStep) -> None:
    """Carry out a step of netlink alone. Blocks."""
    network = step.network
    match step:
        case EnsureBridge(bridge=bridge):
            netlink.ensure_bridge(names.bridge(network), bridge)
        case EnsureVxlan(vxlan=vxlan):
            netlink.ensure_vxlan(names.vxlan(network), vxlan)
        case EnsureGateway(outer=outer, inner=inner):
            netlink.ensure_gateway(network, outer, inner)
        case PlugTaps(taps=taps):
            netlink.plug(taps, names.bridge(network))
        case ChangeEntries(remove=remove, add=add):
            netlink.change_entries(names.vxlan(network), remove, add)
        case ChangePins(remove=gone, add=new):
            netlink.change_pins(network, gone, new)
        case RemoveDevice(device=device):
            netlink.remove_link(device)
        case _:
            assert_never(step)


def _tcp_socket() -> socket.socket:
    """Return a socket of the namespace of the calling thread."""
    probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    probe.setblocking(False)
    return probe


def _metadata_socket() -> socket.socket:
    """Bind the metadata address in the namespace of the calling thread. Gateway and address exist by then."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((METADATA_ADDRESS, _METADATA_PORT))
    except OSError as err:
        bound.close()
        raise Temporary(f"{METADATA_ADDRESS}:{_METADATA_PORT} can't be bound: {err}") from err
    return bound
