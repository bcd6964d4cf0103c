"""The `skerry` command: what there is, in groups; each command is imported when it is asked for."""

import sys
from collections.abc import Callable
from typing import Any

import click

from common.kinds import KINDS
from controller.cli.failures import Failure
from controller.cli.parts import connection_options

OVERVIEW = """\
Skerry: a cloud of one's own.

\b
  skerry vm create web --image tiny --size small --wait
  skerry console web
  skerry vm delete web --wait
"""


def _console() -> click.Command:
    from controller.cli.extras import alias  # noqa: PLC0415  each only when asked for: help stays quick

    return alias("vm", "console")


def _why() -> click.Command:
    from controller.cli.extras import by_kind  # noqa: PLC0415

    return by_kind("why", "why", "Why a thing is not as wished.", "skerry why vm web")


def _ca() -> click.Command:
    from controller.cli.authority import group  # noqa: PLC0415

    return group()


def _quota() -> click.Command:
    from controller.cli.quota import group  # noqa: PLC0415

    return group()


def _audit() -> click.Command:
    from controller.cli.audit import group  # noqa: PLC0415

    return group()


def _events() -> click.Command:
    from controller.cli.events import command  # noqa: PLC0415

    return command()


def _watch() -> click.Command:
    from controller.cli.watch import command  # noqa: PLC0415

    return command()


def _status() -> click.Command:
    from controller.cli.status import status_command  # noqa: PLC0415

    return status_command()


def _top() -> click.Command:
    from controller.cli.top import command  # noqa: PLC0415

    return command()


def _capacity() -> click.Command:
    from controller.cli.capacity import command  # noqa: PLC0415

    return command()


def _cpus() -> click.Command:
    from controller.cli.cpus import command  # noqa: PLC0415

    return command()


def _operation() -> click.Command:
    from controller.cli.operations import group  # noqa: PLC0415

    return group()


def _context() -> click.Command:
    from controller.cli.contexts import group  # noqa: PLC0415

    return group()


def _identity() -> click.Command:
    from controller.cli.identity import group  # noqa: PLC0415

    return group()


def _whoami() -> click.Command:
    from controller.cli.status import whoami_command  # noqa: PLC0415

    return whoami_command()


def _login() -> click.Command:
    from controller.cli.login import login_command  # noqa: PLC0415

    return login_command()


def _logout() -> click.Command:
    from controller.cli.login import logout_command  # noqa: PLC0415

    return logout_command()


def _completion() -> click.Command:
    from controller.cli.completion import command  # noqa: PLC0415

    return command()


Build = Callable[[], click.Command]

EVERYDAY: dict[str, tuple[str, Build]] = {
    "status": ("How the cloud is: hosts, machines by state, what is blocked.", _status),
    "top": ("What machines or hosts use just now, the busiest first.", _top),
    "capacity": ("How many more machines of each size fit, and what limits that.", _capacity),
    "cpus": ("The CPU that hosts share, and which hosts have less.", _cpus),
    "console": ("Attach to a machine's serial console.", _console),
    "why": ("Why a thing is not as wished, and the smallest change that would help.", _why),
    "events": ("What happened, and (--follow) what happens now.", _events),
    "watch": ("Things and operations as they change, from any revision on.", _watch),
    "operation": ("What was asked for: list, show, wait, cancel.", _operation),
    "ca": ("The cloud's certificate authority: how it stands, and having another one follow it.", _ca),
    "quota": ("What a project uses of its limits; set the limits.", _quota),
    "audit": ("Compare wish and reality on a host; verify that history was not changed.", _audit),
}
SETUP: dict[str, tuple[str, Build]] = {
    "context": ("Which controllers are known, and which one is spoken to.", _context),
    "identity": ("Verify what a machine says of itself.", _identity),
    "login": ("Give a password for a session, which is kept in the context.", _login),
    "logout": ("End the session.", _logout),
    "whoami": ("Who one is, with which roles, and until when.", _whoami),
    "completion": ("A script that completes commands and names in your shell.", _completion),
}


class Skerry(click.Group):
    """The root: kinds and commands in sections, built when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return every word."""
        return [*(kind.name for kind in KINDS), *EVERYDAY, *SETUP]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return the command of a word; a plural does as well."""
        if found := EVERYDAY.get(cmd_name) or SETUP.get(cmd_name):
            return found[1]()
        kind = next((kind for kind in KINDS if cmd_name in (kind.name, kind.plural)), None)
        if kind is None:
            return None
        from controller.cli.kinds import group  # noqa: PLC0415

        return group(kind)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Say what was perhaps meant where there is no such command."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            import difflib  # noqa: PLC0415

            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=2)
            meant = f" Did you mean {' or '.join(near)}?" if near else " See skerry --help."
            raise click.UsageError(f"there is no command {args[0]}.{meant}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what ends it is printed, and becomes the exit code."""
        try:
            return super().invoke(ctx)
        except Failure as failure:
            failure.show()
            raise click.exceptions.Exit(failure.code) from failure

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the sections of the overview."""
        sections = (
            ("Things (each: list, show, create, set, delete, and its verbs)", [(k.name, k.summary) for k in KINDS]),
            ("Every day", [(word, text) for word, (text, _) in EVERYDAY.items()]),
            ("Setting up", [(word, text) for word, (text, _) in SETUP.items()]),
        )
        for title, rows in sections:
            with formatter.section(title):
                formatter.write_dl(rows)


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from importlib.metadata import version  # noqa: PLC0415  reads the installed metadata from disk

    click.echo(f"skerry {version('skerry')}")
    ctx.exit()


def _overview() -> None:
    ctx = click.get_current_context()
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def root() -> click.Group:
    """Return the whole command."""
    return Skerry(
        "skerry",
        callback=_overview,
        invoke_without_command=True,
        help=OVERVIEW,
        epilog="skerry COMMAND --help shows how each is used, with examples.",
        params=[
            *connection_options(),
            click.Option(
                ["--version"],
                is_flag=True,
                expose_value=False,
                is_eager=True,
                callback=_version,
                help="Show the version",
            ),
        ],
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )


def main(argv: list[str] | None = None) -> Any:
    """Run the command line and exit with its code."""
    return root().main(args=argv, prog_name="skerry")


if __name__ == "__main__":
    sys.exit(main())
