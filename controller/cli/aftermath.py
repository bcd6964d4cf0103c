"""What follows an accepted wish: the wait where it is asked for, and how the thing stands then."""

import click
import msgspec

from common.clock import iso
from common.kinds.kind import AnyKind
from controller.cli.answers import Accepted, OperationShown, WhoAmI, shown
from controller.cli.client import Client
from controller.cli.render import print_resource, print_resources
from controller.cli.session import form
from controller.cli.waiting import settle


async def settled(client: Client, kind: AnyKind, accepted: Accepted, *, wait: bool, timeout_s: float) -> None:
    """Wait where that is asked for, and print how the thing stands."""
    if not wait:
        _print_accepted(kind, accepted)
        return
    operation = await settle(client, accepted.operation, timeout_s)
    if operation.verb == "delete":
        _print_gone(operation, accepted)
        return
    row = shown(accepted.resource)
    one, _ = await client.one(kind, row.id, project=row.project)
    _print_one(kind, one.resource, one.names, accepted.revealed)


def _print_accepted(kind: AnyKind, accepted: Accepted) -> None:
    if form() != "table":
        _print_one(kind, accepted.resource, accepted.names, accepted.revealed)
        return
    operation = accepted.operation
    kept = f"; {_kept(accepted)}" if operation.verb == "delete" and _kept(accepted) else ""
    click.echo(f"{operation.subject}: {operation.verb} accepted{kept}; to wait: skerry operation wait {operation.id}")


def _print_gone(operation: OperationShown, accepted: Accepted) -> None:
    if form() != "table":
        print_resource(accepted.resource, {})
        return
    if kept := _kept(accepted):
        click.echo(f"{operation.subject} is deleted, and {kept}")
        return
    took = (operation.finished_at or operation.created_at) - operation.created_at
    click.echo(f"{operation.subject} is gone ({took:.1f} s)")


def _kept(accepted: Accepted) -> str:
    """Return until when a deleted thing can be restored, in words; empty where it can't."""
    row = shown(accepted.resource)
    until = row.spec.get("kept_until", 0) if row.deleted_at is None else 0
    return f"kept until {iso(until)}: skerry {row.kind} restore {row.name}" if until else ""


def _print_one(kind: AnyKind, raw: msgspec.Raw, names: dict[str, str], revealed: str) -> None:
    if form() == "table":
        print_resources(kind, [raw], names)
    else:
        print_resource(raw, names, revealed=revealed)


async def reveal(client: Client, kind: AnyKind, name: str, secret: str) -> None:
    """Print what creating a thing shows once, for people; scripts find it in the JSON as `revealed`."""
    if form() != "table":
        return
    if kind.name == "host":
        click.echo(f"on the machine that shall become host {name}, as root:\n")
        click.echo(f"  {await join_command(client, secret)}\n")
    else:
        click.echo(f"{kind.reveals} of {kind.name} {name}, shown once and never again:\n\n  {secret}\n")


async def join_command(client: Client, token: str) -> str:
    """Return the line that makes a machine join, with the link's URL where the controller tells it."""
    who = await client.read("GET", "/v1/me", WhoAmI)
    return f"skerry-agent join {who.link_url or 'https://CONTROLLER:8443'} {token}"
