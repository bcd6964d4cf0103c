"""A namespace host: its own network, process, mount and name spaces, its own libvirtd, and an agent in it.

What is under the host's folder is its disk: it stays when the plug is pulled.
"""

import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from common.errors import Conflict, NotFound, Temporary
from lab.commands import last_lines, run, start
from lab.keeper import Orders, Part
from lab.layout import CONTROLLER_ADDRESS, HOST_MARK, LAB_MARK, LINK_PORT, ROOT, Layout, address
from lab.processes import alive, as_seen_outside, end, init_of, marked
from lab.underlay import ensure_wire, remove_wire

LIBVIRT_SOCKET = "/run/libvirt/libvirt-sock"
AGENT_STATE = "/srv/skerry-agent"
_BOOT_S = 60.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_GONE_S = 1.0
"""A host that showed no process for so long is lost. One just executing a program shows no environment."""


class Host:
    """One host of a lab, on or off."""

    def __init__(self, layout: Layout, name: str) -> None:
        self.layout = layout
        self.name = name
        self.folder = layout.host(name)
        self.disk = self.folder / "disk"
        self.control = self.folder / "control"
        self.logs = layout.logs / name
        self.namespace = layout.namespace(name)

    @property
    def address(self) -> str:
        """Return the host's address on the underlay."""
        return address(self.name)

    @property
    def agent_config(self) -> Path:
        """Return the agent's configuration file."""
        return self.folder / "agent.toml"

    @property
    def agent_state(self) -> Path:
        """Return the agent's state directory as seen from outside the host."""
        return self.disk / "srv" / "skerry-agent"

    def init(self) -> int | None:
        """Return the process number, out here, of the host's `tini`; None when the host is off."""
        return init_of(self.namespace)

    def inside(self, path: str) -> Path:
        """Return the path by which a file of the running host can be reached from outside."""
        return Path(f"/proc/{self._running()}/root{path}")

    def libvirt_uri(self) -> str:
        """Return the URI by which the host's libvirtd can be reached from outside."""
        return f"qemu+unix:///system?socket={self.inside(LIBVIRT_SOCKET)}"

    def plug_in(self, *, agent: bool = True) -> None:
        """Switch the host on, unless it is; return when its libvirtd answers. `agent=False` keeps the agent held."""
        if self.init() is not None:
            return
        remove_wire(self.layout, self.name)
        self._lay_out()
        if not agent:
            self._hold("agent").touch()
        ensure_wire(self.layout, self.name)
        start(self._boot_line(), log=self.logs / "host.log", env=self._environment())
        self._wait(
            lambda: self.init() is not None and self.inside(LIBVIRT_SOCKET).exists(),
            "its libvirtd to answer",
            lost=lambda: not marked(HOST_MARK, self._mark),
        )

    def pull_plug(self) -> None:
        """Cut the host's power: every process of it dies at once, its devices vanish, its disk stays."""
        init = self.init()
        if init is not None:
            end([init])
        remove_wire(self.layout, self.name)

    def run(self, argv: Sequence[str], *, timeout_s: float = 30, stdin: str | None = None) -> str:
        """Run a command inside the host and return what it printed. Raises CommandFailed."""
        return run(self.line(argv), timeout_s=timeout_s, stdin=stdin)

    def line(self, argv: Sequence[str]) -> list[str]:
        """Return the words that run a command inside the host."""
        environment = [f"{key}={value}" for key, value in self._environment().items() if key != HOST_MARK]
        spaces = ["--mount", "--uts", "--ipc", "--net", "--pid"]
        return ["nsenter", "--target", str(self._running()), *spaces, "--wd=/", "env", "-i", *environment, *argv]

    def agent(self) -> int | None:
        """Return the agent's process number out here; None while it does not run."""
        return self._part("agent")

    def kill_agent(self) -> int:
        """Kill the agent as an accident would (SIGKILL); it is started again. Returns the number of the dead."""
        return self.kill("agent")

    def hold_agent(self) -> None:
        """Stop the agent in order and keep it stopped."""
        self._hold("agent").touch()
        self._wait(lambda: self.agent() is None, "its agent to stop")

    def restart_agent(self) -> None:
        """Stop the agent in order, if it runs, and start it."""
        if self.agent() is not None:
            self.hold_agent()
        self.release_agent()

    def release_agent(self) -> None:
        """Let the agent run again after `hold_agent`."""
        self._hold("agent").unlink(missing_ok=True)
        self._wait(lambda: self.agent() is not None, "its agent to start")

    def kill(self, part: str) -> int:
        """Kill one daemon of the host (agent, libvirtd, virtlogd) with SIGKILL. Raises NotFound when it runs not."""
        pid = self._part(part)
        if pid is None:
            raise NotFound(f"host {self.name} runs no {part} now", fix=f"see {self.logs}")
        end([pid])
        return pid

    def joined(self) -> bool:
        """Tell whether the agent has a certificate, so that it needs no token."""
        return any(self.agent_state.rglob("*.pem")) if self.agent_state.exists() else False

    def join(self, token: str) -> None:
        """Let the agent redeem a join token, once, while it is held."""
        url = f"https://{CONTROLLER_ADDRESS}:{LINK_PORT}"
        python = [sys.executable, "-P", "-m", "agent.main", "--config", str(self.agent_config)]
        self.run([*python, "join", url, "-"], timeout_s=30, stdin=token)

    @property
    def _mark(self) -> str:
        return str(self.folder)

    def _part(self, part: str) -> int | None:
        init, note = self.init(), self.control / f"{part}.pid"
        if init is None or not note.exists():
            return None
        pid = as_seen_outside(init, int(note.read_text()))
        return pid if pid is not None and alive(pid) else None

    def _hold(self, part: str) -> Path:
        return self.control / f"{part}.hold"

    def _running(self) -> int:
        init = self.init()
        if init is None:
            raise Conflict(f"host {self.name} is off", fix="plug it in: Host.plug_in() or `make up`")
        return init

    def _wait(self, so: Callable[[], bool], what: str, *, lost: Callable[[], bool] = lambda: False) -> None:
        deadline, seen = time.monotonic() + _BOOT_S, time.monotonic()
        while not so():
            now = time.monotonic()
            seen = seen if lost() else now
            if now > deadline or now - seen > _GONE_S:
                words = "; ".join(f"{log.name}: {last_lines(log, 3)}" for log in sorted(self.logs.glob("*.log")))
                state = "it ended" if now - seen > _GONE_S else f"{_BOOT_S:.0f} s were not enough"
                raise Temporary(
                    f"host {self.name} waited in vain for {what}: {state}; the last words of its logs: {words}",
                    fix=f"read {self.logs}/*.log",
                )
            time.sleep(0.03)

    def _environment(self) -> dict[str, str]:
        """Return all that the host's processes have in their environment: nothing of the caller's."""
        marks = {LAB_MARK: str(self.layout.folder), HOST_MARK: self._mark}
        return {"PATH": _PATH, "LANG": "C.UTF-8", "HOME": "/run", **marks}

    def _boot_line(self) -> list[str]:
        spaces = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
        settings = {
            "HOST": self.name,
            "DISK": str(self.disk),
            "LIBVIRT_LOG": str(self.logs / "libvirt"),
            "ORDERS": str(self.folder / "keeper.json"),
            "PYTHON": sys.executable,
        }
        return [
            *("ip", "netns", "exec", self.namespace, *spaces, "tini", "-s", "--"),
            *("env", *(f"{key}={value}" for key, value in settings.items())),
            *("/bin/sh", str(ROOT / "lab" / "host_init.sh")),
        ]

    def _lay_out(self) -> None:
        """Write what the host finds on its disk at boot."""
        for folder in (self.disk / "etc-libvirt", self.logs / "libvirt" / "qemu", self.control):
            folder.mkdir(parents=True, exist_ok=True)
        for stale in self.control.glob("*.pid"):
            stale.unlink()
        identity = uuid.uuid5(uuid.NAMESPACE_URL, f"skerry-lab:{self.folder}")
        (self.disk / "etc-libvirt" / "libvirtd.conf").write_text(
            f'host_uuid = "{identity}"\nauth_unix_rw = "none"\nunix_sock_rw_perms = "0700"\nlog_outputs = "2:stderr"\n'
        )
        # AppArmor profiles belong to the whole machine, of which a lab changes nothing.
        (self.disk / "etc-libvirt" / "qemu.conf").write_text('security_driver = "none"\n')
        self.agent_config.write_text(
            f'[agent]\nstate_dir = "{AGENT_STATE}"\nrun_dir = "/run/skerry-agent"\n\n'
            f'[underlay]\naddress = "{self.address}"\n\n[libvirt]\nuri = "qemu:///system"\n'
        )
        (self.folder / "keeper.json").write_bytes(msgspec.json.encode(self._orders()))

    def _orders(self) -> Orders:
        agent = (sys.executable, "-P", "-m", "agent.main", "--config", str(self.agent_config), "run")
        parts = (
            Part(
                name="virtlogd",
                argv=("virtlogd",),
                log=str(self.logs / "virtlogd.log"),
                ready="/run/libvirt/virtlogd-sock",
            ),
            Part(name="libvirtd", argv=("libvirtd",), log=str(self.logs / "libvirtd.log"), ready=LIBVIRT_SOCKET),
            Part(name="agent", argv=agent, log=str(self.logs / "agent.log")),
        )
        return Orders(control=str(self.control), parts=parts)
