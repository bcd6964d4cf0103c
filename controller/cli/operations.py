"""`skerry operation`: the promises that were made, and what became of them."""

import time
from typing import TYPE_CHECKING

import click
import msgspec

from controller.cli.parts import Ordered, connection_options, examples, form_option, wait_options
from controller.cli.session import asked_project, form, talk

if TYPE_CHECKING:
    from controller.cli.client import Client

STATES = ("running", "blocked", "done", "failed", "cancelled")


def group() -> click.Group:
    """Return the `operation` group."""
    return Ordered(
        "operation",
        commands={"list": _list(), "show": _show(), "wait": _wait(), "cancel": _cancel()},
        short_help="What was asked for, how far it is, and cancelling it.",
        help="Every change that was accepted is an operation: it can be looked at, waited for and cancelled.\n\n"
        + examples("skerry operation list --state running", "skerry operation wait op-0123456789ab"),
    )


def _list() -> click.Command:
    def run(state: str | None, resource: str, limit: int) -> None:
        from controller.cli.answers import OperationShown  # noqa: PLC0415
        from controller.cli.render import print_data, print_table, said  # noqa: PLC0415

        project = asked_project()

        async def work(client: "Client") -> "list[msgspec.Raw]":
            query = (
                *((("project", project),) if project else ()),
                *((("state", state),) if state else ()),
                *((("resource", resource),) if resource else ()),
            )
            return [raw async for page in client.pages("/v1/operations", query, limit=limit) for raw in page.items]

        raws = talk(work)
        if form() in ("json", "yaml"):
            print_data(b"[" + b",".join(bytes(raw) for raw in raws) + b"]")
            return
        operations = [msgspec.json.decode(raw, type=OperationShown) for raw in raws]
        if form() == "name":
            click.echo("\n".join(operation.id for operation in operations))
            return
        now = time.time()
        print_table(
            ["ID", "STATE", "WHAT", "ON", "AGE", "BY", "MESSAGE"],
            [
                [op.id, op.state, op.verb, op.subject, said(op.created_at, "created_at", {}, now), op.actor, op.message]
                for op in operations
            ],
            empty="there are no operations",
        )

    return click.Command(
        "list",
        callback=run,
        short_help="List operations.",
        help="List operations, newest first. An operator sees all projects' unless --project names one.\n\n"
        + examples("skerry operation list --state blocked"),
        params=[
            click.Option(["--state"], type=click.Choice(STATES), help="Only those in this state"),
            click.Option(["--resource"], default="", metavar="ID", help="Only those of this resource"),
            click.Option(
                ["--limit"], type=click.IntRange(min=1), metavar="N", default=50, help="At most so many (default 50)"
            ),
            *connection_options(),
            form_option(),
        ],
    )


def _id() -> click.Argument:
    return click.Argument(["operation"], metavar="ID")


def _show() -> click.Command:
    def run(operation: str) -> None:
        print_operation(talk(lambda client: client.raw("GET", f"/v1/operations/{operation}")))

    return click.Command(
        "show",
        callback=run,
        short_help="Show one operation.",
        help="Show one operation, with the reason where it is blocked.\n\n"
        + examples("skerry operation show op-0123456789ab"),
        params=[_id(), *connection_options(), form_option()],
    )


def _wait() -> click.Command:
    def run(operation: str, wait: bool, timeout: float) -> None:
        async def work(client: "Client") -> bytes:
            from controller.cli.answers import OperationShown  # noqa: PLC0415
            from controller.cli.waiting import settle  # noqa: PLC0415

            path = f"/v1/operations/{operation}"
            now = await client.read("GET", path, OperationShown)
            if wait:
                await settle(client, now, timeout)
            return await client.raw("GET", path)

        print_operation(talk(work))

    return click.Command(
        "wait",
        callback=run,
        short_help="Wait until an operation has ended.",
        help="Wait until an operation has ended: exit 0 done, 3 failed or cancelled, 4 blocked, 5 not in time.\n\n"
        + examples("skerry operation wait op-0123456789ab --timeout 60"),
        params=[_id(), *wait_options(wait=True), *connection_options(), form_option()],
    )


def _cancel() -> click.Command:
    def run(operation: str) -> None:
        async def work(client: "Client") -> None:
            await client.raw("POST", f"/v1/operations/{operation}/cancel")
            click.echo(f"operation {operation}: its withdrawal is accepted")

        talk(work)

    return click.Command(
        "cancel",
        callback=run,
        short_help="Take a wish back.",
        help="Take a wish back: what was being created is deleted, a change is set back. A delete can't be taken back."
        "\n\n" + examples("skerry operation cancel op-0123456789ab"),
        params=[_id(), *connection_options()],
    )


def print_operation(raw: bytes) -> None:
    """Print one operation."""
    from controller.cli.answers import OperationShown  # noqa: PLC0415
    from controller.cli.failures import refusal_lines  # noqa: PLC0415
    from controller.cli.render import age, print_data, print_pairs  # noqa: PLC0415

    operation = msgspec.json.decode(raw, type=OperationShown)
    if form() in ("json", "yaml"):
        print_data(raw)
        return
    if form() == "name":
        click.echo(operation.id)
        return
    now = time.time()
    pairs = [
        ("id", operation.id),
        ("state", operation.state),
        ("what", f"{operation.verb} {operation.subject}"),
        *((("project", operation.project),) if operation.project else ()),
        ("by", operation.actor),
        ("request", operation.request),
        ("begun", age(now - operation.created_at) + " ago"),
        ("message", operation.message),
    ]
    if operation.finished_at is not None:
        pairs.append(("took", f"{operation.finished_at - operation.created_at:.1f} s"))
    print_pairs(pairs)
    if operation.why:
        click.echo("\n".join(refusal_lines(operation.why)))
