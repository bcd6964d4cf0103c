"""`skerry audit repair HOST`: the plan first, then that plan and no other."""

import asyncio
import time

import click

from common.kinds.kind import AnyKind
from controller.cli.answers import Answer
from controller.cli.audit import Audit, Difference
from controller.cli.client import Client
from controller.cli.render import NOTHING, print_data, print_table
from controller.cli.session import form

LOOK_AGAIN_S = 2.0


class Repair(Answer, frozen=True):
    """What is done about one difference."""

    difference: Difference
    action: str
    say: str


class Planned(Answer, frozen=True):
    """The answer to a repair, rehearsed or real."""

    repairs: tuple[Repair, ...]
    plan: str


async def repair(client: Client, kind: AnyKind, name: str, *, dry_run: bool, wait_s: float) -> None:
    """Show what would be repaired, and have it repaired (not in a dry run). Ends with 1 where differences stay."""
    path = client.path(kind, name, "repair")
    raw = await client.rehearse("POST", path)
    planned = client.decode(raw, Planned)
    if dry_run or form() not in ("json", "yaml"):
        _print(name, planned, raw)
    if dry_run or not planned.repairs:
        return
    done = await client.change_raw("POST", f"{path}?plan={planned.plan}")
    if form() in ("json", "yaml"):
        print_data(done)
    else:
        click.echo(f"host {name}: the repair is accepted")
    if wait_s:
        await _until_repaired(client, client.path(kind, name, "audit"), name, wait_s)


async def _until_repaired(client: Client, path: str, name: str, wait_s: float) -> None:
    ends = time.monotonic() + wait_s
    left = 1
    while left and time.monotonic() < ends:
        await asyncio.sleep(LOOK_AGAIN_S)
        left = len((await client.read("GET", path, Audit)).items)
    click.echo(f"host {name}: differences: {left}", err=form() in ("json", "yaml"))
    if left:
        raise click.exceptions.Exit(1)


def _print(name: str, planned: Planned, raw: bytes) -> None:
    if form() in ("json", "yaml"):
        print_data(raw)
        return
    print_table(
        ["PROBLEM", "WHAT", "NAME", "OWNER", "REPAIR", "WHY"],
        [
            [
                one.difference.problem,
                one.difference.what,
                one.difference.name,
                one.difference.owner_name or one.difference.owner or NOTHING,
                one.action,
                one.say,
            ]
            for one in planned.repairs
        ],
        empty=f"host {name}: wish and reality agree",
    )
