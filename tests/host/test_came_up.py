"""The verdict on a first boot, with a real guest, a real lease, a real metadata service and a real TCP connection."""

import json
from typing import Any

import pytest

from lab.cloud import IMAGE, SIZE
from tests.lab.calls import Cloud, until
from tests.lab.shell import console

pytestmark = [pytest.mark.host, pytest.mark.timeout(180)]


def boot_of(cloud: Cloud, name: str) -> dict[str, Any]:
    """Return what is shown of a first boot."""
    found: dict[str, Any] = (
        json.loads(cloud.lab.cli("vm", "show", name, "-o", "json"))["status"].get("first_boot") or {}
    )
    return found


def test_a_first_boot_is_told_leg_by_leg_and_settled_by_the_ssh_port(cloud: Cloud) -> None:
    lab = cloud.lab
    lab.cli("vm", "create", "fresh", "--image", IMAGE, "--size", SIZE, "--keypairs", "lab", "--wait")

    def states() -> dict[str, str]:
        return {leg["name"]: leg.get("state", "waiting") for leg in boot_of(cloud, "fresh").get("legs", [])}

    wanted = {"address": "reached", "metadata": "reached", "key": "reached", "ssh": "waiting"}
    until(lambda: states() == wanted, lambda: f"three legs: {boot_of(cloud, 'fresh')}", 60)
    assert boot_of(cloud, "fresh")["verdict"] == "pending"
    with console(lab, "fresh") as shell:
        shell.must("{ (while :; do echo SSH-2.0-x | nc -l -p 22; done) >/dev/null 2>&1 & }")
    until(lambda: boot_of(cloud, "fresh").get("verdict") == "passed", lambda: f"{boot_of(cloud, 'fresh')}", 30)

    legs = boot_of(cloud, "fresh")["legs"]
    seconds = [leg["seconds"] for leg in legs]
    assert [leg["name"] for leg in legs] == ["address", "metadata", "key", "ssh"]
    assert 0 < seconds[0] <= seconds[3] < 60
    assert "an address by DHCP after" in lab.cli("vm", "show", "fresh")
    assert "first boot: an address by DHCP after" in lab.cli("why", "vm", "fresh")
    assert lab.cli("events", "--name", "fresh").count("vm.first-boot") == 1

    lab.cli("vm", "reboot", "fresh", "--wait")
    assert boot_of(cloud, "fresh")["legs"] == legs, "it is of the first boot and stays so"
    shown = lab.cli("vm", "show", "fresh")
    assert "last hour" in shown
    assert "fresh" in lab.cli("top", "--once")
    cloud.delete_vms("fresh")


def test_a_machine_without_a_key_is_not_asked_for_ssh(cloud: Cloud) -> None:
    cloud.create("keyless", keypairs=[])
    until(lambda: boot_of(cloud, "keyless").get("verdict") == "passed", lambda: f"{boot_of(cloud, 'keyless')}", 60)
    states = {leg["name"]: leg.get("state") for leg in boot_of(cloud, "keyless")["legs"]}
    assert states == {"address": "reached", "metadata": "reached", "key": "not-asked", "ssh": "not-asked"}
    cloud.delete_vms("keyless")
