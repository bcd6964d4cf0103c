"""Prometheus metrics: figures of the working set at the moment of the scrape, and counters of the API itself."""

from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, GCCollector, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from common.ids import HostId
from common.kinds import KINDS
from common.kinds.kind import AnyResource
from common.protocol import GuestMetrics, HostMetrics
from controller.api.ports import Readiness
from controller.kinds.quotas import ACCOUNTS, Standard, uses_of
from controller.store.working import HostView, WorkingSet

CONTENT_TYPE = CONTENT_TYPE_LATEST

Labels = tuple[str, ...]
Samples = Iterable[tuple[Labels, float]]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One metric: its name, what it says, its labels."""

    name: str
    type: Literal["gauge", "counter", "histogram"]
    summary: str
    labels: Labels = ()


_HOST = ("host",)
_VM = ("project", "vm", "vm_id", "host")

HTTP = Shown(
    name="skerry_http_request_seconds",
    type="histogram",
    summary="How long the API took to answer, by method, route and status.",
    labels=("method", "route", "status"),
)

METRICS: tuple[Shown, ...] = (
    Shown(name="skerry_ready", type="gauge", summary="1 while the controller is ready to serve."),
    Shown(
        name="skerry_resources", type="gauge", labels=("kind", "project", "state"),
        summary="Resources by kind, project and state.",
    ),
    Shown(
        name="skerry_operations_open", type="gauge", labels=("kind", "state"),
        summary="Operations that are running or blocked.",
    ),
    Shown(
        name="skerry_operation_oldest_seconds", type="gauge", labels=("kind",),
        summary="Age of the oldest open operation of a kind.",
    ),
    Shown(name="skerry_revision", type="counter", summary="Changes the store has made since it was made."),
    Shown(name="skerry_controllers", type="gauge", summary="Living controllers of a shared database; 0: not shared."),
    Shown(name="skerry_host_connected", type="gauge", summary="1 while the host's agent is connected.", labels=_HOST),
    Shown(name="skerry_host_cpu_percent", type="gauge", summary="CPU use of the host, 0 to 100.", labels=_HOST),
    Shown(name="skerry_host_load_1", type="gauge", summary="Load of the host over a minute.", labels=_HOST),
    Shown(name="skerry_host_memory_bytes", type="gauge", summary="Memory the host has.", labels=_HOST),
    Shown(name="skerry_host_memory_used_bytes", type="gauge", summary="Memory in use on the host.", labels=_HOST),
    Shown(name="skerry_host_disk_used_bytes", type="gauge", summary="Disk in use in the host's pool.", labels=_HOST),
    Shown(name="skerry_host_pool_percent", type="gauge", summary="How full the host's pool is.", labels=_HOST),
    Shown(
        name="skerry_host_pool_metadata_percent", type="gauge", labels=_HOST,
        summary="How full the room is that a thin pool keeps for its own books.",
    ),
    Shown(
        name="skerry_host_pool_closed", type="gauge", labels=_HOST,
        summary="1 while the host takes no more volumes, since its pool is filled to its watermark.",
    ),
    Shown(name="skerry_host_network_receive_bytes", type="counter", summary="Bytes the host received.", labels=_HOST),
    Shown(name="skerry_host_network_transmit_bytes", type="counter", summary="Bytes the host sent.", labels=_HOST),
    Shown(name="skerry_host_agent_memory_bytes", type="gauge", summary="Memory of the host's agent.", labels=_HOST),
    Shown(name="skerry_host_guests_running", type="gauge", summary="Guests that run on the host.", labels=_HOST),
    Shown(name="skerry_host_vcpus_sellable", type="gauge", summary="vCPUs the host may sell.", labels=_HOST),
    Shown(name="skerry_host_vcpus_sold", type="gauge", summary="vCPUs the host has sold.", labels=_HOST),
    Shown(name="skerry_host_memory_sellable_bytes", type="gauge", summary="Memory the host may sell.", labels=_HOST),
    Shown(name="skerry_host_memory_sold_bytes", type="gauge", summary="Memory the host has sold.", labels=_HOST),
    Shown(
        name="skerry_host_differences", type="gauge", labels=_HOST,
        summary="Differences between wish and reality that the last audit of the host found.",
    ),
    Shown(
        name="skerry_quota_used", type="gauge", labels=("of", "name", "counter"),
        summary="What a project, or all projects of a domain, use of a counter.",
    ),
    Shown(
        name="skerry_quota_limit", type="gauge", labels=("of", "name", "counter"),
        summary="The limit that holds; none: no sample.",
    ),
    Shown(name="skerry_quota_differences", type="gauge", summary="What the last recount of quotas had to put right."),
    Shown(name="skerry_vm_cpu_seconds", type="counter", summary="CPU time the guest used since its start.", labels=_VM),
    Shown(name="skerry_vm_memory_used_bytes", type="gauge", summary="Memory the guest uses on its host.", labels=_VM),
    Shown(name="skerry_vm_disk_read_bytes", type="counter", summary="Bytes the guest read from disks.", labels=_VM),
    Shown(name="skerry_vm_disk_written_bytes", type="counter", summary="Bytes the guest wrote to disks.", labels=_VM),
    Shown(name="skerry_vm_network_receive_bytes", type="counter", summary="Bytes the guest received.", labels=_VM),
    Shown(name="skerry_vm_network_transmit_bytes", type="counter", summary="Bytes the guest sent.", labels=_VM),
)  # fmt: skip

MIB, GIB = 1 << 20, 1 << 30


class Metrics:
    """The registry of one controller."""

    def __init__(self, seen: WorkingSet, readiness: Readiness, clock: Callable[[], float], standard: Standard) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Figures(seen, readiness, clock, standard))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._http = Histogram(HTTP.name, HTTP.summary, HTTP.labels, registry=self._registry)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answer of the API. `route` is the pattern, not the path: its values are few."""
        self._http.labels(method, route, str(status)).observe(seconds)

    def exposition(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)


class _Figures(Collector):
    """The working set's figures, made anew at each scrape."""

    def __init__(self, seen: WorkingSet, readiness: Readiness, clock: Callable[[], float], standard: Standard) -> None:
        self._seen = seen
        self._readiness = readiness
        self._clock = clock
        self._standard = standard

    def describe(self) -> Iterable[Metric]:
        return [_family(shown) for shown in METRICS]

    def collect(self) -> Iterator[Metric]:
        samples = self._samples()
        for shown in METRICS:
            family = _family(shown)
            for labels, value in samples[shown.name]:
                family.add_metric(labels, value)
            yield family

    def _samples(self) -> dict[str, Samples]:
        return {
            "skerry_ready": [((), 0 if self._readiness() else 1)],
            "skerry_revision": [((), self._seen.revision)],
            "skerry_controllers": [((), sum(one.alive for one in self._seen.controllers()))],
            "skerry_resources": _resources(self._seen),
            **_operations(self._seen, self._clock()),
            **_hosts(self._seen),
            **_vms(self._seen),
            **_quotas(self._seen, self._standard),
        }


def _family(shown: Shown) -> GaugeMetricFamily | CounterMetricFamily:
    family = CounterMetricFamily if shown.type == "counter" else GaugeMetricFamily
    return family(shown.name, shown.summary, labels=shown.labels)


def _resources(seen: WorkingSet) -> Samples:
    counts = Counts((row.kind, row.project, row.status.state) for kind in KINDS for row in seen.of_kind(kind.name))
    return [(labels, count) for labels, count in sorted(counts.items())]


def _operations(seen: WorkingSet, now: float) -> dict[str, Samples]:
    running = [operation for operation in seen.operations() if operation.finished_at is None]
    counts = Counts((operation.kind, str(operation.state)) for operation in running)
    oldest: dict[str, float] = {}
    for operation in running:
        oldest[operation.kind] = max(oldest.get(operation.kind, 0.0), now - operation.created_at)
    return {
        "skerry_operations_open": sorted(counts.items()),
        "skerry_operation_oldest_seconds": [((kind,), age) for kind, age in sorted(oldest.items())],
    }


_OF_HOST: dict[str, Callable[[HostMetrics], float]] = {
    "skerry_host_cpu_percent": lambda said: said.cpu_percent,
    "skerry_host_load_1": lambda said: said.load_1,
    "skerry_host_memory_used_bytes": lambda said: said.memory_used_mib * MIB,
    "skerry_host_disk_used_bytes": lambda said: said.disk_used_gib * GIB,
    "skerry_host_pool_percent": lambda said: said.pool_percent,
    "skerry_host_pool_metadata_percent": lambda said: said.pool_metadata_percent,
    "skerry_host_network_receive_bytes": lambda said: said.net_rx_bytes,
    "skerry_host_network_transmit_bytes": lambda said: said.net_tx_bytes,
    "skerry_host_agent_memory_bytes": lambda said: said.agent_rss_mib * MIB,
    "skerry_host_guests_running": lambda said: said.guests_running,
}

_OF_GUEST: dict[str, Callable[[GuestMetrics], float]] = {
    "skerry_vm_cpu_seconds": lambda said: said.cpu_ns / 1e9,
    "skerry_vm_memory_used_bytes": lambda said: said.memory_used_mib * MIB,
    "skerry_vm_disk_read_bytes": lambda said: said.disk_read_bytes,
    "skerry_vm_disk_written_bytes": lambda said: said.disk_write_bytes,
    "skerry_vm_network_receive_bytes": lambda said: said.net_rx_bytes,
    "skerry_vm_network_transmit_bytes": lambda said: said.net_tx_bytes,
}


def _quotas(seen: WorkingSet, standard: Standard) -> dict[str, Samples]:
    uses = [
        ((kind, row.name, use.counter), use)
        for kind in ACCOUNTS
        for row in sorted(seen.of_kind(kind), key=lambda row: row.name)
        for use in uses_of(row, seen, standard)
    ]
    last = seen.quotas_audited
    return {
        "skerry_quota_used": [(labels, use.used) for labels, use in uses if use.used],
        "skerry_quota_limit": [(labels, use.limit) for labels, use in uses if use.limit is not None],
        "skerry_quota_differences": [((), last.differences)] if last else [],
    }


def _live(seen: WorkingSet) -> list[tuple[AnyResource, HostView]]:
    return [(row, seen.host(HostId(row.id))) for row in sorted(seen.of_kind("host"), key=lambda row: row.name)]


def _hosts(seen: WorkingSet) -> dict[str, Samples]:
    hosts = _live(seen)
    talking = [(row, view.metrics.host) for row, view in hosts if view.connected and view.metrics]
    selling = [(row, seen.capacity(HostId(row.id)), seen.used(HostId(row.id))) for row, _ in hosts]
    return {
        "skerry_host_connected": [((row.name,), float(view.connected)) for row, view in hosts],
        "skerry_host_differences": [((row.name,), view.audited.differences) for row, view in hosts if view.audited],
        "skerry_host_memory_bytes": [
            ((row.name,), view.inventory.memory_mib * MIB) for row, view in hosts if view.inventory
        ],
        "skerry_host_pool_closed": [((row.name,), float(row.spec.closed_by_pool)) for row, _ in hosts],
        "skerry_host_vcpus_sellable": [((row.name,), what.vcpus) for row, what, _ in selling if what],
        "skerry_host_vcpus_sold": [((row.name,), used.vcpus) for row, _, used in selling],
        "skerry_host_memory_sellable_bytes": [((row.name,), what.memory_mib * MIB) for row, what, _ in selling if what],
        "skerry_host_memory_sold_bytes": [((row.name,), used.memory_mib * MIB) for row, _, used in selling],
        **{name: [((row.name,), read(said)) for row, said in talking] for name, read in _OF_HOST.items()},
    }


def _vms(seen: WorkingSet) -> dict[str, Samples]:
    """A host may speak only of what is placed on it; what it says of others is not shown."""
    guests = [
        ((vm.project, vm.name, vm.id, host.name), said)
        for host, view in _live(seen)
        if view.connected and view.metrics
        for said in view.metrics.guests
        if (vm := seen.get(said.vm)) and (there := seen.placement(said.vm)) and there.host == host.id
    ]
    return {name: [(labels, read(said)) for labels, said in guests] for name, read in _OF_GUEST.items()}
