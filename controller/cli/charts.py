"""Figures over time as text: a line of blocks, a small chart, and amounts in their units. Pure."""

from collections.abc import Sequence
from datetime import datetime

from controller.cli.render import amount

Values = Sequence[float | None]

_BLOCKS = "▁▂▃▄▅▆▇█"
_FULL = "█"
_GAP = " "


def figure(value: float | None, unit: str) -> str:
    """Return a figure with its unit, for people."""
    match value, unit:
        case None, _:
            return "-"
        case float() | int(), "B/s":
            return f"{amount(round(value))}/s"
        case float() | int(), "MiB":
            return amount(round(value * (1 << 20)))
        case float() | int(), "GiB":
            return amount(round(value * (1 << 30)))
        case float() | int(), "%":
            return f"{value:.1f} %"
        case _:
            return f"{value:g}"


def spark(values: Values) -> str:
    """Return a block for each value, the highest of all full; a gap where nothing is known."""
    highest = max((value for value in values if value is not None), default=0.0)
    return "".join(_GAP if value is None else _BLOCKS[_level(value, highest, len(_BLOCKS)) - 1] for value in values)


def _level(value: float, highest: float, levels: int) -> int:
    """Return 1 to `levels`: how high a value reaches."""
    return max(1, min(levels, round(value / highest * levels))) if highest > 0 else 1


def chart(values: Values, unit: str, *, start: float, step: float, height: int = 8) -> list[str]:
    """Return the lines of a chart, the highest value at its top, with the scale at the left and times below."""
    highest = max((value for value in values if value is not None), default=0.0)
    scale = [figure(highest, unit), *[""] * (height - 2), figure(0.0, unit)]
    scale[height // 2] = figure(highest / 2, unit)
    margin = max(len(text) for text in scale)
    lines = []
    for row in range(height):
        floor = (height - 1 - row) * len(_BLOCKS)
        cells = "".join(_cell(value, highest, floor, height) for value in values)
        lines.append(f"{scale[row]:>{margin}} ┤{cells}".rstrip())
    return [*lines, f"{'':>{margin}} └{'─' * len(values)}", _times(len(values), start, step, margin + 2)]


def _cell(value: float | None, highest: float, floor: int, height: int) -> str:
    if value is None:
        return _GAP
    filled = _level(value, highest, height * len(_BLOCKS)) - floor
    return _GAP if filled <= 0 else _FULL if filled >= len(_BLOCKS) else _BLOCKS[filled - 1]


def _times(columns: int, start: float, step: float, margin: int) -> str:
    """Return first, middle and last moment below their columns, as far as there is room."""
    form = "%H:%M" if columns * step <= 2 * 86400 else "%m-%d"
    line = ""
    for column in (0, columns // 2, columns):
        text = datetime.fromtimestamp(start + column * step).astimezone().strftime(form)
        place = max(0, margin + column - (len(text) if column else 0))
        if place >= len(line) + (1 if line else 0):
            line = f"{line:<{place}}{text}"
    return line
