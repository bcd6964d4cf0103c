"""The CPUs that guests see: flags by libvirt's names, what several hosts share of them, and their levels. Pure."""

from collections.abc import Iterable
from typing import Literal, get_args

Flags = frozenset[str]

CpuWish = Literal["shared", "x86-64-v2", "x86-64-v3", "x86-64-v4", "host"]
"""What a machine may ask for: what all hosts share, what those of at least a level share, or all that its host has."""

_V2 = frozenset({"cx16", "lahf_lm", "popcnt", "pni", "ssse3", "sse4.1", "sse4.2"})
_V3 = _V2 | {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"}
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

LEVELS: dict[str, Flags] = {"x86-64-v2": _V2, "x86-64-v3": _V3, "x86-64-v4": _V4}
"""The levels of the x86-64 psABI, least first, by what each has beyond what every x86-64 CPU has."""


def needs_of(wish: str) -> Flags:
    """Return the flags without which a CPU is not what was asked for."""
    return LEVELS.get(wish, frozenset())


def shared(hosts: Iterable[Flags], needs: Flags = frozenset()) -> Flags:
    """Return the flags that all hosts with at least `needs` have; none where there is no such host."""
    capable = [flags for flags in hosts if needs <= flags]
    return capable[0].intersection(*capable[1:]) if capable else frozenset()


def level_of(flags: Flags) -> str:
    """Return the highest level that flags reach: `x86-64-v1` is what every x86-64 CPU has."""
    return next((name for name, needs in reversed(LEVELS.items()) if needs <= flags), "x86-64-v1")


def fallback(flags: Flags) -> CpuWish:
    """Return the most that can be asked for of a host with these flags, beside all that it has."""
    reached = level_of(flags)
    return next((wish for wish in get_args(CpuWish) if wish == reached), "shared")


def named(flags: Iterable[str], most: int = 6) -> str:
    """Name some flags, and count the others."""
    names = sorted(flags)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
