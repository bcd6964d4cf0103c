"""The face of the hypervisor: what units, console and telemetry may ask of it, and what it shows.

`agent.drivers.libvirt` is the real one. The fake of the simulator has the same face.
"""

from typing import Literal, Protocol

import msgspec

from agent.drivers.firmware import Started
from agent.drivers.live_room import Most
from common.ids import Id
from common.protocol import GuestCpus

NAMESPACE = "urn:skerry:domain:1"
"""Of the metadata element that Skerry writes into every domain."""

Virtualisation = Literal["kvm", "tcg"]

Activity = Literal["running", "paused", "off"]

Cause = Literal["", "guest", "host", "crashed", "destroyed", "unknown", "io-error", "busy", "user"]
"""Why a domain is off: `guest` powered itself off (or did as asked), `host` shut QEMU down from outside, `crashed`,
`destroyed` (cut off by somebody), `unknown` (never started since it was defined, or the host was restarted).
Why it is paused: `io-error`, `busy` (libvirt is at work: starting, saving, migrating) or `user`. Running: empty."""


class Sharing(msgspec.Struct, frozen=True, kw_only=True):
    """How a domain shares the host's CPUs."""

    weight: int
    """100 is a plain one's."""
    cap_percent: int | None
    """Of one hardware thread; None: no cap."""


class LiveDisk(msgspec.Struct, frozen=True, kw_only=True):
    """A disk of a domain that runs."""

    volume: Id
    """By its serial number."""
    target: str
    """Its name in the definition: `vdc`. Guests see another one."""


class LiveDomain(msgspec.Struct, frozen=True, kw_only=True):
    """One domain as libvirt has it now, with what Skerry wrote into its metadata element."""

    vm: Id
    activity: Activity
    cause: Cause
    start_generation: int | None
    """Of the wish it was defined (or, running, last stamped) with; None: the metadata element is missing."""
    boot_generation: int | None
    shape: str
    """Digest of the XML it was defined from, generations aside; empty without a metadata element."""
    started_at: float
    """When its QEMU process started, seconds since the epoch; 0 where it is off or unknown."""
    vcpus: int = 0
    """Of the present run; 0 where it is off."""
    memory_mib: int = 0
    """What the present run was started with; 0 where it is off."""
    balloon_mib: int = 0
    """What its balloon leaves it of that."""
    sharing: Sharing | None = None
    """None where it is off, or the host can't share out its CPUs."""
    sharing_lacks: str = ""
    """Why it can't."""
    most: Most = Most(0, 0, 0)
    """What the present run has room for."""
    disks: tuple[LiveDisk, ...] = ()
    """Those that are volumes; none where it is off."""
    started: Started = Started("", tpm=False)
    """With what the present run was started."""


class ListedDomain(msgspec.Struct, frozen=True, kw_only=True):
    """A domain by name, for the auditor: also those that Skerry did not make."""

    name: str
    owner: str
    """From its metadata element; empty without one."""
    active: bool


class DomainUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of one running domain since its start."""

    name: str
    cpu_ns: int
    memory_used_mib: int
    disk_read_bytes: int
    disk_write_bytes: int
    net_rx_bytes: int
    net_tx_bytes: int


class Hypervisor(Protocol):
    """What can be asked. Every verb states a result: repeated, it succeeds and changes nothing.

    All raise Temporary where libvirt does not answer or refuses for now, Invalid where it refuses the XML,
    and those that need a domain NotFound where there is none.
    """

    async def look(self, vm: Id) -> LiveDomain | None:
        """Return the VM's domain, None where there is none."""
        ...

    async def define(self, vm: Id, xml: str) -> None:
        """Define the domain afresh: an inactive one of before goes first, so that its last end is forgotten."""
        ...

    async def start(self, vm: Id) -> None:
        """Have it running."""
        ...

    async def resume(self, vm: Id) -> None:
        """Have it run on after a pause."""
        ...

    async def press_power_button(self, vm: Id) -> None:
        """Ask the guest by ACPI to power itself off. Returns at once."""
        ...

    async def destroy(self, vm: Id) -> None:
        """Have it off, at once."""
        ...

    async def undefine(self, vm: Id) -> None:
        """Have libvirt forget an inactive domain, with its NVRAM, TPM, managed save and snapshots' metadata."""
        ...

    async def stamp(self, vm: Id, metadata: str) -> None:
        """Replace the metadata element, of the live domain and of its definition."""
        ...

    async def share(self, vm: Id, sharing: Sharing) -> None:
        """Have a running domain share the host's CPUs so."""
        ...

    async def set_memory(self, vm: Id, memory_mib: int) -> None:
        """Ask a running domain's balloon to leave it so much. Returns at once; the guest takes its time."""
        ...

    async def unused_mib(self, vm: Id) -> int | None:
        """Return the memory that a running guest could do without, None where it does not say."""
        ...

    async def grow_disk(self, vm: Id, path: str, size_bytes: int) -> None:
        """Tell a running domain that its disk at `path` has this size now."""
        ...

    async def add_cpus(self, vm: Id, vcpus: int) -> None:
        """Have a running domain, and its definition, have so many vCPUs. Its guest has to take them into use."""
        ...

    async def add_memory(self, vm: Id, memory_mib: int) -> None:
        """Give a running domain, and its definition, so much more memory. Not to be asked twice: look first."""
        ...

    async def attach_disk(self, vm: Id, xml: str) -> None:
        """Have a running domain, and its definition, have this disk. Not to be asked twice: look first."""
        ...

    async def detach_disk(self, vm: Id, target: str) -> None:
        """Ask a running domain's guest to let go of a disk, and take it out of its definition. Returns at once;
        an event tells when it is gone."""
        ...

    async def snapshot_disk(self, vm: Id, path: str, name: str) -> None:
        """Have a running domain keep what its qcow2 disk at `path` holds now, in that file, under this name."""
        ...

    async def drop_disk_snapshot(self, vm: Id, path: str, name: str) -> None:
        """Have a running domain's qcow2 disk at `path` forget what was kept under this name."""
        ...

    async def users_of(self, path: str) -> tuple[ListedDomain, ...]:
        """Return the domains that have a disk at this path."""
        ...

    async def guest_cpu(self, virtualisation: Virtualisation) -> GuestCpus:
        """Return what guests can be given of a CPU here, and take to other hosts of the same vendor."""
        ...

    async def guest_firmware(self, virtualisation: Virtualisation) -> dict[str, str]:
        """Return of each of `common.firmware.ABILITIES` why guests can't be given it here; empty: they can."""
        ...

    async def list_domains(self) -> tuple[ListedDomain, ...]:
        """Return every domain there is."""
        ...

    async def usage(self) -> tuple[DomainUsage, ...]:
        """Return the counters of every running domain."""
        ...

    async def console_pty(self, vm: Id) -> str:
        """Return the path of the running domain's serial pty."""
        ...
