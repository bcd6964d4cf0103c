"""The hosts as columns, kept up to date host by host, with what is chosen but not yet committed already taken off."""

from collections import defaultdict

import numpy as np

from common.ids import HostId, Id
from common.refusal import Refusal
from controller.scheduler.choose import Choice, Columns, Demand, choose
from controller.store.working import WorkingSet


class Inventory:
    """Rows for all hosts of a working set. `refresh` after anything about a host changed."""

    def __init__(self, seen: WorkingSet) -> None:
        self._seen = seen
        self._rows: dict[HostId, int] = {}
        self._pending: dict[HostId, dict[Id, Demand]] = defaultdict(dict)
        self._columns = Columns(
            hosts=[],
            names=[],
            connected=np.zeros(0, dtype=np.bool_),
            schedulable=np.zeros(0, dtype=np.bool_),
            free=np.zeros((0, 3), dtype=np.int64),
            total=np.zeros((0, 3), dtype=np.int64),
        )

    def choose(self, demand: Demand) -> Choice | Refusal:
        """Choose a host and take the demand off its free capacity until `settle`."""
        choice = choose(self._columns, demand)
        if isinstance(choice, Choice):
            self._pending[choice.host][demand.owner] = demand
            self.refresh(choice.host)
        return choice

    def settle(self, choice: Choice, demand: Demand) -> None:
        """The claim of a choice was committed or refused: from here on only the working set counts."""
        del self._pending[choice.host][demand.owner]
        if not self._pending[choice.host]:
            del self._pending[choice.host]
        self.refresh(choice.host)

    def refresh(self, host: HostId) -> None:
        """Take over what the working set says of a host."""
        row, capacity = self._seen.get(host), self._seen.capacity(host)
        if row is None or capacity is None or row.deleted_at is not None:
            self._drop(host)
            return
        at = self._rows.get(host)
        if at is None:
            at = self._append(host)
        used = self._seen.used(host)
        total = _vector(capacity.vcpus, capacity.memory_mib, capacity.disk_gib)
        columns = self._columns
        columns.names[at] = row.name
        columns.connected[at] = self._seen.host(host).connected
        columns.schedulable[at] = row.spec.schedulable
        columns.total[at] = total
        columns.free[at] = total - _vector(used.vcpus, used.memory_mib, used.disk_gib)
        for demand in self._pending[host].values() if host in self._pending else ():
            if self._seen.placement(demand.owner) is None:  # a claim is in the books before its turn hears of it
                columns.free[at] -= _vector(demand.vcpus, demand.memory_mib, demand.disk_gib)

    def _append(self, host: HostId) -> int:
        columns, at = self._columns, len(self._columns.hosts)
        columns.hosts.append(host)
        columns.names.append("")
        columns.connected = np.append(columns.connected, False)
        columns.schedulable = np.append(columns.schedulable, False)
        columns.free = np.vstack([columns.free, np.zeros((1, 3), dtype=np.int64)])
        columns.total = np.vstack([columns.total, np.zeros((1, 3), dtype=np.int64)])
        self._rows[host] = at
        return at

    def _drop(self, host: HostId) -> None:
        at = self._rows.pop(host, None)
        if at is None:
            return
        columns = self._columns
        del columns.hosts[at], columns.names[at]
        columns.connected = np.delete(columns.connected, at)
        columns.schedulable = np.delete(columns.schedulable, at)
        columns.free = np.delete(columns.free, at, axis=0)
        columns.total = np.delete(columns.total, at, axis=0)
        self._rows = {one: index for index, one in enumerate(columns.hosts)}


def _vector(vcpus: int, memory_mib: int, disk_gib: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array([vcpus, memory_mib, disk_gib], dtype=np.int64)
