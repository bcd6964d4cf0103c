"""What is printed: aligned tables for people, the API's own JSON (or the same as YAML) for scripts."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click
import msgspec

from common.boots import FirstBoot, words
from common.kinds.kind import AnyKind
from controller.cli.answers import Shown, shown
from controller.cli.session import form

GOOD = frozenset({"ready", "running", "done", "connected", "active", "available", "up", "ok", "online", "joined"})
BAD = frozenset({"failed", "blocked", "crashed", "error", "lost", "offline", "disconnected", "down", "unreachable"})
QUIET = frozenset({"stopped", "stopped-by-guest", "cancelled", "deleted", "gone"})

NOTHING = "-"
KEPT_WIDTH = 24
"""Cells up to this wide are shown whole where a terminal is too narrow; longer ones give way to them."""
Names = Mapping[str, str]
Rows = Sequence[Sequence[str]]


def print_resources(kind: AnyKind, raws: Sequence[msgspec.Raw], names: Names) -> None:
    """Print a list of things of a kind."""
    match form():
        case "json" | "yaml":
            print_data(b"[" + b",".join(bytes(raw) for raw in raws) + b"]")
        case "name":
            for raw in raws:
                click.echo(shown(raw).name)
        case _:
            now = time.time()
            rows = [[cell(shown(raw), column.path, names, now) for column in kind.columns] for raw in raws]
            print_table([column.title for column in kind.columns], rows, empty=f"there are no {kind.plural}")


def print_resource(raw: msgspec.Raw, names: Names, *, revealed: str = "") -> None:
    """Print one thing in full. What creating it revealed goes along in JSON and YAML, as the field `revealed`."""
    match form():
        case "json" | "yaml":
            text = bytes(raw)
            if revealed:
                text = text.rstrip()[:-1] + b',"revealed":' + msgspec.json.encode(revealed) + b"}"
            print_data(text)
        case "name":
            click.echo(shown(raw).name)
        case _:
            print_pairs(_pairs(shown(raw), names))


def print_data(raw: bytes) -> None:
    """Print JSON as it came (indented), or the same as YAML."""
    if form() == "yaml":
        import yaml  # noqa: PLC0415  only where it is asked for

        text = yaml.safe_dump(msgspec.json.decode(raw), sort_keys=False, allow_unicode=True)
        click.echo(text, nl=False)
    else:
        click.echo(msgspec.json.format(raw, indent=2))


def print_table(titles: Sequence[str], rows: Rows, *, empty: str = "") -> None:
    """Print aligned columns without borders. States are coloured, long cells cut to the width of a terminal."""
    from rich.console import Console  # noqa: PLC0415  rich takes 0.1 s to import
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    if not rows and empty:
        click.echo(empty, err=True)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    for number, title in enumerate(titles):
        longest = max([len(title), *(len(row[number]) for row in rows)])
        table.add_column(title, no_wrap=True, overflow="ellipsis", min_width=min(longest, KEPT_WIDTH))
    for row in rows:
        table.add_row(
            *(
                Text(text, style=style(text) if title == "STATE" else "")
                for title, text in zip(titles, row, strict=True)
            )
        )
    terminal = sys.stdout.isatty()
    console = Console(file=sys.stdout, highlight=False, width=None if terminal else 4096)
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Print names and values, one line each; a value of several lines is indented."""
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        text = value.replace("\n", "\n" + " " * (width + 2))
        colour = _COLOURS.get(style(value)) if name == "state" else None
        click.echo(f"{click.style(f'{name:<{width}}', bold=True)}  {click.style(text, fg=colour) if colour else text}")


def style(state: str) -> str:
    """Return the colour of a state's word."""
    word = state.split(" ", maxsplit=1)[0]
    if word in GOOD:
        return "green"
    if word in BAD:
        return "red"
    return "dim" if word in QUIET else "yellow"


_COLOURS = {"green": "green", "red": "red", "yellow": "yellow", "dim": "bright_black"}


def value_at(resource: Shown, path: str) -> Any:
    """Return the value at a column's dotted path; None where there is nothing."""
    first, *rest = path.split(".")
    value: Any = getattr(resource, first, None)
    for part in rest:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def cell(resource: Shown, path: str, names: Names, now: float) -> str:
    """Return a column's text: ids as names, moments as ages, lists with commas."""
    value = value_at(resource, path)
    if path.endswith("status.state") and resource.deleted_at is not None and value != "deleting":
        return f"{value or 'accepted'} (deleting)"
    return said(value, path, names, now)


def said(value: Any, path: str, names: Names, now: float) -> str:
    """Return a value in words for people."""
    leaf = path.rsplit(".", 1)[-1]
    match value:
        case None | "" | []:
            return NOTHING
        case bool():
            return "yes" if value else "no"
        case int() | float() if leaf.endswith(("_at", "_until")):
            return _moment(value - now) if value else NOTHING
        case int() if leaf.endswith("_bytes"):
            return amount(value)
        case str() if leaf == "digest":
            return value[:19]
        case str():
            return names.get(value, value)
        case list():
            return ", ".join(said(one, path, names, now) for one in value)
        case dict() if leaf == "first_boot":
            return _first_boot(value)
        case dict():
            return ", ".join(f"{key}={said(one, path, names, now)}" for key, one in value.items()) or NOTHING
        case _:
            return str(value)


def _moment(ahead_s: float) -> str:
    return f"in {age(ahead_s)}" if ahead_s > 0 else age(-ahead_s)


def _first_boot(value: dict[str, Any]) -> str:
    try:
        return words(msgspec.convert(value, FirstBoot))
    except msgspec.ValidationError:
        return str(value.get("verdict", NOTHING))  # a newer controller knows more legs


def age(seconds: float) -> str:
    """Return a span in its largest unit, as `3m`; two digits are enough to see what is old."""
    left = max(0, int(seconds))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if left >= 2 * size or (left >= size and unit != "d"):
            return f"{left // size}{unit}"
    return f"{left}s"


def amount(size: int) -> str:
    """Return a number of bytes for people."""
    value, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _pairs(resource: Shown, names: Names) -> list[tuple[str, str]]:
    now = time.time()
    pairs = [("name", resource.name), ("id", resource.id)]
    if resource.project:
        pairs.append(("project", resource.project))
    pairs.append(("state", cell(resource, "status.state", names, now)))
    behind = resource.generation - resource.observed_generation
    pairs.append(("generation", f"{resource.generation}" + (f" ({behind} not made true yet)" if behind > 0 else "")))
    pairs.append(("created", said(resource.created_at, "created_at", names, now) + " ago"))
    if resource.labels:
        pairs.append(("labels", said(resource.labels, "labels", {}, now)))
    if resource.owner:
        pairs.append(("owner", names.get(resource.owner, resource.owner)))
    for part, fields in (("spec", resource.spec), ("status", resource.status)):
        pairs += [
            (f"{part}.{name}", said(value, f"{part}.{name}", names, now))
            for name, value in fields.items()
            if not (part == "status" and name in ("state", "why")) and value not in (None, "", [], {})
        ]
    return pairs
