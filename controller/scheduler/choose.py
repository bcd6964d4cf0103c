"""Choosing a host: vectorised filters and a score over the hosts' columns, and a refusal that counts what each cost.

Pure: columns and a demand in, a choice or a refusal out. The claim itself is decided by the store's transaction.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray

from common.ids import HostId, Id
from common.refusal import Cost, Refusal


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What a host is to be found for."""

    owner: Id
    vcpus: int
    memory_mib: int
    disk_gib: int
    host: HostId | None = None
    """Only this host will do."""
    size: str = ""
    """The size's name, for the words of a refusal."""


class Columns(msgspec.Struct, kw_only=True):
    """Hosts as arrays, all of one length; free capacity may be negative where an operator lowered a ratio."""

    hosts: list[HostId]
    names: list[str]
    connected: NDArray[np.bool_]
    schedulable: NDArray[np.bool_]
    free: NDArray[np.int64]
    """Shape (hosts, 3): vCPUs, memory MiB, disk GiB."""
    total: NDArray[np.int64]
    """Shape (hosts, 3): what each may sell."""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The host that was chosen, and its row in the columns."""

    host: HostId
    row: int


UNITS = (("vcpus", "vCPUs"), ("memory", "MiB of memory"), ("disk", "GiB of disk"))


def choose(columns: Columns, demand: Demand) -> Choice | Refusal:
    """Choose the host that is left with the most balanced free share; ties go to the first in the columns.

    The score is the smallest share of vCPUs, memory and disk that stays free: machines spread, and no one
    resource is used up while others lie idle.
    """
    need = np.array([demand.vcpus, demand.memory_mib, demand.disk_gib], dtype=np.int64)
    left = columns.free - need
    fits = columns.connected & columns.schedulable & (left >= 0).all(axis=1)
    if demand.host is not None:
        fits &= _is(columns, demand.host)
    if not fits.any():
        return _refuse(columns, demand, need)
    share = (left / np.maximum(columns.total, 1)).min(axis=1)
    row = int(np.argmax(np.where(fits, share, -np.inf)))
    return Choice(host=columns.hosts[row], row=row)


def _is(columns: Columns, host: HostId) -> NDArray[np.bool_]:
    return np.array([one == host for one in columns.hosts], dtype=np.bool_)


def _refuse(columns: Columns, demand: Demand, need: NDArray[np.int64]) -> Refusal:
    """Count per constraint the hosts it rules out, and name the smallest change that would fit."""
    hosts = len(columns.hosts)
    if hosts == 0:
        return Refusal(
            summary="no host fits: there are no hosts yet",
            smallest_change="let a host join: skerry host create NAME",
        )
    short = columns.free < need
    costs = [
        Cost(
            constraint="connected", hosts=int((~columns.connected).sum()), detail="hosts whose agent is not connected"
        ),
        Cost(constraint="schedulable", hosts=int((~columns.schedulable).sum()), detail="hosts closed to new machines"),
    ]
    for column, (name, unit) in enumerate(UNITS):
        most = int(columns.free[:, column].max(initial=0))
        detail = f"needs {need[column]} {unit}; the most that is free on one host is {max(0, most)}"
        costs.append(Cost(constraint=name, hosts=int(short[:, column].sum()), detail=detail))
    if demand.host is not None:
        costs.append(
            Cost(
                constraint="pinned", hosts=int((~_is(columns, demand.host)).sum()), detail="hosts other than the pinned"
            )
        )
    return Refusal(
        summary=f"none of {hosts} host{'s' if hosts != 1 else ''} fits",
        hosts=hosts,
        costs=tuple(cost for cost in costs if cost.hosts),
        smallest_change=_smallest_change(columns, demand, need),
    )


def _smallest_change(columns: Columns, demand: Demand, need: NDArray[np.int64]) -> str:
    """Find the host that fits after the least: fewest kinds of change first, then the smallest relative shortage."""
    lack = np.maximum(need - columns.free, 0)
    changes = (lack > 0).sum(axis=1) + (~columns.connected) + (~columns.schedulable)
    relative = (lack / np.maximum(need, 1)).sum(axis=1)
    allowed = _is(columns, demand.host) if demand.host is not None else np.ones(len(columns.hosts), dtype=np.bool_)
    if not allowed.any():
        return "pin it to a host that has joined, or to none"
    order = np.lexsort((relative, changes, ~allowed))
    row = int(order[0])
    words = []
    if not columns.connected[row]:
        words.append(f"bring host {columns.names[row]} back")
    if not columns.schedulable[row]:
        words.append(f"open host {columns.names[row]} (skerry host set {columns.names[row]} --schedulable)")
    for column, (_, unit) in enumerate(UNITS):
        if 0 < lack[row, column] < need[column]:
            size = f" (size {demand.size} has {need[column]})" if demand.size else ""
            words.append(f"ask for {lack[row, column]} {unit} less{size}, or free as much on host {columns.names[row]}")
        elif lack[row, column]:
            words.append(f"free {lack[row, column]} {unit} on host {columns.names[row]}")
    return " and ".join(words)
