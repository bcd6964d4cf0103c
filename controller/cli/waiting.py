"""Waiting for an operation, with a line that says how it goes; it is long-polled, so the end is seen at once."""

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Protocol, Self

import click

from common.refusal import Refusal
from controller.cli.answers import Finished, OperationShown
from controller.cli.client import Client
from controller.cli.failures import BLOCKED, FAILED, TIMED_OUT, Failure, Unreachable

if TYPE_CHECKING:
    from rich.progress import Progress

LONG_POLL_S = 20.0
RETRY_S = 1.0


class Line(Protocol):
    """Where it is said how things go. A context manager."""

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(self, *_: object) -> None:
        """End; a terminal's line goes away."""
        ...

    def say(self, text: str) -> None:
        """Say how it goes."""
        ...


class PlainLine:
    """One line on standard error whenever something changes."""

    def __init__(self) -> None:
        self._said = ""
        self._since = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def say(self, text: str) -> None:
        """Print the text where it is new."""
        if text != self._said:
            self._said = text
            click.echo(f"{text} ({time.monotonic() - self._since:.1f} s)", err=True)


class LiveLine:
    """One line on a terminal that changes in place and counts the seconds."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def __enter__(self) -> Self:
        from rich.console import Console  # noqa: PLC0415  rich takes 0.1 s to import
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._progress.start()
        self._task = self._progress.add_task("")
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._progress.stop()

    def say(self, text: str) -> None:
        """Show the text."""
        if self._progress:
            self._progress.update(self._task, description=text)


def line() -> Line:
    """Return the line that suits where standard error goes."""
    return LiveLine() if sys.stderr.isatty() else PlainLine()


async def settle(client: Client, operation: OperationShown, timeout_s: float) -> OperationShown:
    """Wait until an operation is done and return it.

    Raises Failure where it failed, was cancelled, is blocked, or is not finished in time.
    """
    ends = time.monotonic() + timeout_s
    try:
        with line() as progress:
            while operation.state not in (*Finished, "blocked"):
                share = f", {operation.progress:.0%}" if operation.progress else ""
                progress.say(f"{operation.subject}: {operation.message or operation.state}{share}")
                left = ends - time.monotonic()
                if left <= 0:
                    raise _late(operation, timeout_s)
                operation = await _next(client, operation, min(left, LONG_POLL_S), progress)
    except asyncio.CancelledError:
        click.echo(f"operation {operation.id} goes on; skerry operation wait {operation.id}", err=True)
        raise
    return _ended(operation)


async def _next(client: Client, operation: OperationShown, wait_s: float, progress: Line) -> OperationShown:
    query = {"wait_s": max(1, round(wait_s)), "seen": operation.revision}
    try:
        return await client.read("GET", f"/v1/operations/{operation.id}", OperationShown, query=query)
    except Unreachable as err:
        progress.say(f"{operation.subject}: {err.detail}; trying again")
        await asyncio.sleep(min(RETRY_S, wait_s))
        return operation


def _ended(operation: OperationShown) -> OperationShown:
    subject = f"{operation.subject}: {operation.verb}"
    match operation.state:
        case "blocked":
            why = operation.why or Refusal(summary=operation.message or "it does not say why")
            raise Failure(
                f"{subject} is blocked: {why.summary}",
                refusal=why,
                code=BLOCKED,
                fix="it is tried again when something changes; "
                f"skerry operation wait {operation.id}, or skerry operation cancel {operation.id}",
            )
        case "failed" | "cancelled":
            said = f": {operation.message}" if operation.message else ""
            raise Failure(
                f"{subject} {'failed' if operation.state == 'failed' else 'was cancelled'}{said}",
                code=FAILED,
                refusal=operation.why,
                fix=f"skerry operation show {operation.id}",
            )
        case _:
            return operation


def _late(operation: OperationShown, timeout_s: float) -> Failure:
    said = operation.message or operation.state
    return Failure(
        f"{operation.subject}: {operation.verb} is not finished after {timeout_s:g} s: {said}",
        code=TIMED_OUT,
        fix=f"it goes on; skerry operation wait {operation.id}",
    )
