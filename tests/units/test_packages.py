"""The Debian packages: installed, used and purged on a copy of this machine."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.layout import ROOT

NAMES = ("skerry-common", "skerry-controller", "skerry-agent", "skerry-cli")

pytestmark = pytest.mark.host


@pytest.mark.timeout(600)
def test_packages_are_installed_used_and_purged_without_a_trace(on_a_copy: Callable[[str], str]) -> None:
    said = on_a_copy(
        """
        dpkg -i /debs/*.deb >/dev/null 2>&1
        for command in skerry skerry-agent skerry-controller; do $command --version | tail -c 6; done
        stat -c "%n %U %a" /var/lib/skerry-controller /etc/skerry/controller.toml /var/lib/skerry-agent
        systemctl is-enabled skerry-controller skerry-agent
        skerry-controller init
        find /var/lib/skerry-controller ! -user skerry
        find /opt/skerry -name "__pycache__" -prune -o -newer /var/lib/skerry-agent -type f -print
        skerry-agent run 2>&1 | head -1
        echo --- dpkg -r
        dpkg -r skerry-agent skerry-controller
        ls -d /var/lib/skerry-*
        echo --- dpkg -P
        dpkg -P skerry-agent skerry-controller skerry-cli skerry-common
        ls -d /var/lib/skerry-* /etc/skerry /opt/skerry /usr/bin/skerry* 2>/dev/null || echo nothing
        """
    )
    used, removed, purged = said.split("--- dpkg")
    assert used.splitlines()[3:] == [
        "/var/lib/skerry-controller skerry 700",
        "/etc/skerry/controller.toml root 640",
        "/var/lib/skerry-agent root 711",
        "enabled",
        "enabled",
        "ready: /var/lib/skerry-controller",
        "error: this machine has not joined a controller yet: there is no /var/lib/skerry-agent/identity.pem",
    ]
    assert "skerry-controller: /var/lib/skerry-controller stays" in removed
    assert "skerry-agent: /var/lib/skerry-agent stays" in removed
    assert removed.splitlines()[-2:] == ["/var/lib/skerry-agent", "/var/lib/skerry-controller"]
    assert "skerry-agent: removed /var/lib/skerry-agent with the identity, the disks" in purged
    assert "skerry-controller: removed /var/lib/skerry-controller with the database" in purged
    assert purged.splitlines()[-1] == "nothing"


@pytest.mark.timeout(300)
def test_a_purge_keeps_the_disks_of_machines_that_libvirt_has(on_a_copy: Callable[[str], str]) -> None:
    """libvirt's own command is played by a script: what it lists is what counts."""
    said = on_a_copy(
        """
        mkdir -p /usr/local/bin
        printf "#!/bin/sh\\necho vm-0123456789ab\\n" >/usr/local/bin/virsh
        chmod 755 /usr/local/bin/virsh
        dpkg -i /debs/skerry-common_*.deb /debs/skerry-agent_*.deb >/dev/null 2>&1
        mkdir /var/lib/skerry-agent/volumes
        dpkg -P skerry-agent
        ls -d /var/lib/skerry-agent/volumes
        """
    )
    assert (
        "skerry-agent: /var/lib/skerry-agent stays: libvirt has machines whose disks are there: vm-0123456789ab" in said
    )
    assert said.splitlines()[-1] == "/var/lib/skerry-agent/volumes"


def test_the_packages_know_nothing_of_where_they_were_built(packages: Path, tmp_path: Path) -> None:
    for name in NAMES:
        (package,) = packages.glob(f"{name}_*.deb")
        subprocess.run(["dpkg-deb", "--raw-extract", package, tmp_path / name], check=True)
    line = ["grep", "-rlF", str(ROOT), tmp_path]
    assert subprocess.run(line, check=False, capture_output=True, text=True).stdout == ""
