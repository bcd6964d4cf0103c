"""A machine as real as QEMU makes it: Debian's own kernel, systemd, KVM (emulated SVM) and a spare disk for LVM.

It sees no network but a loopback port of ours that leads to its sshd. It dies with the process that switched it on.
"""

import contextlib
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from common.errors import Conflict, Temporary
from lab.box import CMDLINE, Box
from lab.commands import last_lines, run, succeeds

SPARE = "/dev/vdb"
"""The machine's spare disk as it sees it, empty at first."""
SPARE_GIB = 8
_BOOT_S = 180.0
_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")


class Machine:
    """One machine, on or off. Its folder holds its disks; they stay when the power is cut."""

    def __init__(self, box: Box, folder: Path, *, vcpus: int = 2, memory_mib: int = 2048) -> None:
        self.box = box
        self.folder = folder
        self.serial_log = folder / "serial.log"
        self._size = ("-smp", str(vcpus), "-m", str(memory_mib))
        self._key = folder / "key"
        self._port = 0
        self._running: list[subprocess.Popen[bytes]] = []

    def power_on(self) -> None:
        """Switch the machine on, unless it is, and return when systemd has started all there is."""
        if self._running:
            return
        self._lay_out()
        self._port = free_port()
        try:
            self._start(self._qemu_line(), self.folder / "qemu.log")
            self._connect(time.monotonic() + _BOOT_S)
        except BaseException:
            self.cut_power()
            raise

    def cut_power(self) -> None:
        """Switch it off as a pulled plug does: nothing is told to anybody, the disks stay."""
        while self._running:
            process = self._running.pop()
            process.kill()
            process.wait()

    def run(self, script: str, *, timeout_s: float = 60) -> str:
        """Run shell lines as root, up to the first that fails; return what they printed. Raises CommandFailed."""
        return run([*self._ssh(), f"sh -euc {shlex.quote(script)}"], timeout_s=timeout_s)

    def put(self, path: Path, to: str = "/root/") -> None:
        """Copy a file or a folder into the machine."""
        self._on()
        run(
            ["scp", "-q", "-r", *self._options(), "-P", str(self._port), str(path), f"root@127.0.0.1:{to}"],
            timeout_s=120,
        )

    def _on(self) -> None:
        if not self._running:
            raise Conflict("the machine is off", fix="switch it on: Machine.power_on()")

    def _lay_out(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        root, spare = self.folder / "root.qcow2", self.folder / "spare.raw"
        if not root.exists():
            run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(self.box.disk), str(root)])
        if not spare.exists():
            spare.touch()
            os.truncate(spare, SPARE_GIB << 30)
        if not self._key.exists():
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(self._key)])

    def _qemu_line(self) -> list[str]:
        public = self._key.with_suffix(".pub").read_text().strip()
        # systemd puts it where sshd looks (systemd.exec(5), CREDENTIALS; tmpfiles.d/provision.conf).
        credential = f'systemd.set_credential="ssh.authorized_keys.root:{public}"'
        disks = ((self.folder / "root.qcow2", "qcow2"), (self.folder / "spare.raw", "raw"))
        return [
            *("qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35"),
            *("-accel", "tcg,thread=multi", "-cpu", "max", *self._size),
            *("-kernel", str(self.box.kernel), "-initrd", str(self.box.initrd), "-append", f"{CMDLINE} {credential}"),
            *(
                word
                for file, form in disks
                for word in ("-drive", f"file={file},format={form},if=virtio,discard=unmap")
            ),
            *("-netdev", f"user,id=way,restrict=on,hostfwd=tcp:127.0.0.1:{self._port}-:22"),
            *("-device", "virtio-net-pci,netdev=way", "-device", "virtio-rng-pci"),
            *("-serial", f"file:{self.serial_log}"),
        ]

    def _start(self, argv: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("ab") as out:
            process = subprocess.Popen([*_WITH_US, *argv], stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        self._running.append(process)
        return process

    def _connect(self, deadline: float) -> None:
        """Wait for sshd, open the one connection that all commands share, and wait for systemd."""
        while not self._answers():
            self._still(deadline, "sshd to answer")
            time.sleep(0.3)
        self._start(self._ssh("-N", "-M"), self.folder / "ssh.log")
        while not succeeds(self._ssh("-O", "check")):
            self._still(deadline, "its sshd to let us in")
            time.sleep(0.1)
        self.run("systemctl is-system-running --wait || true", timeout_s=max(1.0, deadline - time.monotonic()))

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=5) as line:
            return line.recv(4) == b"SSH-"
        return False

    def _still(self, deadline: float, what: str) -> None:
        ended = any(process.poll() is not None for process in self._running)
        if not ended and time.monotonic() < deadline:
            return
        logs = (self.serial_log, self.folder / "qemu.log", self.folder / "ssh.log")
        words = "; ".join(f"{log.name}: {last_lines(log, 5)}" for log in logs)
        why = "a process of it ended" if ended else f"{_BOOT_S:.0f} s were not enough"
        raise Temporary(f"the machine waited in vain for {what}: {why}; {words}", fix=f"read {self.folder}/*.log")

    def _ssh(self, *words: str) -> list[str]:
        self._on()
        return ["ssh", "-q", *self._options(), "-p", str(self._port), *words, "root@127.0.0.1"]

    def _options(self) -> list[str]:
        settings = {
            "BatchMode": "yes",
            "IdentitiesOnly": "yes",
            "IdentityFile": str(self._key),
            "ControlPath": str(self.folder / "ssh"),
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
        }
        return ["-F", "none", *(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))]


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nobody listens now."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port
