"""What every command has in common: the connection it speaks over, the form it answers in, the run of its coroutine."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from controller.cli import settings
from controller.cli.failures import INTERRUPTED, Failure

if TYPE_CHECKING:
    from controller.cli.client import Client

T = TypeVar("T")
FORMS = ("table", "json", "yaml", "name")
_KEY = "skerry."


def connection(ctx: click.Context) -> settings.Connection:
    """Return what this command line and environment say to speak to."""
    _, contexts = settings.here()
    return settings.connection_of(
        contexts,
        os.environ,
        context=ctx.meta.get(_KEY + "context"),
        project=ctx.meta.get(_KEY + "project"),
    )


def talk(work: "Callable[[Client], Awaitable[T]]") -> T:
    """Run a command's coroutine with a client that is open meanwhile."""
    return run_with(connection(click.get_current_context()), work)


def run_with(spoken_to: settings.Connection, work: "Callable[[Client], Awaitable[T]]") -> T:
    """Like `talk`, over this connection."""
    from controller.cli.client import Client  # noqa: PLC0415  aiohttp takes 0.4 s to import; help does without

    async def run() -> T:
        async with Client(spoken_to) as client:
            return await work(client)

    try:
        return asyncio.run(run())
    except KeyboardInterrupt as err:
        raise Failure("interrupted", code=INTERRUPTED) from err


def form() -> str:
    """Return the form in which this command shall answer."""
    return str(click.get_current_context().meta.get(_KEY + "form", "table"))


def keep(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Remember an option for the whole command line, as a callback of click's: the one given last holds."""
    if value is not None and param.name:
        ctx.meta[_KEY + param.name] = value
    return value


def asked_context() -> str | None:
    """Return the context that the command line or the environment names."""
    found = click.get_current_context().meta.get(_KEY + "context") or os.environ.get("SKERRY_CONTEXT")
    return str(found) if found else None


def asked_project() -> str | None:
    """Return the project that the command line names. A context's does not narrow what an operator sees."""
    found = click.get_current_context().meta.get(_KEY + "project")
    return str(found) if found else None
