"""Network namespaces by name, under /run/netns as `ip netns` keeps them.

A name is a mount. As a unit of systemd the agent sees the host's mounts and the host does not see the agent's, so names
are made and removed among the host's.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from agent.drivers import service
from common.errors import Temporary
from common.run import run

T = TypeVar("T")

DIRECTORY = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_INSIDE_TIMEOUT_S = 20.0


def inode(name: str) -> int | None:
    """Return the inode of the namespace of that name, None where there is none.

    `ip netns add` makes a plain file first and mounts the namespace on it last: a plain file is not a namespace yet.
    """
    path = DIRECTORY / name
    try:
        seen = path.stat()
        if seen.st_dev == DIRECTORY.stat().st_dev:
            return None
    except FileNotFoundError:
        return None
    return seen.st_ino


def listed() -> tuple[str, ...]:
    """Return the names of all namespaces, half-made ones included."""
    try:
        return tuple(sorted(entry.name for entry in DIRECTORY.iterdir()))
    except FileNotFoundError:
        return ()


async def ensure(name: str) -> None:
    """Make the namespace exist. What is left of a half-made one is cleared away first."""
    if inode(name) is not None:
        return
    await remove(name)
    await run([*service.among_the_hosts_mounts(), "ip", "netns", "add", name])


async def remove(name: str) -> None:
    """Make the namespace (or what is left of a half-made one) not exist. Its devices go with it."""
    if (DIRECTORY / name).exists():
        await run([*service.among_the_hosts_mounts(), "ip", "netns", "delete", name])


def inside(name: str, work: Callable[[], T]) -> T:
    """Run `work` in a thread of its own inside the namespace and return its result. Blocks: call it in a lane.

    The thread ends with the work, so nothing keeps the namespace alive. Raises Temporary where the namespace does
    not exist or the work does not end in time, and whatever `work` raises.
    """
    results: list[T] = []
    failures: list[BaseException] = []

    def body() -> None:
        try:
            _enter(name)
            results.append(work())
        except BaseException as err:  # carried over to the caller, who raises it
            failures.append(err)

    thread = threading.Thread(target=body, name=f"netns {name}", daemon=True)
    thread.start()
    thread.join(_INSIDE_TIMEOUT_S)
    if failures:
        raise failures[0]
    if not results:
        raise Temporary(f"work inside network namespace {name} took longer than {_INSIDE_TIMEOUT_S:.0f} s")
    return results[0]


def _enter(name: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        fd = os.open(DIRECTORY / name, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as err:
        raise Temporary(f"network namespace {name} does not exist") from err
    try:
        if libc.setns(fd, _CLONE_NEWNET) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise Temporary(f"network namespace {name} can't be entered: {reason}")
    finally:
        os.close(fd)
