"""Accidents that are cheap to have: full disks, killed daemons, lost devices, cut lines. The cloud mends itself."""

import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from common.ids import Id, child_id
from common.names import bridge
from common.run import CommandFailed
from lab.cloud import PROJECT, Lab
from lab.commands import run
from lab.host import Host
from lab.underlay import port
from tests.lab.calls import Cloud, boots_in, qemu_of, until
from tests.lab.shell import console, pty

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

VOLUMES = "/srv/skerry-agent/volumes"
AT_ONCE_S = 15.0
"""On a busy machine: what an agent is told of, it does not wait to see."""

FIRST_LOOK_S = 60.0
"""An agent looks at everything again every half a minute or so."""


@pytest.fixture(scope="module")
def cloud(lab: Lab) -> Cloud:
    """Give a cloud of one host."""
    return Cloud(lab)


@pytest.fixture
def host(cloud: Cloud) -> Iterator[Host]:
    """Give the host. Afterwards no VM is left, and an audit finds nothing."""
    yield cloud.lab.host("h1")
    cloud.lab.wait_for_hosts()
    cloud.tidy()
    cloud.until_clean()


@pytest.fixture
def guest(cloud: Cloud, host: Host) -> str:
    """Give a VM that is up."""
    cloud.create("guest")
    cloud.until_up("guest")
    cloud.until_state("guest", "running")
    return "guest"


def test_a_full_pool_is_told_and_a_create_goes_on_when_there_is_room(cloud: Cloud, host: Host) -> None:
    host.hold_agent()
    host.run(["mount", "-t", "tmpfs", "-o", "size=1200M,mode=711", "tmpfs", VOLUMES])
    try:
        host.release_agent()
        until(lambda: _disk_gib(cloud) == 1, lambda: f"h1 to have 1 GiB: {cloud.find('/v1/hosts/h1')}")
        # Others than Skerry fill a disk, too: the books say that there is room.
        host.run(["sh", "-c", f"head -c 1300M /dev/zero >{VOLUMES}/filler 2>/dev/null || true"])
        cloud.create("cramped")
        until(lambda: "space" in cloud.said("cramped").lower(), lambda: f"a word of it: {cloud.said('cramped')}", 30)
        host.run(["rm", f"{VOLUMES}/filler"])
        cloud.until_up("cramped", timeout_s=120)
        cloud.delete_vms("cramped")
    finally:
        host.hold_agent()
        host.run(["umount", "-l", VOLUMES])
        host.release_agent()


def _disk_gib(cloud: Cloud) -> int:
    found = cloud.find("/v1/hosts/h1")
    assert found is not None
    return int(found["status"]["disk_gib"]) if found["status"]["state"] == "ready" else 0


def test_the_audit_names_what_was_planted_and_what_was_taken_away(cloud: Cloud, host: Host, guest: str) -> None:
    """An auditor that can find nothing proves nothing."""
    body, vm = "0123456789ab", cloud.id(guest)
    xml = f"<domain type='qemu'><name>vm-{body}</name><memory>65536</memory><os><type>hvm</type></os></domain>"
    host.run(["sh", "-c", "cat >/run/planted.xml && virsh -q define /run/planted.xml"], stdin=xml)
    host.run(["ip", "link", "add", f"b-{body}", "type", "bridge"])
    host.run(["ip", "netns", "add", f"net-{body}"])
    host.run(["touch", f"{VOLUMES}/vol-{body}.qcow2"])
    lost = f"{VOLUMES}/{child_id(Id(vm), 'vol')}.qcow2"
    host.run(["mv", lost, f"{lost}.away"])
    try:
        found = {(one["problem"], one["what"], one["name"].rpartition("/")[2]) for one in cloud.audit("h1")}
        with pytest.raises(CommandFailed, match=f"vm-{body}"):
            cloud.lab.cli("audit", "host", "h1")
    finally:
        host.run(["mv", f"{lost}.away", lost])
        host.run(["virsh", "-q", "undefine", f"vm-{body}"])
        host.run(["ip", "link", "del", f"b-{body}"])
        host.run(["ip", "netns", "del", f"net-{body}"])
        host.run(["rm", f"{VOLUMES}/vol-{body}.qcow2"])
    assert found >= {
        ("orphan", "domain", f"vm-{body}"),
        ("orphan", "bridge", f"b-{body}"),
        ("orphan", "namespace", f"net-{body}"),
        ("orphan", "disk", f"vol-{body}"),
        ("missing", "disk", child_id(Id(vm), "vol")),
    }


def test_guests_outlive_libvirtd_and_the_host_goes_on(cloud: Cloud, host: Host, guest: str) -> None:
    qemu = qemu_of(host, cloud.id(guest))
    host.kill("libvirtd")
    cloud.create("after")
    cloud.until_up("after")
    assert qemu_of(host, cloud.id(guest)) == qemu
    assert boots_in(cloud.serial_log(guest)) == 1
    cloud.delete_vms("after", guest)


def test_a_killed_dnsmasq_comes_back(cloud: Cloud, host: Host, guest: str) -> None:
    def processes() -> set[str]:
        return set(host.run(["sh", "-c", "pgrep -x dnsmasq || true"]).split())

    dead = processes()
    assert dead
    host.run(["kill", "-9", *dead])
    until(lambda: processes() - dead, lambda: "dnsmasq to be started again", AT_ONCE_S)
    with console(cloud.lab, guest) as shell:
        shell.must("udhcpc -i eth0 -s /lib/tiny/lease -t 5 -T 2 -n -q", 60)
        assert cloud.address(guest) in shell.must(f"nslookup {guest}.default.{PROJECT}.internal")


def test_a_deleted_bridge_is_made_again_and_the_guest_plugged_in(cloud: Cloud, host: Host, guest: str) -> None:
    network = cloud.find(f"/v1/projects/{PROJECT}/networks/default")
    assert network is not None
    host.run(["ip", "link", "del", bridge(Id(network["id"]))])
    with console(cloud.lab, guest) as shell:
        shell.must("until ping -c 1 -W 1 10.20.0.1; do sleep 1; done", FIRST_LOOK_S)
        shell.must("wget -q -O - http://169.254.169.254/latest/meta-data/instance-id")
    assert boots_in(cloud.serial_log(guest)) == 1


def test_an_upload_that_is_cut_leaves_no_half_image_and_can_be_had_again(cloud: Cloud, host: Host) -> None:
    path = f"/v1/projects/{PROJECT}/images/cut"
    cloud.make(path.rpartition("/")[0], "cut", {"format": "raw"})
    place = urlsplit(cloud.lab.url)
    half, whole = 4 << 20, 8 << 20
    head = (
        f"PUT {path}/content HTTP/1.1\r\nHost: lab\r\nAuthorization: Bearer {cloud.lab.token}\r\n"
        f"Content-Type: application/octet-stream\r\nContent-Length: {whole}\r\n\r\n"
    )
    with socket.create_connection((place.hostname, place.port), timeout=10) as line:
        line.sendall(head.encode() + bytes(half))
    images = cloud.lab.controller.folder / "state" / "images"
    until(lambda: not _fresh(images, half), lambda: f"nothing of it to be kept: {_fresh(images, half)}", 20)
    found = cloud.find(path)
    assert found is not None
    assert found["spec"]["digest"] == ""

    file = cloud.lab.layout.folder / "whole.raw"
    file.write_bytes(bytes(whole))
    cloud.lab.api.upload(f"{path}/content", file)
    file.unlink()
    found = cloud.find(path)
    assert found is not None
    assert found["spec"]["size_bytes"] == whole
    cloud.delete(path)
    cloud.gone(path)


def _fresh(images: object, size: int) -> list[str]:
    """Return the files that may hold the half that came."""
    return run(["find", str(images), "-type", "f", "-size", f"-{2 * size}c", "-size", f"+{size // 2}c"]).split()


def test_up_again_changes_nothing(cloud: Cloud, host: Host, guest: str) -> None:
    lab = cloud.lab
    before = (lab.controller.pid(), host.agent(), host.init(), qemu_of(host, cloud.id(guest)))
    lab.up(1)
    lab.furnish()
    lab.up(1)
    assert (lab.controller.pid(), host.agent(), host.init(), qemu_of(host, cloud.id(guest))) == before


def test_a_host_whose_line_is_cut_carries_on_and_catches_up(cloud: Cloud, host: Host, guest: str) -> None:
    lab, vm = cloud.lab, cloud.id(guest)
    wire = ["ip", "-n", lab.layout.underlay, "link", "set", port("h1")]
    qemu = qemu_of(host, vm)
    run([*wire, "down"])
    try:
        until(
            lambda: (cloud.find("/v1/hosts/h1") or {})["status"]["state"] == "unreachable",
            lambda: f"h1 to be missed: {cloud.find('/v1/hosts/h1')}",
            90,
        )
        operation = cloud.create("patient")["operation"]["id"]
        with pty(host, vm) as shell:
            shell.must("wget -q -O - http://169.254.169.254/latest/meta-data/instance-id")
        with pytest.raises(CommandFailed, match="not connected"):
            lab.cli("audit", "host", "h1")
        time.sleep(2)
        assert cloud.must("GET", f"/v1/operations/{operation}")["state"] == "blocked"
        assert "bring host h1 back" in cloud.said("patient")
        cloud.delete(f"{cloud.vms}/{guest}")
    finally:
        run([*wire, "up"])
    assert qemu_of(host, vm) == qemu
    cloud.gone(f"{cloud.vms}/{guest}")
    assert cloud.until_done(operation)["state"] == "done"
    cloud.until_up("patient")
