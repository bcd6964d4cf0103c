"""libvirt's figures and ours: the dicts that it gives and takes, by its names, without libvirt itself."""

from pathlib import Path
from typing import Any

from agent.drivers.hypervisor import DomainUsage, Sharing

_PERIOD_US = 100_000
"""Of a CPU cap, the kernel's default."""

_NO_QUOTA_US = 1 << 40
"""libvirt shows a quota beyond this where there is none (cgroup v2's `max`)."""


def _plain_shares() -> int:
    """Return the shares of a plain group: cgroup v2 counts weights of 100, v1 shares of 1024."""
    return 100 if Path("/sys/fs/cgroup/cgroup.controllers").exists() else 1024


def scheduler(sharing: Sharing) -> dict[str, int]:
    """Return a share as libvirt's scheduler parameters. A quota below 0 is none."""
    quota = _PERIOD_US * sharing.cap_percent // 100 if sharing.cap_percent else -1
    shares = round(sharing.weight * _plain_shares() / 100)
    return {"cpu_shares": max(2, shares), "global_period": _PERIOD_US, "global_quota": quota}


def sharing(found: dict[str, int]) -> Sharing:
    """Read libvirt's scheduler parameters."""
    period, quota, plain = found.get("global_period", 0), found.get("global_quota", -1), _plain_shares()
    cap = round(100 * quota / period) if period > 0 and 0 < quota < _NO_QUOTA_US else None
    return Sharing(weight=max(1, round(100 * found.get("cpu_shares", plain) / plain)), cap_percent=cap)


def usage(name: str, stats: dict[str, Any]) -> DomainUsage:
    """Add up one domain's counters (see virConnectGetAllDomainStats for the names)."""

    def summed(group: str, counter: str) -> int:
        return sum(int(stats.get(f"{group}.{i}.{counter}", 0)) for i in range(int(stats.get(f"{group}.count", 0))))

    inside = stats.get("balloon.available")
    free = stats.get("balloon.usable", stats.get("balloon.unused"))
    used_kib = inside - free if inside is not None and free is not None else stats.get("balloon.rss", 0)
    return DomainUsage(
        name=name,
        cpu_ns=int(stats.get("cpu.time", 0)),
        memory_used_mib=int(used_kib) // 1024,
        disk_read_bytes=summed("block", "rd.bytes"),
        disk_write_bytes=summed("block", "wr.bytes"),
        net_rx_bytes=summed("net", "rx.bytes"),
        net_tx_bytes=summed("net", "tx.bytes"),
    )


def number(attributes: dict[str, str], name: str) -> int | None:
    """Read a number that we wrote into a domain's metadata; None: it is not there."""
    text = attributes.get(name, "")
    return int(text) if text.isdecimal() else None
