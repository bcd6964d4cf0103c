"""How far a machine can grow while it runs: the room that it is started with, and what has to wait for a restart."""

from typing import TypedDict

from common.documents import DomainDoc, DomainSeen
from common.growth import Room, cpus_wait, memory_waits
from common.protocol import HOT_PLUG
from controller.kinds.shape import Shape
from controller.store.rows import Placement
from controller.store.working import WorkingSet

TIMES = 4
"""A machine can grow to so many times what it is started with."""

VCPUS_MOST = 240
"""Beyond 255 CPUs, interrupts need another controller than guests have."""

MEMORY_LEAST_MIB = 1024
"""With less, room for more costs a guest too much: Linux sets 64 MiB aside for devices as soon as memory can lie above
4 GiB, which is where it is plugged."""

MEMORY_MOST_MIB = 512 * 1024
"""The CPUs that hosts share reach 1 TiB of addresses, devices included: no machine can grow beyond this, and one that
is larger has its host's CPU."""


class _Most(TypedDict, total=False):
    vcpus_max: int
    memory_max_mib: int


def room_for(shape: Shape, placement: Placement, seen: WorkingSet) -> _Most:
    """Return what a machine is to be started with room for. An older agent's link would end over these fields."""
    capacity = seen.capacity(placement.host)
    if capacity is None or HOT_PLUG not in capacity.traits.can:
        return {}
    vcpus, memory_mib = min(TIMES * shape.vcpus, VCPUS_MOST), min(TIMES * shape.memory_mib, MEMORY_MOST_MIB)
    grows = shape.memory_mib >= MEMORY_LEAST_MIB
    return {"vcpus_max": vcpus, "memory_max_mib": memory_mib if grows else 0}


def growth_waits(doc: DomainDoc, run: DomainSeen) -> str:
    """Say why a machine that runs has not what it is to have, and won't before it is started again; empty: it has, or
    its host is about to give it more."""
    room = Room(
        vcpus=run.vcpus,
        memory_mib=run.memory_mib,
        vcpus_max=run.vcpus_max,
        memory_max_mib=run.memory_max_mib,
        slots=run.memory_slots,
    )
    return " and ".join(why for why in (cpus_wait(room, doc.vcpus), memory_waits(room, doc.memory_mib)) if why)
