"""What a service manager hands over and is told: listening sockets (LISTEN_FDS), that we are ready, and that we live.

Source: sd_listen_fds(3), sd_notify(3) and sd_watchdog_enabled(3). Only the environment and plain sockets are used, no
systemd library.
"""

import asyncio
import os
import socket
from collections.abc import MutableMapping

from common.errors import Invalid

_FIRST_FD = 3


def take_listeners(
    environ: MutableMapping[str, str], *, pid: int | None = None, first: int = _FIRST_FD
) -> dict[str, socket.socket]:
    """Return the listening sockets handed over, by name (LISTEN_FDNAMES), and wipe the variables.

    A set meant for another process (LISTEN_PID) is left alone. A missing LISTEN_PID is taken as ours, so that a
    parent which execs us through other programs need not know our pid. Raises Invalid for a set that makes no sense.
    """
    count_text, names_text, owner = (environ.get(key, "") for key in ("LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID"))
    if not count_text or (owner and owner != str(pid if pid is not None else os.getpid())):
        return {}
    names = names_text.split(":") if names_text else []
    if not count_text.isdecimal() or len(names) != int(count_text) or len(set(names)) != len(names):
        raise Invalid(
            f"LISTEN_FDS={count_text!r} does not go with LISTEN_FDNAMES={names_text!r}",
            fix="give as many names, each different, as there are sockets",
        )
    for key in ("LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID"):
        environ.pop(key, None)
    return {name: _adopt(first + offset, name) for offset, name in enumerate(names)}


def _adopt(fd: int, name: str) -> socket.socket:
    try:
        found = socket.socket(fileno=fd)
    except OSError as err:
        raise Invalid(f"file descriptor {fd}, handed over as {name!r}, is no socket: {err}") from err
    found.setblocking(False)
    found.set_inheritable(False)
    return found


def notify(state: str, environ: MutableMapping[str, str]) -> None:
    """Tell the service manager, if there is one, a state such as `READY=1` or `STOPPING=1`. Never raises."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    target = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        out.settimeout(1)
        try:
            out.sendto(state.encode(), target)
        except OSError:
            return


def watchdog_s(environ: MutableMapping[str, str], *, pid: int | None = None) -> float | None:
    """Return how long the service manager waits for a sign of life before it takes us for hung; None: it does not."""
    text, owner = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not text.isdecimal() or int(text) == 0 or (owner and owner != str(pid if pid is not None else os.getpid())):
        return None
    return int(text) / 1e6


async def feed_watchdog(environ: MutableMapping[str, str]) -> None:
    """Tell the service manager that this event loop turns, three times as often as it asks for. Never raises."""
    limit_s = watchdog_s(environ)
    while limit_s is not None:
        notify("WATCHDOG=1", environ)
        await asyncio.sleep(limit_s / 3)
