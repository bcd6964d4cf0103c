"""What `doctor` finds: a level, what is the case, what to do; and the checks that hosts and controllers share.

A check is a pure function of what was seen. Only what is below "looking" looks at the machine.
"""

import ctypes
import fcntl
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

Level = Literal["ok", "warn", "fail"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one check found."""

    check: str
    level: Level
    says: str
    fix: str = ""
    """What to do; empty where all is well."""


class Checkup(msgspec.Struct, frozen=True, kw_only=True):
    """What `doctor -o json` prints."""

    healthy: bool
    findings: tuple[Finding, ...]


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """How full the file system of a directory is."""

    path: str
    free_gib: float
    size_gib: float
    free_files: int
    """Files that may still be made; -1: the file system does not count."""


def ok(check: str, says: str) -> Finding:
    """Return that all is well."""
    return Finding(check=check, level="ok", says=says)


def warn(check: str, says: str, fix: str) -> Finding:
    """Return what works, and less well or not for long."""
    return Finding(check=check, level="warn", says=says, fix=fix)


def fail(check: str, says: str, fix: str) -> Finding:
    """Return what does not work."""
    return Finding(check=check, level="fail", says=says, fix=fix)


def checkup(findings: Iterable[Finding]) -> Checkup:
    """Return the whole: healthy where nothing failed."""
    found = tuple(findings)
    return Checkup(healthy=all(one.level != "fail" for one in found), findings=found)


def table(found: Checkup) -> str:
    """Return a checkup for people: a line a check, and below it what to do."""
    width = max((len(one.check) for one in found.findings), default=0)
    lines = []
    for one in found.findings:
        lines.append(f"{one.level:<4}  {one.check:<{width}}  {one.says}")
        if one.fix:
            lines.append(f"{'':<4}  {'':<{width}}  fix: {one.fix}")
    count = {level: sum(one.level == level for one in found.findings) for level in ("ok", "warn", "fail")}
    return "\n".join([*lines, f"{count['ok']} ok, {count['warn']} to look at, {count['fail']} failed"])


# --- what hosts and controllers share ----------------------------------------------------------------------------

LEAST_FREE_GIB = 1.0
LEAST_FREE_SHARE = 0.1
LEAST_FREE_FILES = 10_000
LEAST_FILES = 4096
"""Descriptors: below that a few hundred connections or consoles are the end."""


def check_room(room: Room) -> Finding:
    """Say whether a file system has room."""
    name, has = f"room {room.path}", f"{room.free_gib:.1f} of {room.size_gib:.0f} GiB free"
    if room.free_gib < LEAST_FREE_GIB:
        return fail(name, f"{has}: nothing can be written there soon", "make room there, or enlarge the file system")
    if 0 <= room.free_files < LEAST_FREE_FILES:
        return fail(name, f"{has}, but it takes only {room.free_files} more files", "remove files there, or enlarge it")
    if room.free_gib < LEAST_FREE_SHARE * room.size_gib:
        return warn(name, f"{has}", "make room there before it is full, or enlarge the file system")
    return ok(name, has)


def check_clock(good: bool) -> Finding:
    """Say whether something keeps the machine's clock right."""
    if good:
        return ok("clock", "kept right by a time service")
    return warn(
        "clock",
        "no time service keeps it right: certificates, tokens and figures go by it",
        "apt-get install systemd-timesyncd (or chrony), then look at timedatectl after a minute",
    )


def check_files(limit: int, unit: str) -> Finding:
    """Say whether enough files and connections may be open."""
    if limit >= LEAST_FILES:
        return ok("open files", f"{limit} may be open")
    return fail(
        "open files",
        f"only {limit} may be open at once, {LEAST_FILES} should",
        f"raise LimitNOFILE (systemctl edit {unit}), or the hard limit of who starts it (ulimit -Hn)",
    )


# --- looking -----------------------------------------------------------------------------------------------------

_TIMEX_BYTES = 512
"""More than `struct timex` takes (208): its layout does not matter, since nothing is set (modes = 0)."""
_TIME_ERROR = 5


def synchronised() -> bool:
    """Return whether the kernel's clock is disciplined by a time service (adjtimex(2))."""
    state: int = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    return 0 <= state < _TIME_ERROR


def booted_by_systemd() -> bool:
    """Say whether systemd is process 1, as sd_booted(3) does."""
    return Path("/run/systemd/system").is_dir()


def is_held(lock: Path) -> bool:
    """Say whether a process holds the lock of a state directory: the daemon runs."""
    try:
        with lock.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def rooms(paths: Sequence[Path]) -> tuple[Room, ...]:
    """Look at these directories' file systems, or those of the nearest above that exist; at each only once."""
    found: dict[int, Room] = {}
    for path in paths:
        there = next(one for one in (path, *path.parents) if one.exists())
        found.setdefault(there.stat().st_dev, _room_at(path, there))
    return tuple(found.values())


def _room_at(path: Path, there: Path) -> Room:
    seen = os.statvfs(there)
    return Room(
        path=str(path),
        free_gib=seen.f_bavail * seen.f_frsize / (1 << 30),
        size_gib=seen.f_blocks * seen.f_frsize / (1 << 30),
        free_files=seen.f_favail if seen.f_files else -1,
    )
