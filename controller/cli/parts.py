"""The arguments and options that commands share: NAME, --project, --context, -o, --wait, --label, and examples."""

import shlex

import click

from common.kinds.kind import AnyKind, Scope
from controller.cli import settings
from controller.cli.complete import NameType
from controller.cli.session import FORMS, keep


def connection_options() -> list[click.Parameter]:
    """Return --project and --context. They are taken before and after the command's words."""
    return [
        click.Option(
            ["-p", "--project"],
            type=NameType("project"),
            metavar="PROJECT",
            callback=keep,
            expose_value=False,
            is_eager=True,
            help="The project (else SKERRY_PROJECT, else the context's)",
        ),
        click.Option(
            ["--context"],
            callback=keep,
            expose_value=False,
            is_eager=True,
            metavar="CONTEXT",
            shell_complete=lambda _ctx, _param, incomplete: settings.names(incomplete),
            help="The context, see `skerry context list`",
        ),
    ]


def form_option() -> click.Option:
    """Return -o."""
    return click.Option(
        ["-o", "--output", "form"],
        type=click.Choice(FORMS),
        metavar="FORM",
        callback=keep,
        expose_value=False,
        is_eager=True,
        help="table (default), json or yaml (as the API gives it), or name (names only)",
    )


def wait_options(*, wait: bool = False) -> list[click.Parameter]:
    """Return --wait and --timeout."""
    said = "default: wait" if wait else "default: don't"
    return [
        click.Option(["--wait/--no-wait"], default=wait, help=f"Wait until it is so, with a progress line ({said})"),
        click.Option(
            ["--timeout"],
            type=click.FloatRange(min=0, min_open=True),
            default=600.0,
            metavar="SECONDS",
            help="How long to wait, then exit 5 (default 600)",
        ),
    ]


def dry_run_option() -> click.Option:
    """Return --dry-run."""
    return click.Option(
        ["--dry-run"],
        is_flag=True,
        help="Check everything and show what would come of it; nothing is changed (exit 4: it would be blocked)",
    )


def examples(*lines: str) -> str:
    """Return the tail of a help text that shows how it is used."""
    return "Examples:\n\n\b\n" + "\n".join(f"  {line}" for line in lines)


def name_argument(kind: AnyKind, *, many: bool = False) -> click.Argument:
    """Return NAME (or NAMES...), completed from the API."""
    return click.Argument(
        ["names" if many else "name"], type=NameType(kind.name), nargs=-1 if many else 1, required=True
    )


def common_options(kind: AnyKind) -> list[click.Parameter]:
    """Return the options of every command of a kind. Things of the cloud need no project; naming one does no harm."""
    project, context = connection_options()
    assert isinstance(project, click.Option)
    project.hidden = kind.scope is Scope.CLOUD
    return [project, context, form_option()]


class Ordered(click.Group):
    """A group whose help shows its commands in the order in which they were given."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the commands' words."""
        return list(self.commands)


def a(kind: AnyKind) -> str:
    """Return the kind's name behind its article."""
    return f"{'an' if kind.name[0] in 'aeiou' else 'a'} {kind.name}"


def sample(kind: AnyKind) -> str:
    """Return a name for examples: the one in the kind's own example."""
    words = shlex.split(kind.example)
    return words[3] if words[2:3] == ["create"] else "NAME"
