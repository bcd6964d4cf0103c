"""`skerry login` and `logout`: a password for a session's token, which is kept in a context; and setting passwords."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from common.kinds.kind import AnyKind
from controller.cli import settings
from controller.cli.failures import Failure
from controller.cli.parts import connection_options, examples
from controller.cli.session import asked_context, run_with, talk

if TYPE_CHECKING:
    from controller.cli.client import Client


def login_command() -> click.Command:
    """Return `skerry login`."""

    def run(*, user: str | None, url: str | None, ca: Path | None) -> None:
        from controller.cli.answers import LoggedIn  # noqa: PLC0415  aiohttp takes 0.4 s to import

        name, context = _context(url, ca)
        who = user or _asked("user")
        body = {"user": who, "password": _asked("password", hide=True)}
        spoken_to = settings.anonymous(context, name)
        session = run_with(spoken_to, lambda client: client.read("POST", "/v1/login", LoggedIn, body=body))
        path, known = settings.here()
        kept = msgspec.structs.replace(context, token=session.token)
        contexts = settings.Contexts(current=known.current or name, contexts=known.contexts | {name: kept})
        settings.write(path, contexts)
        hours = (session.expires_at - time.time()) / 3600
        click.echo(f"context {name} speaks for {session.user} for the next {hours:.1f} hours")

    return click.Command(
        "login",
        callback=run,
        short_help="Give a password for a session, which is kept in the context.",
        help="Give a user's password for a session, which is kept in the context until it expires or is ended. The "
        "password is asked for, or read from standard input; it is never an argument, since other users could read it "
        "there.\n\n"
        + examples("skerry login --user bob", "skerry --context lab login --user bob --url https://cloud.example:8080"),
        params=[
            click.Option(["-u", "--user"], help="Who logs in (default: it is asked for)"),
            click.Option(["--url"], help="The API's URL, where the context is a new one"),
            click.Option(
                ["--ca"],
                type=click.Path(exists=True, dir_okay=False, path_type=Path),
                help="PEM file with the CA that signed the API's certificate, where the context is a new one",
            ),
            *connection_options(),
        ],
    )


def _context(url: str | None, ca: Path | None) -> tuple[str, settings.Context]:
    """Return the context to log in with, a new one where a URL is given."""
    _, known = settings.here()
    name = asked_context() or known.current or settings.DEFAULT_CONTEXT
    if url is None:
        if name not in known.contexts:
            raise Failure(f"there is no context {name}", fix="name the controller: skerry login --url URL")
        return name, known.contexts[name]
    if not url.startswith(("http://", "https://")):
        raise click.UsageError(f"--url {url}: it looks like http://127.0.0.1:8080")
    there = known.contexts.get(name, settings.Context(url=url, token=""))
    return name, msgspec.structs.replace(there, url=url.rstrip("/"), ca=str(ca.absolute()) if ca else there.ca)


def _asked(what: str, *, hide: bool = False, twice: bool = False) -> str:
    """Ask on a terminal, else read the next line of standard input."""
    if sys.stdin.isatty():
        return str(click.prompt(what, hide_input=hide, confirmation_prompt=twice, err=True))
    line = sys.stdin.readline().rstrip("\r\n")
    if not line:
        raise Failure(f"no {what} came on standard input", fix=f"give the {what} as a line of it, or use a terminal")
    return line


def logout_command() -> click.Command:
    """Return `skerry logout`."""

    def run() -> None:
        talk(lambda client: client.raw("POST", "/v1/logout"))
        path, known = settings.here()
        name = asked_context() or known.current
        if there := known.contexts.get(name):
            left = msgspec.structs.replace(there, token="")
            settings.write(path, msgspec.structs.replace(known, contexts=known.contexts | {name: left}))
        click.echo("the session has ended")

    return click.Command(
        "logout",
        callback=run,
        short_help="End the session.",
        help="End the session: its token is good for nothing from this moment on.\n\n" + examples("skerry logout"),
        params=connection_options(),
    )


async def set_password(client: "Client", kind: AnyKind, name: str) -> None:
    """Ask for a password and set it; for the present one too, where it is one's own."""
    from controller.cli.answers import WhoAmI  # noqa: PLC0415  aiohttp takes 0.4 s to import

    who = await client.read("GET", "/v1/me", WhoAmI)
    own = who.actor.partition("@")[0] == name and "@" in who.actor
    body = {"current": _asked("present password", hide=True)} if own else {}
    body["password"] = _asked("new password", hide=True, twice=True)
    async with client.open("PUT", client.path(kind, name, "password"), body=body) as response:
        await response.read()
    click.echo(f"the password of user {name} is set; sessions from before have ended")
