"""A throwaway host for tests: its own network, mount and PID namespaces under a tini, with an empty /run.

Whatever a test makes in it, processes and namespaces included, ends with it.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from common.documents import Desired
from tests.host.network_agent import Answered, Command

ROOT = Path(__file__).parents[2]
_UNSHARE = ["unshare", "-n", "-m", "-p", "--propagation", "private", "--fork", "--kill-child", "--mount-proc"]
_UDHCPC_SCRIPT = """#!/bin/sh
env > /run/$interface.$1
case "$1" in
deconfig) ip addr flush dev $interface; ip link set $interface up ;;
bound|renew)
  ip addr add $ip/$mask dev $interface
  [ -n "$mtu" ] && ip link set $interface mtu $mtu
  ip route add default via $router ;;
esac
"""
_FETCH = """
import sys, urllib.error, urllib.request
try:
    answer = urllib.request.urlopen(sys.argv[1], timeout=float(sys.argv[2]))
except urllib.error.HTTPError as err:
    answer = err
except OSError:
    print("0\\n", end="")
    raise SystemExit(0)
print(answer.status, answer.read().decode(), sep="\\n", end="")
"""


class NamespaceHost:
    """One host. `agent` drives its networks once it is started."""

    def __init__(self, host_id: str, underlay: str) -> None:
        self.host_id, self.underlay = host_id, underlay
        self._anchor = subprocess.Popen([*_UNSHARE, "tini", "-s", "--", "sleep", "infinity"])
        self.pid = self._wait_for_init()
        self.sh("mount -t tmpfs -o mode=755 tmpfs /run && mkdir /run/netns /run/skerry && ip link set lo up")
        Path(f"/proc/{self.pid}/root/run/udhcpc").write_text(_UDHCPC_SCRIPT)
        self.sh("chmod 755 /run/udhcpc")
        self._agent: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._agent is not None:
            self.kill_agent()
        self._anchor.kill()
        self._anchor.wait()

    def _wait_for_init(self) -> int:
        children = Path(f"/proc/{self._anchor.pid}/task/{self._anchor.pid}/children")
        for _ in range(500):
            words = children.read_text().split()
            if words and Path(f"/proc/{words[0]}/comm").read_text().strip() == "tini":
                return int(words[0])
            time.sleep(0.01)
        raise AssertionError("the namespace host did not start")

    def _enter(self) -> list[str]:
        return ["nsenter", "-t", str(self.pid), "-n", "-m", "-p"]

    def run(self, *argv: str, check: bool = True) -> str:
        """Run a command inside and return what it printed."""
        done = subprocess.run([*self._enter(), *argv], capture_output=True, text=True, timeout=60, check=False)
        assert not check or done.returncode == 0, f"{argv} ended with {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def sh(self, script: str, check: bool = True) -> str:
        """Run a line of shell inside."""
        return self.run("sh", "-c", script, check=check)

    def start_agent(self) -> None:
        """Start an agent's networks, in place of an earlier one."""
        if self._agent is not None:
            self.kill_agent()
        program = [sys.executable, "-P", "-m", "tests.host.network_agent", self.host_id, self.underlay, "/run/skerry"]
        self._agent = subprocess.Popen(
            [*self._enter(), *program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )

    def kill_agent(self) -> None:
        """kill -9 the agent."""
        assert self._agent is not None
        # nsenter -p forks: the agent is its child, and ends with its standard input.
        children = Path(f"/proc/{self._agent.pid}/task/{self._agent.pid}/children").read_text().split()
        for pid in children:
            subprocess.run(["kill", "-9", pid], check=False)
        self._agent.kill()
        self._agent.wait()
        assert self._agent.stdin is not None
        assert self._agent.stdout is not None
        self._agent.stdin.close()
        self._agent.stdout.close()
        self._agent = None

    def _ask(self, command: Command) -> Answered:
        if self._agent is None:
            self.start_agent()
        assert self._agent is not None
        assert self._agent.stdin is not None
        assert self._agent.stdout is not None
        self._agent.stdin.write(msgspec.json.encode(command) + b"\n")
        self._agent.stdin.flush()
        line = self._agent.stdout.readline()
        assert line, "the agent ended: see its standard error"
        return msgspec.json.decode(line, type=Answered)

    def settle(self, network: str, items: Sequence[Desired]) -> Answered:
        """Take turns over one network until there is nothing to do."""
        return self._ask(Command(verb="settle", network=network, items=tuple(items)))

    def crash(self, network: str, items: Sequence[Desired]) -> Answered:
        """The same, dying at every point on the way."""
        return self._ask(Command(verb="crash", network=network, items=tuple(items)))

    def survey(self) -> Answered:
        """List all that exists."""
        return self._ask(Command(verb="survey"))

    def add_guest(self, name: str, tap: str, mac: str, bridge: str) -> "FakeGuest":
        """Plug in a guest: a namespace whose eth0 is the other end of its tap."""
        self.run("ip", "netns", "add", name)
        self.run("ip", "link", "add", tap, "type", "veth", "peer", "name", "eth0", "address", mac, "netns", name)
        self.run("ip", "link", "set", tap, "master", bridge, "up")
        self.sh(f"ip netns exec {name} sysctl -qw net.ipv6.conf.all.disable_ipv6=1; ip -n {name} link set lo up")
        return FakeGuest(self, name)


class FakeGuest:
    """A namespace that behaves like a guest."""

    def __init__(self, host: NamespaceHost, name: str) -> None:
        self.host, self.name = host, name

    def run(self, *argv: str, check: bool = True) -> str:
        """Run a command in the guest."""
        return self.host.run("ip", "netns", "exec", self.name, *argv, check=check)

    def dhcp(self, check: bool = True) -> dict[str, str]:
        """Ask for an address once and take it; return what the server said."""
        self.run(
            "busybox", "udhcpc", "-i", "eth0", "-f", "-n", "-q", "-t", "3", "-T", "1", "-s", "/run/udhcpc",
            "-O", "mtu", "-O", "staticroutes", check=check,
        )  # fmt: skip
        said = self.host.sh("cat /run/eth0.bound", check=check)
        return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)

    def fetch(self, url: str, timeout_s: float = 5) -> tuple[int, str]:
        """Fetch a URL: status (0: no answer) and body."""
        out = self.run(sys.executable, "-c", _FETCH, url, str(timeout_s))
        status, _, body = out.partition("\n")
        return int(status), body
