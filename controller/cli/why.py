"""Why a thing is not as wished: its state, what it waits for, and what each constraint cost where no host fits."""

import time

import click

from common.boots import FirstBoot, words
from common.refusal import Refusal
from controller.cli.answers import Answer, EventShown, OperationShown
from controller.cli.client import Client
from controller.cli.failures import refusal_lines
from controller.cli.render import age, print_data, print_pairs
from controller.cli.session import form


class Why(Answer, frozen=True):
    """What the API answers."""

    name: str
    state: str
    message: str = ""
    why: Refusal | None = None
    first_boot: FirstBoot | None = None
    steps: tuple[str, ...] = ()
    operations: tuple[OperationShown, ...] = ()
    events: tuple[EventShown, ...] = ()


async def explain(client: Client, method: str, path: str, kind: str) -> None:
    """Ask why a thing is as it is, and print the answer."""
    raw = await client.raw(method, path)
    if form() in ("json", "yaml"):
        print_data(raw)
    else:
        _print(client.decode(raw, Why), kind)


def _print(found: Why, kind: str) -> None:
    pairs = [(kind, found.name), ("state", found.state), *((("message", found.message),) if found.message else ())]
    now = time.time()
    pairs += [
        ("operation", f"{op.id}: {op.verb}, {op.state} since {age(now - op.created_at)}: {op.message}")
        for op in found.operations
    ]
    print_pairs(pairs)
    for step in found.steps:
        click.echo(f"  waits: {step}")
    if found.why:
        click.echo("\n".join(refusal_lines(found.why, heading=found.why.summary not in found.message)))
    if not (found.steps or found.why or found.operations):
        click.echo("  it is as wished")
    if found.first_boot:
        click.echo(f"  first boot: {words(found.first_boot)}")
        if found.first_boot.log:
            click.echo(click.style("the serial log ended with", bold=True))
            click.echo("\n".join(f"  {line}" for line in found.first_boot.log.splitlines()))
    if found.events:
        click.echo(click.style("what happened last", bold=True))
    for event in found.events:
        by = f"  by {event.actor}" if event.actor else ""
        click.echo(f"  {age(now - event.at):>4} ago  {event.action}  {event.message}{by}")
