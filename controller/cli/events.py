"""`skerry events`: what happened, and what happens now."""

import asyncio
import re
import time
from datetime import datetime
from typing import Any

import click
import msgspec

from controller.cli.answers import EventShown, Many
from controller.cli.client import Client
from controller.cli.failures import Unreachable
from controller.cli.parts import connection_options, examples, form_option
from controller.cli.render import print_data
from controller.cli.session import asked_project, form, talk
from controller.cli.sse import events

PATH = "/v1/events"
PAGE = 1000
RETRY_S = 2.0
Query = tuple[tuple[str, str | int], ...]


FILTERS = (
    ("actor", "PROJECT/TOKEN", "Only what this one did"),
    ("action", "ACTION", "Only this action, such as vm.create; vm.*: all that begin so"),
    ("kind", "KIND", "Only about things of this kind"),
    ("name", "NAME", "Only about things of this name"),
    ("request", "ID", "Only what this request led to"),
)
RESULTS = ("accepted", "denied", "conflict", "done", "failed", "cancelled")


class Moment(click.ParamType[float]):
    """A moment in the past: a span from now, or a date and time (of this machine's zone where it names none)."""

    name = "span|time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return epoch seconds."""
        if isinstance(value, float):
            return value
        if span := re.fullmatch(r"(?P<count>[0-9]{1,6})(?P<unit>[smhd])", str(value)):
            return time.time() - int(span["count"]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[span["unit"]]
        try:
            return datetime.fromisoformat(str(value)).astimezone().timestamp()
        except ValueError:
            self.fail(f"{value!r} is neither a span such as 2h nor a time such as 2026-11-22T08:00", param, ctx)


def command() -> click.Command:
    """Return `skerry events`."""

    def run(after: int, limit: int | None, follow: bool, since: float | None, **filters: str | None) -> None:
        query: Query = (
            *((("project", project),) if (project := asked_project()) else ()),
            *((("since", f"{since:.3f}"),) if since is not None else ()),
            *((name, value) for name, value in filters.items() if value),
        )

        async def work(client: Client) -> None:
            last = await _past(client, query, after, limit)
            if follow:
                await _follow(client, query, last)

        talk(work)

    return click.Command(
        "events",
        callback=run,
        short_help="What happened, and (--follow) what happens now.",
        help="Print what happened: every change that was accepted or refused, how it ended, and every change of state, "
        "oldest first. An operator sees all projects' events unless --project names one.\n\n"
        + examples(
            "skerry events --follow",
            "skerry events --kind vm --name web --since 2h",
            "skerry events --actor shop/ci --result denied",
            "skerry events --request req-0123456789ab",
            "skerry events --after 1200 -o json",
        ),
        params=[
            click.Option(
                ["--after"], type=click.IntRange(min=0), default=0, metavar="N", help="Only those after this number"
            ),
            click.Option(["--limit"], type=click.IntRange(min=1), metavar="N", help="At most so many (default: all)"),
            click.Option(["-f", "--follow"], is_flag=True, help="Go on with what comes, until Ctrl-C"),
            click.Option(
                ["--since"], type=Moment(), help="Only those from then on: 30m, 2h, 7d ago, or 2026-11-22T08:00"
            ),
            *(click.Option([f"--{name}"], metavar=metavar, help=text) for name, metavar, text in FILTERS),
            click.Option(["--result"], type=click.Choice(RESULTS), help="Only changes that were answered or ended so"),
            *connection_options(),
            form_option(),
        ],
    )


async def _past(client: Client, query: Query, after: int, limit: int | None) -> int:
    """Print the events there are, and return the last one's number."""
    shown = 0
    while limit is None or shown < limit:
        size = PAGE if limit is None else min(PAGE, limit - shown)
        page = await client.read("GET", PATH, Many, query=(*query, ("after", after), ("limit", size)))
        for raw in page.items:
            print_event(bytes(raw))
        shown += len(page.items)
        if page.next is None or int(page.next) == after:
            break
        after = int(page.next)
    return after


async def _follow(client: Client, query: Query, after: int) -> None:
    """Print events as they come. A stream that breaks is opened again behind the last one seen."""
    while True:
        try:
            async for sent in events(client, PATH, (*query, ("follow", "true"), ("after", after)), after):
                print_event(sent.data)
                after = sent.place
        except Unreachable as err:
            click.echo(f"[{err.detail}; trying again]", err=True)
        await asyncio.sleep(RETRY_S)


def print_event(raw: bytes) -> None:
    """Print one event: a line for people, a JSON object a line or a YAML document for scripts."""
    match form():
        case "json":
            click.echo(raw)
        case "yaml":
            click.echo("---")
            print_data(raw)
        case "name":
            click.echo(msgspec.json.decode(raw, type=EventShown).seq)
        case _:
            click.echo(_sentence(msgspec.json.decode(raw, type=EventShown)))


def _sentence(event: EventShown) -> str:
    at = datetime.fromtimestamp(event.at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    what = f"{event.project}/{event.name}" if event.project else event.name
    by = f"by {event.actor}" if event.actor else ""
    tail = "  ".join(text for text in (event.message, click.style(by, dim=True)) if text)
    action = click.style(f"{event.action:<16}", bold=True)
    refused = click.style(f"{event.result}: ", fg="red") if event.result in ("denied", "conflict") else ""
    return f"{event.seq:>6}  {at}  {action}  {what:<24}  {refused}{tail}".rstrip()
