"""A whole cloud on one machine: a controller, and hosts on an underlay. For `make up`, tests and benchmarks.

lab = Lab("mine")
lab.up(3)
lab.furnish()
lab.cli("vm", "create", "web", "--image", "tiny", "--size", "small", "--wait")
lab.host("h2").pull_plug()
lab.down()
"""

import fcntl
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import NotFound, SkerryError, Temporary
from common.secret import write_private
from lab.api import Api, Resource
from lab.commands import last_lines, run
from lab.controller import Controller
from lab.guest import tiny
from lab.host import Host
from lab.layout import LAB_MARK, ROOT, Layout, host_names
from lab.processes import NETNS, end, marked
from lab.traces import COMMAND, traces
from lab.underlay import ensure_underlay, ensure_wire, lab_namespaces, remove_namespace

PROJECT = "demo"
IMAGE, SIZE, NETWORK, KEYPAIR = "tiny", "small", "default", "lab"
_READY_S = 120.0

Say = Callable[[str], None]


def silence(_line: str) -> None:
    """Say nothing of the progress."""


class Lab:
    """One lab, up or not. All it knows is on disk and in the kernel, so that another process may take it up."""

    def __init__(self, name: str = "default", *, root: Path = ROOT, say: Say = silence) -> None:
        self.layout = Layout(name=name, root=root)
        self.controller = Controller(self.layout)
        self._say = say

    @property
    def name(self) -> str:
        """Return the lab's name."""
        return self.layout.name

    @property
    def url(self) -> str:
        """Return the API's URL."""
        return self.controller.url

    @property
    def token(self) -> str:
        """Return the operator's token. Raises NotFound when the lab is not up."""
        try:
            return (self.layout.folder / "token").read_text().strip()
        except FileNotFoundError as err:
            raise NotFound(f"lab {self.name!r} is not up", fix=f"make up NAME={self.name}") from err

    @property
    def api(self) -> Api:
        """Return a client of the API with the operator's token."""
        return Api(self.url, self.token)

    def hosts(self) -> list[Host]:
        """Return the hosts that have ever been plugged in, on or off."""
        folder = self.layout.folder / "hosts"
        names = [path.name for path in folder.iterdir()] if folder.exists() else []
        return [Host(self.layout, name) for name in sorted(names, key=lambda name: int(name.removeprefix("h")))]

    def host(self, name: str) -> Host:
        """Return one host. Raises NotFound."""
        for host in self.hosts():
            if host.name == name:
                return host
        there = ", ".join(host.name for host in self.hosts()) or "none"
        raise NotFound(f"lab {self.name!r} has no host {name}; it has {there}", fix="make up HOSTS=n")

    def up(self, hosts: int = 1) -> None:
        """Bring up the controller and at least so many hosts, all ready for VMs. Whatever is up already stays."""
        with self._alone():
            _note_netns_folder(self.layout)
            wanted = [Host(self.layout, name) for name in host_names(max(hosts, len(self.hosts())))]
            if ensure_underlay(self.layout) and self.controller.pid() is not None:
                self.controller.kill()  # its socket is on a wire that is no more
            with ThreadPoolExecutor(4) as pool:
                image = pool.submit(tiny, self.layout.root / "build" / "guest")
                control = pool.submit(self._start_controller)
                for booting in [pool.submit(self._plug_in, host) for host in wanted]:
                    booting.result()
                control.result()
                for joining in [pool.submit(self._ensure_joined, host) for host in wanted]:
                    joining.result()
                image.result()

    def furnish(self) -> None:
        """Create what a first VM needs, where missing: project, image, size, network and keypair."""
        api, project = self.api, f"/v1/projects/{PROJECT}"
        api.ensure("/v1/projects", PROJECT, {"keep_deleted_s": 0})
        api.ensure("/v1/sizes", SIZE, {"vcpus": 1, "memory_mib": 256, "disk_gib": 1})
        api.ensure(f"{project}/networks", NETWORK, {})
        api.ensure(f"{project}/keypairs", KEYPAIR, {"public_key": self._public_key()})
        image = api.ensure(f"{project}/images", IMAGE, {"format": "kernel", "public": True})
        file = tiny(self.layout.root / "build" / "guest")
        if not image.spec.get("digest"):
            api.upload(f"{project}/images/{IMAGE}/content", file)
        elif image.spec["digest"] != f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}":
            self._say(f"image {IMAGE} is older than {file}, and images never change: make down for the new one")
        self._say(f"project {PROJECT} has image {IMAGE}, size {SIZE}, network {NETWORK} and keypair {KEYPAIR}")

    def down(self) -> None:
        """Remove the lab without a trace: processes, namespaces, devices, state. Safe in any condition, and twice."""
        with self._alone():
            self._cut_power()
            self._end_processes()
            if COMMAND.is_symlink() and COMMAND.readlink() == self.layout.skerry:
                COMMAND.unlink()
            shutil.rmtree(self.layout.folder, ignore_errors=True)
            if left := traces(self.layout):
                raise Temporary(f"lab {self.name!r} is not wholly gone: {'; '.join(left)}", fix="run `make down` again")
            (self.layout.folder.parent / f".{self.name}.lock").unlink(missing_ok=True)
        _remove_netns_folder(self.layout)

    def stop(self) -> None:
        """Switch everything off and keep its state: `start` (or `up`) goes on where it was."""
        with self._alone():
            self.controller.stop()
            self._cut_power()
            self._end_processes()

    def start(self) -> None:
        """Switch on again all that `stop` switched off."""
        if not self.hosts():
            raise NotFound(f"lab {self.name!r} has nothing to start", fix=f"make up NAME={self.name}")
        self.up(len(self.hosts()))

    def kill_controller(self) -> None:
        """Kill the controller (SIGKILL). It is started again at once, as a service manager would."""
        self.controller.kill()

    def stop_controller(self) -> None:
        """Stop the controller in order and keep it stopped; the hosts carry on."""
        self.controller.hold()

    def start_controller(self) -> None:
        """Start the controller, or let it run again after `stop_controller`, and wait until the API answers."""
        self.controller.start()
        self.wait_for_api()

    def wait_for_api(self) -> None:
        """Return when the API is ready. Raises Temporary."""
        deadline = time.monotonic() + _READY_S
        while not self.api.answers():
            if time.monotonic() > deadline:
                raise Temporary(
                    f"the API at {self.url} did not get ready in {_READY_S:.0f} s; its last words:\n"
                    + last_lines(self.layout.logs / "controller.log"),
                    fix=f"read {self.layout.logs}/controller*.log",
                )
            time.sleep(0.05)

    def wait_for_hosts(self) -> None:
        """Return when every host that is on is ready for VMs. Raises Temporary with what a host says of itself."""
        for host in self.hosts():
            if host.init() is not None:
                self._wait_ready(host)

    def cli(self, *words: str, timeout_s: float = 120, stdin: str | None = None) -> str:
        """Run the lab's `skerry` command and return what it printed. Raises CommandFailed."""
        return run([str(self.layout.skerry), *words], timeout_s=timeout_s, stdin=stdin)

    def vm(self, name: str) -> Resource:
        """Return a VM of the lab's project. Raises NotFound."""
        return self.api.get(f"/v1/projects/{PROJECT}/vms/{name}")

    def serial_log(self, vm: str) -> str:
        """Return what a VM of the lab's project has written on its serial console."""
        return self.api.text(f"/v1/projects/{PROJECT}/vms/{vm}/log")

    def link_command(self) -> str:
        """Put `skerry` on the user's PATH where that name is free, and return what to type for it."""
        own = self.layout.skerry
        if COMMAND.is_symlink() and (COMMAND.readlink() == own or not COMMAND.exists()):
            COMMAND.unlink()
        if not COMMAND.exists() and not COMMAND.is_symlink() and COMMAND.parent.is_dir():
            COMMAND.symlink_to(own)
        ours = COMMAND.is_symlink() and COMMAND.readlink() == own
        return "skerry" if ours and shutil.which("skerry") == str(COMMAND) else str(own)

    def _start_controller(self) -> None:
        fresh = self.controller.keeper() is None
        if fresh:
            self.controller.init()
        token = self.layout.folder / "token"
        if not token.exists():
            self.controller.hold()  # it lets nobody else into its store
            write_private(token, self.controller.token().encode())
        self.controller.start()
        self.controller.ensure_port()
        self._write_command()
        self.wait_for_api()
        self._say(f"controller {'answers' if fresh else 'runs already'} at {self.url}")

    def _write_command(self) -> None:
        write_private(
            self.layout.cli_config,
            f'current = "{self.name}"\n\n[contexts.{self.name}]\nurl = "{self.url}"\n'
            f'token = "{self.token}"\nproject = "{PROJECT}"\n'.encode(),
        )
        self.layout.skerry.parent.mkdir(exist_ok=True)
        self.layout.skerry.write_text(
            f"#!/bin/sh\n# `skerry` for the lab {self.name}\n"
            f'export SKERRY_CONFIG="{self.layout.cli_config}"\n'
            f'exec "{Path(sys.executable).parent / "skerry"}" "$@"\n'
        )
        self.layout.skerry.chmod(0o755)

    def _plug_in(self, host: Host) -> None:
        if host.init() is not None:
            ensure_wire(self.layout, host.name)
            return
        host.plug_in(agent=host.joined())
        self._say(f"host {host.name} is on, at {host.address}")

    def _ensure_joined(self, host: Host) -> None:
        if not host.joined():
            host.join(self._join_token(host.name))
        host.release_agent()
        self._wait_ready(host)
        self._say(f"host {host.name} is ready for VMs")

    def _join_token(self, host: str) -> str:
        if self.api.find(f"/v1/hosts/{host}") is None:
            return self.api.create("/v1/hosts", host, {}).revealed
        return self.api.reveal(f"/v1/hosts/{host}/token")

    def _wait_ready(self, host: Host) -> None:
        def connected(seen: Resource) -> bool:
            # What a controller says before it has heard from a host is what the one before it last wrote.
            return seen.state == "ready" and seen.status.get("last_seen_at", 0) >= self.controller.started_at()

        try:
            self.api.wait(f"/v1/hosts/{host.name}", connected, "ready", timeout_s=_READY_S)
        except Temporary as err:
            words = last_lines(host.logs / "agent.log")
            raise Temporary(f"{err}; its agent's last words:\n{words}", fix=f"read {host.logs}/*.log") from err

    def _public_key(self) -> str:
        """Return the public half of the lab's own SSH key, made once."""
        private, public = self.layout.folder / "ssh_key", self.layout.folder / "ssh_key.pub"
        if not public.exists():
            key = Ed25519PrivateKey.generate()
            openssh = serialization.Encoding.OpenSSH
            no_password = serialization.NoEncryption()
            write_private(
                private,
                key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, no_password),
            )
            text = key.public_key().public_bytes(openssh, serialization.PublicFormat.OpenSSH).decode()
            public.write_text(f"{text} lab-{self.name}\n")
        return public.read_text().strip()

    def _cut_power(self) -> None:
        for namespace in lab_namespaces(self.layout):
            if namespace == self.layout.underlay:
                remove_namespace(namespace)
            else:
                Host(self.layout, namespace.rpartition("-")[2]).pull_plug()

    def _end_processes(self) -> None:
        """End whatever bears this lab's mark, also what a keeper starts while we look."""
        while found := marked(LAB_MARK, str(self.layout.folder)):
            end(found)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one process at a time change this lab."""
        path = self.layout.folder.parent / f".{self.name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with path.open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                # `down` removes the file, so that what was waited for may be a lock that nobody else sees.
                if path.exists() and os.fstat(lock.fileno()).st_ino == path.stat().st_ino:
                    yield
                    return


def told(error: SkerryError) -> str:
    """Return an error as a person reads it."""
    return f"{error}\n  what to do: {error.fix}" if error.fix else str(error)


def _netns_note(layout: Layout) -> Path:
    return layout.folder.parent / ".made-netns-folder"


def _note_netns_folder(layout: Layout) -> None:
    """Remember that /run/netns is there because of a lab: `ip netns add` makes it and a mount of it."""
    if not NETNS.exists():
        _netns_note(layout).touch()


def _remove_netns_folder(layout: Layout) -> None:
    """Remove /run/netns where a lab has made it and nobody uses it now."""
    note = _netns_note(layout)
    if note.exists() and NETNS.exists() and not any(NETNS.iterdir()):
        run(["umount", str(NETNS)])
        NETNS.rmdir()
        note.unlink()
