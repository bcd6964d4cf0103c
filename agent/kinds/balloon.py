"""How much memory a guest has while its host is short of it: a pure function of both.

A guest that says what it keeps at least lends its host what it does not use above that, and gets it back once there is
room. Between the two marks nothing moves, so that nothing swings to and fro.
"""

import msgspec

LOW_PERCENT = 10
"""Of the host's memory: with less than this available, guests lend."""

HIGH_PERCENT = 20
"""With this much available they get all back."""

LEFT_PERCENT = 10
"""Of its memory, that a guest is left with unused when it lends."""

LEAST_STEP_MIB = 16
AGAIN_S = 10.0
"""A balloon moves as fast as its guest lets it: it is asked again after so long."""


class HostMemory(msgspec.Struct, frozen=True, kw_only=True):
    """The memory of the host."""

    total_mib: int
    available_mib: int

    @property
    def available_percent(self) -> float:
        """The share that could be used at once."""
        return 100 * self.available_mib / max(1, self.total_mib)


class GuestMemory(msgspec.Struct, frozen=True, kw_only=True):
    """The memory of a guest that runs."""

    full_mib: int
    """What it was started with."""
    has_mib: int
    """What its balloon leaves it."""
    unused_mib: int | None
    """What it could do without, by its own word; None: it does not say."""


def target_mib(keeps_mib: int | None, guest: GuestMemory, host: HostMemory) -> int | None:
    """Return the memory that a guest is to have now; None: what it has."""
    least = min(guest.full_mib, keeps_mib or guest.full_mib)
    if least >= guest.full_mib or host.available_percent >= HIGH_PERCENT:
        return guest.full_mib if guest.has_mib < guest.full_mib else None
    if host.available_percent >= LOW_PERCENT or guest.unused_mib is None:
        return None
    spare = guest.unused_mib - guest.full_mib * LEFT_PERCENT // 100
    target = max(least, guest.has_mib - spare)
    return target if guest.has_mib - target >= LEAST_STEP_MIB else None
