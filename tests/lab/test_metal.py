"""The story of real hosts: Debian machines, Skerry's packages under systemd, KVM and LVM; reboots, cuts, restarts."""

import time

import pytest

from lab.metal import CONTROLLER
from tests.lab.operator import PATIENCE_S, Operator

pytestmark = [pytest.mark.lab, pytest.mark.timeout(3600)]

CUT_S = 60.0


def test_guests_on_two_hosts_reach_each_other(operator: Operator) -> None:
    operator.until_reached()
    operator.until_clean()
    assert "<domain type='kvm'" in operator.metal.run("h1", "virsh dumpxml $(virsh -q list --name | head -n 1)")


def test_a_host_that_reboots_has_its_guests_back(operator: Operator) -> None:
    before = operator.metal.boot("h1")
    operator.metal.run("h1", "systemctl reboot")
    operator.until_booted("h1", before)
    operator.until_reached()
    operator.until_clean()


def test_a_host_whose_power_was_cut_has_its_guest_back(operator: Operator) -> None:
    before = operator.metal.boot("h2")
    operator.metal.pull_plug("h2")
    operator.metal.plug_in("h2")
    operator.until_booted("h2", before)
    operator.until_reached()
    operator.until_clean()
    assert "gave no sign of life" in operator.happened("--kind host", "--name h2")


def test_a_restarted_agent_leaves_its_guest_alone(operator: Operator) -> None:
    before = operator.processes("h2")
    operator.metal.run("h2", "systemctl restart skerry-agent", timeout_s=PATIENCE_S)
    operator.until_ready("h2")
    assert operator.processes("h2") == before
    operator.until_reached()
    operator.until_clean()


def test_a_host_whose_cable_was_pulled_for_a_minute_carries_on(operator: Operator) -> None:
    before = operator.processes("h2")
    with operator.journal("h2", "skerry-agent") as said:
        operator.metal.pull_cable("h2")
        try:
            operator.until("skerry host list | grep -q '^h2 *unreachable'")
            assert "is not connected" in operator.type("skerry why vm b || true")
            time.sleep(CUT_S)
            assert operator.processes("h2") == before
        finally:
            operator.metal.plug_cable("h2")
        operator.until_ready("h2")
        operator.until_reached()
        operator.until_clean()
        assert operator.processes("h2") == before
        assert "no link to the controller" in said()
        assert "link up" in said()
    assert "gave no sign of life" in operator.happened("--kind host", "--name h2")


def test_the_controllers_reboot_is_nothing_to_guests(operator: Operator) -> None:
    processes = [operator.processes(host) for host in ("h1", "h2")]
    before = operator.metal.boot(CONTROLLER)
    with operator.journal("h1", "skerry-agent") as said:
        operator.metal.run(CONTROLLER, "systemctl reboot")
        operator.until_reached()
        operator.until_booted(CONTROLLER, before)
        operator.until_ready()
        assert "no link to the controller" in said()
        assert "link up" in said()
    operator.until_clean()
    assert [operator.processes(host) for host in ("h1", "h2")] == processes
    operator.type("skerry vm create d --image tiny --size small --wait", "skerry vm delete d --wait")
