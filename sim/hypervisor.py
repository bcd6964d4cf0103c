"""A hypervisor that behaves like libvirt, in memory: definitions last, what runs is lost with the power."""

import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping

import msgspec

from agent.drivers import live_room
from agent.drivers.firmware import Started
from agent.drivers.hypervisor import NAMESPACE, Activity, Cause, ListedDomain, LiveDisk, LiveDomain, Sharing
from agent.drivers.live_room import Most
from common import names
from common.clock import Clock
from common.errors import NotFound, Temporary
from common.firmware import abilities, named
from common.ids import Id
from sim.kernel import Kernel

GUEST_STOPS_S = 3.0
"""A guest that obeys the power button is off after so long."""


class Stamp(msgspec.Struct, frozen=True, kw_only=True):
    """What Skerry writes into a domain's metadata element."""

    start_generation: int
    boot_generation: int
    shape: str


class Definition(msgspec.Struct, kw_only=True):
    """A domain as it lies on the disk."""

    stamp: Stamp
    taps: dict[str, str]
    """Tap -> bridge."""
    macs: tuple[str, ...]
    disks: tuple[str, ...]
    targets: dict[str, str]
    """Disk -> its target."""
    log: str
    vcpus: int
    memory_mib: int
    most: Most
    """What a run is started with room for."""
    cpu: frozenset[str]
    """The flags that it requires; none: it has all that its machine has."""
    starts: Started
    """With what it is started."""
    variables: str
    """The file that keeps UEFI's; empty: it has none."""


class Run(msgspec.Struct, kw_only=True):
    """A domain's QEMU process."""

    stamp: Stamp
    started_at: float
    vcpus: int
    memory_mib: int
    most: Most
    cpu: frozenset[str]
    disks: tuple[str, ...]
    """As its guest has them open."""
    targets: dict[str, str]
    started: Started
    sharing: Sharing = Sharing(weight=100, cap_percent=None)
    off_at: float | None = None
    """When the guest will have powered itself off."""
    deaf: bool = False
    """It ignores the power button."""
    clings: bool = False
    """It does not let go of a disk."""


class Guests:
    """The domains of one machine. `ended` is told of each that goes off by itself, as libvirt's events do."""

    def __init__(
        self,
        kernel: Kernel,
        has_disk: Callable[[str], bool],
        clock: Clock,
        flags: frozenset[str] = frozenset(),
        can: frozenset[str] = frozenset(),
    ) -> None:
        self._flags, self._can = flags, can
        self.definitions: dict[Id, Definition] = {}
        self.logs: set[str] = set()
        self.variables: set[str] = set()
        """Files in which UEFI keeps something."""
        self.tpms: dict[Id, Id] = {}
        """Machine -> the disk that what its TPM holds goes with."""
        self.forgotten: list[Id] = []
        """The disks with which something went that a TPM held, and holds no more though its machine is there."""
        self.runs: dict[Id, Run] = {}
        self.ended: Callable[[Id], None] = lambda _vm: None
        self.deaf: set[Id] = set()
        self._ends: dict[Id, Cause] = {}
        self._kernel = kernel
        self._has_disk = has_disk
        self._clock = clock

    # --- as the agent's driver --------------------------------------------------------------------------------------

    def look(self, vm: Id) -> LiveDomain | None:
        """Return the VM's domain."""
        definition, run = self.definitions.get(vm), self.runs.get(vm)
        if definition is None:
            return None
        stamp = run.stamp if run else definition.stamp
        activity: Activity = "running" if run else "off"
        return LiveDomain(
            vm=vm,
            activity=activity,
            cause="" if run else self._ends.get(vm, "unknown"),
            start_generation=stamp.start_generation,
            boot_generation=stamp.boot_generation,
            shape=definition.stamp.shape,
            started_at=run.started_at if run else 0,
            vcpus=run.vcpus if run else 0,
            memory_mib=run.memory_mib if run else 0,
            balloon_mib=run.memory_mib if run else 0,
            sharing=run.sharing if run else None,
            most=run.most if run else Most(0, 0, 0),
            disks=_volumes(run.targets) if run else (),
            started=run.started if run else Started("", tpm=False),
        )

    def define(self, vm: Id, xml: str) -> None:
        """Define it afresh."""
        root = ET.fromstring(xml)
        if vm not in self.runs:
            self._ends.pop(vm, None)
        element = root.find(f"metadata/{{{NAMESPACE}}}domain")
        assert element is not None
        targets = dict(_disk(disk) for disk in root.iter("disk") if disk.find("readonly") is None)  # no NoCloud disk
        self.definitions[vm] = Definition(
            stamp=_stamp(element),
            taps={nic.find("target").get("dev"): nic.find("source").get("bridge") for nic in root.iter("interface")},  # type: ignore[union-attr, misc]
            macs=tuple(nic.find("mac").get("address") for nic in root.iter("interface")),  # type: ignore[union-attr, misc]
            disks=tuple(targets),
            targets=targets,
            vcpus=int(root.find("vcpu").get("current", root.findtext("vcpu", "0"))),  # type: ignore[union-attr]
            memory_mib=int(root.findtext("memory", "0")),
            most=live_room.most(xml),
            cpu=frozenset(one.get("name", "") for one in root.iterfind("cpu/feature[@policy='require']")),
            starts=_starts(root),
            variables=root.findtext("os/nvram", "").rpartition("/")[2],
            log=root.find("devices/serial/log").get("file").rpartition("/")[2],  # type: ignore[union-attr]
        )

    def start(self, vm: Id) -> None:
        """Have it running. Raises Temporary where a disk or a bridge of it is missing, as libvirt does."""
        definition = self.definitions.get(vm)
        if definition is None:
            raise NotFound(f"no domain {vm}")
        if vm in self.runs:
            return
        for disk in definition.disks:
            if not self._has_disk(disk):
                raise Temporary(f"cannot access storage file {disk}")
        for bridge in definition.taps.values():
            if not self._kernel.has_bridge(bridge):
                raise Temporary(f"cannot get interface MTU on {bridge}: no such device")
        if lacks := definition.cpu - self._flags:
            raise Temporary(f"the guest's CPU needs what this machine's has not: {sorted(lacks)}")
        starts = definition.starts
        if starts.firmware and (lacks := abilities(starts.firmware, tpm=starts.tpm) - self._can):
            raise Temporary(f"this machine is without {named(lacks)}")
        if starts.tpm and vm not in self.tpms:
            raise Temporary(f"nobody said whose TPM that of {vm} is")
        for tap, bridge in definition.taps.items():
            self._kernel.add_tap(tap, bridge)
        if definition.variables:
            self.variables.add(definition.variables)
        self.logs.add(definition.log)
        self.runs[vm] = Run(
            stamp=definition.stamp,
            started_at=self._clock(),
            vcpus=definition.vcpus,
            memory_mib=definition.memory_mib,
            most=definition.most,
            cpu=definition.cpu,
            started=starts,
            disks=definition.disks,
            targets=dict(definition.targets),
            deaf=vm in self.deaf,
        )
        self._ends.pop(vm, None)

    def press_power_button(self, vm: Id) -> None:
        """Ask the guest to power itself off."""
        run = self.runs.get(vm)
        if run and not run.deaf and run.off_at is None:
            run.off_at = self._clock() + GUEST_STOPS_S

    def destroy(self, vm: Id) -> None:
        """Have it off."""
        self._end(vm, "destroyed")

    def undefine(self, vm: Id) -> None:
        """Forget it."""
        if vm in self.runs:
            raise Temporary(f"domain {vm} is running")
        definition = self.definitions.pop(vm, None)
        if definition and definition.starts.tpm:
            self.tpms.pop(vm, None)
        if definition:
            self.variables.discard(definition.variables)
        self._ends.pop(vm, None)

    def renew_tpm(self, vm: Id, disk: Id) -> None:
        """Have its TPM hold nothing, and go with this disk."""
        if vm in self.runs:
            raise Temporary(f"domain {vm} is running")
        if vm in self.tpms:
            self.forgotten.append(self.tpms[vm])
        self.tpms[vm] = disk

    def stamp(self, vm: Id, metadata: str) -> None:
        """Replace the metadata element, live and on the disk."""
        stamp = _stamp(ET.fromstring(metadata))
        self.definitions[vm].stamp = stamp
        if vm in self.runs:
            self.runs[vm].stamp = stamp

    def add_cpus(self, vm: Id, vcpus: int) -> None:
        """Have a running domain have so many vCPUs."""
        run = self._running(vm)
        if not run.vcpus <= vcpus <= run.most.vcpus:
            raise Temporary(f"{vcpus} vCPUs are not between {run.vcpus} and {run.most.vcpus}")
        run.vcpus = vcpus

    def add_memory(self, vm: Id, memory_mib: int) -> None:
        """Give a running domain so much more memory."""
        run = self._running(vm)
        if not run.most.slots or run.memory_mib + memory_mib > run.most.memory_mib:
            raise Temporary(f"no slot for {memory_mib} MiB of memory")
        run.memory_mib += memory_mib
        run.most = run.most._replace(slots=run.most.slots - 1)

    def _running(self, vm: Id) -> Run:
        if (run := self.runs.get(vm)) is None:
            raise Temporary(f"domain {vm} is not running")
        return run

    def attach(self, vm: Id, xml: str) -> None:
        """Have a running domain, and its definition, have a disk."""
        disk, target = _disk(ET.fromstring(xml))
        run = self._running(vm)
        if not self._has_disk(disk):
            raise Temporary(f"cannot access storage file {disk}")
        if any(disk in other.disks for other in self.runs.values()):
            raise Temporary(f"failed to get the write lock of {disk}")
        if target in run.targets.values():
            raise Temporary(f"target {target} already exists")
        for one in (run, self.definitions[vm]):
            one.targets[disk] = target
            one.disks = (*(name for name in one.disks if name != disk), disk)

    def detach(self, vm: Id, target: str) -> None:
        """Ask the guest to let go of a disk."""
        run = self._running(vm)
        for one in (self.definitions[vm], *(() if run.clings else (run,))):
            one.targets = {disk: its for disk, its in one.targets.items() if its != target}
            one.disks = tuple(disk for disk in one.disks if disk in one.targets)

    def users_of(self, disk: str) -> tuple[ListedDomain, ...]:
        """Return the domains with this disk."""
        return tuple(one for one in self.list_domains() if disk in self._disks(Id(one.name)))

    def _disks(self, vm: Id) -> tuple[str, ...]:
        run = self.runs.get(vm)
        return run.disks if run else self.definitions[vm].disks

    def list_domains(self) -> tuple[ListedDomain, ...]:
        """Return every domain."""
        return tuple(ListedDomain(name=vm, owner=vm, active=vm in self.runs) for vm in sorted(self.definitions))

    # --- accidents --------------------------------------------------------------------------------------------------

    def power_cut(self) -> None:
        """Everything that runs is lost, and how it ended is known to nobody."""
        self.runs.clear()
        self._ends.clear()

    def guest_ends(self, vm: Id, cause: Cause) -> None:
        """The guest powers itself off, crashes, or is cut off by a stranger."""
        if vm in self.runs:
            self._end(vm, cause)
            self.ended(vm)

    def next_at(self) -> float | None:
        """Return when the next guest will have powered itself off."""
        return min((run.off_at for run in self.runs.values() if run.off_at is not None), default=None)

    def tick(self) -> None:
        """Let the guests whose time has come go off."""
        now = self._clock()
        for vm in sorted(vm for vm, run in self.runs.items() if run.off_at is not None and run.off_at <= now):
            self.guest_ends(vm, "guest")

    def _end(self, vm: Id, cause: Cause) -> None:
        if self.runs.pop(vm, None) is None:
            return
        self._ends[vm] = cause
        for tap in self.definitions[vm].taps:
            self._kernel.remove_tap(tap)


def _disk(disk: ET.Element) -> tuple[str, str]:
    source, target = disk.find("source"), disk.find("target")
    assert source is not None
    assert target is not None
    return source.get("file", "").rpartition("/")[2], target.get("dev", "")


def _volumes(targets: Mapping[str, str]) -> tuple[LiveDisk, ...]:
    found = ((names.owner_of(disk), target) for disk, target in targets.items())
    return tuple(LiveDisk(volume=owner, target=target) for owner, target in found if owner)


def _starts(root: ET.Element) -> Started:
    features = {one.get("name") for one in root.iterfind("os/firmware/feature[@enabled='yes']")}
    has_tpm = root.find("devices/tpm") is not None
    if root.find("os[@firmware='efi']") is None:
        return Started("bios", has_tpm)
    return Started("uefi-secure" if "secure-boot" in features else "uefi", has_tpm)


def _stamp(element: ET.Element) -> Stamp:
    return Stamp(
        start_generation=int(element.get("start_generation", "0")),
        boot_generation=int(element.get("boot_generation", "0")),
        shape=element.get("shape", ""),
    )
