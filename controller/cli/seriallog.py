"""The serial log of a machine: the last lines, and what comes after them."""

import asyncio
import sys

from controller.cli.client import Client

POLL_S = 1.0
WINDOW_BYTES = 64 * 1024
"""How much of the log's end is read again at each look, while following."""
ANCHOR_BYTES = 64
"""So much is compared before all of it is."""
MOST_BYTES = 1024 * 1024
"""As much as the API gives at once."""
LINE_BYTES = 400
"""A generous length of a line: so much is read for each that --tail asks for."""


async def show(client: Client, path: str, *, tail: int | None, follow: bool) -> None:
    """Print the log, or its last lines, and go on with what comes where that is asked for."""
    size = MOST_BYTES if tail is None else min(MOST_BYTES, max(WINDOW_BYTES, tail * LINE_BYTES))
    seen = await client.raw("GET", path, query={"tail_bytes": size})
    _print(seen if tail is None else last_lines(seen, tail))
    while follow:
        await asyncio.sleep(POLL_S)
        now = await client.raw("GET", path, query={"tail_bytes": WINDOW_BYTES})
        _print(added(seen, now))
        seen = now


def last_lines(text: bytes, count: int) -> bytes:
    """Return the last lines of a text; an unfinished one counts."""
    lines = text.splitlines(keepends=True)
    return b"".join(lines[len(lines) - count :]) if count < len(lines) else text


def added(before: bytes, now: bytes) -> bytes:
    """Return what `now` has after what `before` ended with. Both are the end of one log, cut at some length.

    Where they have nothing in common (so much came, or the log began anew), all of `now` is new.
    """
    start = before.find(now[:1]) if now else -1
    while start >= 0:
        if now.startswith(before[start : start + ANCHOR_BYTES]) and now.startswith(before[start:]):
            return now[len(before) - start :]
        start = before.find(now[:1], start + 1)
    return now


def _print(text: bytes) -> None:
    sys.stdout.write(text.decode(errors="replace"))
    sys.stdout.flush()
