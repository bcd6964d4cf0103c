"""`skerry vm metrics NAME` and the lines of the last hour in `skerry vm show`: history as text."""

from collections.abc import Mapping

import click

from common.kinds.kind import AnyKind
from controller.cli.answers import Answer
from controller.cli.charts import chart, figure, spark
from controller.cli.client import Client
from controller.cli.failures import Failure, Refused
from controller.cli.render import print_data, print_pairs, print_table
from controller.cli.session import form

CHART_COLUMNS = 60
LAST_HOUR: Mapping[str, str | int] = {"from": "-1h", "step": 120}


class Series(Answer, frozen=True):
    """One metric."""

    metric: str
    unit: str
    values: tuple[float | None, ...]

    @property
    def known(self) -> list[float]:
        """Return the values there are."""
        return [value for value in self.values if value is not None]


class History(Answer, frozen=True):
    """What the API answers."""

    name: str
    start: int
    step: int
    end: int
    agg: str
    series: tuple[Series, ...]
    missing: tuple[str, ...] = ()


class Wanted(Answer, frozen=True):
    """What the command line asks for."""

    metrics: tuple[str, ...]
    start: str
    end: str
    step: int | None
    agg: str

    def query(self) -> tuple[tuple[str, str | int], ...]:
        """Return it as the API takes it."""
        return (
            *(("metric", name) for name in self.metrics),
            ("from", self.start),
            ("to", self.end),
            *((("step", self.step),) if self.step else ()),
            ("agg", self.agg),
        )


async def show(client: Client, path: str, wanted: Wanted) -> None:
    """Ask for history, and print it: a line for each metric, or a chart of each that was named."""
    raw = await client.raw("GET", path, query=wanted.query())
    if form() in ("json", "yaml"):
        print_data(raw)
        return
    found = client.decode(raw, History)
    _warn(found)
    if not wanted.metrics:
        rows = [
            [one.metric, figure(_last(one), one.unit), _mean(one), _peak(one), spark(squeezed(one.values))]
            for one in found.series
        ]
        print_table(["METRIC", "LAST", "MEAN", "HIGHEST", f"{wanted.start} TO {wanted.end}".upper()], rows)
        return
    for one in found.series:
        _print_chart(one, found)


def _print_chart(one: Series, found: History) -> None:
    if not one.known:
        raise Failure(
            f"nothing is known of {one.metric} of {found.name} in that span",
            fix="ask for another one (--from -7d); figures come while the machine runs and its host is connected",
        )
    values = squeezed(one.values)
    step = (found.end - found.start) / len(values)
    click.echo(f"{one.metric} of {found.name}, {found.agg}: mean {_mean(one)}, highest {_peak(one)}")
    click.echo("\n".join(chart(values, one.unit, start=found.start, step=step)))


def _warn(found: History) -> None:
    for url in found.missing:
        click.echo(f"[the controller at {url} gave no answer: what it knows is not shown]", err=True)


async def print_last_hour(client: Client, kind: AnyKind, name: str) -> None:
    """Print a line for each metric of which something is known, where the token may see them."""
    try:
        found = await client.read("GET", client.path(kind, name, "metrics"), History, query=LAST_HOUR)
    except Refused:
        return
    lines = [(one.metric, f"{spark(one.values)}  {figure(_last(one), one.unit)}") for one in found.series if one.known]
    if lines:
        click.echo(click.style("last hour", bold=True))
        print_pairs(lines)


def squeezed(values: tuple[float | None, ...], columns: int = CHART_COLUMNS) -> tuple[float | None, ...]:
    """Return at most so many values: the mean of each group of neighbours."""
    group = -(-len(values) // columns)
    if group <= 1:
        return values
    groups = [[v for v in values[at : at + group] if v is not None] for at in range(0, len(values), group)]
    return tuple(sum(known) / len(known) if known else None for known in groups)


def _last(one: Series) -> float | None:
    return one.known[-1] if one.known else None


def _mean(one: Series) -> str:
    return figure(sum(one.known) / len(one.known) if one.known else None, one.unit)


def _peak(one: Series) -> str:
    return figure(max(one.known, default=None), one.unit)
