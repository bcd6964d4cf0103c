"""The lab's one place that starts short commands. Synchronous: the lab is a script for people, tests and benchmarks."""

import os
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Timer

from common.run import CommandFailed


def run(
    argv: Sequence[str],
    *,
    timeout_s: float = 30,
    stdin: str | None = None,
    folder: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a command to its end and return what it printed on standard output.

    `env` is added to this process's environment. Raises CommandFailed (with a line that can be pasted) for another
    code than 0, for a timeout and for a missing program.
    """
    try:
        done = subprocess.run(
            list(argv),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            check=False,
            timeout=timeout_s,
            cwd=folder,
            env={**os.environ, **(env or {})},
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired as err:
        raise CommandFailed(argv, f"no end in {timeout_s} s", _text(err.stderr) or _text(err.stdout)) from err
    except OSError as err:
        raise CommandFailed(argv, "no start", str(err)) from err
    if done.returncode != 0:
        raise CommandFailed(argv, done.returncode, done.stderr or done.stdout)
    return done.stdout


def watch(
    argv: Sequence[str],
    say: Callable[[str], None],
    *,
    timeout_s: float,
    folder: Path | None = None,
) -> None:
    """Run a command to its end and say each line that it prints, as it comes. Raises CommandFailed as `run` does."""
    words: deque[str] = deque(maxlen=20)
    with subprocess.Popen(
        list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder
    ) as process:
        late = Timer(timeout_s, process.kill)
        late.start()
        try:
            assert process.stdout is not None
            for raw in process.stdout:
                # A progress line is written over and over: the last word of it counts.
                line = raw.decode(errors="replace").rstrip().rpartition("\r")[2]
                words.append(line)
                say(line)
        except BaseException:
            process.terminate()
            raise
        finally:
            late.cancel()
    if process.returncode != 0:
        raise CommandFailed(argv, process.returncode, "\n".join(words))


def start(argv: Sequence[str], *, log: Path, env: Mapping[str, str]) -> None:
    """Start a program that goes on by itself: a session of its own, `env` as its whole environment, its words in a log.

    It is no child of ours, so that it neither dies with us nor waits for us to bury it.
    """
    with log.open("ab") as out:
        subprocess.run(
            ["setsid", "--fork", *argv],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            check=True,
            timeout=10,
            cwd="/",
            env=dict(env),
        )


def succeeds(argv: Sequence[str], *, timeout_s: float = 30) -> bool:
    """Run a command for its verdict only."""
    try:
        run(argv, timeout_s=timeout_s)
    except CommandFailed:
        return False
    return True


def last_lines(log: Path, count: int = 15) -> str:
    """Return the end of a log, for an error message; whatever can't be read is no reason to fail twice."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-count:])
    except OSError as err:
        return f"({err})"


def _text(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""
