"""`skerry-controller upgrade` under systemd: a release that does not get ready is rolled back, a good one stays."""

import re
from pathlib import Path

import pytest

from common.run import CommandFailed
from lab.machine import Machine
from tests.realkernel.installed import QEMU, Installed, packages
from tests.realkernel.newer import SCHEMA, released, that_never_gets_ready, with_another_schema

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1800)]

VERSIONS = "dpkg-query -W -f '${db:Status-Abbrev}${Version}\\n' 'skerry-*' | sort -u"
BOOTS = "grep -c 'skerry-tiny: Linux' /var/lib/skerry-agent/consoles/vm-*.log"
UPGRADE = "Upgrading"


@pytest.fixture
def here(real_kernel: Machine) -> Installed:
    """Give a cloud with a running machine."""
    installed = Installed(real_kernel)
    installed.install()
    return installed


def test_a_release_that_fails_is_rolled_back_and_a_good_one_stays_while_a_guest_runs_on(
    here: Installed, tmp_path: Path
) -> None:
    guest, version = here.type(f"{QEMU}; {BOOTS}"), here.type(VERSIONS).strip()
    schema = _schema(here)
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
    _is_whole(here, guest)

    _bring(here, released(packages(), tmp_path / "good", 3, with_another_schema))
    said = here.follow(UPGRADE)
    assert re.search(r"0\.\S+-3 runs and is ready", said), said
    assert here.type(VERSIONS).strip().endswith("-3")
    assert _schema(here) == SCHEMA
    _is_whole(here, guest)
    here.follow("Taking a host out")
    here.purge()


def _bring(here: Installed, files: list[Path]) -> None:
    here.type("rm -rf /root/newer; mkdir /root/newer")
    for file in files:
        here.machine.put(file, "/root/newer/")


def _schema(here: Installed) -> str:
    (found,) = re.findall(r"skerry\.db, schema (\d+)$", here.type("skerry-controller doctor"), re.MULTILINE)
    return str(found)


def _is_whole(here: Installed, guest: str) -> None:
    """The guest is in its first boot, its host is back, and what is wished runs."""
    assert here.type(f"{QEMU}; {BOOTS}") == guest
    here.type("for _ in $(seq 60); do skerry audit host h2 && exit; sleep 1; done; exit 1")
    assert "running" in here.type("skerry vm list")
