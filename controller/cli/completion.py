"""`skerry completion`: the script that a shell sources."""

import click
from click.shell_completion import get_completion_class

from controller.cli.parts import examples

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_SKERRY_COMPLETE"


def command() -> click.Command:
    """Return `skerry completion`."""

    def run(shell: str) -> None:
        completer = get_completion_class(shell)
        assert completer, f"click completes {shell}"
        click.echo(completer(click.get_current_context().find_root().command, {}, "skerry", VARIABLE).source())

    return click.Command(
        "completion",
        callback=run,
        short_help="A script that completes commands and names in your shell.",
        help="Print a script that completes commands, flags and (by asking the API) names.\n\n"
        + examples(
            'eval "$(skerry completion bash)"      # in ~/.bashrc',
            'eval "$(skerry completion zsh)"       # in ~/.zshrc',
            "skerry completion fish | source       # in config.fish",
        ),
        params=[click.Argument(["shell"], type=click.Choice(SHELLS))],
    )
