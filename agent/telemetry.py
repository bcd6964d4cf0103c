"""What host and guests use: one vector per interval."""

import asyncio

from agent.drivers import machine
from agent.drivers.hypervisor import DomainUsage, Hypervisor
from agent.drivers.pool import Pool
from agent.drivers.shown import GIB
from common import ids
from common.clock import Clock
from common.ids import Id
from common.protocol import GuestMetrics, HostMetrics, Metrics


class Telemetry:
    """Samples this host."""

    def __init__(self, pool: Pool, hypervisor: Hypervisor, clock: Clock) -> None:
        self._pool, self._hypervisor, self._clock = pool, hypervisor, clock

    async def sample(self) -> Metrics:
        """Read every counter once. Raises Temporary where libvirt does not answer."""
        usage = await self._hypervisor.usage()
        load, use = await asyncio.to_thread(machine.load), await self._pool.use()
        guests = tuple(guest(domain) for domain in usage if ids.is_id(domain.name, "vm"))
        host = HostMetrics(
            cpu_percent=load.cpu_percent,
            memory_used_mib=load.memory_used_mib,
            disk_used_gib=use.used_bytes / GIB,
            load_1=load.load_1,
            net_rx_bytes=load.net_rx_bytes,
            net_tx_bytes=load.net_tx_bytes,
            agent_rss_mib=load.agent_rss_mib,
            guests_running=len(guests),
            pool_percent=round(100 * use.used_bytes / max(1, use.size_bytes), 1),
            pool_metadata_percent=round(use.metadata_percent, 1),
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
