"""Packages on real hosts: a newer agent, while guests run."""

from pathlib import Path

import pytest

from lab.layout import ROOT
from tests.lab.operator import BOOT, PATIENCE_S, Operator
from tests.realkernel.newer import released

pytestmark = [pytest.mark.lab, pytest.mark.timeout(3600)]

INSTALL = "apt-get install -y -q /tmp/skerry-common_*.deb /tmp/skerry-agent_*.deb; rm /tmp/skerry-*.deb"
MEANWHILE = ("d", "e")
"""Machines that are asked for while the agent is being upgraded."""


def test_a_newer_agent_leaves_guests_alone(operator: Operator, tmp_path: Path) -> None:
    before = operator.processes("h2")
    version, _, revision = operator.metal.run("h2", "dpkg-query -W -f '${Version}' skerry-agent").rpartition("-")
    newer = int(revision) + 1
    packages = [ROOT / "build" / "packages" / f"skerry-{name}_{version}-1_*.deb" for name in ("common", "agent")]
    there = [file for pattern in packages for file in pattern.parent.glob(pattern.name)]
    for package in released(there, tmp_path / "newer", newer, lambda _: None):
        operator.metal.put("h2", package)
    operator.until_reached()
    at = len(operator.console("b"))
    with operator.journal("h2", "skerry-agent") as said:
        operator.type(*(f"skerry vm create {vm} --image tiny --size small --host h2" for vm in MEANWHILE))
        operator.metal.run("h2", INSTALL, timeout_s=PATIENCE_S)
        operator.until_ready("h2")
        assert "link up" in said()
    for vm in MEANWHILE:
        operator.until(f"skerry vm list | grep -q '^{vm} *running'")
    operator.type(f"skerry vm delete {' '.join(MEANWHILE)} --wait")
    assert operator.metal.run("h2", "dpkg-query -W -f '${Version}' skerry-agent") == f"{version}-{newer}"
    assert operator.processes("h2") == before
    operator.until_reached()
    assert BOOT not in operator.console("b")[at:]
    operator.until_clean()
