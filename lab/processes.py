"""Finding and ending a lab's processes, by what the kernel says of them and not by files that may be stale."""

import os
import signal
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.errors import Temporary

NETNS = Path("/run/netns")


def marked(key: str, value: str) -> set[int]:
    """Return the processes that have `key=value` in the environment they were started with."""
    wanted = f"{key}={value}".encode()
    return {pid for pid in _pids() if wanted in _read(pid, "environ").split(b"\0")}


def running(argv: Sequence[str]) -> set[int]:
    """Return the processes that were started with exactly these words."""
    wanted = "".join(f"{word}\0" for word in argv).encode()
    return {pid for pid in _pids() if _read(pid, "cmdline") == wanted}


def mentioning(text: str) -> set[int]:
    """Return the processes in whose command line a text occurs, but for this one and those it descends from."""
    ours, pid = {os.getpid()}, os.getpid()
    while pid := _parent(pid):
        ours.add(pid)
    return {pid for pid in _pids() if text.encode() in _read(pid, "cmdline")} - ours


def command_of(pid: int) -> str:
    """Return a process's command line, for a message."""
    return _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()


def in_namespace(name: str) -> set[int]:
    """Return the processes inside a named network namespace; none when there is no such namespace."""
    try:
        inode = (NETNS / name).stat().st_ino
    except OSError:
        return set()
    return {pid for pid in _pids() if _link(pid, "ns/net") == f"net:[{inode}]"}


def init_of(namespace: str) -> int | None:
    """Return the process that is number 1 of the PID namespace behind a network namespace: a host's `tini`."""
    for pid in sorted(in_namespace(namespace)):
        numbers = _numbers(pid)
        if len(numbers) > 1 and numbers[-1] == 1:
            return pid
    return None


def as_seen_outside(init: int, inner: int) -> int | None:
    """Return the number out here of the process that is `inner` in the PID namespace of `init`."""
    space = _link(init, "ns/pid")
    for pid in _pids():
        if _link(pid, "ns/pid") == space and _numbers(pid)[-1:] == [inner]:
            return pid
    return None


def alive(pid: int) -> bool:
    """Tell whether a process runs: a zombie that nobody has reaped yet does not."""
    return b"\nState:\tZ" not in (status := _read(pid, "status")) and bool(status)


def end(pids: Iterable[int], sign: signal.Signals = signal.SIGKILL, *, timeout_s: float = 20) -> None:
    """Send a signal to processes and wait until they run no more. Raises Temporary for those that stay."""
    waiting = {pid for pid in pids if pid != os.getpid()}
    for pid in waiting:
        try:
            os.kill(pid, sign)
        except ProcessLookupError:
            continue
    deadline = time.monotonic() + timeout_s
    while waiting := {pid for pid in waiting if alive(pid)}:
        if time.monotonic() > deadline:
            raise Temporary(f"processes {sorted(waiting)} still run {timeout_s:.0f} s after {sign.name}")
        time.sleep(0.02)


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _link(pid: int, name: str) -> str:
    try:
        return str(Path(f"/proc/{pid}/{name}").readlink())
    except OSError:
        return ""


def _parent(pid: int) -> int:
    for line in _read(pid, "status").splitlines():
        if line.startswith(b"PPid:"):
            return int(line.split()[1])
    return 0


def _numbers(pid: int) -> list[int]:
    """Return a process's numbers, one per nested PID namespace, from the outermost in."""
    for line in _read(pid, "status").splitlines():
        if line.startswith(b"NSpid:"):
            return [int(number) for number in line.split()[1:]]
    return []
