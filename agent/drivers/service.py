"""The agent as a unit of systemd: what of its doing belongs to the host, and not to the unit, is made outside of it.

The unit's mounts are its own (a read-only system, a private /tmp), and so is its control group, which ends with it.
"""

from pathlib import Path

from common.checkup import booted_by_systemd
from common.run import CommandFailed, run

UNIT = "skerry-agent.service"
GUESTS_SLICE = "skerry-guests.slice"
CGROUP = Path("/proc/self/cgroup")
_STARTS_S = 120.0


def is_unit(cgroup: Path = CGROUP) -> bool:
    """Say whether this process runs in the unit that Skerry ships. Under anything else nothing is done differently."""
    try:
        lines = cgroup.read_text().splitlines()
    except OSError:
        return False
    return any(line.rpartition(":")[2].endswith(f"/{UNIT}") for line in lines)


def outliving(what: str, cgroup: Path = CGROUP) -> tuple[str, ...]:
    """Return the words before a command whose processes must go on when the agent ends."""
    if not is_unit(cgroup):
        return ()
    scope = ("--scope", "--quiet", "--collect", f"--slice={GUESTS_SLICE}", f"--description={what}")
    return ("systemd-run", *scope, "--")


def among_the_hosts_mounts(cgroup: Path = CGROUP) -> tuple[str, ...]:
    """Return the words before a command that mounts for the whole host. The agent sees such mounts too."""
    return ("nsenter", "--mount=/proc/1/ns/mnt", "--") if is_unit(cgroup) else ()


async def is_installed() -> bool:
    """Say whether systemd runs here and has the unit."""
    if not booted_by_systemd():
        return False
    try:
        await run(["systemctl", "cat", UNIT])
    except CommandFailed:
        return False
    return True


async def begin() -> None:
    """Have the unit started, or started anew, and at each boot; return when it is ready. Raises CommandFailed."""
    await run(["systemctl", "enable", UNIT], timeout_s=_STARTS_S)
    await run(["systemctl", "restart", UNIT], timeout_s=_STARTS_S)


async def disable() -> None:
    """Have the unit stopped, and not started at the next boot. Raises CommandFailed."""
    await run(["systemctl", "disable", "--now", UNIT], timeout_s=_STARTS_S)
