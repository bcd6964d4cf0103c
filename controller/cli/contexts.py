"""`skerry context`: which controllers are known, and which one is spoken to."""

import sys
from pathlib import Path

import click
import msgspec

from controller.cli import settings
from controller.cli.failures import Failure
from controller.cli.parts import Ordered, examples


def group() -> click.Group:
    """Return the `context` group."""
    return Ordered(
        "context",
        commands={"list": _list(), "use": _use(), "add": _add(), "remove": _remove()},
        short_help="Which controllers are known, and which one is spoken to.",
        help="A context is a controller's URL, a token and a project, kept in a file that only you may read.\n\n"
        + examples("skerry context add lab --url http://127.0.0.1:8080 --token-file token", "skerry context use lab"),
    )


def _names(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    return settings.names(incomplete)


def _list() -> click.Command:
    def run() -> None:
        from controller.cli.render import print_table  # noqa: PLC0415  rich takes 0.1 s to import

        path, known = settings.here()
        rows = [
            ["*" if name == known.current else "", name, context.url, context.project]
            for name, context in sorted(known.contexts.items())
        ]
        print_table(["CURRENT", "NAME", "URL", "PROJECT"], rows, empty=f"there are no contexts in {path}")

    return click.Command("list", callback=run, help="List the contexts.\n\n" + examples("skerry context list"))


def _use() -> click.Command:
    def run(name: str) -> None:
        path, known = settings.here()
        settings.write(path, msgspec.structs.replace(known, current=_known(known, name)))
        click.echo(f"context {name} is spoken to from now on")

    return click.Command(
        "use",
        callback=run,
        help="Speak to this one from now on.\n\n" + examples("skerry context use lab"),
        params=[click.Argument(["name"], shell_complete=_names)],
    )


def _add() -> click.Command:
    def run(*, name: str, url: str, project: str, ca: Path | None, token_file: Path | None, use: bool) -> None:
        if not url.startswith(("http://", "https://")):
            raise click.UsageError(f"--url {url}: it looks like http://127.0.0.1:8080")
        path, known = settings.here()
        context = settings.Context(
            url=url.rstrip("/"), project=project, token=_token(token_file), ca=str(ca.absolute()) if ca else ""
        )
        current = name if use or not known.current else known.current
        settings.write(path, settings.Contexts(current=current, contexts=known.contexts | {name: context}))
        click.echo(f"context {name} is kept in {path}" + (" and spoken to from now on" if current == name else ""))

    return click.Command(
        "add",
        callback=run,
        help="Add a context, or replace the one of that name. The token is asked for, or read from standard input or "
        "--token-file; it is never an argument, since other users could read it there.\n\n"
        + examples(
            "skerry context add lab --url http://127.0.0.1:8080", "skerry context add lab --url … --token-file token"
        ),
        params=[
            click.Argument(["name"]),
            click.Option(["--url"], required=True, help="The API's URL"),
            click.Option(
                ["-p", "--project"],
                default=settings.DEFAULT_PROJECT,
                help=f"The project meant where none is named (default {settings.DEFAULT_PROJECT})",
            ),
            click.Option(
                ["--ca"],
                type=click.Path(exists=True, dir_okay=False, path_type=Path),
                help="PEM file with the CA that signed the API's certificate",
            ),
            click.Option(
                ["--token-file"],
                type=click.Path(exists=True, dir_okay=False, path_type=Path),
                help="File that holds the token",
            ),
            click.Option(["--use/--no-use"], default=True, help="Speak to it from now on (default: use)"),
        ],
    )


def _token(file: Path | None) -> str:
    if file is not None:
        token = file.read_text()
    elif sys.stdin.isatty():
        token = str(click.prompt("token", hide_input=True, err=True))
    else:
        token = sys.stdin.read()
    if not (token := token.strip()):
        raise Failure("the token is empty", fix="give it on standard input, or name a file with --token-file")
    return token


def _remove() -> click.Command:
    def run(name: str) -> None:
        path, known = settings.here()
        _known(known, name)
        left = {other: context for other, context in known.contexts.items() if other != name}
        current = "" if known.current == name else known.current
        settings.write(path, settings.Contexts(current=current, contexts=left))
        click.echo(f"context {name} is removed")

    return click.Command(
        "remove",
        callback=run,
        help="Forget a context and its token.\n\n" + examples("skerry context remove lab"),
        params=[click.Argument(["name"], shell_complete=_names)],
    )


def _known(known: settings.Contexts, name: str) -> str:
    if name not in known.contexts:
        there = ", ".join(sorted(known.contexts)) or "none yet"
        raise Failure(f"there is no context {name}; there is {there}", fix="skerry context list")
    return name
