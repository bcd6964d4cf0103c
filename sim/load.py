"""What simulated guests use: counters that grow as those of real guests do, busy by day and quiet at night."""

import math
import random

from common.clock import Clock
from common.ids import Id
from common.protocol import GuestMetrics, HostMetrics, Metrics
from sim.machine import Machine

DAY_S = 86_400.0


class _Guest:
    """The counters of one guest since its start."""

    __slots__ = ("cpu_ns", "network", "read", "share", "written")

    def __init__(self, chance: random.Random) -> None:
        self.share = min(0.95, chance.lognormvariate(-2.5, 1.0))
        """Of its CPUs that it uses: a tenth in the middle, a few are busy."""
        self.cpu_ns = self.network = self.read = self.written = 0


class Load:
    """Samples one simulated host. The same machine makes the same load."""

    def __init__(self, machine: Machine, clock: Clock) -> None:
        self._machine = machine
        self._clock = clock
        self._chance = random.Random(machine.name)
        self._guests: dict[Id, _Guest] = {}
        self._at = clock()
        self._received = self._sent = 0

    def sample(self) -> Metrics:
        """Return the next vector."""
        now = self._clock()
        passed, self._at = max(0.0, now - self._at), now
        runs = self._machine.guests.runs
        for vm in self._guests.keys() - runs.keys():
            del self._guests[vm]
        day = 0.75 + 0.25 * math.sin(2 * math.pi * now / DAY_S)
        busy, guests = 0.0, []
        for vm, run in runs.items():
            own = self._guests.get(vm) or self._guests.setdefault(vm, _Guest(self._chance))
            share = min(1.0, own.share * day * self._chance.uniform(0.5, 1.5))
            busy += share * run.vcpus
            own.cpu_ns += int(share * run.vcpus * passed * 1e9)
            own.read += int(share * passed * 2e5)
            own.written += int(share * passed * 8e5)
            own.network += int(share * passed * 1.5e6)
            guests.append(
                GuestMetrics(
                    vm, own.cpu_ns, int(run.memory_mib * (0.3 + 0.5 * own.share)), own.read, own.written,
                    own.network, own.network // 4,
                )
            )  # fmt: skip
        self._received, self._sent = self._received + int(passed * busy * 1.5e6), self._sent + int(passed * busy * 4e5)
        return Metrics(at=now, host=self._host(busy, len(guests)), guests=tuple(guests))

    def _host(self, busy: float, guests: int) -> HostMetrics:
        return HostMetrics(
            cpu_percent=round(min(100.0, 100.0 * busy / self._machine.threads), 2),
            memory_used_mib=2048 + sum(run.memory_mib for run in self._machine.guests.runs.values()),
            disk_used_gib=round(sum(disk.allocated_bytes for disk in self._machine.disks.values()) / (1 << 30), 3),
            load_1=round(busy, 2),
            net_rx_bytes=self._received,
            net_tx_bytes=self._sent,
            agent_rss_mib=48.0,
            guests_running=guests,
        )
