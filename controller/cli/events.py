"""`skerry events`: what happened, and what happens now."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime

import click
import msgspec

from common.errors import Problem
from controller.cli.answers import EventShown, Many
from controller.cli.client import Client
from controller.cli.failures import Refused, Unreachable
from controller.cli.parts import connection_options, examples, form_option
from controller.cli.render import print_data
from controller.cli.session import asked_project, form, talk

PATH = "/v1/events"
PAGE = 1000
RETRY_S = 2.0
Query = tuple[tuple[str, str | int], ...]


def command() -> click.Command:
    """Return `skerry events`."""

    def run(after: int, limit: int | None, follow: bool) -> None:
        query: Query = (("project", project),) if (project := asked_project()) else ()

        async def work(client: Client) -> None:
            last = await _past(client, query, after, limit)
            if follow:
                await _follow(client, query, last)

        talk(work)

    return click.Command(
        "events",
        callback=run,
        short_help="What happened, and (--follow) what happens now.",
        help="Print what happened: every accepted change and every change of state, oldest first. An operator sees all "
        "projects' events unless --project names one.\n\n"
        + examples("skerry events --follow", "skerry events --after 1200 -o json"),
        params=[
            click.Option(
                ["--after"], type=click.IntRange(min=0), default=0, metavar="N", help="Only those after this number"
            ),
            click.Option(["--limit"], type=click.IntRange(min=1), metavar="N", help="At most so many (default: all)"),
            click.Option(["-f", "--follow"], is_flag=True, help="Go on with what comes, until Ctrl-C"),
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
            async for seq, raw in _stream(client, query, after):
                print_event(raw)
                after = seq
        except Unreachable as err:
            click.echo(f"[{err.detail}; trying again]", err=True)
        await asyncio.sleep(RETRY_S)


async def _stream(client: Client, query: Query, after: int) -> AsyncIterator[tuple[int, bytes]]:
    """Give (seq, JSON) of server-sent events: fields by line, an empty line ends one, a colon begins a comment."""
    number, name, data = after, "", b""
    asked: Query = (*query, ("follow", "true"), ("after", after))
    async with client.open("GET", PATH, query=asked, headers={"Accept": "text/event-stream"}) as response:
        async for line in response.content:
            field, _, value = line.rstrip(b"\r\n").partition(b": ")
            match field:
                case b"id":
                    number = int(value)
                case b"event":
                    name = value.decode()
                case b"data":
                    data += value
                case b"" if data and name == "problem":
                    raise Refused(client.decode(data, Problem))
                case b"" if data:
                    yield number, data
                    name, data = "", b""
                case _:
                    pass


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
    return f"{event.seq:>6}  {at}  {click.style(f'{event.action:<16}', bold=True)}  {what:<24}  {tail}".rstrip()
