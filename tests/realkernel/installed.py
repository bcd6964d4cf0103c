"""One machine that is `ctl` and `h2` at once: the operator who types docs/install.md on it."""

import re
from collections.abc import Iterator
from pathlib import Path

from lab.commands import run
from lab.guest import tiny
from lab.layout import ROOT
from lab.machine import Machine
from lab.manual import Block, blocks

STEP_S = 900.0
"""An emulated machine beside others on a busy one."""

_IS = ("ctl", "h2")
_ELSE = {
    "debian-12-genericcloud-amd64.qcow2": "/root/tiny.tar",
    "--format qcow2": "--format kernel",
    "audit host h1": "audit host h2 || { sleep 10; skerry audit host h2; }",
}
"""What is different where Debian's image can't be had, h1 is on paper only, and a slow machine shows what it is just
making."""


def packages() -> list[Path]:
    """Return Skerry's packages, made now unless they are."""
    run(["sh", str(ROOT / "systemd" / "packages" / "build.sh")], timeout_s=600)
    return sorted((ROOT / "build" / "packages").glob("*.deb"))


class Installed:
    """The machine, typed at by the manual. `printed`, `told` and `warned`: what was said while it became a cloud."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.printed = self.told = self.warned = ""
        self.address = self.type("ip -4 -o address show eth0 | sed 's/.*inet \\([0-9.]*\\).*/\\1/'").strip()

    def type(self, script: str) -> str:
        """Run lines as root, up to the first that fails; return what they print, errors too."""
        return self.machine.run(f"exec 2>&1\nexport LC_ALL=C.UTF-8 HOME=/root\n{script}", timeout_s=STEP_S)

    def follow(self, heading: str) -> str:
        """Type what the manual says below a heading; return what was printed."""
        printed = ""
        for block in blocks():
            if block.heading == heading and set(block.machines) & set(_IS):
                if "systemctl status --no-pager skerry-agent" in block.lines:
                    printed += self.type(self._join_line(printed))
                printed += self.type("\n".join(self._lines(block)))
        assert printed, f"docs/install.md has nothing below {heading!r} for {_IS}"
        return printed

    def install(self) -> None:
        """Make a cloud with one running machine, as the manual says."""
        for file in (*packages(), tiny(ROOT / "build" / "guest")):
            self.machine.put(file)
        headings = ("ctl: the controller", "h1 and h2: the hosts", "ctl: the first machine")
        self.printed = "".join(self.follow(heading) for heading in headings)
        self.warned, self.told = self.journal("-p warning"), self.journal()

    def until_clean(self) -> None:
        """Return when wish and reality agree."""
        self.type("for _ in $(seq 60); do skerry audit host h2 && exit; sleep 1; done; exit 1")

    def purge(self) -> str:
        """Remove what the manual left on `ctl`, and the packages' files; return what is there yet."""
        return self.type(
            "DEBIAN_FRONTEND=noninteractive dpkg -P skerry-agent skerry-controller skerry-cli skerry-common >&2\n"
            "rm -rf /root/*.deb /root/newer /root/tiny.tar /root/root.token /root/.config /root/.ssh/id_ed25519*\n"
            "systemctl daemon-reload\n"
            "ls -d /opt/skerry /etc/skerry /var/lib/skerry-* /run/skerry-* 2>/dev/null || echo nothing is left"
        )

    def journal(self, *options: str) -> str:
        """Return what controller and agent wrote."""
        said = self.type(f"journalctl -q --no-pager -o cat -u skerry-agent -u skerry-controller {' '.join(options)}")
        return said.strip()

    def _lines(self, block: Block) -> Iterator[str]:
        for line in block.lines:
            text = line.replace("10.0.0.10", self.address)
            for said, here in _ELSE.items():
                text = text.replace(said, here)
            yield text

    def _join_line(self, printed: str) -> str:
        """Return the line that `skerry host create h2` printed for that host: the last of its kind."""
        return re.findall(r"skerry-agent join \S+ \S+", printed)[-1]
