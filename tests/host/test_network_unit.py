"""Network units on real namespaces: devices, entries, DHCP, DNS, metadata, repair, removal, crashes."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from common import names
from common.documents import AnyDoc, Desired, DomainDoc, GuestMetadata, NetworkDoc, PortDoc, key_of
from common.ids import HostId, Id, Revision, new_id
from tests.host.namespace_host import FakeGuest, NamespaceHost

pytestmark = pytest.mark.host

HOST_A, HOST_B = new_id("host"), new_id("host")
UNDERLAY = ("ip", "link", "add", "u0", "type", "veth", "peer", "name", "u0", "netns")
VTEP_A, VTEP_B = "10.99.0.1", "10.99.0.2"


def desired(doc: AnyDoc, *, gone: bool = False) -> Desired:
    return Desired(key=key_of(doc), revision=Revision(7), doc=doc, gone=gone)


class World:
    """A network with a guest on each of two hosts, and a second one on the first."""

    def __init__(self) -> None:
        self.network = NetworkDoc(
            id=new_id("net"), vni=4242, cidr="10.20.0.0/24", gateway="10.20.0.1", mtu=1400, domain="lan.acme.internal"
        )
        self.web = self.port("web", "10.20.0.5", HOST_A, VTEP_A)
        self.db = self.port("db", "10.20.0.6", HOST_B, VTEP_B)
        self.app = self.port("app", "10.20.0.7", HOST_A, VTEP_A)
        self.docs: tuple[AnyDoc, ...] = (
            self.network, self.web, self.db, self.app,
            *(self.domain(port) for port in (self.web, self.db, self.app)),
        )  # fmt: skip
        self.items = tuple(desired(doc) for doc in self.docs)
        self.tombstones = tuple(desired(doc, gone=True) for doc in self.docs)

    def port(self, hostname: str, address: str, host: Id, vtep: str) -> PortDoc:
        vm = new_id("vm")
        return PortDoc(
            vm=vm, index=0, network=self.network.id, mac=names.mac(vm, 0), address=address, hostname=hostname,
            host=HostId(host), vtep=vtep,
        )  # fmt: skip

    def domain(self, port: PortDoc) -> DomainDoc:
        metadata = GuestMetadata(
            instance_id=port.vm, hostname=port.hostname, project="acme", public_keys=(("me", "ssh-ed25519 AAAA me"),),
            user_data=f"#cloud-config\n# {port.hostname}\n", host="host-a",
        )  # fmt: skip
        return DomainDoc(
            id=port.vm, name=port.hostname, project="acme", vcpus=1, memory_mib=256, kernel=None, volumes=(),
            nics=(), power="running", start_generation=1, boot_generation=1, restart="never", stop_grace_s=1,
            nocloud=False, metadata=metadata,
        )  # fmt: skip

    def without(self, *ports: PortDoc) -> tuple[Desired, ...]:
        """Return the documents with tombstones for these ports."""
        return tuple(desired(doc, gone=doc in ports) for doc in self.docs)

    def plug(self, host: NamespaceHost, port: PortDoc) -> FakeGuest:
        """Plug in the guest of a port."""
        tap = names.tap(port.vm, port.index)
        return host.add_guest(port.hostname, tap, port.mac, names.bridge(self.network.id))


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def host() -> Iterator[NamespaceHost]:
    with NamespaceHost(HOST_A, VTEP_A) as one:
        one.sh(f"ip link add u0 type veth peer name u1 && ip addr add {VTEP_A}/24 dev u0 && ip link set u0 up")
        one.sh("ip link set u1 up")
        yield one


@pytest.fixture
def pair() -> Iterator[tuple[NamespaceHost, NamespaceHost]]:
    with NamespaceHost(HOST_A, VTEP_A) as a, NamespaceHost(HOST_B, VTEP_B) as b:
        subprocess.run(
            ["nsenter", "-t", str(a.pid), "-n", *UNDERLAY, str(b.pid)],
            check=True,
        )
        for one in (a, b):
            one.sh(f"sysctl -qw net.ipv6.conf.u0.disable_ipv6=1; ip addr add {one.underlay}/24 dev u0")
            one.run("ip", "link", "set", "u0", "up")
        yield a, b


def test_a_network_is_built_from_nothing(host: NamespaceHost, world: World) -> None:
    answer = host.settle(world.network.id, world.items)
    assert answer.settled, answer
    network, db = world.network, world.db
    vxlan = host.run("ip", "-d", "link", "show", names.vxlan(network.id))
    assert f"vxlan id 4242 local {VTEP_A}" in vxlan
    assert "nolearning proxy" in vxlan
    assert f"mtu 1400 qdisc noqueue master {names.bridge(network.id)} state UNKNOWN" in vxlan
    assert "learning off flood off" in vxlan
    fdb = host.run("bridge", "fdb", "show", "dev", names.vxlan(network.id))
    assert f"{db.mac} dst {VTEP_B} self" in fdb
    assert f"{db.mac} sticky master {names.bridge(network.id)} static" in fdb
    assert "00:00:00:00:00:00" not in fdb
    assert world.web.mac not in fdb
    neighbours = host.run("ip", "neigh", "show", "dev", names.vxlan(network.id))
    assert neighbours.split() == [db.address, "lladdr", db.mac, "PERMANENT"]
    inside = host.run("ip", "-n", network.id, "-4", "addr", "show", names.gateway_inner(network.id))
    assert "inet 10.20.0.1/24" in inside
    assert "inet 169.254.169.254/32" in inside
    reports = {report.key: report for report in answer.reports}
    assert set(reports) == {key_of(doc) for doc in (network, world.web, world.db, world.app)}
    assert all(report.done and report.revision == 7 for report in reports.values())
    seen = reports[key_of(network)].seen
    assert seen is not None
    assert msgspec.to_builtins(seen) == {"type": "network", "ports": 3}


def test_a_settled_network_needs_no_step(host: NamespaceHost, world: World) -> None:
    host.settle(world.network.id, world.items)
    again = host.settle(world.network.id, world.items)
    assert again.settled
    assert again.steps == ()


def test_a_guest_gets_its_address_names_and_metadata(host: NamespaceHost, world: World) -> None:
    host.settle(world.network.id, world.items)
    web = world.plug(host, world.web)
    said = web.dhcp()
    assert said["ip"] == "10.20.0.5"
    assert said["router"] == said["dns"] == "10.20.0.1"
    assert said["mtu"] == "1400"
    assert said["domain"] == "lan.acme.internal"
    assert said["hostname"] == "web"
    assert said["staticroutes"] == "169.254.169.254/32 10.20.0.1 0.0.0.0/0 10.20.0.1"
    for name in ("db.lan.acme.internal", "db"):
        assert "Address: 10.20.0.6" in web.run("busybox", "nslookup", "-type=a", name, "10.20.0.1")
    assert "name = db.lan.acme.internal" in web.run("busybox", "nslookup", "10.20.0.6", "10.20.0.1")
    assert "10.20.0" not in web.run("busybox", "nslookup", "-type=a", "debian.org", "10.20.0.1", check=False).replace(
        "10.20.0.1", ""
    )
    assert web.fetch("http://169.254.169.254/latest/meta-data/instance-id") == (200, world.web.vm)
    assert web.fetch("http://169.254.169.254/2009-04-04/user-data") == (200, "#cloud-config\n# web\n")
    key = web.fetch("http://169.254.169.254/latest/meta-data/public-keys/0/openssh-key")
    assert key == (200, "ssh-ed25519 AAAA me")


_ASK_FOR_TOKEN = """
import http.client, json, socket, sys
tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
tap.settimeout(2)

def ask(method, path, **headers):
    link = http.client.HTTPConnection("169.254.169.254", timeout=5)
    link.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = link.getresponse()
    return answer.status, answer.read().decode()

ttl = {"X_aws_ec2_metadata_token_ttl_seconds": "60"}
said = {
    "bare": ask("GET", "/latest/meta-data/instance-id"),
    "proxied": ask("PUT", "/latest/api/token", X_Forwarded_For="10.0.0.1", **ttl),
}
status, token = ask("PUT", "/latest/api/token", **ttl)
said["token"] = status
seen = []
try:
    while True:
        packet = tap.recv(65535)
        if packet[26:30] == socket.inet_aton("169.254.169.254") and token.encode() in packet:
            seen.append(packet[22])
except TimeoutError:
    pass
said["ttl"] = seen
said["shown"] = ask("GET", "/latest/meta-data/instance-id", X_aws_ec2_metadata_token=token)
said["wrong"] = ask("GET", "/latest/meta-data/instance-id", X_aws_ec2_metadata_token="1." + token)
print(json.dumps(said))
"""


def test_a_guest_that_must_show_a_token_is_told_nothing_without_one(host: NamespaceHost, world: World) -> None:
    strict = world.domain(world.web)
    metadata = msgspec.structs.replace(strict.metadata, token_required=True)
    docs = (*world.docs, msgspec.structs.replace(strict, metadata=metadata))
    items = {item.key: item for item in map(desired, docs)}
    host.settle(world.network.id, tuple(items.values()))
    web = world.plug(host, world.web)
    web.dhcp()
    said = json.loads(web.run(sys.executable, "-c", _ASK_FOR_TOKEN))
    assert said["bare"][0] == 401
    assert "PUT /latest/api/token" in said["bare"][1]
    assert said["proxied"][0] == 403
    assert said["token"] == 200
    assert said["ttl"], "the packet with the token was seen"
    assert set(said["ttl"]) == {1}, "behind a router in the guest nobody gets it"
    assert said["shown"] == [200, world.web.vm]
    assert said["wrong"][0] == 401


def test_a_stranger_on_the_bridge_gets_neither_address_nor_metadata(host: NamespaceHost, world: World) -> None:
    host.settle(world.network.id, world.items)
    stranger = host.add_guest(
        "stranger", names.tap(new_id("vm"), 0), "02:00:00:00:aa:aa", names.bridge(world.network.id)
    )
    stranger.dhcp(check=False)
    assert "inet " not in stranger.run("ip", "addr", "show", "eth0")
    stranger.run("ip", "addr", "add", "10.20.0.99/24", "dev", "eth0")
    stranger.run("ip", "link", "set", "eth0", "up")
    stranger.run("ip", "route", "add", "default", "via", "10.20.0.1")
    status, body = stranger.fetch("http://169.254.169.254/latest/meta-data/")
    assert (status, "instance-id" in body) == (404, False)


@pytest.mark.parametrize("borrow_mac", [False, True])
@pytest.mark.parametrize("running", [False, True])
def test_a_guest_that_borrows_an_address_reads_nothing(
    host: NamespaceHost, world: World, *, borrow_mac: bool, running: bool
) -> None:
    """`app` takes the address (and the MAC) of `web`, which is plugged in or off."""
    host.settle(world.network.id, world.items)
    thief = world.plug(host, world.app)
    if running:
        world.plug(host, world.web)
    if borrow_mac:
        thief.run("ip", "link", "set", "eth0", "address", world.web.mac)
    thief.run("ip", "addr", "add", "10.20.0.5/24", "dev", "eth0")
    thief.run("ip", "link", "set", "eth0", "up")
    thief.run("ip", "route", "add", "default", "via", "10.20.0.1")
    for path in ("meta-data/instance-id", "user-data"):
        status, body = thief.fetch(f"http://169.254.169.254/latest/{path}", timeout_s=2)
        assert status in {0, 404}, body
        assert world.web.vm not in body
        assert "cloud-config" not in body


@pytest.mark.parametrize("to", ["the bridge", "everybody"])
def test_a_guest_does_not_reach_the_host_it_is_on(host: NamespaceHost, world: World, to: str) -> None:
    """Neither by the bridge's MAC, which the host would tell to who asks for its address, nor by a broadcast frame."""
    host.settle(world.network.id, world.items)
    guest = world.plug(host, world.web)
    host.settle(world.network.id, world.items)
    bridge = host.run("ip", "-br", "link", "show", names.bridge(world.network.id)).split()[2]
    guest.run("ip", "addr", "add", f"{world.web.address}/24", "dev", "eth0")
    guest.run("ip", "link", "set", "eth0", "up")
    guest.run("ip", "route", "add", f"{VTEP_A}/32", "dev", "eth0")

    guest.run("ping", "-c", "1", "-W", "1", VTEP_A, check=False)
    told = guest.run("ip", "neigh", "show", VTEP_A)
    mac = bridge if to == "the bridge" else "ff:ff:ff:ff:ff:ff"
    guest.run("ip", "neigh", "replace", VTEP_A, "lladdr", mac, "dev", "eth0")
    guest.run("ping", "-c", "2", "-W", "1", VTEP_A, check=False)

    assert bridge not in told
    titles, figures = (line.split() for line in host.sh("grep Icmp: /proc/net/snmp").splitlines())
    assert dict(zip(titles, figures, strict=True))["InEchos"] == "0"


def test_services_answer_again_after_the_agent_was_killed(host: NamespaceHost, world: World) -> None:
    host.settle(world.network.id, world.items)
    web = world.plug(host, world.web)
    before = host.run("pidof", "dnsmasq")
    host.kill_agent()
    assert web.dhcp()["ip"] == "10.20.0.5"
    answer = host.settle(world.network.id, world.items)
    assert answer.steps == ("ChangePins", "EnsureMetadataListener")
    assert host.run("pidof", "dnsmasq") == before
    assert web.fetch("http://169.254.169.254/latest/meta-data/local-ipv4") == (200, "10.20.0.5")


def test_a_new_port_reaches_dhcp_and_dns_without_a_restart(host: NamespaceHost, world: World) -> None:
    host.settle(world.network.id, world.items)
    before = host.run("pidof", "dnsmasq")
    late = world.port("late", "10.20.0.8", HOST_A, VTEP_A)
    answer = host.settle(world.network.id, (*world.items, desired(late), desired(world.domain(late))))
    assert answer.settled
    guest = world.plug(host, late)
    assert guest.dhcp()["ip"] == "10.20.0.8"
    assert "Address: 10.20.0.8" in guest.run("busybox", "nslookup", "-type=a", "late", "10.20.0.1")
    assert host.run("pidof", "dnsmasq") == before


def test_tombstoned_ports_leave_no_entry_no_name_no_lease(host: NamespaceHost, world: World) -> None:
    host.settle(world.network.id, world.items)
    app, web = world.plug(host, world.app), world.plug(host, world.web)
    app.dhcp()
    web.dhcp()
    owners = {found.owner for found in host.survey().found}
    assert {world.app.vm, world.db.vm, world.network.id} <= owners
    answer = host.settle(world.network.id, world.without(world.app, world.db))
    assert answer.settled
    assert "ReleaseLeases" in answer.steps
    assert all(report.done for report in answer.reports)
    left = " ".join(f"{found.name} {found.detail}" for found in host.survey().found)
    for port in (world.app, world.db):
        assert port.mac not in left
        assert port.address not in left
    assert world.web.mac in left
    assert "10.20.0.6" not in web.run("busybox", "nslookup", "-type=a", "db", "10.20.0.1", check=False)


def test_a_moved_port_is_reached_at_its_new_host(host: NamespaceHost, world: World) -> None:
    host.settle(world.network.id, world.items)
    moved = msgspec.structs.replace(world.db, vtep="10.99.0.3")
    items = tuple(desired(moved) if item.doc is world.db else item for item in world.items)
    answer = host.settle(world.network.id, items)
    assert answer.steps == ("ChangeEntries",)
    fdb = host.run("bridge", "fdb", "show", "dev", names.vxlan(world.network.id))
    assert f"{world.db.mac} dst 10.99.0.3 self" in fdb
    assert VTEP_B not in fdb


DRIFT = {
    "an FDB entry deleted": "bridge fdb del {mac} dev {x} self; bridge fdb del {mac} dev {x} master",
    "a flood entry added": "bridge fdb append 00:00:00:00:00:00 dst 10.99.0.9 dev {x} self",
    "another destination": "bridge fdb replace {mac} dst 10.99.0.9 dev {x} self static",
    "a neighbour deleted": "ip neigh del {address} dev {x}",
    "dnsmasq killed": "kill -9 $(cat /run/skerry/networks/{net}/dnsmasq.pid)",
    "a file of dnsmasq changed": "echo >> /run/skerry/networks/{net}/hosts",
    "its pid file deleted": "rm /run/skerry/networks/{net}/dnsmasq.pid; kill $(pidof dnsmasq)",
    "the bridge deleted": "ip link del {b}",
    "the VXLAN device deleted": "ip link del {x}",
    "the VXLAN device another": "ip link del {x}; ip link add {x} type vxlan id 9 local 10.99.0.1 dstport 4789",
    "the gateway deleted": "ip link del {g}",
    "the namespace deleted": "ip netns del {net}",
    "the gateway's address deleted": "ip -n {net} addr del 169.254.169.254/32 dev {r}",
    "the bridge down": "ip link set {b} down",
    "the bridge opened to the host": "sysctl -qw net.ipv4.conf.{b}.rp_filter=0",
    "a tap unplugged": "ip link set {t} nomaster",
}


@pytest.mark.parametrize("accident", DRIFT)
def test_drift_is_repaired_by_the_next_turn(host: NamespaceHost, world: World, accident: str) -> None:
    host.settle(world.network.id, world.items)
    web = world.plug(host, world.web)
    host.settle(world.network.id, world.items)
    net = world.network.id
    host.sh(
        DRIFT[accident].format(
            net=net, x=names.vxlan(net), b=names.bridge(net), g=names.gateway_outer(net), r=names.gateway_inner(net),
            t=names.tap(world.web.vm, 0), mac=world.db.mac, address=world.db.address,
        )
    )  # fmt: skip
    answer = host.settle(net, world.items)
    assert answer.settled, answer
    assert answer.steps
    assert host.settle(net, world.items).steps == ()
    fdb = host.run("bridge", "fdb", "show", "dev", names.vxlan(net))
    assert fdb.split().count("dst") == 1
    assert f"{world.db.mac} dst {VTEP_B} self" in fdb
    assert web.dhcp()["ip"] == "10.20.0.5"
    assert web.fetch("http://169.254.169.254/latest/meta-data/instance-id") == (200, world.web.vm)
    assert len(host.run("pidof", "dnsmasq").split()) == 1


def test_a_dnsmasq_without_its_directory_is_found_and_ended(host: NamespaceHost, world: World) -> None:
    host.settle(world.network.id, world.items)
    host.sh(f"rm -r /run/skerry/networks/{world.network.id}")
    found = [found for found in host.survey().found if found.what == "dnsmasq"]
    assert [(one.owner, one.detail) for one in found] == [(world.network.id, "running")]
    assert host.settle(world.network.id, world.tombstones).settled
    assert_nothing_left(host)


def test_a_tombstoned_network_leaves_nothing(host: NamespaceHost, world: World) -> None:
    host.settle(world.network.id, world.items)
    answer = host.settle(world.network.id, world.tombstones)
    assert answer.settled
    assert all(report.done for report in answer.reports)
    assert_nothing_left(host)


def test_a_tombstoned_network_waits_for_its_guests_and_names_them(host: NamespaceHost, world: World) -> None:
    host.settle(world.network.id, world.items)
    tap = names.tap(world.web.vm, 0)
    world.plug(host, world.web)
    answer = host.settle(world.network.id, world.tombstones)
    assert not answer.settled
    assert tap in answer.message
    assert not any(report.done for report in answer.reports)
    host.run("ip", "link", "del", tap)
    assert host.settle(world.network.id, world.tombstones).settled
    host.run("ip", "netns", "del", "web")
    assert_nothing_left(host)


def test_dying_at_every_point_of_building_and_removing_is_repaired(host: NamespaceHost, world: World) -> None:
    built = host.crash(world.network.id, world.items)
    assert built.settled, built
    assert len(built.deaths) == 16, built.deaths
    web = world.plug(host, world.web)
    assert web.dhcp()["ip"] == "10.20.0.5"
    less = host.crash(world.network.id, world.without(world.web))
    assert less.settled, less
    assert "network.ReleaseLeases.after" in less.deaths
    host.run("ip", "link", "del", names.tap(world.web.vm, 0))
    host.run("ip", "netns", "del", "web")
    removed = host.crash(world.network.id, world.tombstones)
    assert removed.settled, removed
    assert "network.RemoveNamespace.after" in removed.deaths
    assert_nothing_left(host)


def test_a_half_made_namespace_is_finished(host: NamespaceHost, world: World) -> None:
    host.sh(f"touch /run/netns/{world.network.id}")
    assert host.settle(world.network.id, world.items).settled


def assert_nothing_left(host: NamespaceHost) -> None:
    assert host.survey().found == ()
    links = [line.split()[1].partition("@")[0] for line in host.run("ip", "-o", "link").splitlines()]
    assert set(links) <= {"lo:", "u0", "u1"}, links
    assert host.sh("ls /run/netns; ls /run/skerry/networks") == ""
    assert host.run("pidof", "dnsmasq", check=False) == ""


def test_guests_of_two_hosts_reach_each_other_and_nothing_is_flooded(
    pair: tuple[NamespaceHost, NamespaceHost], world: World, tmp_path: Path
) -> None:
    a, b = pair
    for one in pair:
        assert one.settle(world.network.id, world.items).settled
    web, db = world.plug(a, world.web), world.plug(b, world.db)
    capture = tmp_path / "underlay"
    with capture.open("wb") as out:
        sniffer = subprocess.Popen(["nsenter", "-t", str(a.pid), "-n", "python3", "-c", CAPTURE], stdout=out)
        try:
            wait_until(lambda: len(captured(capture)) >= 1)  # its first line says that it listens
            for guest in (web, db):
                guest.dhcp()
            web.run("ping", "-c", "3", "-i", "0.2", "-W", "2", "10.20.0.6")
            db.run("ping", "-c", "3", "-i", "0.2", "-W", "2", "10.20.0.5")
            web.run("ping", "-c", "1", "-W", "1", "10.20.0.77", check=False)
            web.run("ping", "-c", "1", "-W", "1", "-s", "1372", "-M", "do", "10.20.0.6")
            wait_until(lambda: len(captured(capture)) >= 15)  # both ways of seven pings
        finally:
            sniffer.terminate()
            sniffer.wait()
    inner = captured(capture)[1:]
    assert {frame[:6].hex(":") for frame in inner} == {world.web.mac, world.db.mac}
    assert {frame[12:14] for frame in inner} == {b"\x08\x00"}  # IPv4 only: no ARP has crossed
    neighbours = web.run("ip", "neigh", "show", "10.20.0.6")
    assert world.db.mac in neighbours


def captured(path: Path) -> list[bytes]:
    return [bytes.fromhex(line) for line in path.read_text().splitlines()]


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(100):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come true within 5 s")


CAPTURE = """
import socket
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind(("u0", 0))
print("00", flush=True)
while True:
    f = s.recv(65535)
    if f[12:14] == b"\\x08\\x00" and f[23] == 17 and f[36:38] == (4789).to_bytes(2, "big"):
        print(f[50:].hex(), flush=True)
"""
