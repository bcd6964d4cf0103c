"""What is measured of machines and hosts: names, units, where in an agent's vector, and what is believed at most."""

from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any, Literal

import msgspec

from common.protocol import GuestMetrics, HostMetrics

Of = Literal["vm", "host"]


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of a machine or a host. What it is at a moment: the agent's figure, or how quickly that grows."""

    name: str
    field: str
    """Of the agent's vector."""
    unit: str
    counter: bool
    """The agent counts from some start on; what is kept is the growth a second."""
    factor: float = 1.0
    """Of what the agent says (or of its growth a second), to have the unit."""
    grain: float
    """The smallest difference that is kept, in the unit."""
    most: float
    """More than this, in the unit, is not believed."""
    summary: str


_DISK = 1e11
_NET = 1e11
"""100 GB/s."""

VM_METRICS = (
    Metric(
        name="cpu", field="cpu_ns", unit="%", counter=True, factor=1e-7, grain=0.1, most=100.0 * 4096,
        summary="CPU time used; 100 is one vCPU that is busy all the time",
    ),
    Metric(
        name="memory", field="memory_used_mib", unit="MiB", counter=False, grain=1, most=1 << 30,
        summary="memory in use: as the guest says where it has a balloon, else as its host sees it",
    ),
    Metric(
        name="disk_read", field="disk_read_bytes", unit="B/s", counter=True, grain=1, most=_DISK,
        summary="read from its disks",
    ),
    Metric(
        name="disk_write", field="disk_write_bytes", unit="B/s", counter=True, grain=1, most=_DISK,
        summary="written to its disks",
    ),
    Metric(name="net_rx", field="net_rx_bytes", unit="B/s", counter=True, grain=1, most=_NET, summary="received"),
    Metric(name="net_tx", field="net_tx_bytes", unit="B/s", counter=True, grain=1, most=_NET, summary="sent"),
)  # fmt: skip

HOST_METRICS = (
    Metric(
        name="cpu", field="cpu_percent", unit="%", counter=False, grain=0.1, most=100.0,
        summary="CPU use; 100 is all threads busy",
    ),
    Metric(name="memory", field="memory_used_mib", unit="MiB", counter=False, grain=1, most=1 << 40, summary="in use"),
    Metric(
        name="disk", field="disk_used_gib", unit="GiB", counter=False, grain=0.01, most=1 << 40,
        summary="in use in the pool that holds volumes",
    ),
    Metric(
        name="pool", field="pool_percent", unit="%", counter=False, grain=0.1, most=100.0,
        summary="how full the pool of volumes is",
    ),
    Metric(
        name="pool_metadata", field="pool_metadata_percent", unit="%", counter=False, grain=0.1, most=100.0,
        summary="how full the room is that a thin pool keeps for its own books; 0: it keeps none",
    ),
    Metric(
        name="load", field="load_1", unit="processes", counter=False, grain=0.01, most=1e7, summary="load of a minute"
    ),
    Metric(name="net_rx", field="net_rx_bytes", unit="B/s", counter=True, grain=1, most=_NET, summary="received"),
    Metric(name="net_tx", field="net_tx_bytes", unit="B/s", counter=True, grain=1, most=_NET, summary="sent"),
    Metric(
        name="agent_memory", field="agent_rss_mib", unit="MiB", counter=False, grain=0.1, most=1 << 30,
        summary="memory of the agent's process",
    ),
    Metric(name="guests", field="guests_running", unit="machines", counter=False, grain=1, most=1e6, summary="running"),
)  # fmt: skip

METRICS: Mapping[Of, tuple[Metric, ...]] = {"vm": VM_METRICS, "host": HOST_METRICS}

WIDTH: Mapping[Of, int] = {of: len(metrics) for of, metrics in METRICS.items()}

read_guest: Callable[[GuestMetrics], tuple[float, ...]] = attrgetter(*(one.field for one in VM_METRICS))
read_host: Callable[[HostMetrics], tuple[float, ...]] = attrgetter(*(one.field for one in HOST_METRICS))


def kind_of(thing: str) -> Of:
    """Return what a thing with this id is."""
    return "host" if thing.startswith("host-") else "vm"


def named(of: Of, names: Iterable[str]) -> tuple[Metric, ...]:
    """Return the metrics of these names. Raises KeyError for one that is not there."""
    known: dict[str, Any] = {one.name: one for one in METRICS[of]}
    return tuple(known[name] for name in names)
