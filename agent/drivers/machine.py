"""The machine under the agent: the only module that imports psutil, and reads /proc for what psutil has not."""

import os
import platform
import socket
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import psutil

from common.errors import Invalid
from common.protocol import Nic


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """How busy the machine is."""

    cpu_percent: float
    """Of all threads, since the last time this was asked."""
    memory_used_mib: int
    load_1: float
    net_rx_bytes: int
    net_tx_bytes: int
    agent_rss_mib: float


class Cpu(msgspec.Struct, frozen=True, kw_only=True):
    """What /proc/cpuinfo says of the first processor, and how many threads there are."""

    model: str
    flags: tuple[str, ...]
    threads: int


def cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> Cpu:
    """Return the processors of this machine, as far as this process may use them."""
    found: dict[str, str] = {}
    for line in cpuinfo.read_text().splitlines():
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key.strip(), value.strip())
    flags = found.get("flags", found.get("Features", ""))
    return Cpu(
        model=found.get("model name", platform.machine()),
        flags=tuple(sorted(set(flags.split()))),
        threads=len(os.sched_getaffinity(0)),
    )


def memory_mib() -> int:
    """Return the machine's memory."""
    return int(psutil.virtual_memory().total) >> 20


def available_mib() -> int:
    """Return the memory that could be used without swapping."""
    return int(psutil.virtual_memory().available) >> 20


def cpu_sharing(groups: Path = Path("/sys/fs/cgroup")) -> str:
    """Try whether the kernel's CPU groups can be made here; say why not, empty: they can."""
    second = (groups / "cgroup.controllers").exists()
    probe = (groups if second else groups / "cpu") / f"skerry-probe-{os.getpid()}"
    try:
        probe.mkdir()
        made = (probe / ("cpu.weight" if second else "cpu.shares")).exists()
        probe.rmdir()
    except OSError as err:
        return f"{probe.parent}: {err.strerror}"
    return "" if made else f"{probe.parent} has no controller for CPUs"


def disk_gib(directory: Path) -> tuple[int, float]:
    """Return size and use of the file system that holds a directory."""
    usage = psutil.disk_usage(str(directory))
    return int(usage.total) >> 30, round(usage.used / (1 << 30), 2)


def nics(*, with_loopback: bool = False) -> tuple[Nic, ...]:
    """Return this network namespace's interfaces but those that Skerry or libvirt made, loopback only if asked for."""
    stats = psutil.net_if_stats()
    found = []
    for name, entries in sorted(psutil.net_if_addrs().items()):
        if _made_here(name) or (name == "lo" and not with_loopback):
            continue
        mac = next((entry.address for entry in entries if entry.family == psutil.AF_LINK), "")
        ip = (socket.AF_INET, socket.AF_INET6)
        addresses = tuple(entry.address.partition("%")[0] for entry in entries if entry.family in ip)
        found.append(Nic(name=name, mac=mac, mtu=stats[name].mtu if name in stats else 0, addresses=addresses))
    return tuple(found)


def _made_here(name: str) -> bool:
    return name.startswith(("b-", "x-", "g-", "r-", "vnet", "virbr")) or (name[:1] == "t" and name[1:2].isdigit())


def load() -> Load:
    """Return how busy the machine is. The first call's CPU figure is 0: there is nothing to compare with."""
    network = psutil.net_io_counters(nowrap=True)
    return Load(
        cpu_percent=psutil.cpu_percent(interval=None),
        memory_used_mib=int(psutil.virtual_memory().used) >> 20,
        load_1=round(psutil.getloadavg()[0], 2),
        net_rx_bytes=int(network.bytes_recv),
        net_tx_bytes=int(network.bytes_sent),
        agent_rss_mib=round(psutil.Process().memory_info().rss / (1 << 20), 1),
    )


def boot_id() -> str:
    """Return the kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def kernel() -> str:
    """Return the running kernel's release."""
    return platform.release()


def rp_filter_of_all() -> int:
    """Return how this network namespace filters packets by their sender everywhere: 0 not, 1 strict, 2 loose."""
    return int(Path("/proc/sys/net/ipv4/conf/all/rp_filter").read_text())


def address_towards(url: str) -> str:
    """Return the source address of the route to a URL's machine. No packet is sent. Raises Invalid without a route."""
    parts = urlsplit(url)
    try:
        (family, _, _, _, address), *_ = socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_DGRAM)
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError as err:
        raise Invalid(
            f"no address for tunnels can be found: there is no route to {parts.hostname} ({err})",
            fix="set [underlay] address to the one that other hosts reach this machine by",
        ) from err
