"""`skerry top`: what uses most just now, as a table that renews itself."""

import asyncio
import sys
import time

import click

from controller.cli.answers import Answer
from controller.cli.charts import figure
from controller.cli.client import Client
from controller.cli.parts import connection_options, examples, form_option
from controller.cli.render import age, print_data, print_table
from controller.cli.session import asked_project, form, talk

PATH = "/v1/top"
CLEAR = "\x1b[H\x1b[2J"

COLUMNS = {
    "vms": (("CPU", "cpu", "%"), ("MEMORY", "memory", "MiB"), ("READ", "disk_read", "B/s"),
            ("WRITE", "disk_write", "B/s"), ("IN", "net_rx", "B/s"), ("OUT", "net_tx", "B/s")),
    "hosts": (("CPU", "cpu", "%"), ("LOAD", "load", ""), ("MEMORY", "memory", "MiB"), ("DISK", "disk", "GiB"),
              ("POOL", "pool", "%"), ("IN", "net_rx", "B/s"), ("OUT", "net_tx", "B/s"),
              ("GUESTS", "guests", "")),
}  # fmt: skip
"""Title, metric and unit."""


class Top(Answer, frozen=True):
    """One machine or host."""

    id: str
    name: str
    at: float
    figures: dict[str, float | None]
    project: str = ""
    host: str = ""
    vcpus: int = 0
    memory_mib: int = 0


class Tops(Answer, frozen=True):
    """What the API answers."""

    items: tuple[Top, ...]
    missing: tuple[str, ...] = ()


def command() -> click.Command:
    """Return `skerry top`."""

    def run(of: str, sort: str, limit: int, once: bool, every: float) -> None:
        project = asked_project()
        query: dict[str, str | int] = {"of": of, "sort": sort, "limit": limit}
        if project and of == "vms":
            query["project"] = project
        live = not once and form() == "table" and sys.stdout.isatty()
        talk(lambda client: _follow(client, of, query, every if live else 0.0))

    return click.Command(
        "top",
        callback=run,
        short_help="What uses most just now.",
        help="Show what machines (or hosts) use just now, the busiest first. On a terminal the table renews itself "
        "until Ctrl-C. CPU of a machine: 100 % is one vCPU.\n\n"
        + examples("skerry top", "skerry top vms --sort net_tx", "skerry top hosts --once", "skerry top -o json"),
        params=[
            click.Argument(["of"], type=click.Choice(["vms", "hosts"]), default="vms"),
            click.Option(["--sort"], default="cpu", metavar="METRIC", help="By which metric (default cpu)"),
            click.Option(
                ["--limit"], type=click.IntRange(1, 1000), default=30, metavar="N", help="How many (default 30)"
            ),
            click.Option(["--once"], is_flag=True, help="Print the table once"),
            click.Option(
                ["--every"],
                type=click.FloatRange(min=1),
                default=5.0,
                metavar="SECONDS",
                help="How often it is renewed (default 5: new figures come that often)",
            ),
            *connection_options(),
            form_option(),
        ],
    )


async def _follow(client: Client, of: str, query: dict[str, str | int], every_s: float) -> None:
    """Print the table, again and again where `every_s` is not 0."""
    while True:
        raw = await client.raw("GET", PATH, query=query)
        if every_s:
            click.echo(CLEAR, nl=False)
        _print(client, raw, of)
        if not every_s:
            return
        await asyncio.sleep(every_s)


def _print(client: Client, raw: bytes, of: str) -> None:
    if form() in ("json", "yaml"):
        print_data(raw)
        return
    found = client.decode(raw, Tops)
    for url in found.missing:
        click.echo(f"[the controller at {url} gave no answer: what it knows is not shown]", err=True)
    if form() == "name":
        click.echo("\n".join(one.name for one in found.items))
        return
    projects = of == "vms" and len({one.project for one in found.items}) > 1
    titles = ["NAME", *(["PROJECT"] if projects else []), *(["HOST", "VCPUS"] if of == "vms" else ["THREADS"])]
    titles += [*(title for title, _, _ in COLUMNS[of]), "AGE"]
    now = time.time()
    rows = [
        [
            one.name,
            *([one.project] if projects else []),
            *([one.host] if of == "vms" else []),
            str(one.vcpus),
            *(_cell(one, metric, unit) for _, metric, unit in COLUMNS[of]),
            age(now - one.at),
        ]
        for one in found.items
    ]
    print_table(titles, rows, empty="no figures have come yet: they come every 5 s from what runs")


def _cell(one: Top, metric: str, unit: str) -> str:
    said = figure(one.figures.get(metric), unit)
    if metric == "memory" and one.memory_mib and said != "-":
        return f"{said} of {figure(one.memory_mib, unit)}"
    return said
