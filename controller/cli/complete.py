"""Shell completion that asks the API: names of things, within a second, and silent where nothing answers."""

import asyncio
from typing import Any

import click
from click.shell_completion import CompletionItem

from common.kinds import kind_named

PATIENCE_S = 1.0
MOST = 100


class NameType(click.ParamType[str]):
    """The name (or id) of a thing of a kind."""

    name = "name"

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Take the name as it is: the API knows which there are."""
        text = str(value)
        if not text or "/" in text:
            self.fail(f"{value!r} is no name of a {self.kind}", param, ctx)
        return text

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        """Return the names that begin so."""
        return [CompletionItem(name) for name in names(ctx, self.kind, incomplete)]


def names(ctx: click.Context, kind: str, incomplete: str) -> list[str]:
    """Return the names of things of a kind that begin so; none where the API can't be asked now."""
    from controller.cli.answers import Many, shown  # noqa: PLC0415  completion and help stay quick without these
    from controller.cli.client import Client  # noqa: PLC0415
    from controller.cli.failures import Failure  # noqa: PLC0415
    from controller.cli.session import connection  # noqa: PLC0415

    async def ask() -> list[str]:
        async with Client(connection(ctx)) as client, asyncio.timeout(PATIENCE_S):
            query = (("name", incomplete), ("limit", MOST))
            page = await client.read("GET", client.path(kind_named(kind)), Many, query=query)
            return [shown(raw).name for raw in page.items]

    try:
        return asyncio.run(ask())
    except (Failure, TimeoutError):
        return []
