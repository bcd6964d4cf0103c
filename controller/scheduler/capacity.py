"""How many more machines of one amount fit, zone by zone, and what limits that: by the rules of choosing. Pure."""

from collections import Counter
from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from common.ids import HostId, Id
from common.refusal import Refusal
from controller.scheduler.choose import UNITS, Demand, choose
from controller.scheduler.columns import Columns, Room
from controller.scheduler.survival import Survival, fitting, packed

COUNTED_MOST = 5000
"""Machines of one size that are counted in a zone that has to survive a loss: they are placed one by one."""

LOSSES_MOST = 256
"""Hosts of a zone whose loss is looked at in full, those that cost most first; the others are bounded from below."""

NAMED_MOST = 5


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """What keeps hosts from taking more: the resource that runs out first, or why they take none at all."""

    what: str
    hosts: int
    named: tuple[str, ...]
    """Some of them."""


class ZoneFits(msgspec.Struct, frozen=True, kw_only=True):
    """One zone's share."""

    zone: str
    """Empty: the hosts that are in none."""
    fits: int
    with_one_host_lost: int
    """At least so many, once its machines were started on the other hosts of the zone; 0 where they find no room."""
    worst: str
    """The host whose loss costs most."""
    at_least: bool = False
    """The count ended there: more may fit."""


class Fits(msgspec.Struct, frozen=True, kw_only=True):
    """How many more fit now."""

    fits: int
    with_one_host_lost: int
    zones: tuple[ZoneFits, ...]
    limits: tuple[Limit, ...]
    at_least: bool = False
    """The count of a zone ended: more may fit."""


class Stock(msgspec.Struct, frozen=True, kw_only=True):
    """The hosts as they are at one moment, and what of theirs is to be started elsewhere if they are lost."""

    columns: Columns
    loads: Mapping[HostId, Counter[Room]]
    guarded: frozenset[str]
    """The zones (ids) that have to survive the loss of a host."""


def how_many(stock: Stock, needs: Mapping[str, Room], zone: str | None = None) -> dict[str, Fits]:
    """Return of each amount, by its name, how many more machines fit. `zone` (its id): there only.

    As many as would be placed if they were asked for one by one, and nothing else happened.
    """
    codes = [int(code) for code in np.unique(stock.columns.codes("zone"))]
    if zone is not None:
        codes = [code for code in codes if code == stock.columns.code("zone", zone)]
    pools = [_Pool(stock, code) for code in codes]
    return {name: _fits(pools, need) for name, need in needs.items()}


def _fits(pools: list["_Pool"], need: Room) -> Fits:
    zones = tuple(one.fits(need) for one in pools)
    total = sum(one.fits for one in zones)
    costs = max((one.fits - one.with_one_host_lost for one in zones), default=0)
    limits: dict[str, list[str]] = {}
    for one in pools:
        for what, names in one.limits(need).items():
            limits.setdefault(what, []).extend(names)
    return Fits(
        fits=total,
        with_one_host_lost=max(0, total - costs),
        zones=zones,
        limits=tuple(
            Limit(what=what, hosts=len(names), named=tuple(sorted(names)[:NAMED_MOST]))
            for what, names in sorted(limits.items(), key=lambda item: -len(item[1]))
        ),
        at_least=any(one.at_least for one in zones),
    )


class _Pool:
    """The hosts of one zone, or those in none."""

    def __init__(self, stock: Stock, code: int) -> None:
        columns = stock.columns
        self._stock = stock
        self._rows = np.flatnonzero(columns.codes("zone") == code)
        self._place = columns.domain(int(self._rows[0]), "zone")
        self._closed = ~columns.schedulable[self._rows]
        self._cut = ~columns.connected[self._rows]
        self._free = columns.free[:, self._rows].copy()
        self._free[:, self._closed | self._cut] = 0
        np.maximum(self._free, 0, out=self._free)
        self._loads = [stock.loads.get(columns.hosts[row], Counter()) for row in self._rows]
        self._lost: dict[int, tuple[NDArray[np.float64], int]] = {}

    def fits(self, need: Room) -> ZoneFits:
        slots = fitting(self._free, np.array(need, dtype=np.float64))
        guarded = self._place.id in self._stock.guarded
        fits = self._one_by_one(need) if guarded else int(slots.sum())
        left, worst = self._with_one_lost(need, slots)
        return ZoneFits(
            zone=self._place.name,
            fits=fits,
            with_one_host_lost=min(left, fits),
            worst=worst,
            at_least=guarded and fits == COUNTED_MOST,
        )

    def limits(self, need: Room) -> dict[str, list[str]]:
        """Return the hosts' names by what limits them."""
        amount = np.array(need, dtype=np.float64)
        first = (self._free // amount[:, None]).argmin(axis=0)
        found: dict[str, list[str]] = {}
        for at, row in enumerate(self._rows):
            what = "not connected" if self._cut[at] else "closed" if self._closed[at] else UNITS[int(first[at])][0]
            found.setdefault(what, []).append(self._stock.columns.names[row])
        return found

    def _one_by_one(self, need: Room) -> int:
        columns = self._stock.columns.copy(self._rows.tolist())
        loads = {host: Counter(self._stock.loads.get(host, {})) for host in columns.hosts}
        survival = Survival(columns, lambda host: loads[host], lambda _: True)
        demand = Demand(owner=Id(""), **need._asdict(), survives=True)
        for count in range(COUNTED_MOST):
            choice = choose(columns, demand, (), survival)
            if isinstance(choice, Refusal):
                return count
            row = columns.row(choice.host)
            left = Room(*(has - takes for has, takes in zip(row.free, need, strict=True)))
            columns.put(msgspec.structs.replace(row, free=left))
            loads[choice.host][need] += 1
        return COUNTED_MOST

    def _with_one_lost(self, need: Room, slots: NDArray[np.float64]) -> tuple[int, str]:
        """Return how many fit after the loss that costs most, and which that is."""
        least = slots.sum() - slots - np.array([_displaced(load, need) for load in self._loads])
        order = np.argsort(least, kind="stable")
        best, worst = float("inf"), 0
        for tried, lost in enumerate(int(one) for one in order):
            if least[lost] >= best:
                break
            if tried == LOSSES_MOST:
                best, worst = float(least[lost]), lost
                break
            left, stranded = self._losing(lost)
            fits = 0.0 if stranded else float(fitting(left, np.array(need, dtype=np.float64)).sum())
            if fits < best:
                best, worst = fits, lost
        return max(0, int(best)), self._stock.columns.names[int(self._rows[worst])]

    def _losing(self, lost: int) -> tuple[NDArray[np.float64], int]:
        if lost not in self._lost:
            self._lost[lost] = packed(self._free, lost, self._loads[lost])
        return self._lost[lost]


def _displaced(load: Mapping[Room, int], need: Room) -> int:
    """Return the most machines of one amount that others keep from a place, wherever they are started."""
    return sum(
        count * max(-(-takes // wants) for takes, wants in zip(one, need, strict=True)) for one, count in load.items()
    )
