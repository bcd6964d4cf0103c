"""Who types commands to the lab of real hosts, and looks at what its machines and guests say."""

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.run import CommandFailed
from lab.layout import ROOT
from lab.metal import Metal

HOSTS = ("h1", "h2")
GUEST = ROOT / "tests" / "lab" / "guest.sh"
PATIENCE_S = 600.0
"""For what takes a minute where two emulated machines have a core each."""

BOOT = "skerry-tiny: Linux"
"""What a guest says first of all."""

_PAUSE_S = 2.0


class Operator:
    """What an operator does in project demo, and what they see."""

    def __init__(self, metal: Metal) -> None:
        self.metal = metal
        self._logs: dict[str, tuple[str, str]] = {}

    def type(self, *lines: str, timeout_s: float = PATIENCE_S) -> str:
        """Run lines in project demo; return what they print."""
        return self.metal.type("\n".join(lines), env={"SKERRY_PROJECT": "demo"}, timeout_s=timeout_s)

    def refused(self, line: str) -> str:
        """Run a line that has to fail, and return its words."""
        try:
            said = self.type(line)
        except CommandFailed as err:
            return err.output
        raise AssertionError(f"{line!r} was not refused: {said}")

    def show(self, kind: str, name: str) -> dict[str, Any]:
        """Return all of a thing."""
        found: dict[str, Any] = json.loads(self.type(f"skerry {kind} show {name} -o json"))
        return found

    def until(self, line: str) -> str:
        """Run a line again until it succeeds; fail with what it says last."""
        said: list[str] = []

        def succeeds() -> bool:
            try:
                said.append(self.type(line))
            except CommandFailed as err:
                said.append(err.output)
                return False
            return True

        wait(succeeds, lambda: f"{line!r} did not succeed: {said[-1]}")
        return said[-1]

    def console(self, vm: str) -> str:
        """Return the serial log of a guest, read on its host: `skerry vm log` starts a Python for each look."""
        if vm not in self._logs:
            seen = self.show("vm", vm)
            self._logs[vm] = (str(seen["status"]["host"]), f"/var/lib/skerry-agent/consoles/{seen['id']}.log")
        host, path = self._logs[vm]
        return self.metal.run(host, f"cat {path}")

    def make(self, vm: str, host: str, *, peer: str = "nobody") -> None:
        """Make a guest that keeps records, and asks a peer for its page; one that is there already is good too."""
        user_data = self.metal.folder / f"{vm}.sh"
        user_data.write_text(GUEST.read_text().replace("@PEER@", peer))
        self.type(
            f"skerry vm create {vm} --image tiny --size small --host {host} --user-data @{user_data} --wait || true"
        )
        self._logs.pop(vm, None)

    def make_b(self) -> None:
        """Make guest b on h2, which asks guest a for its page."""
        address = self.show("vm", "a")["status"]["addresses"][0]
        self.make("b", "h2", peer=address)

    def until_says(self, vm: str, what: str, since: int = 0) -> str:
        """Return what a guest's log has after `since` characters once the pattern `what` is in it."""
        seen = ""

        def says() -> bool:
            nonlocal seen
            seen = self.console(vm)[since:]
            return re.search(what, seen, re.DOTALL) is not None

        wait(says, lambda: f"guest {vm} did not say {what!r}: {seen[-2000:]}")
        return seen

    def until_boots(self, vm: str, before: int, what: str) -> str:
        """Return what a guest says in its present boot, once it was booted more than `before` times and says `what`.

        The end of a log may be lost with the power of its host, so that no place in it can be kept.
        """
        seen = ""

        def says() -> bool:
            nonlocal seen
            boots = self.console(vm).split(BOOT)
            seen = boots[-1]
            return len(boots) - 1 > before and re.search(what, seen) is not None

        wait(says, lambda: f"guest {vm} did not boot and say {what!r}: {seen[-2000:]}")
        return seen

    def until_reached(self) -> None:
        """Return when guest b has reached guest a again, from now on."""
        self.until_says("b", "reached: hello from a", len(self.console("b")))

    def until_clean(self) -> None:
        """Return when wish and reality agree on every host."""
        for host in HOSTS:
            self.until(f"skerry audit host {host} >&2")

    def until_ready(self, *hosts: str) -> None:
        """Return when hosts are connected and take machines."""
        for host in hosts or HOSTS:
            self.until(f"skerry host list | grep -q '^{host} *ready'")

    def until_booted(self, machine: str, before: str) -> None:
        """Return when a machine is in another boot than `before`."""
        wait(lambda: self.metal.boot(machine) not in ("", before), lambda: f"{machine} did not come back")

    def processes(self, host: str) -> str:
        """Return the processes of the guests on a host: others, once one was started anew."""
        return self.metal.run(host, "for vm in $(virsh -q list --name); do cat /run/libvirt/qemu/$vm.pid; echo; done")

    def happened(self, *filters: str) -> str:
        """Return the events of the last hour that pass the filters of `skerry events`."""
        return self.type(f"skerry events --since 1h {' '.join(filters)}")

    @contextmanager
    def journal(self, machine: str, unit: str) -> Iterator[Callable[[], str]]:
        """Give what reads the lines that a unit writes from now on."""
        cursor = f"/var/tmp/story.{unit}"
        read = f"journalctl -q -o cat -u {unit} --cursor-file={cursor}"
        self.metal.run(machine, f"rm -f {cursor}; {read} -n 1 >/dev/null")
        kept = ""

        def since() -> str:
            nonlocal kept
            kept += self.metal.run(machine, read)
            return kept

        try:
            yield since
        finally:
            self.metal.run(machine, f"rm -f {cursor}")

    @contextmanager
    def listening(self, vm: str, file: Path) -> Iterator[None]:
        """Write down, outside of the guest's host, all that the guest has said and says."""
        self.console(vm)
        host, path = self._logs[vm]
        line = self.metal.ssh(host, f"sudo tail -c +1 -F {path}")
        with file.open("wb") as out, subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=out) as process:
            try:
                yield
            finally:
                process.kill()


def wait(so: Callable[[], bool], words: Callable[[], str], patience_s: float = PATIENCE_S) -> None:
    """Return when something is so; fail with words when it has not come true."""
    deadline = time.monotonic() + patience_s
    while not so():
        if time.monotonic() > deadline:
            raise AssertionError(f"{words()}, in {patience_s:.0f} s")
        time.sleep(_PAUSE_S)


def acknowledged(log: str) -> int:
    """Return how many records a guest's log acknowledges at its end: one more than the number of the last."""
    return int((re.findall(r"acked (\d+) ", log) or ["-1"])[-1]) + 1


def found(log: str) -> int:
    """Return how many records a guest found when a volume came last."""
    assert "damaged" not in log, log
    return int(re.findall(r"found (\d+) records", log)[-1])
