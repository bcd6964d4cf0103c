"""What an audit found on a host: each difference between wish and reality, and their number last."""

import click

from controller.cli.answers import Answer
from controller.cli.client import Client
from controller.cli.render import NOTHING, print_data, print_table
from controller.cli.session import form


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
