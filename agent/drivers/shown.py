"""What the pool and the image cache show: plain data, apart from the drivers, since planners read it and do no I/O."""

import msgspec

from common.ids import Id

GIB = 1 << 30


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """A finished disk in the pool."""

    size_bytes: int
    """Virtual."""
    allocated_bytes: int
    backing: str = ""
    """The file it is an overlay of; empty for none."""
    untold: bool = False
    """It grew, and the guest that has it may not know yet."""


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """All that a pool has of one volume."""

    disk: Disk | None = None
    anything: bool = False
    """Whether the disk or a part of it exists."""
    snapshots: frozenset[Id] = frozenset()
    reverts: int = 0
    """How often the disk was reverted to a snapshot."""


class PoolUse(msgspec.Struct, frozen=True, kw_only=True):
    """How full a pool is."""

    size_bytes: int
    used_bytes: int
    metadata_percent: float = 0.0
    """Of the room that a thin pool keeps for its own books; 0 where there are none."""


class CachedImage(msgspec.Struct, frozen=True, kw_only=True):
    """An image as the cache has it: ready, refused, or neither (not here yet)."""

    ready: bool = False
    arrived_bytes: int | None = None
    """Of one that is being fetched just now."""
    crowded: bool = False
    """As many others are being fetched as may be at once."""
    refused: str = ""
    """Why it can't be used."""
    disk_bytes: int = 0
    """The smallest disk it fits on; 0 for a kernel."""
