"""The commands of the extras: which kind's extra is which command. A gate test fails where one is missing here."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from common.kinds import KINDS, kind_named
from common.kinds.kind import WHY, AnyKind, Extra
from controller.cli.parts import Ordered, common_options, dry_run_option, examples, name_argument, sample, wait_options
from controller.cli.session import form, talk

if TYPE_CHECKING:
    from controller.cli.client import Client

Build = Callable[[AnyKind, Extra], click.Command]


def commands_of(kind: AnyKind) -> list[click.Command]:
    """Return the commands of a kind's extras, and those composed of several calls.

    Raises KeyError for an extra that has none.
    """
    return [
        *(EXTRAS[kind.name, extra.name](kind, extra) for extra in kind.extras),
        *(build(kind) for build in COMPOSED.get(kind.name, ())),
    ]


def _params(kind: AnyKind) -> list[click.Parameter]:
    return [name_argument(kind), *common_options(kind)]


# --- project, domain ----------------------------------------------------------------------------------------------


def quota(kind: AnyKind, extra: Extra) -> click.Command:
    """Return `skerry project quota NAME`, and the same for a domain."""

    def run(name: str) -> None:
        from controller.cli.quota import show  # noqa: PLC0415

        talk(lambda client: show(client, kind, name))

    return click.Command(
        "quota",
        callback=run,
        short_help=extra.summary,
        help=f"{extra.summary}\n\n" + examples(f"skerry {kind.name} quota {sample(kind)}"),
        params=_params(kind),
    )


# --- host ---------------------------------------------------------------------------------------------------------


def host_token(kind: AnyKind, extra: Extra) -> click.Command:
    """Return `skerry host token NAME`."""

    def run(name: str, dry_run: bool) -> None:
        from controller.cli.aftermath import join_command  # noqa: PLC0415  aiohttp takes 0.4 s to import
        from controller.cli.answers import Revealed  # noqa: PLC0415
        from controller.cli.rehearsal import rehearse  # noqa: PLC0415
        from controller.cli.render import print_data  # noqa: PLC0415

        async def work(client: "Client") -> None:
            if dry_run:
                await rehearse(client, extra.method, client.path(kind, name, extra.name))
                return
            raw = await client.change_raw(extra.method, client.path(kind, name, extra.name))
            if form() in ("json", "yaml"):
                print_data(raw)
            else:
                click.echo(await join_command(client, client.decode(raw, Revealed).revealed))

        talk(work)

    return click.Command(
        "token",
        callback=run,
        short_help=extra.summary,
        help=f"{extra.summary} Prints the command to paste on that machine; a token from before is good no more.\n\n"
        + examples("skerry host token h1"),
        params=[*_params(kind), dry_run_option()],
    )


def host_audit(kind: AnyKind, extra: Extra) -> click.Command:
    """Return `skerry host audit NAME`."""

    def run(name: str) -> None:
        from controller.cli.audit import audit  # noqa: PLC0415

        if not talk(lambda client: audit(client, extra.method, client.path(kind, name, extra.name))):
            raise click.exceptions.Exit(1)

    return click.Command(
        "audit",
        callback=run,
        short_help=extra.summary,
        help=f"{extra.summary} Prints each difference and exits 1 where there is one.\n\n"
        + examples("skerry audit host h1"),
        params=_params(kind),
    )


def host_repair(kind: AnyKind, extra: Extra) -> click.Command:
    """Return `skerry host repair NAME`."""

    def run(name: str, dry_run: bool, wait: bool, timeout: float) -> None:
        from controller.cli.repair import repair  # noqa: PLC0415

        talk(lambda client: repair(client, kind, name, dry_run=dry_run, wait_s=timeout if wait else 0.0))

    return click.Command(
        "repair",
        callback=run,
        short_help=extra.summary,
        help=f"{extra.summary} Prints what is done about each difference, then does that and nothing else: what is "
        "missing is sent again, claims of what is gone are given back, and what nobody owns is destroyed. What anybody "
        "owns is left alone. Exits 1 where differences stay.\n\n"
        + examples("skerry audit repair h1 --dry-run", "skerry audit repair h1 --wait"),
        params=[*_params(kind), *wait_options(), dry_run_option()],
    )


def host_drain(kind: AnyKind) -> click.Command:
    """Return `skerry host drain NAME`."""

    def run(name: str, stop_vms: bool, dry_run: bool, wait: bool, timeout: float) -> None:
        from controller.cli.leaving import drain  # noqa: PLC0415

        wait_s = timeout if wait else 0.0
        talk(lambda client: drain(client, kind, name, stop_vms=stop_vms, dry_run=dry_run, wait_s=wait_s))

    short = "Close it to new machines, and stop those on it if you say so."
    stop = click.Option(["--stop-vms"], is_flag=True, help="Stop the machines that run on it; they stay on it, off.")
    return click.Command(
        "drain",
        callback=run,
        short_help=short,
        help=f"{short} Prints what becomes of each machine on it first. No machine is stopped without --stop-vms: exit "
        "4 says which run on.\n\n" + examples("skerry host drain h1 --dry-run", "skerry host drain h1 --stop-vms"),
        params=[name_argument(kind), stop, *wait_options(wait=True), dry_run_option(), *common_options(kind)],
    )


def host_remove(kind: AnyKind) -> click.Command:
    """Return `skerry host remove NAME`."""

    def run(name: str, force: bool, dry_run: bool, wait: bool, timeout: float) -> None:
        from controller.cli.leaving import remove  # noqa: PLC0415

        wait_s = timeout if wait else 0.0
        talk(lambda client: remove(client, kind, name, force=force, dry_run=dry_run, wait_s=wait_s))

    short = "Take a host out of the cloud, once nothing is on it any more."
    lost = click.Option(["--force"], is_flag=True, help="It is lost: give up the machines and disks that were on it.")
    return click.Command(
        "remove",
        callback=run,
        short_help=short,
        help=f"{short} Where machines or disks are on it they are listed, and it is refused; --force deletes them with "
        "it, and is refused for a host that answers. From then on its certificate opens nothing.\n\n"
        + examples("skerry host remove h1", "skerry host remove h1 --force --dry-run"),
        params=[name_argument(kind), lost, *wait_options(wait=True), dry_run_option(), *common_options(kind)],
    )


# --- image --------------------------------------------------------------------------------------------------------


def image_upload(kind: AnyKind, extra: Extra) -> click.Command:
    """Return `skerry image upload NAME FILE`."""

    def run(name: str, file: Path, wait: bool, timeout: float, dry_run: bool) -> None:
        from controller.cli.aftermath import settled  # noqa: PLC0415
        from controller.cli.answers import Accepted  # noqa: PLC0415
        from controller.cli.rehearsal import print_rehearsal  # noqa: PLC0415
        from controller.cli.upload import upload  # noqa: PLC0415

        async def work(client: "Client") -> None:
            raw = await upload(client, client.path(kind, name, extra.name), file, extra, dry_run=dry_run)
            if dry_run:
                print_rehearsal(client, raw)
                return
            accepted = client.decode(raw, Accepted)
            await settled(client, kind, accepted, wait=wait, timeout_s=timeout)

        talk(work)

    name, *rest = _params(kind)
    return click.Command(
        "upload",
        callback=run,
        short_help=extra.summary,
        help=f"{extra.summary}\n\n" + examples("skerry image upload debian-12 debian-12.qcow2 --wait"),
        params=[
            name,
            click.Argument(["file"], type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)),
            *wait_options(),
            dry_run_option(),
            *rest,
        ],
    )


# --- history ------------------------------------------------------------------------------------------------------


def metrics(kind: AnyKind, extra: Extra) -> click.Command:
    """Return `skerry KIND metrics NAME`."""

    def run(*, name: str, metric: tuple[str, ...], start: str, end: str, step: int | None, agg: str) -> None:
        from controller.cli.metrics import Wanted, show  # noqa: PLC0415

        wanted = Wanted(metrics=metric, start=start, end=end, step=step, agg=agg)
        talk(lambda client: show(client, client.path(kind, name, extra.name), wanted))

    word = f"skerry {kind.name} metrics {sample(kind)}"
    return click.Command(
        "metrics",
        callback=run,
        short_help=extra.summary,
        help=f"{extra.summary} A line for each metric, or a chart of each that is named with --metric. What is gone is "
        f"found by its id.\n\n{examples(word, f'{word} --metric cpu --from -1d', f'{word} --from -7d -o json')}",
        params=[
            name_argument(kind),
            click.Option(["--metric"], multiple=True, metavar="METRIC", help="Draw this one (repeatable)"),
            click.Option(["--from", "start"], default="-1h", metavar="WHEN", help="-90s, -1h, -7d, or a moment (-1h)"),
            click.Option(["--to", "end"], default="now", metavar="WHEN", help="Likewise (now)"),
            click.Option(["--step"], type=click.IntRange(min=1), metavar="SECONDS", help="From one value to the next"),
            click.Option(
                ["--agg"],
                type=click.Choice(["avg", "max", "last"]),
                default="avg",
                help="What a value says of its step (default avg)",
            ),
            *common_options(kind),
        ],
    )


# --- user ---------------------------------------------------------------------------------------------------------


def user_password(kind: AnyKind, extra: Extra) -> click.Command:
    """Return `skerry user password NAME`."""

    def run(name: str) -> None:
        from controller.cli.login import set_password  # noqa: PLC0415

        talk(lambda client: set_password(client, kind, name))

    return click.Command(
        "password",
        callback=run,
        short_help=extra.summary,
        help=f"{extra.summary} It is asked for, or read from standard input, one line each; for one's own the present "
        "one comes first. It is never an argument, since other users could read it there.\n\n"
        + examples("skerry user password bob"),
        params=_params(kind),
    )


# --- vm -----------------------------------------------------------------------------------------------------------


def vm_console(kind: AnyKind, extra: Extra) -> click.Command:
    """Return `skerry vm console NAME`."""

    def run(name: str, linger: float) -> None:
        from controller.cli.console import attach  # noqa: PLC0415

        talk(lambda client: attach(client, client.path(kind, name, extra.name), name, linger_s=linger))

    return click.Command(
        "console",
        callback=run,
        short_help="Attach to a machine's serial console.",
        help="Attach to a machine's serial console. Ctrl-] detaches.\n\nIn a script, what comes on standard input is "
        "typed; after its end the command stays until the machine has been quiet for --linger seconds.\n\n"
        + examples("skerry console web", "echo 'uname -a' | skerry console web --linger 3"),
        params=[
            *_params(kind),
            click.Option(
                ["--linger"],
                type=click.FloatRange(min=0),
                default=2.0,
                metavar="SECONDS",
                help="In a script: detach after so much quiet (default 2)",
            ),
        ],
    )


def vm_log(kind: AnyKind, extra: Extra) -> click.Command:
    """Return `skerry vm log NAME`."""

    def run(name: str, tail: int | None, follow: bool) -> None:
        from controller.cli.seriallog import show  # noqa: PLC0415

        talk(lambda client: show(client, client.path(kind, name, extra.name), tail=tail, follow=follow))

    return click.Command(
        "log",
        callback=run,
        short_help=extra.summary,
        help=f"{extra.summary} It is there also for a machine that never got an address.\n\n"
        + examples("skerry vm log web", "skerry vm log web --tail 20 --follow"),
        params=[
            *_params(kind),
            click.Option(["--tail"], type=click.IntRange(min=0), metavar="LINES", help="Only the last lines"),
            click.Option(["-f", "--follow"], is_flag=True, help="Go on printing what comes, until Ctrl-C"),
        ],
    )


def why(kind: AnyKind, extra: Extra) -> click.Command:
    """Return `skerry KIND why NAME`."""

    def run(name: str) -> None:
        from controller.cli.why import explain  # noqa: PLC0415

        talk(lambda client: explain(client, extra.method, client.path(kind, name, extra.name), kind.name))

    return click.Command(
        "why",
        callback=run,
        short_help=extra.summary,
        help=f"{extra.summary} Where no host fits: what each constraint cost, and the smallest change that would "
        f"fit.\n\n{examples(f'skerry why {kind.name} {sample(kind)}')}",
        params=_params(kind),
    )


EXTRAS: dict[tuple[str, str], Build] = {
    ("domain", "quota"): quota,
    ("project", "quota"): quota,
    ("host", "token"): host_token,
    ("host", "audit"): host_audit,
    ("host", "metrics"): metrics,
    ("host", "repair"): host_repair,
    ("image", "content"): image_upload,
    ("user", "password"): user_password,
    ("vm", "console"): vm_console,
    ("vm", "log"): vm_log,
    ("vm", "metrics"): metrics,
    **{(kind.name, WHY.name): why for kind in KINDS if WHY in kind.extras},
}
"""Which extra is which command."""

COMPOSED: dict[str, tuple[Callable[[AnyKind], click.Command], ...]] = {"host": (host_drain, host_remove)}
"""What is one command and several calls of the API."""


def alias(kind: str, extra: str) -> click.Command:
    """Return the command of one extra, for a shorter way to it."""
    found = kind_named(kind)
    return next(EXTRAS[kind, one.name](found, one) for one in found.extras if one.name == extra)


def by_kind(word: str, extra: str, summary: str, example: str) -> click.Group:
    """Return a group with one command for each kind that has an extra of this name: `skerry why vm NAME`."""
    found = Ordered(word, short_help=summary, help=f"{summary}\n\n{examples(example)}")
    for kind in KINDS:
        if any(one.name == extra for one in kind.extras):
            found.add_command(alias(kind.name, extra), kind.name)
    return found
