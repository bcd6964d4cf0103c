"""What the pool and the image cache show: plain data, apart from the drivers, since planners read it and do no I/O."""

import msgspec

GIB = 1 << 30


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """A finished disk in the pool."""

    size_bytes: int
    """Virtual."""
    allocated_bytes: int
    backing: str


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
