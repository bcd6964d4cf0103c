"""The one place that starts processes: a list of words, a timeout, and a line that can be pasted when it fails."""

import asyncio
import contextlib
import shlex
from collections.abc import Sequence

import structlog

from common.errors import Temporary

log = structlog.get_logger(__name__)


class CommandFailed(Temporary):
    """A command ended with another code than 0. The message holds the line to replay and its last words."""

    def __init__(self, argv: Sequence[str], code: int | str, output: str) -> None:
        super().__init__(f"`{shlex.join(argv)}` ended with {code}: {output.strip()[-2000:] or '(it printed nothing)'}")
        self.returncode = code
        self.output = output


async def run(argv: Sequence[str], *, timeout_s: float = 30, stdin: bytes | None = None) -> str:
    """Run a command to its end and return what it printed on standard output.

    Raises CommandFailed for another code than 0, for a timeout (the process is killed), and for a missing program.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as err:
        raise CommandFailed(argv, "no start", str(err)) from err
    try:
        out, error = await asyncio.wait_for(process.communicate(stdin), timeout_s)
    except (TimeoutError, asyncio.CancelledError) as err:
        with contextlib.suppress(ProcessLookupError):  # it ended just now
            process.kill()
        await process.wait()
        if isinstance(err, asyncio.CancelledError):
            raise
        raise CommandFailed(argv, f"no end in {timeout_s} s", "") from err
    if process.returncode != 0:
        raise CommandFailed(argv, process.returncode or 0, (error or out).decode(errors="replace"))
    log.debug("command run", line=shlex.join(argv))
    return out.decode(errors="replace")
