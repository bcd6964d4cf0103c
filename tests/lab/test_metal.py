"""The story of real hosts: Debian machines, Skerry's packages under systemd, KVM and LVM; reboots and power cuts."""

import json
import time
from collections.abc import Iterator

import pytest

from common.run import CommandFailed
from lab.guest import tiny
from lab.layout import ROOT
from lab.metal import CONTROLLER, Metal

pytestmark = [pytest.mark.lab, pytest.mark.timeout(3600)]

HOSTS = ("h1", "h2")
PATIENCE_S = 600.0
"""For what takes a minute where two emulated machines have a core each."""

REACH = """#!/bin/sh
(while :; do timeout 5 wget -q -O - http://{address}/ | sed 's/^/reached: /'; sleep 3; done) >/dev/console 2>&1 &
"""


class Operator:
    """Who types on the controller, and looks."""

    def __init__(self, metal: Metal) -> None:
        self.metal = metal

    def type(self, *lines: str, timeout_s: float = PATIENCE_S) -> str:
        """Run lines on the controller as root, in project demo; return what they print."""
        script = "export HOME=/root SKERRY_PROJECT=demo\n" + "\n".join(lines)
        return self.metal.run(CONTROLLER, script, timeout_s=timeout_s)

    def until(self, line: str) -> str:
        """Run a line again until it succeeds; fail with what it says last."""
        deadline, said = time.monotonic() + PATIENCE_S, ""
        while time.monotonic() < deadline:
            try:
                return self.type(line)
            except CommandFailed as err:
                said = err.output
            time.sleep(3)
        raise AssertionError(f"{line!r} did not succeed in {PATIENCE_S:.0f} s: {said}")

    def until_reached(self) -> None:
        """Return when guest b has reached guest a again, from now on."""
        count = "skerry vm log b | grep -c 'reached: hello from a'"
        before = int(self.type(f"{count} || true"))
        self.until(f'[ "$({count})" -gt {before} ]')

    def until_clean(self) -> None:
        """Return when wish and reality agree on every host."""
        for host in HOSTS:
            self.until(f"skerry audit host {host} >&2")


@pytest.fixture(scope="module")
def metal() -> Iterator[Metal]:
    """Give the lab: the one that is up, else one for this story only."""
    metal = Metal()
    theirs = metal.note.exists()
    try:
        metal.up(len(HOSTS))
        yield metal
    finally:
        if not theirs:
            metal.down()


@pytest.fixture(scope="module")
def cloud(metal: Metal) -> Iterator[Operator]:
    """Give a cloud with guest a on h1, and guest b on h2 that asks a for its page for ever."""
    operator = Operator(metal)
    for host in HOSTS:
        operator.until(f"skerry host list | grep -q '^{host} *ready'")
    metal.put(CONTROLLER, tiny(ROOT / "build" / "guest"))
    operator.type(
        "skerry project show demo >/dev/null 2>&1 || skerry project create demo --keep-deleted-s 0",
        "skerry network show default >/dev/null 2>&1 || skerry network create default --wait",
        "skerry size show small >/dev/null 2>&1 || skerry size create small --vcpus 1 --memory-mib 256 --disk-gib 1",
        "skerry image create tiny --format kernel",
        "skerry image upload tiny /tmp/tiny.tar --wait",
        "skerry vm create a --image tiny --size small --host h1 --wait",
    )
    seen = json.loads(operator.type("skerry vm show a -o json"))
    operator.type(
        f"cat >/tmp/reach <<'END'\n{REACH.format(address=seen['status']['addresses'][0])}END",
        "skerry vm create b --image tiny --size small --host h2 --user-data @/tmp/reach --wait",
    )
    try:
        yield operator
    finally:
        operator.type("skerry vm delete a b --wait; skerry image delete tiny --wait")


def test_guests_on_two_hosts_reach_each_other(cloud: Operator) -> None:
    cloud.until_reached()
    cloud.until_clean()
    assert "<domain type='kvm'" in cloud.metal.run("h1", "virsh dumpxml $(virsh -q list --name)")


def test_a_host_that_reboots_has_its_guest_back(cloud: Operator) -> None:
    before = cloud.metal.boot("h1")
    cloud.metal.run("h1", "systemctl reboot")
    _until_rebooted(cloud.metal, "h1", before)
    cloud.until_reached()
    cloud.until_clean()


def test_a_host_whose_power_was_cut_has_its_guest_back(cloud: Operator) -> None:
    before = cloud.metal.boot("h2")
    cloud.metal.pull_plug("h2")
    cloud.metal.plug_in("h2")
    _until_rebooted(cloud.metal, "h2", before)
    cloud.until_reached()
    cloud.until_clean()


def test_a_restarted_agent_leaves_its_guest_alone(cloud: Operator) -> None:
    pid = "cat /run/libvirt/qemu/$(virsh -q list --name).pid"
    before = cloud.metal.run("h2", pid)
    cloud.metal.run("h2", "systemctl restart skerry-agent", timeout_s=PATIENCE_S)
    assert cloud.metal.run("h2", pid) == before
    cloud.until_reached()
    cloud.until_clean()


def _until_rebooted(metal: Metal, machine: str, before: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while metal.boot(machine) in ("", before):
        assert time.monotonic() < deadline, f"{machine} did not come back in {PATIENCE_S:.0f} s"
        time.sleep(2)
