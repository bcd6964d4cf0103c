"""`skerry watch` and `skerry KIND list --watch`: things and operations as they change."""

import asyncio
import time
from datetime import datetime
from typing import NoReturn

import click
import msgspec

from common.kinds import KINDS, kind_named
from common.kinds.kind import AnyKind
from controller.cli import flags
from controller.cli.answers import Shown, Told, shown
from controller.cli.client import Client, Query
from controller.cli.failures import Unreachable
from controller.cli.parts import connection_options, examples, form_option
from controller.cli.render import cell, print_data
from controller.cli.session import asked_project, form, talk
from controller.cli.sse import Sent, events

PATH = "/v1/watch"
RETRY_S = 2.0


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line narrows that the API does not."""

    state: str = ""
    prefix: str = ""

    def fits(self, row: Shown) -> bool:
        """Say whether a thing is to be shown."""
        return row.name.startswith(self.prefix) and self.state in ("", row.status.get("state", ""))


def command() -> click.Command:
    """Return `skerry watch`."""

    def run(kinds: tuple[str, ...], label: tuple[tuple[str, str | None], ...], place: int) -> None:
        query = (
            *((("project", project),) if (project := asked_project()) else ()),
            *(("kind", kind) for kind in kinds),
            *(("label", f"{key}={value}") for key, value in label),
        )
        talk(lambda client: follow(client, query, place, Choice()))

    return click.Command(
        "watch",
        callback=run,
        short_help="Things and operations as they change.",
        help="Print what there is, then what changes, until Ctrl-C. A connection that breaks is taken up where it was, "
        "so that nothing is missed.\n\n"
        + examples("skerry watch", "skerry watch --kind vm --kind operation", "skerry watch -l tier=web -o json"),
        params=[
            click.Option(
                ["--kind", "kinds"],
                type=click.Choice([*(kind.name for kind in KINDS), "operation"]),
                multiple=True,
                help="Only this kind (repeatable; default: everything)",
            ),
            click.Option(
                ["-l", "--label"],
                type=flags.KeyValue(removable=False),
                multiple=True,
                help="Only things with this label (repeatable)",
            ),
            click.Option(
                ["--from", "place"],
                type=click.IntRange(min=0),
                default=0,
                metavar="REVISION",
                help="Go on behind this revision instead of beginning with all there is",
            ),
            *connection_options(),
            form_option(),
        ],
    )


async def follow(client: Client, query: Query, place: int, choice: Choice) -> NoReturn:
    """Print what is told, for ever. Where the place is not covered any more, begin again with all there is."""
    while True:
        try:
            async for sent in events(client, PATH, query, place):
                told = client.decode(sent.data, Told)
                if sent.name == "resync":
                    click.echo(f"[{told.why}; here is all there is]", err=True)
                    place = 0
                    break
                _print(sent, told, choice)
                place = sent.place
            else:
                await asyncio.sleep(RETRY_S)
        except Unreachable as err:
            click.echo(f"[{err.detail}; trying again]", err=True)
            await asyncio.sleep(RETRY_S)


def _print(sent: Sent, told: Told, choice: Choice) -> None:
    if sent.name == "bookmark" or (told.resource and not choice.fits(shown(told.resource))):
        return
    match form():
        case "json":
            click.echo(msgspec.json.encode({"event": sent.name}).rstrip(b"}") + b"," + sent.data[1:])
        case "yaml":
            click.echo("---")
            print_data(sent.data)
        case "name":
            click.echo(told.name or (told.operation.id if told.operation else _row(told).name))
        case _:
            at = datetime.now().astimezone().strftime("%H:%M:%S")
            click.echo(f"{at}  {_sentence(told)}".rstrip())


def _row(told: Told) -> Shown:
    return shown(told.resource)


def _sentence(told: Told) -> str:
    if told.operation is not None:
        one = told.operation
        return f"{'operation':<9} {one.id}  {one.verb} {one.subject}  {one.state}  {one.message}"
    if not told.resource:
        where = f"{told.project}/" if told.project else ""
        return f"{told.kind:<9} {where}{told.name}  gone"
    row = shown(told.resource)
    kind = next((known for known in KINDS if known.name == row.kind), None)
    where = f"{row.project}/" if row.project else ""
    return f"{row.kind:<9} {where}{row.name}  {_columns(kind, row, told.names)}"


def _columns(kind: AnyKind | None, row: Shown, names: dict[str, str]) -> str:
    """Return the columns of the kind's list, but for the name; of a kind that this command does not know its state."""
    if kind is None:
        return str(row.status.get("state", ""))
    now = time.time()
    found = (
        (column.title, cell(row, column.path, names, now))
        for column in kind_named(kind.name).columns
        if column.path != "name"
    )
    return "  ".join(f"{title.lower()}={text}" for title, text in found if text not in ("", "-"))
