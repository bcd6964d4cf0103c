"""The data volumes of a machine that runs: which step brings it closer to those that it is to have. Pure.

Those it boots from never change while it runs. A guest may take its time to let go of a disk, or never do it: it is
asked again and again, that is said, and nothing else waits for it.
"""

from collections.abc import Mapping

import msgspec

from agent.drivers.hypervisor import LiveDisk, LiveDomain
from agent.drivers.place import Place
from agent.kinds.domain_xml import DATA_TARGETS, disk_xml
from common.documents import DomainDoc
from common.ids import Id

LOOK_AGAIN_S = 5.0

AGAIN_S = 15.0
"""After so long what did no good is tried again."""


class AttachDisk(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Give a running domain a disk."""

    vm: Id
    volume: Id
    xml: str


class DetachDisk(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Ask the guest of a running domain to let go of a disk."""

    vm: Id
    volume: Id
    target: str


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """What this agent process tried with a disk of the present run, and what came of it."""

    at: float
    said: str = ""
    """Why it could not be done; empty: the guest was asked."""


class DataView(msgspec.Struct, frozen=True, kw_only=True):
    """What a turn looks at for the data volumes of a machine."""

    missing: tuple[Id, ...] = ()
    """Those that are not in the pool, or not reverted as often as wished."""
    held: Mapping[Id, str] = {}
    """Those that another running machine still has: its name."""
    tried: Mapping[Id, Tried] = {}


Step = AttachDisk | DetachDisk


def data_of(domain: LiveDomain) -> tuple[LiveDisk, ...]:
    """Return the data volumes that a running machine has."""
    return tuple(disk for disk in domain.disks if disk.target in DATA_TARGETS)


def next_step(doc: DomainDoc, domain: LiveDomain, place: Place, seen: DataView, now: float) -> tuple[Step, str] | None:
    """Return the next step, and how it is said; None: there is none that would do good now."""
    has, wanted = data_of(domain), {one.volume for one in doc.data}
    for disk in has:
        if disk.volume not in wanted and _may_try(seen, disk.volume, now):
            step = DetachDisk(vm=doc.id, volume=disk.volume, target=disk.target)
            return step, f"asking the guest to let go of volume {disk.volume}"
    free = [target for target in DATA_TARGETS if target not in {disk.target for disk in has}]
    for volume in lacking(doc, domain):
        if free and volume not in seen.missing and volume not in seen.held and _may_try(seen, volume, now):
            xml = disk_xml(place.disk(volume), volume, free[0], direct_io=place.direct_io)
            return AttachDisk(vm=doc.id, volume=volume, xml=xml), f"attaching volume {volume}"
    return None


def _may_try(seen: DataView, volume: Id, now: float) -> bool:
    last = seen.tried.get(volume)
    return last is None or not last.at <= now < last.at + AGAIN_S


def lacking(doc: DomainDoc, domain: LiveDomain) -> tuple[Id, ...]:
    """Return the data volumes that a running machine is to have and has not."""
    has = {disk.volume for disk in data_of(domain)}
    return tuple(one.volume for one in doc.data if one.volume not in has)


def note(doc: DomainDoc, domain: LiveDomain, seen: DataView) -> str:
    """Say what of a running machine's data volumes is not as wished, and why; empty: nothing."""
    wanted = {one.volume for one in doc.data}
    words = []
    for disk in data_of(domain):
        if disk.volume not in wanted:
            last = seen.tried.get(disk.volume)
            why = f": {last.said}" if last and last.said else ""
            words.append(
                f"its guest has not let go of volume {disk.volume}{why}; unmount it there, or stop the machine"
            )
    for volume in lacking(doc, domain):
        last = seen.tried.get(volume)
        if volume in seen.missing:
            words.append(f"waiting for volume {volume} on this host")
        elif volume in seen.held:
            words.append(f"volume {volume} is still in use by {seen.held[volume]}")
        elif last and last.said:
            words.append(f"volume {volume} can't be attached while it runs: {last.said}; stop and start the machine")
    return "; ".join(words)
