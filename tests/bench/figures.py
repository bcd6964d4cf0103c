"""A measured figure beside its budget and a peer, and the table and file that hold them."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

FAR = 5.0
"""So many times away from its budget a figure needs a profile that says why."""


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table."""

    name: str
    figure: float
    unit: str
    budget: float | None = None
    """In the same unit: the most that is fine, or the least where the unit is one per second."""
    beside: str = ""
    """What was measured in the same run, to compare with."""
    beside_figure: float | None = None

    @property
    def away(self) -> float | None:
        """Return how many times the budget it costs (1 and less: within), None without a budget."""
        if self.budget is None or not self.figure:
            return None
        return self.budget / self.figure if self.unit.endswith("/s") else self.figure / self.budget


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that so large a share of the values does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * round(share * 100) // 100) - 1)]


def write(figures: Sequence[Figure], path: Path) -> None:
    """Write the figures as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=1))


def show(figures: Sequence[Figure]) -> None:
    """Print the figures as a table."""
    table = Table("what", "figure", "unit", "budget", "verdict", "beside it", "", box=None, pad_edge=False)
    for one in figures:
        table.add_row(
            one.name, _number(one.figure), one.unit, _number(one.budget), _verdict(one.away), one.beside,
            _number(one.beside_figure),
        )  # fmt: skip
    Console(width=180).print(table)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}" if abs(value) < 100 else f"{value:,.0f}"


def _verdict(away: float | None) -> str:
    if away is None:
        return ""
    return "within" if away <= 1 else f"{away:.1f} × over"
