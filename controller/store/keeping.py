"""Rows in dictionaries, some of them in groups: there or not there, and no group that is empty."""

from typing import TypeVar

G = TypeVar("G")
K = TypeVar("K")
V = TypeVar("V")


def keep(into: dict[K, V], key: K, value: V, *, there: bool) -> None:
    """Have it there, or not."""
    if there:
        into[key] = value
    else:
        into.pop(key, None)


def keep_in(into: dict[G, dict[K, V]], group: G, key: K, value: V, *, there: bool) -> None:
    """Keep it in a group; an empty group goes, for a controller runs for years."""
    keep(into[group], key, value, there=there)
    if not into[group]:
        del into[group]


def discard(into: dict[G, set[K]], group: G, key: K) -> None:
    """Take it out of a group; an empty group goes."""
    into[group].discard(key)
    if not into[group]:
        del into[group]
