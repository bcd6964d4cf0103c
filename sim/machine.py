"""One simulated machine: what its disk keeps and what is lost with the power. Agents come and go on it."""

from pathlib import Path

import msgspec

from agent.drivers.shown import GIB, Disk, Held
from common import names
from common.clock import Clock
from common.cpus import LEVELS
from common.documents import ImageRef, SnapshotRef
from common.errors import Temporary
from common.firmware import SECURE_BOOT, TPM, UEFI
from common.ids import Id
from common.protocol import CPU_MODEL, HOT_PLUG, Capability, GuestCpus, Inventory
from sim.hypervisor import Guests
from sim.kernel import Halfway, Kernel

CPUS = (LEVELS["x86-64-v3"], LEVELS["x86-64-v2"] | {"aes"}, LEVELS["x86-64-v3"] | {"aes"})
"""Machines are of so many sorts; any two of them share less than one of them has."""

CAN = (frozenset({UEFI, SECURE_BOOT, TPM}), frozenset({UEFI, TPM}), frozenset[str]())
"""Likewise what they can give guests to start with."""

LEASED_AFTER_S = 1.0
"""A guest has booted and asked for its address after so long."""


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine is made of."""

    threads: int = 4
    memory_mib: int = 8704
    disk_gib: int = 100


class Machine:
    """Hardware, disk, kernel and hypervisor."""

    def __init__(self, name: str, number: int, directory: Path, clock: Clock, hardware: Hardware | None = None) -> None:
        self.name = name
        self.memory_file = directory / f"{name}.db"
        self.vtep = f"10.77.{number // 240}.{10 + number % 240}"
        self.hardware = hardware or Hardware()
        self.threads = self.hardware.threads
        self.powered = True
        self.hiccups = 0
        """So many of the next steps fail for now, as foreign calls do."""
        self.pool_full = False
        """No disk and no image can be written."""
        self.state_full = False
        """Nor can the agent's memory."""
        self.boots = 1
        self.kernel = Kernel()
        self.flags = CPUS[number % len(CPUS)]
        self.can = CAN[number % len(CAN)]
        self.guests = Guests(self.kernel, self.has_disk, clock, self.flags, self.can)
        self.disks: dict[str, Disk] = {}
        self.parts: set[str] = set()
        self.snapshots: dict[Id, Id] = {}
        """Snapshot -> volume."""
        self.content: dict[Id, str] = {}
        """Disk or snapshot -> all that was ever written to it, in one word; it differs from what each snapshot kept."""
        self.reverts: dict[Id, int] = {}
        self.images: set[str] = set()
        self.seeds: dict[Id, str] = {}
        self.destroyed: list[Id] = []
        """Ids of disks and domains that were destroyed for good, in order."""
        self._clock = clock

    def inventory(self) -> Inventory:
        """Return what an agent finds here."""
        return Inventory(
            cpu_model="simulated",
            cpu_flags=(),
            guest_cpu=GuestCpus(vendor="simulated", flags=tuple(sorted(self.flags))),
            cpu_threads=self.hardware.threads,
            memory_mib=self.hardware.memory_mib,
            disk_gib=self.hardware.disk_gib,
            nics=(),
            capabilities=tuple(Capability(name=name, works=True) for name in sorted({CPU_MODEL, HOT_PLUG} | self.can)),
            virtualisation="tcg",
            kernel="6.1",
            boot_id=f"{self.name}-{self.boots}",
            vtep=self.vtep,
            underlay_mtu=1500,
        )

    def hiccup(self) -> None:
        """Fail, where an accident asks for it."""
        if self.hiccups:
            self.hiccups -= 1
            raise Temporary("a foreign call failed for now")

    def power_cut(self) -> None:
        """Pull the plug."""
        self.powered = False
        self.boots += 1
        self.guests.power_cut()
        self.kernel.power_cut()

    # --- the pool ---------------------------------------------------------------------------------------------------

    def need_room(self) -> None:
        """Raise Temporary where the pool is full."""
        if self.pool_full:
            raise Temporary("the pool has no room left")

    def has_disk(self, name: str) -> bool:
        """Say whether a finished disk of this name exists."""
        return name in self.disks

    def make_disk(self, volume: Id, size_gib: int, over: ImageRef | SnapshotRef | None, halfway: Halfway) -> None:
        """Build it under its part's name, then rename it. A finished one is left alone."""
        name = names.volume_file(volume)
        if name in self.disks:
            return
        self.need_room()
        if isinstance(over, SnapshotRef) and self.snapshots.get(over.id) != over.volume:
            raise Temporary(f"there is no snapshot {over.id} of {over.volume}")
        self.parts.add(names.part(name))
        halfway("disk-part")
        self.parts.discard(names.part(name))
        backing = over.digest if isinstance(over, ImageRef) else ""
        self.content[volume] = self.content[over.id] if isinstance(over, SnapshotRef) else volume
        self.disks[name] = Disk(size_bytes=size_gib * GIB, allocated_bytes=200_704, backing=backing)

    def grow_disk(self, volume: Id, size_gib: int) -> None:
        """Have it that large, in a running machine too."""
        name = names.volume_file(volume)
        self.disks[name] = msgspec.structs.replace(self.disks[name], size_bytes=size_gib * GIB)

    def held(self, volume: Id) -> Held:
        """Return what there is of a volume."""
        name = names.volume_file(volume)
        return Held(
            disk=self.disks.get(name),
            anything=name in self.disks or names.part(name) in self.parts or bool(self._variables(volume)),
            snapshots=frozenset(one for one, its in self.snapshots.items() if its == volume),
            reverts=self.reverts.get(volume, 0),
        )

    def _variables(self, volume: Id) -> set[str]:
        return {one for one in self.guests.variables if names.owner_of(one) == volume}

    def is_ready(self, volume: Id, reverts: int) -> bool:
        """Say whether a disk is there, and was reverted at least so often."""
        return self.has_disk(names.volume_file(volume)) and self.reverts.get(volume, 0) >= reverts

    def remove_disk(self, volume: Id, halfway: Halfway) -> None:
        """Have neither the disk nor a part of it."""
        name = names.volume_file(volume)
        self.destroyed.append(volume)
        self.guests.variables -= self._variables(volume)
        self.parts.discard(names.part(name))
        halfway("disk-part-removed")
        self.disks.pop(name, None)
        self.reverts.pop(volume, None)
        self.content.pop(volume, None)
        for one in [one for one, its in self.snapshots.items() if its == volume]:
            del self.snapshots[one]

    def take_snapshot(self, volume: Id, snapshot: Id) -> None:
        """Keep what a disk holds."""
        if not self.has_disk(names.volume_file(volume)):
            raise Temporary(f"no disk {volume}")
        self.need_room()
        self.snapshots[snapshot] = volume
        self.content[snapshot] = self.content[volume]
        self.content[volume] += f" {snapshot}"

    def drop_snapshot(self, snapshot: Id) -> None:
        """Forget it."""
        self.destroyed.append(snapshot)
        self.snapshots.pop(snapshot, None)
        self.content.pop(snapshot, None)

    def revert(self, volume: Id, snapshot: Id, number: int, halfway: Halfway) -> None:
        """Have it hold that again. Raises Temporary while somebody runs with it."""
        if any(user.active for user in self.guests.users_of(names.volume_file(volume))):
            raise Temporary(f"{volume} is in use")
        if self.snapshots.get(snapshot) != volume:
            raise Temporary(f"{volume} has no snapshot {snapshot}")
        self.content[volume] = f"{self.content[snapshot]} {snapshot}"
        halfway("disk-reverted")
        self.reverts[volume] = number

    # --- time -------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Let guests go on: those told to stop end, those that have booted ask for their addresses."""
        if not self.powered:
            return
        self.guests.tick()
        now = self._clock()
        booted = (vm for vm, run in self.guests.runs.items() if run.started_at + LEASED_AFTER_S <= now)
        self.kernel.lease(mac for vm in booted for mac in self.guests.definitions[vm].macs)

    def leftovers(self) -> dict[str, object]:
        """Return all that is on this machine and would not be if nothing was wanted of it."""
        self.kernel.sweep()
        kept = {
            "domains": sorted(self.guests.definitions),
            "running": sorted(self.guests.runs),
            "logs": sorted(self.guests.logs),
            "disks": sorted(self.disks),
            "parts": sorted(self.parts),
            "snapshots": sorted(self.snapshots),
            "reverts": sorted(self.reverts),
            "seeds": sorted(self.seeds),
            "variables": sorted(self.guests.variables),
            "TPMs": sorted(self.guests.tpms),
            "networks": sorted(self.kernel.networks),
            "taps": sorted(self.kernel.taps),
        }
        return {what: left for what, left in kept.items() if left}
