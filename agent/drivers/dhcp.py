"""What dnsmasq is told about one network, and what it shows: files as text from the documents, leases. No I/O."""

import hashlib
from collections.abc import Iterable
from ipaddress import IPv4Network
from pathlib import Path

import msgspec

from agent.drivers.links import METADATA_ADDRESS
from common import names
from common.documents import NetworkDoc, PortDoc

LEASE_TIME = "1h"
LEASE_S = 3600
"""A guest asks again after half of it; a changed MTU or address reaches it by then."""


class DnsmasqFiles(msgspec.Struct, frozen=True, kw_only=True):
    """The three files of one dnsmasq. Another `conf` needs a restart, the others are read again on SIGHUP."""

    conf: str
    dhcp_hosts: str
    """MAC, address and name of each guest on this host."""
    hosts: str
    """Address and names of each guest of the network, on whatever host."""

    @property
    def conf_digest(self) -> str:
        """Return the name of this configuration."""
        return digest(self.conf)

    @property
    def hosts_digest(self) -> str:
        """Return the name of this set of guests."""
        return digest(self.dhcp_hosts, self.hosts)


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """An address handed out."""

    mac: str
    address: str


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A network's dnsmasq as it is seen."""

    running: bool = False
    pid: int = 0
    conf: str = ""
    """Digest of the configuration it runs on; empty: unknown, or its file is another by now."""
    hosts: str = ""
    """Digest of the guests it was told of; empty likewise."""
    device: int = 0
    """The index of the device it bound itself to when it started."""
    leases: frozenset[Lease] = frozenset()
    leftovers: bool = False
    """There is a directory, or a process in another namespace than the present one."""


def digest(*texts: str) -> str:
    """Return one short name for some texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]


def files(network: NetworkDoc, local: Iterable[PortDoc], ports: Iterable[PortDoc], directory: Path) -> DnsmasqFiles:
    """Return the files for a network with these `local` ports (leases) among all its `ports` (names)."""
    return DnsmasqFiles(
        conf=_conf(network, directory),
        dhcp_hosts="".join(f"{port.mac},{port.address},{port.hostname},{LEASE_TIME}\n" for port in _sorted(local)),
        hosts="".join(f"{port.address} {port.hostname}.{network.domain} {port.hostname}\n" for port in _sorted(ports)),
    )


def _sorted(ports: Iterable[PortDoc]) -> list[PortDoc]:
    return sorted(ports, key=lambda port: (port.vm, port.index))


def _conf(network: NetworkDoc, directory: Path) -> str:
    cidr = IPv4Network(network.cidr, strict=False)
    routes = f"{METADATA_ADDRESS}/32,{network.gateway},0.0.0.0/0,{network.gateway}"
    lines = (
        "user=dnsmasq",
        f"interface={names.gateway_inner(network.id)}",
        "except-interface=lo",
        "bind-interfaces",
        # No names but the network's own: nothing is asked of, or told to, the world.
        "no-resolv",
        "no-hosts",
        "no-poll",
        "domain-needed",
        "bogus-priv",
        f"local=/{network.domain}/",
        f"domain={network.domain}",
        f"addn-hosts={directory / 'hosts'}",
        # Static leases only: an unknown MAC gets no answer.
        "dhcp-authoritative",
        "no-ping",
        f"dhcp-range={cidr.network_address},static,{cidr.netmask},{LEASE_TIME}",
        f"dhcp-lease-max={cidr.num_addresses}",
        f"dhcp-hostsfile={directory / 'dhcp-hosts'}",
        f"dhcp-leasefile={directory / 'leases'}",
        f"dhcp-option=option:router,{network.gateway}",
        f"dhcp-option=option:dns-server,{network.gateway}",
        f"dhcp-option=option:classless-static-route,{routes}",
        # Forced: a guest that doesn't ask for it would send frames that don't fit the tunnel.
        f"dhcp-option-force=option:mtu,{network.mtu}",
        "quiet-dhcp",
        f"pid-file={directory / 'dnsmasq.pid'}",
    )
    return "\n".join((f"# Written by skerry-agent for {network.id}.", *lines, ""))
