"""Opens a listening socket inside a network namespace, hands it over as file descriptor 3, and becomes the program.

`python -P -m lab.handover NAMESPACE ADDRESS PORT NAME PROGRAM …`: as a service manager's socket activation
(sd_listen_fds(3)), so that the controller answers its hosts on the underlay while it lives outside of it.
"""

import ctypes
import os
import signal
import socket
import sys
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_FIRST_FD = 3
_LIBC = ctypes.CDLL(None, use_errno=True)


def enter(namespace: Path) -> None:
    """Move this thread into a network namespace. Raises OSError."""
    with namespace.open() as handle:
        if _LIBC.setns(handle.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns into {namespace}")


def listen_in(namespace: Path, address: str, port: int) -> socket.socket:
    """Return a TCP socket that listens inside a namespace; the caller stays where it is."""
    home = Path("/proc/self/ns/net")
    with home.open() as back:
        enter(namespace)
        try:
            sock = socket.create_server((address, port), backlog=1024)
        finally:
            if _LIBC.setns(back.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns back home")
    return sock


def main() -> None:
    """Open the socket and exec the program, which dies with its parent from now on."""
    namespace, address, port, name, *program = sys.argv[1:]
    sock = listen_in(Path("/run/netns") / namespace, address, int(port))
    # The kernel keeps this over exec: a keeper that was killed leaves no controller behind.
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if sock.fileno() == _FIRST_FD:
        os.set_inheritable(_FIRST_FD, True)
    else:
        os.dup2(sock.fileno(), _FIRST_FD, inheritable=True)
    environment = {**os.environ, "LISTEN_FDS": "1", "LISTEN_FDNAMES": name, "LISTEN_PID": str(os.getpid())}
    os.execvpe(program[0], program, environment)  # noqa: S606  it is the point of this program


if __name__ == "__main__":
    main()
