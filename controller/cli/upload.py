"""Uploading a file as it is read, with a bar on a terminal: it is never in memory as a whole."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from common.kinds.kind import Extra
from controller.cli.client import Client
from controller.cli.render import amount

CHUNK_BYTES = 1 << 20
Sent = Callable[[int], None]


async def upload(client: Client, path: str, file: Path, extra: Extra, *, dry_run: bool) -> bytes:
    """Send a file's bytes and return the answer's."""
    size = await asyncio.to_thread(lambda: file.stat().st_size)
    headers = {"Content-Type": extra.accepts, "Content-Length": str(size)}
    with _bar(file.name, size) as sent:
        query = {"dry_run": "true"} if dry_run else {}
        chunks = _chunks(file, sent)
        async with client.open(extra.method, path, query=query, data=chunks, headers=headers) as response:
            return await response.read()


async def _chunks(file: Path, sent: Sent) -> AsyncIterator[bytes]:
    with file.open("rb") as opened:
        while chunk := await asyncio.to_thread(opened.read, CHUNK_BYTES):
            yield chunk
            sent(len(chunk))


@contextmanager
def _bar(title: str, size: int) -> Iterator[Sent]:
    if not sys.stderr.isatty():
        click.echo(f"uploading {title}, {amount(size)}", err=True)
        yield lambda _count: None
        return
    from rich.console import Console  # noqa: PLC0415  only on a terminal
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=size)
        yield lambda count: progress.advance(task, count)
