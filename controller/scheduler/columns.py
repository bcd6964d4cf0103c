"""The hosts as columns, and scores over them that are kept up row by row: nothing is computed anew for a choice."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from common.ids import HostId

Over = Literal["host", "rack", "zone"]
"""What fails together: the domains that a group's rule speaks of."""

SHAPES = 32
"""Demands of so many different amounts keep their scores; a cloud has few sizes, and most machines are of those."""

LOG_MOST = 4096
"""Changed rows that are remembered for scores to catch up with; then all are computed anew."""

NOWHERE = 0
"""The code of a host that is in no rack, or in no zone."""


class Room(NamedTuple):
    """An amount of all that a host sells."""

    vcpus: int
    memory_mib: int
    disk_gib: int


class Place(NamedTuple):
    """A rack or a zone."""

    id: str
    name: str


class Offer(NamedTuple):
    """What a host can do for machines beside room: the flags of a CPU, and capabilities."""

    flags: frozenset[str] = frozenset()
    can: frozenset[str] = frozenset()


class HostRow(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one host; what is free may be negative where an operator lowered a ratio."""

    host: HostId
    name: str
    connected: bool
    schedulable: bool
    free: Room
    total: Room
    rack: Place | None = None
    zone: Place | None = None
    offer: Offer = Offer()


class _Scores(msgspec.Struct, kw_only=True):
    column: NDArray[np.float64]
    read: int
    """How much of the log of changed rows it has taken over."""


class Columns:
    """Hosts as arrays. A row that goes is taken by the last one, so that they have no gaps."""

    def __init__(self) -> None:
        self.hosts: list[HostId] = []
        self.names: list[str] = []
        self.rows: dict[HostId, int] = {}
        self._made = 0
        self._connected = np.zeros(0, dtype=np.bool_)
        self._schedulable = np.zeros(0, dtype=np.bool_)
        self._open = np.zeros(0, dtype=np.bool_)
        self._free = np.zeros((3, 0))
        self._total = np.ones((3, 0))
        self._codes: dict[Over, NDArray[np.int32]] = {"rack": np.zeros(0, np.int32), "zone": np.zeros(0, np.int32)}
        self._places: dict[Over, list[Place]] = {"rack": [Place("", "")], "zone": [Place("", "")]}
        self._known: dict[Over, dict[str, int]] = {"rack": {"": NOWHERE}, "zone": {"": NOWHERE}}
        self._offered = np.zeros(0, dtype=np.int32)
        self._offers: list[Offer] = []
        self._known_offers: dict[Offer, int] = {}
        """Hosts are of few sorts: what is asked of them is asked once a sort."""
        self._scores: dict[Room, _Scores] = {}
        self._log: list[int] = []

    def __len__(self) -> int:
        return len(self.hosts)

    # --- reading: views, as long as there are hosts -----------------------------------------------------------------

    @property
    def connected(self) -> NDArray[np.bool_]:
        """Whether each host's agent is connected."""
        return self._connected[: len(self)]

    @property
    def schedulable(self) -> NDArray[np.bool_]:
        """Whether each host takes new machines."""
        return self._schedulable[: len(self)]

    @property
    def free(self) -> NDArray[np.float64]:
        """Shape (3, hosts): vCPUs, memory MiB, disk GiB. Whole numbers, as floats so that shares need no conversion."""
        return self._free[:, : len(self)]

    @property
    def total(self) -> NDArray[np.float64]:
        """Shape (3, hosts): what each may sell, 1 at least."""
        return self._total[:, : len(self)]

    def codes(self, over: Over) -> NDArray[np.int32]:
        """Return the number of each host's rack or zone; NOWHERE where it is in none."""
        return self._codes[over][: len(self)]

    def code(self, over: Over, domain: str) -> int | None:
        """Return the number of a rack or zone; None for one that no host is or was in."""
        return self._known[over].get(domain)

    def domain(self, row: int, over: Over) -> Place:
        """Return what a host fails together with; an empty id: it is in no rack, or in no zone."""
        if over == "host":
            return Place(self.hosts[row], self.names[row])
        return self._places[over][int(self._codes[over][row])]

    def offer(self, row: int) -> Offer:
        """Return what a host can do."""
        return self._offers[int(self._offered[row])]

    def lacking(self, wanted: Offer) -> NDArray[np.bool_]:
        """Say of each host whether it can't do all of this."""
        lacks = [not (wanted.flags <= offer.flags and wanted.can <= offer.can) for offer in self._offers]
        found: NDArray[np.bool_] = np.array(lacks, dtype=np.bool_)[self._offered[: len(self)]]
        return found

    def within(self, over: Over, domains: list[str]) -> NDArray[np.bool_]:
        """Say of each host whether it is in one of these domains."""
        if over == "host":
            found = np.zeros(len(self), dtype=np.bool_)
            found[[self.rows[HostId(one)] for one in domains if one in self.rows]] = True  # type: ignore[arg-type]
            return found
        return self._spread(over, dict.fromkeys(domains, 1.0)) > 0

    def crowds(self, over: Over, members: dict[str, int]) -> NDArray[np.float64]:
        """Return how many of these each host has in its domain."""
        if over == "host":
            found = np.zeros(len(self))
            for domain, count in members.items():
                if (row := self.rows.get(HostId(domain))) is not None:  # type: ignore[arg-type]
                    found[row] = count
            return found
        return self._spread(over, {domain: float(count) for domain, count in members.items()})

    def _spread(self, over: Over, values: dict[str, float]) -> NDArray[np.float64]:
        by_code = np.zeros(len(self._places[over]))
        for domain, value in values.items():
            if code := self._known[over].get(domain):
                by_code[code] = value
        return by_code[self.codes(over)]

    # --- keeping ------------------------------------------------------------------------------------------------------

    def put(self, one: HostRow) -> None:
        """Take over what is known of a host."""
        at = self.rows.get(one.host)
        if at is None:
            at = self._append(one.host)
        self.names[at] = one.name
        self._connected[at] = one.connected
        self._schedulable[at] = one.schedulable
        self._open[at] = one.connected and one.schedulable
        for resource in range(3):
            self._free[resource, at] = one.free[resource]
            self._total[resource, at] = max(1, one.total[resource])
        for over, place in (("rack", one.rack), ("zone", one.zone)):
            self._codes[over][at] = self._code_of(over, place)  # type: ignore[arg-type, index]
        self._offered[at] = self._offer_code(one.offer)
        self._changed(at)

    def drop(self, host: HostId) -> None:
        """Forget a host."""
        at = self.rows.pop(host, None)
        if at is None:
            return
        last = len(self) - 1
        moved = self.hosts[last]
        if at != last:
            self.hosts[at], self.names[at] = moved, self.names[last]
            self.rows[moved] = at
            for column in (self._connected, self._schedulable, self._open, self._offered, *self._codes.values()):
                column[at] = column[last]
            for matrix in (self._free, self._total):
                matrix[:, at] = matrix[:, last]
        del self.hosts[last], self.names[last]
        self._changed(at)

    def _append(self, host: HostId) -> int:
        at = len(self)
        if at == self._made:
            self._grow(max(64, 2 * self._made))
        self.hosts.append(host)
        self.names.append("")
        self.rows[host] = at
        return at

    def _grow(self, size: int) -> None:
        more = size - self._made
        self._connected, self._schedulable, self._open = (
            np.pad(column, (0, more)) for column in (self._connected, self._schedulable, self._open)
        )
        self._free, self._total = (np.pad(one, ((0, 0), (0, more))) for one in (self._free, self._total))
        self._codes = {over: np.pad(codes, (0, more)) for over, codes in self._codes.items()}
        self._offered = np.pad(self._offered, (0, more))
        self._made = size
        self._forget()

    def _code_of(self, over: Over, place: Place | None) -> int:
        if place is None:
            return NOWHERE
        known = self._known[over]
        if place.id not in known:
            known[place.id] = len(self._places[over])
            self._places[over].append(place)
        return known[place.id]

    def _offer_code(self, offer: Offer) -> int:
        found = self._known_offers.get(offer)
        if found is None:
            found = self._known_offers[offer] = len(self._offers)
            self._offers.append(offer)
        return found

    # --- scores -------------------------------------------------------------------------------------------------------

    def scores(self, need: Room) -> NDArray[np.float64]:
        """Return of each host the smallest share of vCPUs, memory and disk that would stay free; -inf: it does not fit.

        A view that only this class may change.
        """
        found = self._scores.pop(need, None)
        if found is None:
            found = _Scores(column=np.empty(self._made), read=len(self._log))
            found.column[: len(self)] = self._share(need, slice(0, len(self)))
            if len(self._scores) >= SHAPES:
                del self._scores[next(iter(self._scores))]
        elif found.read < len(self._log):
            rows = [row for row in set(self._log[found.read :]) if row < len(self)]
            found.column[rows] = self._share(need, rows)
            found.read = len(self._log)
        self._scores[need] = found  # the last is the one that was used last
        return found.column[: len(self)]

    def _share(self, need: Room, rows: slice | list[int]) -> NDArray[np.float64]:
        share = self._left(0, need, rows)
        for resource in (1, 2):
            np.minimum(share, self._left(resource, need, rows), out=share)
        share[~(self._open[rows] & (share >= 0))] = -np.inf
        return share

    def _left(self, resource: int, need: Room, rows: slice | list[int]) -> NDArray[np.float64]:
        left: NDArray[np.float64] = self._free[resource, rows] - need[resource]
        left /= self._total[resource, rows]
        return left

    def _changed(self, row: int) -> None:
        self._log.append(row)
        if len(self._log) > LOG_MOST:
            self._forget()

    def _forget(self) -> None:
        self._scores.clear()
        self._log.clear()

    def copy(self, rows: Sequence[int] | None = None) -> "Columns":
        """Return columns of their own of these rows, in this order; None: of all."""
        kept = np.arange(len(self)) if rows is None else np.array(rows, dtype=np.int64)
        made = Columns()
        made.hosts = [self.hosts[row] for row in kept]
        made.names = [self.names[row] for row in kept]
        made.rows = {host: row for row, host in enumerate(made.hosts)}
        made._made = len(kept)
        made._connected, made._schedulable = self._connected[kept], self._schedulable[kept]
        made._open = self._open[kept]
        made._free, made._total = self._free[:, kept], self._total[:, kept]
        made._codes = {over: codes[kept] for over, codes in self._codes.items()}
        made._offered = self._offered[kept]
        made._offers, made._known_offers = list(self._offers), dict(self._known_offers)
        made._places = {over: list(places) for over, places in self._places.items()}
        made._known = {over: dict(known) for over, known in self._known.items()}
        return made

    def row(self, host: HostId) -> HostRow:
        """Return what is known of a host."""
        at = self.rows[host]
        rack, zone = self.domain(at, "rack"), self.domain(at, "zone")
        return HostRow(
            host=host,
            name=self.names[at],
            connected=bool(self._connected[at]),
            schedulable=bool(self._schedulable[at]),
            free=Room(*(int(one) for one in self._free[:, at])),
            total=Room(*(int(one) for one in self._total[:, at])),
            rack=rack if rack.id else None,
            zone=zone if zone.id else None,
            offer=self.offer(at),
        )
