"""`--dry-run`: what a change would do, in words; nothing is kept."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import click
import msgspec

from common.refusal import Refusal
from controller.cli.answers import Answer, shown
from controller.cli.client import Client
from controller.cli.failures import BLOCKED, refusal_lines
from controller.cli.render import NOTHING, print_data, said
from controller.cli.session import form


class Check(Answer, frozen=True):
    """Something that was checked, and held."""

    name: str
    detail: str


class Changed(Answer, frozen=True):
    """A field that would change."""

    before: Any
    after: Any


class Following(Answer, frozen=True):
    """What would come of it at first."""

    what: Literal["placed", "blocked", "waits", "step", "as wished"]
    message: str
    why: Refusal | None = None


class QuotaAfter(Answer, frozen=True):
    """What would be added to what a project or domain uses."""

    of: str
    name: str
    counter: str
    used: int
    after: int
    limit: int | None


class Rehearsal(Answer, frozen=True):
    """The answer to a dry run."""

    resource: msgspec.Raw
    names: dict[str, str]
    checks: tuple[Check, ...]
    changes: dict[str, Changed]
    next: Following
    effects: tuple[str, ...]
    quota: tuple[QuotaAfter, ...] = ()


async def rehearse(
    client: Client,
    method: str,
    path: str,
    *,
    query: Mapping[str, str] = MappingProxyType({}),
    body: object = None,
    etag: str = "",
) -> None:
    """Send a mutation as a dry run and print what would come of it. Ends with 4 where it would be blocked."""
    print_rehearsal(client, await client.rehearse(method, path, query=query, body=body, etag=etag))


def print_rehearsal(client: Client, raw: bytes) -> None:
    """Print the answer to a dry run. Ends with 4 where it would be blocked."""
    found = client.decode(raw, Rehearsal)
    match form():
        case "json" | "yaml":
            print_data(raw)
        case "name":
            click.echo(shown(found.resource).name)
        case _:
            _print(found)
    if found.next.what == "blocked":
        raise click.exceptions.Exit(BLOCKED)


def _print(found: Rehearsal) -> None:
    row = shown(found.resource)
    click.echo(click.style(f"dry run: {row.kind} {row.name}, nothing is kept", bold=True))
    width = max((len(check.name) for check in found.checks), default=0)
    for check in found.checks:
        click.echo(f"  {click.style('ok', fg='green')}  {check.name:<{width}}  {check.detail}")
    for field, change in found.changes.items():
        before, after = (said(value, field, found.names, 0) for value in (change.before, change.after))
        click.echo(f"  would change {field}: {before or NOTHING} → {after or NOTHING}")
    for effect in found.effects:
        click.echo(f"  {effect}")
    for one in found.quota:
        limit = f" of {one.limit}" if one.limit is not None else ", no limit"
        click.echo(f"  quota of {one.of} {one.name}: {one.counter} {one.used} → {one.after}{limit}")
    click.echo(f"  then: {_then(found.next)}")
    if found.next.why:
        click.echo("\n".join(refusal_lines(found.next.why, heading=False)))


def _then(following: Following) -> str:
    match following.what:
        case "blocked":
            return f"blocked: {following.message}"
        case "waits":
            return f"waits: {following.message}"
        case "as wished":
            return f"it is {following.message} at once"
        case _:
            return following.message
