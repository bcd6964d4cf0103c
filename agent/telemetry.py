"""What host and guests use: one vector per interval."""

import asyncio

from agent.drivers import machine
from agent.drivers.hypervisor import DomainUsage, Hypervisor
from agent.drivers.place import Place
from common import ids
from common.clock import Clock
from common.ids import Id
from common.protocol import GuestMetrics, HostMetrics, Metrics


class Telemetry:
    """Samples this host."""

    def __init__(self, place: Place, hypervisor: Hypervisor, clock: Clock) -> None:
        self._place, self._hypervisor, self._clock = place, hypervisor, clock

    async def sample(self) -> Metrics:
        """Read every counter once. Raises Temporary where libvirt does not answer."""
        usage = await self._hypervisor.usage()
        load, (_, disk_used_gib) = await asyncio.to_thread(
            lambda: (machine.load(), machine.disk_gib(self._place.volumes))
        )
        guests = tuple(guest(domain) for domain in usage if ids.is_id(domain.name, "vm"))
        host = HostMetrics(
            cpu_percent=load.cpu_percent,
            memory_used_mib=load.memory_used_mib,
            disk_used_gib=disk_used_gib,
            load_1=load.load_1,
            net_rx_bytes=load.net_rx_bytes,
            net_tx_bytes=load.net_tx_bytes,
            agent_rss_mib=load.agent_rss_mib,
            guests_running=len(guests),
        )
        return Metrics(at=self._clock(), host=host, guests=guests)


def guest(usage: DomainUsage) -> GuestMetrics:
    """Return one guest's part of the vector."""
    return GuestMetrics(
        vm=Id(usage.name),
        cpu_ns=usage.cpu_ns,
        memory_used_mib=usage.memory_used_mib,
        disk_read_bytes=usage.disk_read_bytes,
        disk_write_bytes=usage.disk_write_bytes,
        net_rx_bytes=usage.net_rx_bytes,
        net_tx_bytes=usage.net_tx_bytes,
    )
