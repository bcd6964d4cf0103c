"""How far a machine can grow while it runs: one place says it, for its host's steps and for the words. Pure."""

import msgspec

MEMORY_STEP_MIB = 128
"""Linux takes memory that comes while it runs in blocks of so much."""

MEMORY_SLOTS = 16
"""A run can be given memory so many times."""


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What a run has, and what it was started with room for."""

    vcpus: int
    memory_mib: int
    vcpus_max: int = 0
    """0: no more than it has."""
    memory_max_mib: int = 0
    """Likewise."""
    slots: int = 0
    """In which memory can still be put."""


def cpus_wait(run: Room, wished: int) -> str:
    """Say why a run can't be given the vCPUs that are wished; empty: it can, or has them."""
    if wished < run.vcpus:
        return "a guest that runs gives no vCPU back"
    if wished > max(run.vcpus, run.vcpus_max):
        return f"it was started with room for {max(run.vcpus, run.vcpus_max)} vCPUs"
    return ""


def memory_waits(run: Room, wished_mib: int) -> str:
    """Say why a run can't be given the memory that is wished; empty: it can, or has it."""
    more = wished_mib - run.memory_mib
    if more < 0:
        return "a guest that runs gives no memory back"
    if more and wished_mib > max(run.memory_mib, run.memory_max_mib):
        return f"it was started with room for {max(run.memory_mib, run.memory_max_mib)} MiB of memory"
    if more % MEMORY_STEP_MIB:
        return f"a guest that runs takes memory in steps of {MEMORY_STEP_MIB} MiB, and this is {more} MiB more"
    if more and not run.slots:
        return f"it was given memory {MEMORY_SLOTS} times since its start, as often as that can be"
    return ""
