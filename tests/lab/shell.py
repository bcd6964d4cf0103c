"""A person at a guest's serial console: logs in, types commands, reads what they print."""

import itertools
import os
import re
import select
import subprocess
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from lab.cloud import Lab
from lab.host import Host
from tests.lab.calls import until

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_numbers = itertools.count(1)


class Shell:
    """Two file descriptors with a guest behind them."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self._kept = ""

    def type(self, text: str) -> None:
        """Type a text."""
        os.write(self._writing, text.encode())

    def expect(self, pattern: str, timeout_s: float = 30) -> re.Match[str]:
        """Read until a pattern comes; return it. Fails with what came instead."""
        deadline = time.monotonic() + timeout_s
        while True:
            if found := re.search(pattern, self._kept):
                self._kept = self._kept[found.end() :]
                return found
            left = deadline - time.monotonic()
            assert left > 0, f"no {pattern!r} in {timeout_s:.0f} s, but: {self._kept[-2000:]!r}"
            if select.select([self._reading], [], [], left)[0]:
                came = os.read(self._reading, 65536)
                assert came, f"the console ended before {pattern!r} came: {self._kept[-2000:]!r}"
                self._kept = _ESCAPES.sub("", self._kept + came.decode(errors="replace").replace("\r", ""))

    def log_in(self, timeout_s: float = 60) -> None:
        """Become root, or find that somebody already is."""
        deadline = time.monotonic() + timeout_s
        while True:
            # A getty that is just opening the line drops what was typed before: so it is typed again.
            self.type("\n")
            try:
                found = self.expect(r"login: $|# $", 3)
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
                continue
            if found[0].startswith("#"):
                return
            self.type("root\n")
            self.expect(r"# $", timeout_s)
            return

    def run(self, command: str, timeout_s: float = 30) -> tuple[int, str]:
        """Run a command; return its exit code and what it printed."""
        number = next(_numbers)
        # The terminal shows what is typed, too: there the marks have quotes within them.
        self.type(f'echo "beg""in-{number}"; {command}; echo "en""d-{number}-$?"\n')
        self.expect(rf"begin-{number}\n", timeout_s)
        found = self.expect(rf"(?s)(.*?)end-{number}-(\d+)\n", timeout_s)
        self.expect(r"# $", timeout_s)
        return int(found[2]), found[1]

    def must(self, command: str, timeout_s: float = 30) -> str:
        """Run a command that has to succeed; return what it printed."""
        code, printed = self.run(command, timeout_s)
        assert code == 0, f"{command!r} ended with {code} in the guest: {printed}"
        return printed


@contextmanager
def console(lab: Lab, vm: str) -> Iterator[Shell]:
    """Attach to a VM as a user does, with `skerry console`; logged in."""
    words = [str(lab.layout.skerry), "console", vm, "--linger", "600"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        shell = Shell(process.stdout.fileno(), process.stdin.fileno())
        try:
            shell.log_in()
            yield shell
        finally:
            process.terminate()


@contextmanager
def pty(host: Host, vm: str) -> Iterator[Shell]:
    """Attach to a VM on its host, without controller or agent; logged in. `vm` is its id."""
    asked = ["sh", "-c", 'virsh -q ttyconsole "$0" 2>/dev/null || true', vm]
    # A domain is listed as running a moment before its QEMU has opened the pty.
    path = until(lambda: host.run(asked).strip(), lambda: f"the pty of {vm}", 30)
    line = os.open(host.inside(path), os.O_RDWR | os.O_NOCTTY)
    try:
        tty.setraw(line)
        shell = Shell(line, line)
        shell.log_in()
        yield shell
    finally:
        os.close(line)
