"""Whether a zone survives the loss of any one of its hosts: the machines that want it find room on the others. Pure.

Packing machines of several amounts is a hard problem, so the answer leans one way: what is said to survive does, since
a packing was found; what is said not to may have survived with a cleverer one. For machines of one amount it is exact.
Machines are packed largest first, onto the hosts with the least room (best fit decreasing).
"""

from collections import Counter
from collections.abc import Callable, Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from common.ids import HostId
from common.kinds.kind import AnyResource
from controller.scheduler.columns import Columns, Place, Room

Loads = Callable[[HostId], Mapping[Room, int]]
"""The machines of a host that are to be started elsewhere if it is lost, counted by what they take."""


def wanted_elsewhere(vm: AnyResource) -> bool:
    """Say whether a thing is a machine that is to be started elsewhere if its host is lost: not one that only its host
    will do for."""
    return vm.kind == "vm" and bool(vm.spec.ha and not vm.spec.host)


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """A host whose loss a zone would not survive."""

    zone: Place
    host: str
    stranded: int
    """Machines that would find no room."""


class Survival:
    """Looks at zones whose hosts' columns these are. `guarded`: whether a zone (its id) has to survive."""

    def __init__(self, columns: Columns, loads: Loads, guarded: Callable[[str], bool]) -> None:
        self._columns = columns
        self._loads = loads
        self._guarded = guarded

    def zone(self, row: int) -> Place | None:
        """Return the zone that a machine on a host would have to leave able to survive; None: no such zone."""
        zone = self._columns.domain(row, "zone")
        return zone if zone.id and self._guarded(zone.id) else None

    def after(self, row: int, need: Room, *, wanted: bool) -> Loss | None:
        """Say what its zone would not survive any more with one more machine on a host; `wanted`: it is to be started
        elsewhere as well. None: it would survive all, or need not."""
        zone = self.zone(row)
        if zone is None:
            return None
        columns = self._columns
        rows = np.flatnonzero(columns.codes("zone") == columns.codes("zone")[row])
        free = _room(columns, rows)
        at = int(np.searchsorted(rows, row))
        free[:, at] -= need
        loads = [Counter(self._loads(columns.hosts[one])) for one in rows]
        if wanted:
            loads[at][need] += 1
        for lost in _doubtful(free, loads):
            _, stranded = packed(free, lost, loads[lost])
            if stranded:
                return Loss(zone=zone, host=columns.names[int(rows[lost])], stranded=stranded)
        return None


def _room(columns: Columns, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    free: NDArray[np.float64] = columns.free[:, rows].copy()
    free[:, ~(columns.connected[rows] & columns.schedulable[rows])] = 0
    return np.maximum(free, 0)


def _doubtful(free: NDArray[np.float64], loads: list[Counter[Room]]) -> list[int]:
    """Return the hosts that the quick look leaves in doubt: it takes every machine for as large as the largest of each.

    There is then one kind of slot, and a host's machines find room where the others have as many.
    """
    amounts = {need for load in loads for need in load}
    if not amounts:
        return []
    largest = np.array([max(amount[resource] for amount in amounts) for resource in range(3)], dtype=np.float64)
    slots = fitting(free, largest)
    machines = np.array([load.total() for load in loads])
    return [int(one) for one in np.flatnonzero((machines > 0) & (machines + slots > slots.sum()))]


def fitting(free: NDArray[np.float64], need: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how many machines of one amount each host has room for."""
    slots: NDArray[np.float64] = np.floor(free / np.maximum(need, 1e-9)[:, None]).min(axis=0)
    return np.maximum(slots, 0)


def packed(free: NDArray[np.float64], lost: int, load: Mapping[Room, int]) -> tuple[NDArray[np.float64], int]:
    """Return what is free once a lost host's machines were started on the others, and how many found no room."""
    left, stranded = free.copy(), 0
    left[:, lost] = 0
    scale = np.maximum(free.max(axis=1, initial=1), 1)
    for need in sorted(load, key=lambda need: (-float((np.array(need) / scale).max()), need)):
        amount, count = np.array(need, dtype=np.float64), load[need]
        slots = fitting(left, amount)
        slots[lost] = 0
        tightest = np.argsort((left / scale[:, None]).min(axis=0), kind="stable")
        before = np.cumsum(slots[tightest]) - slots[tightest]
        taken = np.clip(count - before, 0, slots[tightest])
        left[:, tightest] -= amount[:, None] * taken
        stranded += count - int(taken.sum())
    return left, stranded
