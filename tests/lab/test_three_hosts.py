"""Three hosts on one underlay: one network over all of them, and hosts that carry on with the controller gone."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from lab.cloud import NETWORK, PROJECT, Lab
from lab.layout import ROOT
from tests.lab.calls import Cloud, qemu_of, until
from tests.lab.look import strangers
from tests.lab.shell import Shell, console, pty

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

HOSTS = ("h1", "h2", "h3")


@pytest.fixture(scope="module")
def cloud(lab_of_three: Lab) -> Cloud:
    """Give a cloud of three hosts."""
    return Cloud(lab_of_three)


@pytest.fixture(scope="module")
def trio(cloud: Cloud) -> Iterator[dict[str, str]]:
    """Give one VM on each host, up: host -> name. They are gone afterwards, without a trace."""
    names = {host: f"on-{host}" for host in HOSTS}
    for host, name in names.items():
        cloud.create(name, host=host)
    for name in names.values():
        cloud.until_up(name, timeout_s=180)
        cloud.until_state(name, "running")
    yield names
    cloud.delete_vms(*names.values())
    cloud.until_clean()
    for one in cloud.lab.hosts():
        assert strangers(one, cloud.ids()) == []


@contextmanager
def counted(lab: Lab) -> Iterator[dict[str, int]]:
    """Count the frames on the underlay; the figures are there when the block has ended."""
    words = ["ip", "netns", "exec", lab.layout.underlay, sys.executable, "-P", "-m", "tests.lab.sniff"]
    figures: dict[str, int] = {}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        yield figures
        process.terminate()
        figures |= json.loads(process.stdout.readline())


def ping_all(cloud: Cloud, shell: Shell, trio: dict[str, str], *, by_name: bool = True) -> None:
    """Ping every VM from one, by address and by name."""
    for name in trio.values():
        shell.must(f"ping -c 2 -W 5 {cloud.address(name)}")
        if by_name:
            shell.must(f"ping -c 1 -W 5 {name}")
            shell.must(f"ping -c 1 -W 5 {name}.{NETWORK}.{PROJECT}.internal")


def test_each_machine_reads_its_own_address_metadata_and_key(cloud: Cloud, trio: dict[str, str]) -> None:
    key = (cloud.lab.layout.folder / "ssh_key.pub").read_text().split()
    assert len({cloud.address(name) for name in trio.values()}) == len(HOSTS)
    for host, name in trio.items():
        log = cloud.serial_log(name)
        assert f"address {cloud.address(name)}/24" in log
        assert f"metadata instance-id {cloud.id(name)}" in log
        assert f"key {key[0]} {key[1][:24]}" in log
        found = cloud.vm(name)
        assert found is not None
        assert found["status"]["host"] == host
        with console(cloud.lab, name) as shell:
            assert shell.must("hostname").strip() == name
            zone = "http://169.254.169.254/latest/meta-data/placement/availability-zone"
            assert shell.must(f"wget -q -O - {zone}").strip() == host


def test_machines_on_three_hosts_reach_each_other_and_nothing_is_flooded(cloud: Cloud, trio: dict[str, str]) -> None:
    with counted(cloud.lab) as frames:
        for name in trio.values():
            with console(cloud.lab, name) as shell:
                shell.must("ip neigh flush dev eth0")
                ping_all(cloud, shell, trio)
                # Nobody has this address: its ARP request has to end on the host where it was asked.
                assert shell.run("ping -c 1 -W 1 10.20.0.250")[0] != 0
                shell.run("ping -c 1 -W 1 -b 10.20.0.255")
    assert frames["unicast"] > 20
    assert (frames["arp"], frames["everybody"]) == (0, 0)


def test_two_projects_with_the_same_addresses_do_not_see_each_other(cloud: Cloud, trio: dict[str, str]) -> None:
    other = Cloud(cloud.lab, "other")
    cloud.make("/v1/projects", "other", {"keep_deleted_s": 0})
    cloud.make("/v1/projects/other/networks", NETWORK, {})
    names = ("twin-1", "twin-2", "twin-3", "twin-4")
    for number, name in enumerate(names):
        other.create(name, host=HOSTS[number % 2], keypairs=[])
    for name in names:
        other.until_up(name, timeout_s=180)
    ours = {cloud.address(name): name for name in trio.values()}
    theirs = {other.address(name): name for name in names}
    shared = sorted(set(ours) & set(theirs))
    assert shared

    with ExitStack() as stack:
        shell = stack.enter_context(console(cloud.lab, trio["h3"]))
        for address in shared:
            page = shell.must(f"wget -q -O - http://{address}/")
            assert page.startswith(f"hello from {ours[address]} ")
        assert shell.run("ping -c 1 -W 2 twin-1")[0] != 0
        vm = other.id("twin-1")
        twin = stack.enter_context(pty(cloud.lab.host("h1"), vm))
        for address, name in theirs.items():
            assert twin.must(f"wget -q -O - http://{address}/").startswith(f"hello from {name} ")
        lonely = next(address for address in (*ours, *theirs) if (address in ours) != (address in theirs))
        asked = twin if lonely in ours else shell
        assert asked.run(f"ping -c 1 -W 2 {lonely}")[0] != 0

    other.delete_vms(*names)
    other.delete(f"/v1/projects/other/networks/{NETWORK}")
    other.gone(f"/v1/projects/other/networks/{NETWORK}")
    cloud.delete("/v1/projects/other")
    cloud.gone("/v1/projects/other")


def test_hosts_carry_on_with_the_controller_stopped(cloud: Cloud, trio: dict[str, str]) -> None:
    lab = cloud.lab
    ids = {host: cloud.id(name) for host, name in trio.items()}
    addresses = {host: cloud.address(name) for host, name in trio.items()}
    qemus = {host: qemu_of(lab.host(host), ids[host]) for host in ("h1", "h3")}
    lab.stop_controller()
    try:
        lab.host("h3").restart_agent()
        for host in ("h1", "h3"):
            with pty(lab.host(host), ids[host]) as shell:
                _answers(shell, trio[host], ids[host], addresses, trio)

        lab.host("h2").pull_plug()
        lab.host("h2").plug_in()
        until(
            lambda: ids["h2"] in lab.host("h2").run(["virsh", "-q", "list", "--name"]),
            lambda: f"h2 to boot its machine: {lab.host('h2').run(['virsh', 'list', '--all'])}",
            120,
        )
        with pty(lab.host("h2"), ids["h2"]) as shell:
            _answers(shell, trio["h2"], ids["h2"], addresses, trio)
        with pty(lab.host("h1"), ids["h1"]) as shell:
            shell.must(f"ping -c 2 -W 5 {addresses['h2']}")
        assert {host: qemu_of(lab.host(host), ids[host]) for host in qemus} == qemus
    finally:
        lab.start_controller()

    lab.wait_for_hosts()
    for name in trio.values():
        cloud.until_state(name, "running")
    cloud.until_clean()
    for one in lab.hosts():
        assert strangers(one, cloud.ids()) == []


def _answers(shell: Shell, name: str, vm: str, addresses: dict[str, str], trio: dict[str, str]) -> None:
    """Show, from within a guest, that its host serves DHCP, metadata and DNS, and that its network works."""
    shell.must("until ip -4 addr show dev eth0 | grep -q inet; do sleep 1; done", 60)
    shell.must("udhcpc -i eth0 -s /lib/tiny/lease -O mtu -O staticroutes -t 5 -T 2 -n -q", 60)
    assert shell.must("wget -q -O - http://169.254.169.254/latest/meta-data/instance-id").strip() == vm
    for host, address in addresses.items():
        assert address in shell.must(f"nslookup {trio[host]}.{NETWORK}.{PROJECT}.internal")
        shell.must(f"ping -c 2 -W 5 {address}")
    assert shell.must("hostname").strip() == name
