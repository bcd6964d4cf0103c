"""`skerry whoami` and `skerry status`: whom the token stands for, and how the cloud is."""

import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime

import click
import msgspec

from common.clock import iso
from common.kinds import kind_named
from controller.cli.answers import Audits, OperationShown, Shown, WhoAmI, shown
from controller.cli.client import Client
from controller.cli.failures import Refused
from controller.cli.parts import connection_options, examples, form_option
from controller.cli.render import age, print_data, print_pairs, print_table
from controller.cli.session import form, talk


def whoami_command() -> click.Command:
    """Return `skerry whoami`."""

    def run() -> None:
        async def work(client: Client) -> tuple[bytes, str]:
            return await client.raw("GET", "/v1/me"), client.connection.where

        raw, where = talk(work)
        match form():
            case "json" | "yaml":
                print_data(raw)
            case "name":
                click.echo(msgspec.json.decode(raw, type=WhoAmI).actor)
            case _:
                who = msgspec.json.decode(raw, type=WhoAmI)
                limited = " (the token: some actions of it only)" if who.limited else ""
                until = iso(who.expires_at) if who.expires_at else "deleted"
                pairs = [("actor", who.actor), ("role", who.role + limited), ("good until", until)]
                print_pairs([*pairs, ("controller", where)])

    return click.Command(
        "whoami",
        callback=run,
        short_help="Whom the token stands for, and what is spoken to.",
        help="Show whom the token stands for, and what is spoken to.\n\n" + examples("skerry whoami"),
        params=[*connection_options(), form_option()],
    )


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """How the cloud is, as far as the token sees it."""

    hosts: tuple[Shown, ...]
    vms: tuple[Shown, ...]
    blocked: tuple[OperationShown, ...]
    project: str
    audits: Audits | None
    """None: the token may not see them."""


def status_command() -> click.Command:
    """Return `skerry status`."""

    def run() -> None:
        overview = talk(_overview)
        if form() in ("json", "yaml"):
            print_data(msgspec.json.encode(_counted(overview)))
        else:
            _print(overview)

    return click.Command(
        "status",
        callback=run,
        short_help="How the cloud is: hosts, machines by state, and what is blocked.",
        help="Show how the cloud is: hosts, the project's machines by state, and what is blocked, with the reason.\n\n"
        + examples("skerry status"),
        params=[*connection_options(), form_option()],
    )


async def _overview(client: Client) -> Overview:
    return Overview(
        hosts=await _all(client, "host"),
        vms=await _all(client, "vm"),
        blocked=tuple(
            [
                msgspec.json.decode(raw, type=OperationShown)
                async for page in client.pages("/v1/operations", {"state": "blocked"})
                for raw in page.items
            ]
        ),
        project=client.connection.project,
        audits=await _audits(client),
    )


async def _audits(client: Client) -> Audits | None:
    try:
        return await client.read("GET", "/v1/audit", Audits)
    except Refused as err:
        if err.problem.status != 403:
            raise
        return None


def _differences(audits: Audits) -> str:
    """Say whether wish and reality agree, since when, and on which hosts they don't."""
    if audits.since is None:
        return "not audited yet"
    at = datetime.fromtimestamp(audits.since).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    looked = [one for one in audits.hosts if one.at is not None]
    if not audits.differences:
        return f"0 since {at} ({len(looked)} of {len(audits.hosts)} hosts audited)"
    named = ", ".join(f"{one.host} {one.differences}" for one in looked if one.differences)
    return f"{audits.differences} since {at} (on {named}): skerry audit repair HOST --dry-run"


async def _all(client: Client, kind: str) -> tuple[Shown, ...]:
    pages = client.pages(client.path(kind_named(kind)))
    return tuple([shown(raw) async for page in pages for raw in page.items])


def _by_state(things: Sequence[Shown]) -> dict[str, int]:
    counted = Counter(str(thing.status.get("state", "accepted")) for thing in things)
    return dict(sorted(counted.items()))


def _counted(overview: Overview) -> dict[str, object]:
    return {
        "hosts": _by_state(overview.hosts),
        "vms": _by_state(overview.vms),
        "project": overview.project,
        "blocked": [operation.id for operation in overview.blocked],
        **({"audits": msgspec.to_builtins(overview.audits)} if overview.audits else {}),
    }


def _print(overview: Overview) -> None:
    def words(things: Sequence[Shown]) -> str:
        return ", ".join(f"{count} {state}" for state, count in _by_state(things).items()) or "none"

    print_pairs(
        [
            ("hosts", words(overview.hosts)),
            (f"vms of project {overview.project}", words(overview.vms)),
            ("blocked", str(len(overview.blocked)) if overview.blocked else "nothing"),
            *((("differences", _differences(overview.audits)),) if overview.audits else ()),
        ]
    )
    if overview.blocked:
        now = time.time()
        click.echo()
        print_table(
            ["ON", "WHAT", "SINCE", "WHY"],
            [
                [op.subject, op.verb, age(now - op.created_at), op.why.summary if op.why else op.message]
                for op in overview.blocked
            ],
        )
