"""The guest image `tiny`, booted for real on a network that a test made, tells what it got and does what it is told."""

import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.commands import run
from lab.guest import CMDLINE, kernel_package, load_order, pack, tiny, unpacked
from lab.layout import ROOT
from lab.processes import end, in_namespace
from lab.underlay import remove_namespace

pytestmark = [pytest.mark.host, pytest.mark.timeout(180)]

BUILD = ROOT / "build" / "guest"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEqXe0Wzq5vJrPzOQFf7yDEiCwEHeYyLD2EKuD0x me@desk"
METADATA = {
    "meta-data/instance-id": "vm-0123456789ab",
    "meta-data/local-hostname": "web.demo.internal",
    "meta-data/public-keys/": "0=me",
    "meta-data/public-keys/0/openssh-key": KEY,
    "user-data": "#!/bin/sh\necho user-data runs on $(hostname)\nexit 3\n",
}
SERVER = """
import http.server, os, socketserver, sys
os.chdir(sys.argv[1])
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True  # and no look-up of its own name, as http.server's would make
class Quiet(http.server.SimpleHTTPRequestHandler):
    index_pages = ("list",)
    def send_head(self):
        if self.path.endswith("/"):
            self.path += "list"
        return super().send_head()
Server(("169.254.169.254", 80), Quiet).serve_forever()
"""


class Guest:
    """One QEMU with its serial console and monitor on pipes and a socket."""

    def __init__(self, image: Path, folder: Path, namespace: str = "", *options: str) -> None:
        with tarfile.open(image) as tar:
            for member in tar.getmembers():
                tar.extract(member, folder)  # one's own image: Debian 12's Python has no extraction filters
        self.monitor = folder / "monitor"
        prefix = ["ip", "netns", "exec", namespace] if namespace else []
        network = ["-nic", "tap,ifname=tap0,script=no,downscript=no,model=virtio-net-pci"] if namespace else []
        self._log = (folder / "console").open("wb")
        self.console = folder / "console"
        self.process = subprocess.Popen(
            [*prefix, "qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-m", "192", "-display", "none", "-no-reboot"]
            + ["-kernel", str(folder / "vmlinuz"), "-initrd", str(folder / "initrd")]
            + ["-append", (folder / "cmdline").read_text().strip()]
            + ["-serial", "stdio", "-monitor", f"unix:{self.monitor},server=on,wait=off"]
            + (network or ["-nic", "none"])
            + list(options),
            stdin=subprocess.PIPE,
            stdout=self._log,
        )

    def text(self) -> str:
        """Return what the console has shown."""
        return self.console.read_text(errors="replace").replace("\r", "")

    def until(self, pattern: str, limit_s: float = 60) -> re.Match[str]:
        """Wait until the console matches."""
        deadline = time.monotonic() + limit_s
        while not (found := re.search(pattern, self.text())):
            assert time.monotonic() < deadline, f"no {pattern!r} in {limit_s} s in:\n{self.text()}"
            assert self.process.poll() is None, f"QEMU ended before {pattern!r}:\n{self.text()}"
            time.sleep(0.05)
        return found

    def type(self, text: str) -> None:
        """Type a line on the console."""
        assert self.process.stdin
        self.process.stdin.write(f"{text}\n".encode())
        self.process.stdin.flush()

    def log_in(self) -> None:
        """Log in as root: there is no password."""
        self.until(r"login: $")
        self.type("root")
        self.until(r":~?/?\S*# ")

    def close(self) -> None:
        """End QEMU and what holds it open."""
        self.process.kill()
        self.process.wait()
        if self.process.stdin:
            self.process.stdin.close()
        self._log.close()


@pytest.fixture(scope="module")
def image() -> Path:
    """Give the image's path."""
    return tiny(BUILD)


@pytest.fixture
def boot(image: Path, tmp_path: Path) -> Iterator[Callable[..., Guest]]:
    """Give a function that boots the image."""
    guests: list[Guest] = []

    def start(namespace: str = "", *options: str) -> Guest:
        folder = tmp_path / f"guest{len(guests)}"
        folder.mkdir()
        guests.append(Guest(image, folder, namespace, *options))
        return guests[-1]

    yield start
    for guest in guests:
        guest.close()


@pytest.fixture
def network(tmp_path: Path) -> Iterator[str]:
    """Give a namespace with a tap, DHCP with classless routes and MTU, DNS and the metadata service."""
    name = f"guest-{os.getpid()}"
    run(["ip", "netns", "add", name])
    lines = ["link set lo up", "tuntap add tap0 mode tap", "link set tap0 up", "addr add 10.20.0.1/24 dev tap0"]
    lines.append("addr add 169.254.169.254/32 dev tap0")
    run(["ip", "-n", name, "-batch", "-"], stdin="\n".join(lines) + "\n")
    files = tmp_path / "http" / "latest"
    for path, content in METADATA.items():
        file = files / (f"{path}list" if path.endswith("/") else path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    inside = ["ip", "netns", "exec", name]
    dnsmasq = [
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--user=root",
        "--no-ping",
        "--no-hosts",
        "--no-resolv",
    ]
    dnsmasq += ["--interface=tap0", "--bind-interfaces", f"--dhcp-leasefile={tmp_path}/leases", "--pid-file="]
    dnsmasq += ["--dhcp-range=10.20.0.5,10.20.0.5,1h", "--dhcp-option=26,1450", "--domain=demo.internal"]
    dnsmasq += ["--dhcp-option=121,0.0.0.0/0,10.20.0.1,10.9.0.0/16,10.20.0.1", "--address=/known.test/10.20.0.1"]
    servers = [
        subprocess.Popen([*inside, *dnsmasq], stderr=subprocess.DEVNULL),
        subprocess.Popen([*inside, sys.executable, "-c", SERVER, str(tmp_path / "http")]),
    ]
    yield name
    for server in servers:
        server.kill()
        server.wait()
    end(in_namespace(name), signal.SIGKILL)
    remove_namespace(name)


def test_the_same_inputs_give_the_same_bytes(image: Path) -> None:
    packed = pack(unpacked(kernel_package(BUILD)))
    assert hashlib.sha256(packed).hexdigest() == hashlib.sha256(image.read_bytes()).hexdigest()


def test_the_image_is_a_tar_of_kernel_initrd_and_command_line(image: Path) -> None:
    with tarfile.open(image) as tar:
        assert tar.getnames() == ["cmdline", "initrd", "vmlinuz"]
        assert {member.mtime for member in tar.getmembers()} == {0}
        cmdline = tar.extractfile("cmdline")
        assert cmdline is not None
        assert cmdline.read().decode().strip() == CMDLINE


def test_a_module_comes_after_what_it_depends_on() -> None:
    names = [path.stem for path in load_order(unpacked(kernel_package(BUILD)).modules, ["virtio_net"])]
    assert names[-1] == "virtio_net"
    assert names.index("virtio_ring") < names.index("virtio")
    assert names.index("failover") < names.index("net_failover")
    assert len(names) == len(set(names))


def test_a_guest_gets_its_address_metadata_key_and_runs_its_user_data(boot: Callable[..., Guest], network: str) -> None:
    guest = boot(network)
    guest.until(r"web login: $")
    seen = guest.text()
    assert re.search(r"skerry-tiny: address 10\.20\.0\.5/24 in \d+\.\d s with MTU 1450 on eth0", seen)
    assert "skerry-tiny: metadata instance-id vm-0123456789ab\n" in seen
    assert "skerry-tiny: key ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA… me@desk\n" in seen
    assert "user-data runs on web\n" in seen
    assert "skerry-tiny: user-data ended with 3\n" in seen
    guest.log_in()
    guest.type("ip route; cat /root/.ssh/authorized_keys; nslookup known.test; wget -qO- localhost; echo d'one'")
    guest.until(r"\ndone")
    seen = guest.text()
    assert "default via 10.20.0.1 dev eth0" in seen
    assert "10.9.0.0/16 via 10.20.0.1 dev eth0" in seen
    assert f"\n{KEY}\n" in seen
    assert re.search(r"known\.test\nAddress: 10\.20\.0\.1", seen)
    assert "hello from web (10.20.0.5/24)" in seen
    assert "1 received" in run(["ip", "netns", "exec", network, "ping", "-c1", "-W5", "10.20.0.5"])


def test_a_guest_without_a_network_still_comes_to_its_login(boot: Callable[..., Guest]) -> None:
    guest = boot()
    guest.until(r"tiny login: $", 30)
    assert "no metadata: neither" in guest.text()


def test_the_power_button_powers_off(boot: Callable[..., Guest]) -> None:
    guest = boot()
    guest.until(r"login: $")
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.connect(str(guest.monitor))
        monitor.sendall(b"system_powerdown\n")
        assert guest.process.wait(20) == 0
    assert "skerry-tiny: power button" in guest.text()


def test_a_guest_without_the_service_reads_its_nocloud_disk(boot: Callable[..., Guest], tmp_path: Path) -> None:
    (tmp_path / "meta-data").write_text("instance-id: vm-nocloud\nlocal-hostname: seeded\n")
    (tmp_path / "user-data").write_text(f"#cloud-config\nssh_authorized_keys:\n  - {KEY}\n")
    disk = tmp_path / "seed.iso"
    files = [str(tmp_path / "meta-data"), str(tmp_path / "user-data")]
    run(["genisoimage", "-quiet", "-output", str(disk), "-volid", "cidata", "-joliet", "-rock", *files])
    guest = boot("", "-drive", f"file={disk},if=virtio,format=raw,readonly=on")
    guest.until(r"seeded login: $")
    assert "skerry-tiny: nocloud instance-id vm-nocloud\n" in guest.text()
    assert "skerry-tiny: key ssh-ed25519" in guest.text()
