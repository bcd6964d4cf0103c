"""How full a host's pool is, and whether it may sell more of it: pure.

Thin disks fill as they are written, not as they are sold. So sales stop at a watermark, far before writes fail: what a
host may sell of its disk is then what it has sold. That is a row, which the claims of all controllers are held against.
"""

from typing import NamedTuple

import msgspec

from common.ids import HostId
from common.kinds.kind import AnyResource
from controller.store.rows import Capacity
from controller.store.working import Used, WorkingSet

OPENS_BELOW = 3
"""Percent below the watermark at which a pool is opened again, so that it does not flutter."""


class PoolState(NamedTuple):
    """What a host last said, in whole percent, and whether it is to sell more."""

    data: int
    metadata: int
    closed: bool


def pool_state(row: AnyResource, seen: WorkingSet) -> PoolState:
    """Return how a host's pool stands. While the host says nothing, it stays as it was."""
    metrics, was = seen.host(HostId(row.id)).metrics, row.spec.closed_by_pool
    if metrics is None:
        return PoolState(row.status.pool_percent, row.status.pool_metadata_percent, was)
    data, metadata = (int(min(100, one)) for one in (metrics.host.pool_percent, metrics.host.pool_metadata_percent))
    mark = row.spec.pool_watermark_percent - (OPENS_BELOW if was else 0)
    return PoolState(data, metadata, max(data, metadata) >= mark)


def closed_words(row: AnyResource, state: PoolState) -> str:
    """Say why a host takes no more volumes; empty: it does."""
    if not state.closed:
        return ""
    metadata = f", its metadata {state.metadata} %" if state.metadata else ""
    mark = row.spec.pool_watermark_percent
    return f"the pool of host {row.name} is {state.data} % full{metadata}: sales stop at {mark} %"


def limited(capacity: Capacity, used: Used, state: PoolState) -> Capacity:
    """Return what a host may sell in view of its pool."""
    if not state.closed:
        return capacity
    return msgspec.structs.replace(capacity, disk_gib=min(capacity.disk_gib, used.disk_gib))
