"""The lab of real hosts: machines that Vagrant brings up on libvirt, with Skerry's packages under systemd in each.

Where the machine has a libvirtd under systemd, that one is used; else one inside a namespace host, which goes with it.
"""

import os
import shlex
import shutil
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import msgspec

from common.errors import Temporary
from common.run import CommandFailed
from common.secret import write_private
from lab.box import CMDLINE, SIZE_GIB, Box, box
from lab.cloud import Lab, Say, silence
from lab.commands import run, succeeds, watch
from lab.host import Host
from lab.layout import ROOT
from lab.machine import free_port
from lab.underlay import ensure_underlay

CONTROLLER = "controller"
POOL = "default"
_UP_S = 1800.0
_OFF_S = 60.0
_OURS = "skerry-lab-"
_UNDERLAY = f"{_OURS}underlay"


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What the Vagrantfile is told."""

    hosts: int
    box: str
    kernel: str
    initrd: str
    cmdline: str = CMDLINE


class Metal:
    """The lab, up or not. There is one of a checkout, and one of a machine's libvirtd."""

    def __init__(self, *, root: Path = ROOT, say: Say = silence) -> None:
        self.root = root
        self.folder = root / "build" / "metal"
        self.note = self.folder / "lab.json"
        self.whole = self.folder / "whole"
        self.skerry = self.folder / "bin" / "skerry"
        self._ssh = self.folder / "ssh-config"
        self._say = say
        self._site = Lab("metal", root=root)
        self._host = Host(self._site.layout, "h1")
        self._own = not _has_libvirtd()

    def up(self, hosts: int = 2) -> None:
        """Bring up a controller and so many hosts that have joined it. Whatever is up already stays."""
        self.folder.mkdir(parents=True, exist_ok=True)
        found = box(self.root / "build" / "box")
        self._say(f"the box is in {found.disk.parent}")
        run(["sh", str(self.root / "systemd" / "packages" / "build.sh")], timeout_s=600)
        self._say("Skerry's packages are in build/packages")
        self._ensure_site()
        name = f"{_OURS}{found.disk.parent.name}"
        kernel, initrd = self._ensure_uploaded(found.kernel), self._ensure_uploaded(found.initrd)
        self.note.write_bytes(msgspec.json.encode(Note(hosts=hosts, box=name, kernel=kernel, initrd=initrd)))
        self._ensure_added(name, found)
        # Vagrant takes a machine for provisioned whose provisioning was cut short.
        again = [] if self.whole.exists() else ["--provision"]
        self.vagrant("up", "--provider=libvirt", *again, timeout_s=_UP_S)
        port = free_port()
        self._ssh.write_text(run(self.line(["vagrant", "ssh-config"]), timeout_s=120) + self._ways(port))
        self._write_command(port)
        self.whole.touch()
        self._say(f"a controller and {hosts} hosts are up: {self.skerry} host list")

    def down(self) -> None:
        """Remove machines, disks, networks, box, and a libvirtd that was for them only. In any condition, and twice."""
        if self._own:
            self._site.down()
        else:
            self._clear_libvirt()
        shutil.rmtree(self.folder, ignore_errors=True)

    def vagrant(self, *words: str, timeout_s: float = 120) -> None:
        """Run Vagrant and say what it says. Raises CommandFailed."""
        watch(self.line(["vagrant", *words]), self._say, timeout_s=timeout_s, folder=self.root / "vagrant")

    def run(self, machine: str, script: str, *, timeout_s: float = 120) -> str:
        """Run shell lines as root on a machine, up to the first that fails; return what they printed."""
        return run(self.ssh(machine, f"sudo sh -euc {shlex.quote(script)}"), timeout_s=timeout_s)

    def type(self, script: str, *, env: Mapping[str, str], timeout_s: float = 120) -> str:
        """Run shell lines of an operator here, up to the first that fails: `skerry` speaks to the lab's controller.

        On the controller the command would be a Python on an emulated processor: seconds each time.
        """
        path = f"{self.skerry.parent}:{os.environ['PATH']}"
        return run(["sh", "-euc", script], timeout_s=timeout_s, env={**env, "PATH": path})

    def ssh(self, machine: str, *words: str) -> list[str]:
        """Return the words that run a command on a machine."""
        return self.line(["ssh", "-F", str(self._ssh), machine, *words])

    def put(self, machine: str, path: Path) -> None:
        """Copy a file into the directory /tmp of a machine."""
        run(self.line(["scp", "-q", "-F", str(self._ssh), str(path), f"{machine}:/tmp/"]), timeout_s=120)

    def boot(self, machine: str) -> str:
        """Return the number of the boot that a machine is in; empty while nobody answers there."""
        try:
            return self.run(machine, "cat /proc/sys/kernel/random/boot_id", timeout_s=30).strip()
        except CommandFailed:
            return ""

    def pull_plug(self, machine: str) -> None:
        """Cut a machine's power: it is off at once, its disks stay."""
        if self._own:
            # libvirt would have QEMU write out first what it holds.
            run(self.line(["sh", "-c", f"kill -KILL $(cat /run/libvirt/qemu/{_OURS}{machine}.pid)"]))
            self._until_off(machine)
        else:
            self.virsh("destroy", f"{_OURS}{machine}")
        succeeds(self.line(["ssh", "-F", str(self._ssh), "-O", "exit", machine]))

    def _until_off(self, machine: str) -> None:
        """Return when libvirt has noticed that a machine is off."""
        deadline = time.monotonic() + _OFF_S
        while self.virsh("domstate", f"{_OURS}{machine}").strip() != "shut off":
            if time.monotonic() > deadline:
                raise Temporary(f"libvirt has not noticed in {_OFF_S:.0f} s that {machine} is off")
            time.sleep(0.2)

    def plug_in(self, machine: str) -> None:
        """Give a machine its power back."""
        self.virsh("start", f"{_OURS}{machine}")

    def pull_cable(self, machine: str) -> None:
        """Cut a machine off from the underlay: its link goes down. The way in by ssh stays."""
        self.virsh("domif-setlink", f"{_OURS}{machine}", self._cable(machine), "down")

    def plug_cable(self, machine: str) -> None:
        """Give a machine the underlay back."""
        self.virsh("domif-setlink", f"{_OURS}{machine}", self._cable(machine), "up")

    def virsh(self, *words: str, timeout_s: float = 60) -> str:
        """Ask the libvirtd under the machines. A machine's domain is `skerry-lab-NAME`."""
        return run(self.line(["virsh", "-q", "-c", "qemu:///system", *words]), timeout_s=timeout_s)

    def line(self, argv: Sequence[str]) -> list[str]:
        """Return the words that run a command where the machines' libvirtd is."""
        settings = {
            "VAGRANT_HOME": str(self.folder / "home"),
            "VAGRANT_DOTFILE_PATH": str(self.folder / "machines"),
            "VAGRANT_DEFAULT_PROVIDER": "libvirt",
            "VAGRANT_CHECKPOINT_DISABLE": "1",
            "VAGRANT_CWD": str(self.root / "vagrant"),
        }
        words = ["env", *(f"{key}={value}" for key, value in settings.items()), *argv]
        return self._host.line(words) if self._own else words

    def _cable(self, machine: str) -> str:
        """Return the MAC of the interface by which a machine is on the underlay."""
        rows = [line.split() for line in self.virsh("domiflist", f"{_OURS}{machine}").splitlines()]
        return next(row[4] for row in rows if row[2:3] == [_UNDERLAY])

    def _ways(self, port: int) -> str:
        """Return the end of the configuration of ssh: one connection to each machine, given up once it is dead.

        The controller's takes a port here to its API, which listens to that machine only.
        """
        return (
            f"Host {CONTROLLER}\n  LocalForward 127.0.0.1:{port} 127.0.0.1:8080\n  ExitOnForwardFailure yes\n"
            "Host *\n  ConnectTimeout 10\n  LogLevel ERROR\n  ServerAliveInterval 5\n  ServerAliveCountMax 4\n"
            f"  ControlMaster auto\n  ControlPersist 300\n  ControlPath {self.folder}/way-%n\n"
        )

    def _write_command(self, port: int) -> None:
        """Make the lab's own `skerry` command."""
        config = self.folder / "cli.toml"
        token = self.run(CONTROLLER, "cat /root/root.token").strip()
        url = f"http://127.0.0.1:{port}"
        write_private(config, f'current = "lab"\n\n[contexts.lab]\nurl = "{url}"\ntoken = "{token}"\n'.encode())
        inside = f"ip netns exec {self._host.namespace} " if self._own else ""
        ssh = f'{inside}ssh -F "{self._ssh}"'
        self.skerry.parent.mkdir(exist_ok=True)
        self.skerry.write_text(
            "#!/bin/sh\n# `skerry` for the lab of real hosts, by way of ssh\n"
            f"{ssh} -O check {CONTROLLER} 2>/dev/null || {ssh} {CONTROLLER} true || exit\n"
            f'export SKERRY_CONFIG="{config}"\n'
            f'exec {inside}"{Path(sys.executable).parent / "skerry"}" "$@"\n'
        )
        self.skerry.chmod(0o755)

    def _ensure_site(self) -> None:
        """Have a libvirtd with a pool for disks."""
        run(["sh", str(ROOT / "lab" / "packages.sh"), str(ROOT / "lab" / "packages-vagrant.txt")], timeout_s=600)
        if self._own:
            ensure_underlay(self._host.layout)
            self._host.plug_in(agent=False)
            self._say(f"a libvirtd of the lab's own runs in namespace {self._host.namespace}")
        if POOL in self.virsh("pool-list", "--all", "--name").split():
            return
        self.virsh("pool-define-as", POOL, "dir", "--target", "/var/lib/libvirt/images")
        self.virsh("pool-build", POOL)
        self.virsh("pool-start", POOL)

    def _ensure_added(self, name: str, found: Box) -> None:
        """Make a Vagrant box of the disk and add it under a name."""
        if name in run(self.line(["vagrant", "box", "list"]), timeout_s=60, folder=self.folder):
            return
        file = self.folder / "vagrant.box"
        metadata = {"provider": "libvirt", "format": "qcow2", "virtual_size": SIZE_GIB}
        with tarfile.open(file, "w") as tar:
            tar.add(found.disk, "box.img")
            for path, text in (("metadata.json", msgspec.json.encode(metadata)), ("Vagrantfile", b"")):
                member = tarfile.TarInfo(path)
                member.size = len(text)
                tar.addfile(member, BytesIO(text))
        run(self.line(["vagrant", "box", "add", "--name", name, str(file)]), timeout_s=300, folder=self.folder)
        file.unlink()
        self._say(f"Vagrant has the box {name}")

    def _ensure_uploaded(self, file: Path) -> str:
        """Put a file where QEMU may read it whoever owns this checkout; return its path there."""
        volume = f"{_OURS}{file.parent.name}-{file.name}"
        if volume not in self.virsh("vol-list", POOL).split():
            self.virsh("vol-create-as", POOL, volume, str(file.stat().st_size), "--format", "raw")
            self.virsh("vol-upload", volume, str(file), "--pool", POOL)
        return self.virsh("vol-path", volume, "--pool", POOL).strip()

    def _clear_libvirt(self) -> None:
        """Remove from a libvirtd that is not ours whatever bears the lab's name."""
        running = self._named("list", "--name")
        for domain in self._named("list", "--all", "--name"):
            if domain in running:
                self.virsh("destroy", domain)
            self.virsh("undefine", domain)
        for network in self._named("net-list", "--all", "--name"):
            succeeds(self.line(["virsh", "-q", "-c", "qemu:///system", "net-destroy", network]))
            self.virsh("net-undefine", network)
        for volume in self._named("vol-list", POOL):
            self.virsh("vol-delete", volume, "--pool", POOL)

    def _named(self, *words: str) -> list[str]:
        return [word for word in self.virsh(*words).split() if word.startswith(_OURS)]


def _has_libvirtd() -> bool:
    """Tell whether this machine has a libvirtd that a service manager looks after; without one it is no use."""
    managed = Path("/run/systemd/system").is_dir()
    return managed and succeeds(["virsh", "-q", "-c", "qemu:///system", "version"])
