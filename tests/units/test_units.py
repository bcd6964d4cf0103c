"""The units that the packages ship: sound, hardened as far as we say, and of use to the programs that they start."""

import re
import subprocess
from pathlib import Path

import pytest

from agent import config as agent_config
from agent.drivers import service
from controller import config as controller_config
from lab.layout import ROOT

SYSTEMD = ROOT / "systemd"
UNITS = ("skerry-controller.service", "skerry-agent.service")


def exposure(unit: Path) -> float:
    """Return what `systemd-analyze security` makes of a unit file: 0 is nothing, 10 is everything."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", unit], capture_output=True, text=True, check=True
    )
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stdout
    return float(found[1])


@pytest.mark.parametrize(("unit", "most"), [("skerry-controller.service", 2.0), ("skerry-agent.service", 5.0)])
def test_a_unit_is_exposed_no_further_than_we_say(unit: str, most: float) -> None:
    """systemd calls up to 4.9 OK and up to 7.4 MEDIUM."""
    assert exposure(SYSTEMD / unit) <= most


def test_a_unit_without_hardening_is_told_from_ours(tmp_path: Path) -> None:
    bare = tmp_path / "bare.service"
    bare.write_text("[Service]\nExecStart=/bin/true\n")
    assert exposure(bare) > 9


@pytest.mark.parametrize("unit", [*UNITS, "skerry-upgrade.service"])
def test_systemd_finds_nothing_wrong_with_a_unit(unit: str, tmp_path: Path) -> None:
    for source in (*SYSTEMD.glob("*.service"), *SYSTEMD.glob("*.slice")):
        text = re.sub(r"/(opt/skerry|usr)/bin/skerry-\w+|/sbin/modprobe", "/bin/true", source.read_text())
        (tmp_path / source.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / unit], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("script", sorted(SYSTEMD.rglob("p*[mt]")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_maintainer_script_is_shell(script: Path) -> None:
    assert script.read_text().startswith("#!/bin/sh\nset -e\n")
    subprocess.run(["sh", "-n", script], check=True)


def uncommented(text: str) -> str:
    """Return a configuration with its examples in force."""
    return re.sub(r"^#(?=\w)", "", text, flags=re.MULTILINE)


def test_the_configurations_that_are_installed_hold_with_and_without_their_examples(tmp_path: Path) -> None:
    packages = SYSTEMD / "packages"
    for read in (str, uncommented):
        path = tmp_path / "it.toml"
        path.write_text(read((packages / "skerry-controller" / "controller.toml").read_text()))
        assert controller_config.load(path).state_dir == Path("/var/lib/skerry-controller")
        path.write_text(read((packages / "skerry-agent" / "agent.toml").read_text()))
        assert agent_config.load(path).state_dir == Path("/var/lib/skerry-agent")


def test_the_agent_knows_its_own_unit_and_no_other(tmp_path: Path) -> None:
    cgroup = tmp_path / "cgroup"
    cgroup.write_text("0::/skerry.slice/skerry-agent.service\n")
    assert service.outliving("dnsmasq", cgroup)[0] == "systemd-run"
    assert service.among_the_hosts_mounts(cgroup)[0] == "nsenter"
    for other in ("0::/user.slice/session-1.scope\n", "0::/\n", "0::/my-skerry-agent.service\n"):
        cgroup.write_text(other)
        assert service.outliving("dnsmasq", cgroup) == ()
        assert service.among_the_hosts_mounts(cgroup) == ()
    assert not service.is_unit(tmp_path / "missing")


def test_what_must_outlive_the_agent_goes_to_a_slice_that_is_shipped() -> None:
    assert (SYSTEMD / service.GUESTS_SLICE).exists()
    assert (SYSTEMD / service.UNIT).exists()
