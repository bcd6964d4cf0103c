"""What groups ask for: which hosts a hard rule rules out, and how much each host would strain the soft ones. Pure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from common.ids import Id
from controller.scheduler.columns import NOWHERE, Columns, Over


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """A group's rule: its members in one domain (affinity), or each in another (anti-affinity)."""

    group: Id
    name: str
    policy: Literal["affinity", "anti-affinity"]
    over: Over
    hard: bool


class Crowd(msgspec.Struct, frozen=True, kw_only=True):
    """A rule, and how many other members are in which domain. Those of hosts in no rack or zone are under ""."""

    rule: Rule
    members: Mapping[str, int]


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """Something that rules hosts out, beside want of room."""

    constraint: str
    mask: NDArray[np.bool_]
    """True: ruled out."""
    detail: str
    pin: bool = False
    """The caller asked for it by name: no change of it is suggested."""
    weight: float = 1.0
    """How large a change it takes to lift it, where a shortage of all of one resource is 1."""
    way_out: Callable[[int], str] = lambda _: ""
    """What lifts it for the host of a row."""


def bars(columns: Columns, crowds: Sequence[Crowd]) -> list[Bar]:
    """Return which hosts the hard rules rule out."""
    return [
        _apart(columns, crowd) if crowd.rule.policy == "anti-affinity" else _together(columns, crowd)
        for crowd in crowds
        if crowd.rule.hard
    ]


def strain(columns: Columns, crowds: Sequence[Crowd]) -> NDArray[np.float64]:
    """Return how many pairs of members would break a soft rule on each host."""
    total = np.zeros(len(columns))
    for crowd in crowds:
        if crowd.rule.hard:
            continue
        there = columns.crowds(crowd.rule.over, dict(crowd.members))
        total += there if crowd.rule.policy == "anti-affinity" else sum(crowd.members.values()) - there
    return total


def _apart(columns: Columns, crowd: Crowd) -> Bar:
    rule = crowd.rule

    def way_out(row: int) -> str:
        domain = columns.domain(row, rule.over)
        if not domain.id:
            return _give_domain(columns, row, rule)
        return (
            f"add a {rule.over} for group {rule.name}, or delete its machine on {_named(rule.over, domain.name)}, "
            f"which keeps host {columns.names[row]} from it"
        )

    nowhere = _nowhere(columns, rule.over)
    return Bar(
        constraint=f"group {rule.name}",
        mask=columns.within(rule.over, list(crowd.members)) | nowhere,
        detail=f"hosts whose {rule.over} has a machine of group {rule.name} already" + _or_nowhere(nowhere, rule.over),
        way_out=way_out,
    )


def _together(columns: Columns, crowd: Crowd) -> Bar:
    rule = crowd.rule
    nowhere = _nowhere(columns, rule.over)
    if not crowd.members:
        return Bar(
            constraint=f"group {rule.name}",
            mask=nowhere,
            detail=f"hosts that are in no {rule.over}",
            way_out=lambda row: _give_domain(columns, row, rule),
        )
    domain = next(iter(crowd.members))
    row = next(iter(np.flatnonzero(columns.within(rule.over, [domain]))), None)
    where = _named(rule.over, columns.domain(int(row), rule.over).name if row is not None else domain)
    count = sum(crowd.members.values())

    def way_out(row: int) -> str:
        if not columns.domain(row, rule.over).id:
            name, place = columns.names[row], where.split()[-1]
            return f"put host {name} into {where} (skerry host set {name} --{rule.over} {place})"
        there = f"{count} machine{'s' if count != 1 else ''}"
        return f"have group {rule.name} begin anew on host {columns.names[row]}: delete its {there} on {where}"

    return Bar(
        constraint=f"group {rule.name}",
        mask=~columns.within(rule.over, [domain]) | nowhere,
        detail=f"hosts outside {where}, where group {rule.name} is",
        weight=float(count + 1),
        way_out=way_out,
    )


def _nowhere(columns: Columns, over: Over) -> NDArray[np.bool_]:
    """Say which hosts are in no rack, or in no zone: what fails together with them is not known."""
    if over == "host":
        return np.zeros(len(columns), dtype=np.bool_)
    nowhere: NDArray[np.bool_] = columns.codes(over) == NOWHERE
    return nowhere


def _or_nowhere(nowhere: NDArray[np.bool_], over: Over) -> str:
    return f", or that are in no {over}" if nowhere.any() else ""


def _give_domain(columns: Columns, row: int, rule: Rule) -> str:
    name = columns.names[row]
    return f"put host {name} into a {rule.over} of its own (skerry host set {name} --{rule.over} NAME)"


def _named(over: Over, name: str) -> str:
    return f"{over} {name}"
