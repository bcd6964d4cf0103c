"""The vCPUs and the memory of a machine that runs: which step brings it closer to those that it is to have. Pure.

It only grows, within the room that it was started with: `common.growth` says what has to wait for a restart. All else
is looked at: an agent that died in between finds what is plugged, and goes on from there.
"""

import msgspec

from agent.drivers.hypervisor import LiveDomain
from common.documents import DomainDoc
from common.growth import Room, cpus_wait, memory_waits
from common.ids import Id

AGAIN_S = 60.0
"""After so long what the host refused is tried again."""


class AddCpus(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Have a running domain have so many vCPUs."""

    vm: Id
    vcpus: int


class AddMemory(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Give a running domain so much more memory."""

    vm: Id
    memory_mib: int


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """What the host would not do in the present run."""

    at: float
    said: str


Step = AddCpus | AddMemory


def room_of(domain: LiveDomain) -> Room:
    """Return what a run has, and how far it can grow."""
    return Room(
        vcpus=domain.vcpus,
        memory_mib=domain.memory_mib,
        vcpus_max=domain.most.vcpus,
        memory_max_mib=domain.most.memory_mib,
        slots=domain.most.slots,
    )


def next_step(doc: DomainDoc, domain: LiveDomain, refused: Refused | None, now: float) -> tuple[Step, str] | None:
    """Return the next step, and how it is said; None: there is none that would do good now."""
    if refused and refused.at <= now < refused.at + AGAIN_S:
        return None
    run = room_of(domain)
    if doc.vcpus > run.vcpus and not cpus_wait(run, doc.vcpus):
        return AddCpus(vm=doc.id, vcpus=doc.vcpus), f"giving it {doc.vcpus - run.vcpus} more vCPUs while it runs"
    if doc.memory_mib > run.memory_mib and not memory_waits(run, doc.memory_mib):
        more = doc.memory_mib - run.memory_mib
        return AddMemory(vm=doc.id, memory_mib=more), f"giving it {more} MiB more memory while it runs"
    return None


def note(doc: DomainDoc, domain: LiveDomain, refused: Refused | None) -> str:
    """Say what the host would not do; empty: nothing."""
    if refused is None or (doc.vcpus <= domain.vcpus and doc.memory_mib <= domain.memory_mib):
        return ""
    return f"its host could not give it more while it runs: {refused.said}"
