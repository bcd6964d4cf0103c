"""The packages under a real systemd, by what docs/install.md says: one cloud for all tests, each leaves it whole."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.run import CommandFailed
from lab.machine import Machine
from tests.realkernel.installed import Installed, packages
from tests.realkernel.newer import SCHEMA, released, that_never_gets_ready, with_another_schema

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1800)]

GUESTS = "pgrep -x 'qemu-system-x86|dnsmasq|swtpm'"
RESTARTS = """
systemctl restart skerry-agent
cd /root/newer 2>/dev/null || cd /root
dpkg -i skerry-common_*.deb skerry-agent_*.deb
sleep 5
"""
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
WITH_TPM = """
skerry vm set web --tpm
skerry vm reboot web --wait
for _ in $(seq 120); do skerry vm log web | grep 'TPM started' && break; sleep 2; done
"""
LEFT = """
ls -A /var/lib/skerry-agent /run/skerry-agent /var/lib/libvirt/swtpm /var/log/swtpm/libvirt/qemu 2>&1 || true
ip netns; virsh -q list --all --name; ip -br link
"""
VERSIONS = "dpkg-query -W -f '${db:Status-Abbrev}${Version}\\n' 'skerry-*' | sort -u"
BOOTS = "grep -c 'skerry-tiny: Linux' /var/lib/skerry-agent/consoles/vm-*.log"
UPGRADE = "Upgrading"


@pytest.fixture(scope="module")
def here(real_kernel: Machine) -> Iterator[Installed]:
    """Give a cloud with a running machine. It is taken away by what the manual says, and leaves nothing."""
    installed = Installed(real_kernel)
    installed.install()
    yield installed
    assert "nothing of Skerry's is left" in installed.follow("Taking a host out")
    left = installed.type(LEFT)
    assert not re.search(r"net-|vm-|\b[bxgr]-|\bec2|identity|volumes", left), left
    assert installed.purge().splitlines()[-1] == "nothing is left"


def test_what_the_manual_says_makes_a_cloud(here: Installed) -> None:
    assert "fail  " not in here.printed, here.printed
    assert "machines run on the CPU itself" in here.printed
    assert "guests can have UEFI, Secure Boot and TPMs" in here.printed
    assert here.type("systemctl is-active skerry-agent skerry-controller").split() == ["active", "active"]
    assert here.type("systemctl is-enabled skerry-agent skerry-controller").split() == ["enabled", "enabled"]
    assert here.type("lsmod | grep -c '^dm_thin_pool\\|^vhost_net'").strip() == "2"
    _is_calm(here.warned, here.told)


def test_the_units_may_do_little(here: Installed) -> None:
    assert _exposure(here, "skerry-agent") in {"MEDIUM", "OK", "SAFE", "PERFECT"}
    assert _exposure(here, "skerry-controller") in {"OK", "SAFE", "PERFECT"}


def test_guests_outlive_a_restart_a_new_package_and_a_stop(here: Installed) -> None:
    before, since = here.type(GUESTS), f"--since=@{here.type('date +%s').strip()}"
    here.type(RESTARTS)
    assert here.type(GUESTS) == before
    assert here.type(f"systemctl stop skerry-agent; {GUESTS}; systemctl start skerry-agent") == before
    here.until_clean()
    _is_calm(here.journal("-p warning", since), here.journal(since))


def test_an_agent_that_hangs_is_started_anew_and_no_guest_with_it(here: Installed) -> None:
    before = here.type(GUESTS)
    hung = here.type(HANG)
    assert "Watchdog timeout" in hung
    assert "Fatal Python error: Aborted" in hung
    assert here.type(GUESTS) == before
    here.until_clean()


def test_the_hardened_agent_gives_a_machine_a_tpm(here: Installed) -> None:
    assert "skerry-tiny: TPM started" in here.type(WITH_TPM)
    assert "swtpm" in here.type("ps -C swtpm -o comm=")
    here.until_clean()


def test_a_release_that_fails_is_rolled_back_and_a_good_one_stays_while_a_guest_runs_on(
    here: Installed, tmp_path: Path
) -> None:
    guest, version, schema = here.type(f"{GUESTS}; {BOOTS}"), here.type(VERSIONS).strip(), _schema(here)
    _bring(here, released(packages(), tmp_path / "broken", 2, that_never_gets_ready))
    with pytest.raises(CommandFailed) as caught:
        here.follow(UPGRADE)
    told = caught.value.output
    print(told)
    assert "RuntimeError: planted: not ready" in told
    assert re.search(r"rolled back: 0\.\S+-1 runs and is ready; 0\.\S+-2 did not become ready", told), told
    assert "rolled back" in here.type("journalctl -q -t skerry-upgrade -o cat")
    assert here.type(VERSIONS).strip() == version
    assert _schema(here) == schema
    assert here.type("stat -c '%U:%G %a' /etc/skerry/controller.toml").strip() == "root:skerry 640"
    here.until_clean()
    assert here.type(f"{GUESTS}; {BOOTS}") == guest

    _bring(here, released(packages(), tmp_path / "good", 3, with_another_schema))
    said = here.follow(UPGRADE)
    assert re.search(r"0\.\S+-3 runs and is ready", said), said
    assert here.type(VERSIONS).strip().endswith("-3")
    assert _schema(here) == SCHEMA
    here.until_clean()
    assert here.type(f"{GUESTS}; {BOOTS}") == guest
    assert "running" in here.type("skerry vm list")


def _is_calm(warned: str, told: str) -> None:
    """Neither systemd nor the services complain."""
    assert warned == ""
    assert not re.search(r'"level": ?"(warning|error|critical)"|Traceback|left-over process', told), told


def _exposure(here: Installed, unit: str) -> str:
    """Return the word that systemd has for how much a unit may do."""
    found = re.search(r"Overall exposure level for \S+: [\d.]+ (\w+)", here.type(f"systemd-analyze security {unit}"))
    assert found is not None
    return found[1]


def _bring(here: Installed, files: list[Path]) -> None:
    here.type("rm -rf /root/newer; mkdir /root/newer")
    for file in files:
        here.machine.put(file, "/root/newer/")


def _schema(here: Installed) -> str:
    (found,) = re.findall(r"skerry\.db, schema (\d+)$", here.type("skerry-controller doctor"), re.MULTILINE)
    return str(found)
