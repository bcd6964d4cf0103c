"""A namespace host is a host: its own libvirtd and processes, a plug that can be pulled, and no trace afterwards."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.errors import Conflict, NotFound
from common.run import CommandFailed
from lab.cloud import Lab
from lab.commands import run, succeeds
from lab.host import Host
from lab.layout import ROOT, Layout
from lab.processes import NETNS, alive, command_of, in_namespace, mentioning
from lab.traces import interfaces, traces
from lab.underlay import ensure_underlay, ensure_wire, lab_namespaces

pytestmark = [pytest.mark.host, pytest.mark.timeout(120)]

DOMAIN = """<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><serial type='pty'><log file='/var/log/libvirt/qemu/{name}.serial' append='on'/></serial></devices></domain>"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Give a lab with an underlay and two hosts whose agents are held."""
    before = set(interfaces())
    lab = Lab(f"h{os.getpid()}")
    ensure_underlay(lab.layout)
    for name in ("h1", "h2"):
        Host(lab.layout, name).plug_in(agent=False)
    yield lab
    lab.down()
    lab.down()
    assert traces(lab.layout) == []
    assert [command_of(pid) for pid in mentioning(f"{lab.layout.folder}/")] == []
    assert [name for name in set(interfaces()) - before if name.startswith("p-h")] == []


@pytest.fixture
def host(lab: Lab) -> Host:
    """Give the first host, on."""
    lab.host("h1").plug_in(agent=False)
    return lab.host("h1")


def until(so: Callable[[], bool], limit_s: float = 20) -> bool:
    """Wait for something; tell whether it came true."""
    deadline = time.monotonic() + limit_s
    while not so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def start_domain(host: Host, name: str) -> None:
    """Start a domain with no disk; its firmware runs for ever."""
    host.run(["sh", "-c", 'cat >"/run/$0.xml" && virsh -q create "/run/$0.xml"', name], stdin=DOMAIN.format(name=name))


def test_each_host_has_its_own_identity(lab: Lab, host: Host) -> None:
    other = lab.host("h2")
    assert host.run(["hostname"]) == "h1\n"
    assert other.run(["hostname"]) == "h2\n"
    capabilities = ["virsh", "-q", "capabilities"]
    assert host.run(capabilities).split("<uuid>")[1][:36] != other.run(capabilities).split("<uuid>")[1][:36]


def test_a_domain_is_seen_by_its_own_host_only(lab: Lab, host: Host) -> None:
    start_domain(host, "mine")
    assert "mine" in host.run(["virsh", "-q", "list"])
    assert "mine" not in lab.host("h2").run(["virsh", "-q", "list", "--all"])
    host.run(["virsh", "-q", "destroy", "mine"])


def test_hosts_reach_each_other_and_nothing_else(lab: Lab, host: Host) -> None:
    assert "1 received" in host.run(["ping", "-c1", "-W2", "10.77.0.12"])
    assert host.run(["ip", "-o", "link"]).count("\n") == 2
    assert "default" not in host.run(["ip", "route"])


def test_the_machine_has_no_interface_of_the_lab(lab: Lab) -> None:
    assert not [name for name in interfaces() if name in ("p-h1", "p-h2", "br0")]
    run(["ip", "-n", lab.layout.underlay, "link", "show", "p-h1"])


def test_a_host_sees_no_device_of_the_machine_s(host: Host) -> None:
    devices = host.run(["ls", "/dev"]).split()
    flags = Path("/proc/cpuinfo").read_text().split()
    assert ("kvm" in devices) == (Path("/dev/kvm").exists() and bool({"svm", "vmx"} & set(flags)))
    assert not [name for name in devices if name.startswith(("vd", "sd", "nvme"))]


def test_pulling_the_plug_kills_guests_and_keeps_the_disk(host: Host) -> None:
    start_domain(host, "guest")
    host.run(["sh", "-c", "echo kept >/srv/file; ip netns add inner; echo gone >/run/file"])
    inside = in_namespace(host.namespace)
    assert any("qemu-system" in command_of(pid) for pid in inside)

    host.pull_plug()

    assert not any(alive(pid) for pid in inside)
    assert host.init() is None
    assert not (NETNS / host.namespace).exists()
    with pytest.raises(Conflict, match="h1 is off"):
        host.run(["true"])

    host.plug_in(agent=False)

    assert host.run(["cat", "/srv/file"]) == "kept\n"
    assert "guest" not in host.run(["virsh", "-q", "list", "--all"])
    with pytest.raises(CommandFailed):
        host.run(["ls", "/run/file", "/run/netns/inner"])


def test_pulling_and_plugging_twice_is_as_good_as_once(host: Host) -> None:
    init = host.init()
    host.plug_in(agent=False)
    assert host.init() == init
    host.pull_plug()
    host.pull_plug()
    host.plug_in(agent=False)
    assert host.run(["virsh", "-q", "list", "--all"]).strip() == ""


def test_a_daemon_that_is_killed_comes_back_and_guests_outlive_it(host: Host) -> None:
    start_domain(host, "outlives")
    dead = host.kill("libvirtd")
    assert until(lambda: succeeds([*host.line(["virsh", "-q", "domstate", "outlives"])]))
    assert not alive(dead)
    assert host.run(["virsh", "-q", "domstate", "outlives"]).strip() == "running"
    host.run(["virsh", "-q", "destroy", "outlives"])


def test_a_held_agent_stays_stopped(host: Host) -> None:
    assert host.agent() is None
    with pytest.raises(NotFound, match="runs no agent"):
        host.kill_agent()


def test_a_killed_tini_takes_its_host_along_and_plugging_in_repairs(host: Host) -> None:
    init = host.init()
    assert init is not None
    run(["kill", "-9", str(init)])
    assert until(lambda: host.init() is None)
    host.plug_in(agent=False)
    assert host.run(["hostname"]) == "h1\n"


def test_a_namespace_lost_is_made_again(lab: Lab, host: Host) -> None:
    host.pull_plug()
    ensure_wire(lab.layout, "h1")
    run(["ip", "-n", host.namespace, "link", "del", "eth0"])
    host.plug_in(agent=False)
    assert "1 received" in host.run(["ping", "-c1", "-W2", "10.77.0.12"])


def test_another_checkout_s_lab_of_the_same_name_is_refused_and_left_alone(lab: Lab, tmp_path: Path) -> None:
    other = Lab(lab.name, root=tmp_path)
    with pytest.raises(Conflict, match=f"runs already, from {ROOT}"):
        other.up(1)
    other.down()
    assert lab.layout.underlay in lab_namespaces(lab.layout)
    assert lab.host("h2").run(["hostname"]) == "h2\n"


def test_down_works_on_what_is_half_made(tmp_path: Path) -> None:
    layout = Layout(name=f"half{os.getpid()}", root=tmp_path)
    run(["ip", "netns", "add", layout.underlay])
    run(["ip", "netns", "add", layout.namespace("h7")])
    assert [line for line in traces(layout) if line.startswith("namespace")] != []
    lab = Lab(layout.name, root=tmp_path)
    lab.down()
    lab.down()
    assert traces(layout) == []


def test_down_ends_processes_whose_folder_is_gone(tmp_path: Path) -> None:
    lab = Lab(f"lost{os.getpid()}", root=tmp_path)
    ensure_underlay(lab.layout)
    host = Host(lab.layout, "h1")
    host.plug_in(agent=False)
    init = host.init()
    assert init is not None
    run(["rm", "-rf", str(lab.layout.folder)])
    lab.down()
    assert not alive(init)
    assert traces(lab.layout) == []
