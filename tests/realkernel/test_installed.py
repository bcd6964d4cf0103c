"""The packages under a real systemd, by what docs/install.md says: joined, restarted, hung, left and purged."""

import re

import pytest

from lab.machine import Machine
from tests.realkernel.installed import QEMU, Installed

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1800)]

PIDS = f"{QEMU}; pgrep -x dnsmasq"
HANG = """
mkdir -p /run/systemd/system/skerry-agent.service.d
printf '[Service]\\nWatchdogSec=5\\n' >/run/systemd/system/skerry-agent.service.d/soon.conf
systemctl daemon-reload
systemctl restart skerry-agent
kill -STOP $(systemctl show -p MainPID --value skerry-agent)
for _ in $(seq 90); do
    [ "$(systemctl show -p NRestarts --value skerry-agent)" = 0 ] || break
    sleep 1
done
until systemctl is-active -q skerry-agent; do sleep 1; done
rm -r /run/systemd/system/skerry-agent.service.d
systemctl daemon-reload
journalctl -u skerry-agent -o cat
"""
LEFT = "ls -A /var/lib/skerry-agent /run/skerry-agent 2>&1 || true; ip netns; virsh -q list --all --name; ip -br link"


def test_what_the_manual_says_makes_a_cloud_and_takes_it_away(real_kernel: Machine) -> None:
    here = Installed(real_kernel)
    printed = here.install()
    assert "fail  " not in printed, printed
    assert "machines run on the CPU itself" in printed
    assert "guests can have UEFI, Secure Boot and TPMs" in printed
    assert here.type("systemctl is-active skerry-agent skerry-controller").split() == ["active", "active"]
    assert here.type("systemctl is-enabled skerry-agent skerry-controller").split() == ["enabled", "enabled"]
    assert here.type("lsmod | grep -c '^dm_thin_pool\\|^vhost_net'").strip() == "2"
    before = here.type(PIDS)
    assert len(before.split()) == 2

    assert _exposure(here, "skerry-agent") in {"MEDIUM", "OK", "SAFE", "PERFECT"}
    assert _exposure(here, "skerry-controller") in {"OK", "SAFE", "PERFECT"}

    here.type("systemctl restart skerry-agent; dpkg -i /root/skerry-common_*.deb /root/skerry-agent_*.deb; sleep 5")
    assert here.type(PIDS) == before
    assert here.type(f"systemctl stop skerry-agent; {PIDS}; systemctl start skerry-agent") == before
    here.type("for _ in $(seq 60); do skerry audit host h2 && exit; sleep 1; done; exit 1")
    assert here.journal("-p warning") == ""
    told = here.journal()
    assert not re.search(r'"level": ?"(warning|error|critical)"|Traceback|left-over process', told), told

    hung = here.type(HANG)
    assert "Watchdog timeout" in hung
    assert "Fatal Python error: Aborted" in hung
    assert here.type(PIDS) == before

    assert "nothing of Skerry's is left" in here.follow("Taking a host out")
    left = here.type(LEFT)
    assert not re.search(r"net-|vm-|\b[bxgr]-|identity|volumes", left), left
    assert here.purge().splitlines()[-1] == "nothing is left"


def _exposure(here: Installed, unit: str) -> str:
    """Return the word that systemd has for how much a unit may do."""
    found = re.search(r"Overall exposure level for \S+: [\d.]+ (\w+)", here.type(f"systemd-analyze security {unit}"))
    assert found is not None
    return found[1]
