"""Every failure that `skerry-agent doctor` claims to find is planted on a machine that is well, and found."""

import http.server
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme
from click.testing import CliRunner
from complaints import assert_only, heard, possible

from agent import doctor, sight
from agent.doctor import NEEDED, Controller, Devices, Identity, Pool, Service, Sight, Underlay, examine, numbers
from agent.main import main
from common import checkup
from common.checkup import Room
from common.firmware import ABILITIES
from common.protocol import Capability

DAY = 86400.0
NOW = 1000 * DAY
URL = "https://203.0.113.10:8443"

WELL = Sight(
    now=NOW,
    root=True,
    flags=("svm",),
    devices=Devices(kvm=True, kvm_opens=True, vhost_net=True),
    capabilities=tuple(
        Capability(name=name, works=True, detail="")
        for name in (*NEEDED, "bridge-conntrack", "cpu-sharing", *ABILITIES)
    ),
    versions={"kernel": "6.1.0", "libvirt": "9.0.0", "qemu": "7.2.22", "dnsmasq": "2.90", "nft": "1.0.6"},
    libvirt_problem="",
    underlay=Underlay(address="10.0.0.11", mtu=9000, fits=True),
    controller=Controller(url=URL, skew_s=0.4),
    identity=Identity(
        path="/var/lib/skerry-agent/identity.pem", url=URL, name="h1", renew_at=NOW + DAY, expires_at=NOW + 16 * DAY
    ),
    clock_kept=True,
    pool=Pool(group="vg0", thin_pool="skerry", data_percent=40.0, metadata_percent=12.0),
    rooms=(Room(path="/var/lib/skerry-agent", free_gib=80, size_gib=100, free_files=1_000_000),),
    closed=(),
    open_files=65536,
    service=Service(systemd=True, enabled=True, running=True),
)


def but(**changes: Any) -> Sight:
    return msgspec.structs.replace(WELL, **changes)


def part(name: str, **changes: Any) -> Sight:
    return but(**{name: msgspec.structs.replace(getattr(WELL, name), **changes)})


def without(*names: str, also: str = "") -> Sight:
    """A machine that lacks capabilities, and may have another one."""
    there = [
        msgspec.structs.replace(one, works=one.name not in names, detail="no such file") for one in WELL.capabilities
    ]
    return but(capabilities=(*there, *([Capability(name=also, works=True, detail="")] if also else ())))


def full(*, free_gib: float, free_files: int = -1) -> Room:
    return Room(path="/pool", free_gib=free_gib, size_gib=90, free_files=free_files)


PLANTED: tuple[tuple[str, Sight, str, str], ...] = (
    # check, the machine, level, words of what it says and of the way out
    ("root", but(root=False), "fail", "run it as root"),
    ("kvm", but(flags=("sse2",)), "warn", "neither vmx nor svm"),
    ("kvm", part("devices", kvm=False), "fail", "modprobe kvm_intel"),
    ("kvm", part("devices", kvm_opens=False), "fail", "ls -l /dev/kvm"),
    ("vhost-net", part("devices", vhost_net=False), "warn", "modprobe vhost_net"),
    *(("needed", without(name), "fail", NEEDED[name]) for name in NEEDED),
    ("bridge conntrack", without("bridge-conntrack"), "fail", "modprobe nf_conntrack_bridge"),
    ("bridge conntrack", without("bridge-conntrack", also="bridge-netfilter"), "warn", "only by br_netfilter"),
    ("cpu shares", without("cpu-sharing"), "warn", "unified_cgroup_hierarchy"),
    ("versions", but(versions={**WELL.versions, "libvirt": ""}), "fail", "apt-get install libvirt-daemon-system"),
    ("versions", but(versions={**WELL.versions, "qemu": "6.2.0"}), "warn", "qemu 6.2.0"),
    ("libvirtd", but(libvirt_problem="no such socket"), "fail", "systemctl enable --now libvirtd"),
    ("firmware", without("uefi", "secure-boot"), "warn", "apt-get install ovmf; systemctl restart skerry-agent"),
    ("firmware", without("tpm"), "warn", "TPMs for guests: no such file; apt-get install swtpm-tools"),
    ("underlay", part("underlay", problem="10.9.9.9 is on no interface"), "fail", "set [underlay] address"),
    ("underlay", part("underlay", address=""), "warn", "skerry-agent doctor https://CONTROLLER:8443"),
    ("underlay", part("underlay", mtu=1300), "fail", "guests would get 1250"),
    ("underlay", part("underlay", fits=False), "fail", "set the MTU of interfaces and switches alike"),
    ("underlay", part("underlay", mtu=1500, fits=None), "warn", "guests get 1450"),
    ("rp_filter", part("underlay", strict=False), "fail", "rp_filter=0 >/etc/sysctl.d"),
    ("UDP 4789", part("underlay", port_held_by_process=True), "fail", "ss -ulnp sport = 4789"),
    ("clock", but(clock_kept=False), "warn", "apt-get install systemd-timesyncd"),
    ("identity", but(identity=None), "warn", "skerry host create NAME"),
    ("identity", part("identity", problem="it names no authority"), "fail", "skerry-agent join --force"),
    ("identity", part("identity", open_to_others=True), "fail", "chmod 600 /var/lib/skerry-agent/identity.pem"),
    ("identity", part("identity", expires_at=NOW - 3 * DAY), "fail", "ran out 3 days ago"),
    ("identity", part("identity", renew_at=NOW - 2 * DAY), "warn", "journalctl -u skerry-agent -g certificate"),
    ("controller", part("controller", problem="Connection refused"), "fail", "let this machine reach its TCP port"),
    ("controller", part("controller", untrusted="self-signed"), "fail", "[link] names in controller.toml"),
    ("controller", part("controller", refuses="it is revoked"), "fail", "skerry host token NAME"),
    ("clock skew", part("controller", skew_s=90.0), "fail", "90 s ahead of the controller's"),
    ("clock skew", part("controller", skew_s=-5.0), "warn", "5 s behind the controller's"),
    ("service", part("service", enabled=False), "fail", "systemctl enable --now skerry-agent"),
    ("service", part("service", running=False), "fail", "journalctl -u skerry-agent -n 20"),
    ("pool", part("pool", problem="Volume group not found"), "fail", "vgcreate vg0 /dev/DISK"),
    ("pool", part("pool", missing=True), "fail", "lvcreate --type thin-pool -l 90%FREE -n skerry vg0"),
    ("pool", part("pool", data_percent=96.0), "fail", "vgextend vg0 /dev/DISK; lvextend"),
    ("pool", part("pool", metadata_percent=85.0), "warn", "40 % data and 85 % metadata"),
    ("directories", but(closed=("/srv/cloud",)), "fail", "chmod o+x /srv/cloud"),
    ("open files", but(open_files=1024), "fail", "LimitNOFILE"),
    ("room /pool", but(rooms=(full(free_gib=0.2),)), "fail", "make room there"),
    ("room /pool", but(rooms=(full(free_gib=5),)), "warn", "before it is full"),
    ("room /pool", but(rooms=(full(free_gib=50, free_files=7),)), "fail", "only 7 more files"),
)  # fmt: skip


def test_a_machine_that_is_well_has_nothing_to_do() -> None:
    found = examine(WELL)
    assert [one for one in found if one.level != "ok"] == []
    assert len(found) == len(doctor.CHECKS) + 1


def test_nothing_is_said_of_firmware_while_libvirt_does_not_answer() -> None:
    mute = tuple(one for one in WELL.capabilities if one.name not in ABILITIES)
    assert [one.check for one in examine(but(capabilities=mute)) if one.check == "firmware"] == []


@pytest.mark.parametrize(("check", "machine", "level", "words"), PLANTED, ids=[f"{p[0]}: {p[3]}" for p in PLANTED])
def test_what_is_planted_is_found_with_a_way_out(check: str, machine: Sight, level: str, words: str) -> None:
    assert_only(examine(machine), check, level, words)


def test_every_complaint_there_is_was_planted(monkeypatch: pytest.MonkeyPatch) -> None:
    uttered = heard(monkeypatch, doctor, checkup)
    for _, machine, _, _ in PLANTED:
        examine(machine)
    assert uttered == possible(doctor, checkup)


# --- looking -----------------------------------------------------------------------------------------------------


def test_versions_are_found_in_what_programs_say_of_themselves() -> None:
    assert numbers("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)") == (7, 2, 22)
    assert numbers("nftables v1.0.6 (Lester Gooch #5)") == (1, 0, 6)
    assert numbers("no number") == ()


def test_a_programs_socket_on_a_port_is_told_from_the_kernels(tmp_path: Path) -> None:
    """The kernel's own, as of a VXLAN device, has an inode like others, and no process has it open."""
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref\n"
    row = "  84: 00000000:12B5 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 31337 2\n"
    descriptors = tmp_path / "42" / "fd"
    descriptors.mkdir(parents=True)
    (descriptors / "0").symlink_to("socket:[31338]")
    assert not sight.held_by_process(4789, head + row, tmp_path)
    (descriptors / "1").symlink_to("socket:[31337]")
    assert sight.held_by_process(4789, head + row, tmp_path)
    assert not sight.held_by_process(4790, head + row, tmp_path)


def test_a_real_socket_is_seen() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("127.0.0.1", 0))
        port, table = made.getsockname()[1], Path("/proc/net/udp").read_text()
        assert sight.held_by_process(port, table)
    assert not sight.held_by_process(port, table)


def test_a_directory_that_is_closed_to_qemu_is_named(tmp_path: Path) -> None:
    inner = tmp_path / "pool" / "volumes"
    inner.mkdir(parents=True)
    for each in (inner, inner.parent):
        each.chmod(0o711)
    inner.parent.chmod(0o700)
    assert str(inner.parent) in sight.closed((inner,))
    assert str(inner) not in sight.closed((inner,))


LVS = """#!/bin/sh
for group; do :; done
[ "$group" = vg0 ] || { echo "  Volume group \\"$group\\" not found" >&2; exit 5; }
echo '{"report": [{"lv": [
  {"lv_name": "skerry", "lv_size": "4096", "data_percent": "41.5", "metadata_percent": "3.2"},
  {"lv_name": "vol-x", "lv_size": "4096", "data_percent": "", "metadata_percent": ""}]}]}'
"""


async def test_a_thin_pool_is_looked_at_by_lvs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lvs").write_text(LVS)
    (tmp_path / "lvs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    there = await sight.pool_at("vg0", "skerry")
    assert (there.data_percent, there.metadata_percent, there.problem) == (41.5, 3.2, "")
    assert (await sight.pool_at("vg0", "other")).missing
    assert (await sight.pool_at("vg9", "skerry")).problem == 'Volume group "vg9" not found'
    assert (await sight.pool_at("", "skerry")).group == ""
    (tmp_path / "lvs").unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "No such file" in (await sight.pool_at("vg0", "skerry")).problem


class Answer(http.server.BaseHTTPRequestHandler):
    """A controller that answers everything with 404, or with what its server holds."""

    def do_GET(self) -> None:
        body = getattr(self.server, "body", b"")
        self.send_response(403 if body else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def date_time_string(self, timestamp: float | None = None) -> str:
        return "Sun, 22 Nov 2026 00:00:00 GMT"

    def log_message(self, *args: Any) -> None:
        return


@pytest.fixture
def controller() -> Iterator[tuple[str, trustme.CA]]:
    """A TLS server on loopback, and its authority."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"https://127.0.0.1:{server.server_address[1]}", authority
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_controllers_clock_is_read_from_its_answer(
    controller: tuple[str, trustme.CA], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sight.time, "time", lambda: 1795305600.0 + 100)  # 2026-11-22 00:01:40
    found = sight.ask(controller[0], None)
    assert (found.problem, found.untrusted, found.skew_s) == ("", "", 99.5)


def test_a_controller_that_is_not_there_is_told_in_words() -> None:
    with socket.socket() as silent:  # bound, and does not listen
        silent.bind(("127.0.0.1", 0))
        assert sight.ask(f"https://127.0.0.1:{silent.getsockname()[1]}", None).problem == "Connection refused"


def test_on_this_machine_the_command_says_what_it_finds(tmp_path: Path) -> None:
    """As a person types it: a state directory in which nobody joined, a libvirt that is not there."""
    config = tmp_path / "agent.toml"
    config.write_text(
        f'[agent]\nstate_dir = "{tmp_path}"\n[libvirt]\nuri = "qemu+unix:///system?socket={tmp_path}/none"\n'
    )
    done = CliRunner().invoke(main, ["--config", str(config), "doctor", "-o", "json"])
    assert done.exit_code == 1
    found = {one["check"]: one for one in json.loads(done.stdout)["findings"]}
    assert json.loads(done.stdout)["healthy"] is False
    assert found["libvirtd"]["level"] == "fail"
    assert "none" in found["libvirtd"]["says"]
    assert found["identity"]["level"] == "warn"
    assert found["needed"]["level"] == "ok"
    said = CliRunner().invoke(main, ["--config", str(config), "doctor"])
    assert said.stdout.splitlines()[-1].endswith(" failed")
    assert "fix: skerry host create NAME (an operator), then here: skerry-agent join URL TOKEN" in said.stdout
