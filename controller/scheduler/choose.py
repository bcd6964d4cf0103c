"""Choosing a host: vectorised filters and a score over the hosts' columns, and a refusal that counts what each cost.

Pure: columns and a demand in, a choice or a refusal out. The claim itself is decided by the store's transaction.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from common.cpus import Flags, fallback, named
from common.firmware import named as abilities_named
from common.firmware import way_out
from common.ids import HostId, Id
from common.refusal import Cost, Refusal
from controller.scheduler.columns import Columns, Offer, Place, Room
from controller.scheduler.rules import Bar, Crowd, Rule, bars, strain
from controller.scheduler.survival import Survival


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What a host is to be found for."""

    owner: Id
    vcpus: int
    memory_mib: int
    disk_gib: int
    host: HostId | None = None
    """Only this host will do."""
    beside: str = ""
    """The volume for whose sake: none but its caller's wish where it is empty."""
    rack: Place | None = None
    """Only hosts of this rack will do."""
    zone: Place | None = None
    """Only hosts of this zone will do."""
    groups: tuple[Rule, ...] = ()
    """The groups whose rules hold for it."""
    survives: bool = False
    """Whether it is to be started elsewhere if its host is lost, where its zone keeps room for that."""
    size: str = ""
    """The size's name, for the words of a refusal."""
    needs: Offer = Offer()
    """What its host has to be able to do."""
    cpu: str = ""
    """What it asked for as a CPU, likewise."""

    @property
    def room(self) -> Room:
        """What it takes of its host."""
        return Room(self.vcpus, self.memory_mib, self.disk_gib)


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The host that was chosen, and its row in the columns."""

    host: HostId
    row: int
    zone: Id | None = None
    """The zone that was looked at, and found to survive the loss of any one host with this machine too."""


TRIES_A_ZONE = 8
"""Hosts of one zone that are tried, the best first, before the zone is taken for one that would not survive."""

UNITS = (("vcpus", "vCPUs"), ("memory", "MiB of memory"), ("disk", "GiB of disk"))


def choose(
    columns: Columns, demand: Demand, crowds: Sequence[Crowd] = (), survival: Survival | None = None
) -> Choice | Refusal:
    """Choose the host that is left with the most balanced free share; ties go to the first in the columns.

    The score is the smallest share of vCPUs, memory and disk that stays free: machines spread, and no one
    resource is used up while others lie idle. `crowds`: where the members of the demand's groups are. Hard rules
    rule hosts out; soft ones come before the score, so that they are broken only where they must be. `survival`: a
    host is passed over where its zone could then not survive the loss of one.
    """
    if not columns.hosts:
        return Refusal(
            summary="no host fits: none has said yet what it has",
            smallest_change="let a host join (skerry host create NAME), or wait for one that does (skerry host list)",
        )
    barred = _bars(columns, demand, crowds)
    scores = columns.scores(demand.room)
    for bar in barred:
        scores = np.where(bar.mask, -np.inf, scores)
    for level in _by_strain(columns, scores, crowds):
        if found := _best(columns, demand, level, survival):
            return found
    if survival and scores.max() > -np.inf:
        barred.append(_unsurvivable(columns, demand, scores, survival))
    return _refuse(columns, demand, barred)


def _by_strain(columns: Columns, scores: NDArray[np.float64], crowds: Sequence[Crowd]) -> Iterator[NDArray[np.float64]]:
    """Yield the scores of those that strain the soft rules least, then of those that do so next to least, and so on."""
    if all(crowd.rule.hard for crowd in crowds):
        yield scores
        return
    strained, left = strain(columns, crowds), scores > -np.inf
    while left.any():
        least = strained[left].min()
        yield np.where(left & (strained == least), scores, -np.inf)
        left &= strained > least


def _best(columns: Columns, demand: Demand, scores: NDArray[np.float64], survival: Survival | None) -> Choice | None:
    row = int(scores.argmax())
    if scores[row] == -np.inf:
        return None
    if survival is None or survival.zone(row) is None:
        return Choice(host=columns.hosts[row], row=row)
    return _survivable(columns, demand, scores, survival)


def _survivable(columns: Columns, demand: Demand, scores: NDArray[np.float64], survival: Survival) -> Choice | None:
    """Return the best host with which its zone survives the loss of any one."""
    left, tried = scores.copy(), Counter[str]()
    while left[row := int(left.argmax())] > -np.inf:
        zone = survival.zone(row)
        if zone is None:
            return Choice(host=columns.hosts[row], row=row)
        if survival.after(row, demand.room, wanted=demand.survives) is None:
            return Choice(host=columns.hosts[row], row=row, zone=Id(zone.id))
        tried[zone.id] += 1
        left[row] = -np.inf
        if tried[zone.id] == TRIES_A_ZONE:
            left[columns.codes("zone") == columns.codes("zone")[row]] = -np.inf
    return None


def _unsurvivable(columns: Columns, demand: Demand, scores: NDArray[np.float64], survival: Survival) -> Bar:
    """Return what rules out all hosts of the zones that have the room: the loss that one of them would not survive."""
    row, codes = int(scores.argmax()), columns.codes("zone")
    loss = survival.after(row, demand.room, wanted=demand.survives)
    assert loss is not None, "it was refused for this"
    stranded = f"{loss.stranded} machine{'s' if loss.stranded != 1 else ''}"
    return Bar(
        constraint="n-1",
        mask=np.isin(codes, codes[scores > -np.inf]),
        detail=f"hosts whose zone has to survive the loss of one: with this machine in zone {loss.zone.name}, "
        f"{stranded} of host {loss.host} would find no room elsewhere",
        way_out=lambda row: (
            f"add a host to zone {columns.domain(row, 'zone').name}, or free as much there as "
            f"{stranded} of host {loss.host} need, for which host {columns.names[row]} is kept free"
        ),
    )


def _bars(columns: Columns, demand: Demand, crowds: Sequence[Crowd]) -> list[Bar]:
    """Return what rules hosts out beside want of room: the caller's own pins first."""
    found = []
    if demand.host is not None:
        outside = ~columns.within("host", [demand.host])
        detail = f"hosts other than that of volume {demand.beside}" if demand.beside else "hosts other than the pinned"
        found.append(Bar(constraint="pinned", mask=outside, detail=detail, pin=True))
    for over, place in (("rack", demand.rack), ("zone", demand.zone)):
        if place is not None:
            outside = ~columns.within(over, [place.id])  # type: ignore[arg-type]
            found.append(Bar(constraint=over, mask=outside, detail=f"hosts outside {over} {place.name}", pin=True))
    return found + _unable(columns, demand) + bars(columns, crowds)


def _unable(columns: Columns, demand: Demand) -> list[Bar]:
    """Return the hosts that lack something that is asked for: an ability, or flags of a CPU."""
    found, flags = [_without(columns, ability) for ability in sorted(demand.needs.can)], demand.needs.flags
    if flags:
        detail = f"hosts that can't give it a CPU of {demand.cpu}, which needs the flags {named(flags, len(flags))}"
        cpu = Bar(
            constraint="cpu",
            mask=columns.lacking(Offer(flags=flags)),
            detail=detail,
            way_out=lambda row: _other_cpu(columns, row, flags),
        )
        found.append(cpu)
    return found


def _without(columns: Columns, ability: str) -> Bar:
    """Return the hosts that lack an ability."""
    return Bar(
        constraint=ability,
        mask=columns.lacking(Offer(can=frozenset({ability}))),
        detail=f"hosts without {abilities_named((ability,))}",
        way_out=lambda row: way_out((ability,), columns.names[row]),
    )


def _other_cpu(columns: Columns, row: int, flags: Flags) -> str:
    name, has = columns.names[row], columns.offer(row).flags
    if not has:
        return f"have host {name} say what its CPU can do: upgrade its agent, and see that libvirtd answers there"
    return f"ask for a CPU that host {name} can give (--cpu {fallback(has)}): it lacks {named(flags - has)}"


def _refuse(columns: Columns, demand: Demand, barred: Sequence[Bar]) -> Refusal:
    """Count per constraint the hosts it rules out, and name the smallest change that would fit."""
    hosts = len(columns)
    need = np.array(demand.room, dtype=np.float64)[:, None]
    short = columns.free < need
    costs = [
        Cost(
            constraint="connected", hosts=int((~columns.connected).sum()), detail="hosts whose agent is not connected"
        ),
        Cost(constraint="schedulable", hosts=int((~columns.schedulable).sum()), detail="hosts closed to new machines"),
    ]
    for resource, (name, unit) in enumerate(UNITS):
        most = int(columns.free[resource].max(initial=0))
        detail = f"needs {demand.room[resource]} {unit}; the most that is free on one host is {max(0, most)}"
        costs.append(Cost(constraint=name, hosts=int(short[resource].sum()), detail=detail))
    costs += [Cost(constraint=bar.constraint, hosts=int(bar.mask.sum()), detail=bar.detail) for bar in barred]
    return Refusal(
        summary=f"none of {hosts} host{'s' if hosts != 1 else ''} fits",
        hosts=hosts,
        costs=tuple(cost for cost in costs if cost.hosts),
        smallest_change=_smallest_change(columns, demand, barred),
    )


def _smallest_change(columns: Columns, demand: Demand, barred: Sequence[Bar]) -> str:
    """Find the host that fits after the least: fewest kinds of change first, then the smallest relative shortage."""
    need = np.array(demand.room, dtype=np.float64)[:, None]
    lack = np.maximum(need - columns.free, 0)
    rules = [bar for bar in barred if not bar.pin]
    changes = (lack > 0).sum(axis=0) + (~columns.connected) + (~columns.schedulable) + sum(bar.mask for bar in rules)
    relative = (lack / np.maximum(need, 1)).sum(axis=0) + sum(bar.mask * bar.weight for bar in rules)
    allowed = np.ones(len(columns), dtype=np.bool_)
    for bar in barred:
        if bar.pin:
            allowed &= ~bar.mask
    if not allowed.any():
        return _nowhere(demand)
    row = int(np.lexsort((relative, changes, ~allowed))[0])
    words = []
    if not columns.connected[row]:
        words.append(f"bring host {columns.names[row]} back")
    if not columns.schedulable[row]:
        words.append(f"open host {columns.names[row]} (skerry host set {columns.names[row]} --schedulable)")
    words += [bar.way_out(row) for bar in rules if bar.mask[row]]
    return " and ".join([*words, *_shortages(columns, demand, row)])


def _shortages(columns: Columns, demand: Demand, row: int) -> list[str]:
    words, name = [], columns.names[row]
    for resource, (_, unit) in enumerate(UNITS):
        needed = demand.room[resource]
        lack = needed - int(columns.free[resource, row])
        if 0 < lack < needed:
            size = f" (size {demand.size} has {needed})" if demand.size else ""
            words.append(f"ask for {lack} {unit} less{size}, or free as much on host {name}")
        elif lack > 0:
            words.append(f"free {lack} {unit} on host {name}")
    return words


def _nowhere(demand: Demand) -> str:
    """Say what to do where no host at all is within the pins."""
    pins = (("rack", demand.rack), ("zone", demand.zone))
    over, name = next(((over, place.name) for over, place in pins if place is not None), ("host", ""))
    if over == "host" and demand.beside:
        return f"bring the host of volume {demand.beside} back, or make a machine that does without that volume"
    if over == "host":
        return "pin it to a host that has joined, or to none"
    return f"put a host into {over} {name} (skerry host set HOST --{over} {name}), or ask for another {over}"
