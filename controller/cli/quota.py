"""`skerry quota`: what a project or domain uses of its limits, as bars, and setting the limits."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click
import msgspec

from common.counters import Counter
from common.kinds import COUNTERS, kind_named
from common.kinds.kind import AnyKind
from controller.cli.answers import Answer, shown
from controller.cli.complete import NameType
from controller.cli.failures import Refused
from controller.cli.parts import Ordered, connection_options, dry_run_option, examples, form_option
from controller.cli.session import connection, form, talk

if TYPE_CHECKING:
    from controller.cli.client import Client

BAR = 20
"""Cells of a bar."""

TRIES = 5
"""Somebody else may change the project between look and change."""


class Use(Answer, frozen=True):
    """How one counter stands."""

    counter: str
    used: int
    limit: int | None
    source: str


class Quota(Answer, frozen=True):
    """How all of them stand."""

    of: str
    name: str
    items: tuple[Use, ...]
    domain: str = ""
    domain_items: tuple[Use, ...] = ()


class Limit(click.ParamType[Any]):
    """A number, `none` or `default`."""

    name = "limit"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check it."""
        text = str(value)
        if text in ("none", "default"):
            return text
        if not text.isdecimal():
            self.fail(f"{text!r} is no limit: give a number, `none` (no limit) or `default`", param, ctx)
        return int(text)


def group() -> click.Group:
    """Return the `quota` group."""
    return Ordered(
        "quota",
        commands={"show": _show(), "set": _set()},
        short_help="What a project uses of its limits, and the limits.",
        help="What a project (or, with --domain, all projects of a domain) uses of its limits.\n\n"
        + examples("skerry quota show shop", "skerry quota set shop --vms 20 --vcpus 80"),
    )


async def show(client: "Client", kind: AnyKind, name: str) -> None:
    """Print how a project or domain stands."""
    from controller.cli.render import print_data  # noqa: PLC0415  rich takes 0.1 s to import

    raw = await client.raw("GET", client.path(kind, name, "quota"))
    if form() in ("json", "yaml"):
        print_data(raw)
    else:
        _print(client.decode(raw, Quota))


def _print(found: Quota) -> None:
    from controller.cli.render import print_table  # noqa: PLC0415

    print_table(["COUNTER", "USED", "LIMIT", "", "FROM"], [_row(use, use.source) for use in found.items])
    if found.domain_items:
        click.echo(f"\nall projects of domain {found.domain} together:")
        print_table(["COUNTER", "USED", "LIMIT", "", "FROM"], [_row(use, "domain") for use in found.domain_items])


def _row(use: Use, source: str) -> list[str]:
    if use.limit is None:
        return [use.counter, str(use.used), "none", "", ""]
    return [use.counter, str(use.used), str(use.limit), _bar(use.used, use.limit), source]


def _bar(used: int, limit: int) -> str:
    share = used / limit if limit else float(used > 0)
    full = min(BAR, round(share * BAR))
    over = " over its limit" if used > limit else ""
    return f"{'█' * full}{'░' * (BAR - full)} {100 * share:.0f} %{over}"


def _subject(*, required: bool) -> list[click.Parameter]:
    return [
        click.Argument(["name"], type=NameType("project"), required=required, metavar="PROJECT"),
        click.Option(["--domain"], is_flag=True, help="The name is a domain's: all its projects together"),
    ]


def _kind(*, domain: bool) -> AnyKind:
    return kind_named("domain" if domain else "project")


def _show() -> click.Command:
    def run(name: str | None, domain: bool) -> None:
        wanted = name or connection(click.get_current_context()).project
        talk(lambda client: show(client, _kind(domain=domain), wanted))

    return click.Command(
        "show",
        callback=run,
        short_help="Show what a project uses of its limits.",
        help="Show what a project uses of its limits; without a name, the context's project.\n\n"
        + examples("skerry quota show", "skerry quota show shop", "skerry quota show --domain acme"),
        params=[*_subject(required=False), *connection_options(), form_option()],
    )


def _set() -> click.Command:
    def run(name: str, domain: bool, dry_run: bool, **given: Any) -> None:
        wanted = {counter: limit for counter, limit in given.items() if limit is not None}
        if not wanted:
            raise click.UsageError("nothing to set: give at least one limit")
        kind = _kind(domain=domain)
        talk(lambda client: _change(client, kind, name, wanted, dry_run=dry_run))

    return click.Command(
        "set",
        callback=run,
        short_help="Set limits.",
        help="Set limits: only those that are given change. `none` is no limit; `default` is the controller's "
        "(a domain's: none). A limit below what is used takes nothing away: nothing new is made until it fits.\n\n"
        + examples(
            "skerry quota set shop --vms 20 --vcpus 80 --memory-mib 160000",
            "skerry quota set shop --vms default --addresses none",
            "skerry quota set --domain acme --vcpus 400",
        ),
        params=[
            *_subject(required=True),
            *(_option(counter) for counter in COUNTERS),
            dry_run_option(),
            *connection_options(),
            form_option(),
        ],
    )


def _option(counter: Counter) -> click.Option:
    said = counter.summary[:1].upper() + counter.summary[1:]
    return click.Option([f"--{counter.name.replace('_', '-')}", counter.name], type=Limit(), metavar="N", help=said)


async def _change(client: "Client", kind: AnyKind, name: str, wanted: Mapping[str, Any], *, dry_run: bool) -> None:
    from controller.cli.rehearsal import rehearse  # noqa: PLC0415

    for left in reversed(range(TRIES)):
        one, etag = await client.one(kind, name)
        quota = dict(shown(one.resource).spec.get("quota", {}))
        for counter, limit in wanted.items():
            quota.pop(counter, None)
            if limit != "default":
                quota[counter] = None if limit == "none" else limit
        body = {"spec": {"quota": quota}}
        try:
            if dry_run:
                await rehearse(client, "PATCH", client.path(kind, name), body=body, etag=etag)
                return
            await client.change("PATCH", client.path(kind, name), body=body, etag=etag)
        except Refused as err:
            if err.problem.code != "precondition-failed" or not left:
                raise
        else:
            await show(client, kind, name)
            return


class Miscounted(Answer, frozen=True):
    """A counter whose books differ from a recount."""

    of: str
    name: str
    counter: str
    used: int
    counted: int


class Recounted(Answer, frozen=True):
    """What a recount found."""

    counters: int
    items: tuple[Miscounted, ...]


def audit_command() -> click.Command:
    """Return `skerry audit quotas`."""

    def run() -> None:
        from controller.cli.render import print_data, print_table  # noqa: PLC0415

        raw = talk(lambda client: client.raw("GET", "/v1/audit/quotas"))
        found = msgspec.json.decode(raw, type=Recounted)
        if form() in ("json", "yaml"):
            print_data(raw)
        else:
            rows = [[one.of, one.name, one.counter, str(one.used), str(one.counted)] for one in found.items]
            if rows:
                print_table(["OF", "NAME", "COUNTER", "IN THE BOOKS", "COUNTED"], rows)
            click.echo(f"{found.counters} counters, differences: {len(rows)}")
        if found.items:
            raise click.exceptions.Exit(1)

    return click.Command(
        "quotas",
        callback=run,
        short_help="Count anew what projects and domains use.",
        help="Count anew what every project and domain uses, beside the books, and exit 1 where they differ. The "
        "controller does so all the time (`audit.every_s`) and puts right what it finds.\n\n"
        + examples("skerry audit quotas"),
        params=[*connection_options(), form_option()],
    )
