"""`skerry audit`: each difference between wish and reality on a host, and whether history is as it was written."""

import click
import msgspec

from controller.cli.answers import Answer, Verified
from controller.cli.client import Client
from controller.cli.extras import alias, by_kind
from controller.cli.parts import connection_options, examples, form_option
from controller.cli.quota import audit_command
from controller.cli.render import NOTHING, print_data, print_table
from controller.cli.session import form, talk


class Difference(Answer, frozen=True):
    """One thing that is not as wished."""

    problem: str
    what: str
    name: str
    owner: str | None = None
    owner_name: str = ""
    detail: str = ""


class Audit(Answer, frozen=True):
    """What the auditor answers."""

    host: str
    items: tuple[Difference, ...]


async def audit(client: Client, method: str, path: str) -> bool:
    """Have a host audited and print what was found; say whether wish and reality agree."""
    raw = await client.raw(method, path)
    found = client.decode(raw, Audit)
    if form() in ("json", "yaml"):
        print_data(raw)
    else:
        _print(found)
    return not found.items


def _print(found: Audit) -> None:
    if found.items:
        print_table(
            ["PROBLEM", "WHAT", "NAME", "OWNER", "DETAIL"],
            [
                [one.problem, one.what, one.name, one.owner_name or one.owner or NOTHING, one.detail or NOTHING]
                for one in found.items
            ],
        )
    click.echo(f"host {found.host}: differences: {len(found.items)}")


def group() -> click.Group:
    """Return the `audit` group."""
    summary = "Compare wish and reality, repair what differs, and verify history."
    found = by_kind("audit", "audit", summary, "skerry audit host h1")
    found.add_command(alias("host", "repair"), "repair")
    found.add_command(audit_command(), "quotas")
    found.add_command(_verify(), "verify")
    return found


def _verify() -> click.Command:
    def run(seq: int | None, noted: str | None) -> None:
        if (seq is None) != (noted is None):
            raise click.UsageError("a noted head is a number and a hash: give both --seq and --hash")
        query: tuple[tuple[str, str | int], ...] = (("seq", seq), ("hash", noted)) if seq and noted else ()
        raw = talk(lambda client: client.raw("GET", "/v1/audit/verify", query=query))
        found = msgspec.json.decode(raw, type=Verified)
        if form() in ("json", "yaml"):
            print_data(raw)
        else:
            _print_verified(found)
        if not found.intact:
            raise click.exceptions.Exit(1)

    return click.Command(
        "verify",
        callback=run,
        short_help="Verify that no event was changed, removed, inserted or moved.",
        help="Walk the chain of all events, and exit 1 where one was changed, removed, inserted or moved, with the "
        "first that is bad. Note the head that is printed somewhere else: who rewrites the whole table is found by it "
        "later.\n\n" + examples("skerry audit verify", "skerry audit verify --seq 1200 --hash 6a2f…"),
        params=[
            click.Option(["--seq"], type=click.IntRange(min=1), metavar="N", help="The number of a head noted earlier"),
            click.Option(["--hash", "noted"], metavar="HEX", help="Its hash: the chain must still have it"),
            *connection_options(),
            form_option(),
        ],
    )


def _print_verified(found: Verified) -> None:
    if found.intact:
        click.echo(f"{found.events} events, each as it was written")
    else:
        click.echo(click.style(f"history was changed: {found.problem}", fg="red"))
        click.echo(f"first bad event: {found.first_bad}; {found.events} before it are as they were written")
    click.echo(f"head: {found.head.seq} {found.head.hash}")
