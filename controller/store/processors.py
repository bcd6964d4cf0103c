"""What the CPUs of hosts can give guests, by their make: an index of the working set. No I/O."""

from collections import Counter, defaultdict

from common.cpus import Flags, shared
from common.ids import HostId
from controller.store.rows import Capacity


class Processors:
    """The flags of every host that may sell something. One that is being taken out of the cloud has no such row."""

    def __init__(self) -> None:
        self._of: dict[HostId, tuple[str, Flags]] = {}
        self._makes: dict[str, Counter[Flags]] = defaultdict(Counter)
        self._shared: dict[tuple[str, Flags], Flags] = {}

    def keep(self, row: Capacity, *, there: bool) -> None:
        """Take over what a host has, or that it is not there any more."""
        known = (row.traits.make, frozenset(row.traits.flags)) if there and row.traits.make else None
        before = self._of.get(row.host)
        if known == before:
            return
        if before:
            make, flags = self._of.pop(row.host)
            self._makes[make][flags] -= 1
            if not self._makes[make][flags]:
                del self._makes[make][flags]
            if not self._makes[make]:
                del self._makes[make]
        if known:
            make, flags = self._of[row.host] = known
            self._makes[make][flags] += 1
        self._shared.clear()

    def flags(self, host: HostId) -> Flags | None:
        """Return what a host can give guests; None: it has not said."""
        found = self._of.get(host)
        return found[1] if found else None

    def shared(self, host: HostId, needs: Flags = frozenset()) -> Flags | None:
        """Return what all hosts of a host's make have that have at least `needs`; None: it has not said, or lacks some.

        So a guest with these could move to any of them.
        """
        found = self._of.get(host)
        if found is None or not needs <= found[1]:
            return None
        key = (found[0], needs)
        if key not in self._shared:
            self._shared[key] = shared(self._makes[found[0]], needs)
        return self._shared[key]

    def makes(self) -> dict[str, dict[HostId, Flags]]:
        """Return the hosts of each make with their flags."""
        found: dict[str, dict[HostId, Flags]] = defaultdict(dict)
        for host, (make, flags) in self._of.items():
            found[make][host] = flags
        return dict(found)
