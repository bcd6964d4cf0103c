"""A real host leaves its cloud and joins anew: what is typed is what docs/install.md says."""

import re

import pytest

from lab.layout import ROOT
from lab.manual import Block, blocks
from lab.metal import CONTROLLER
from tests.lab.operator import PATIENCE_S, Operator

pytestmark = [pytest.mark.lab, pytest.mark.timeout(3600)]

HOST = "h2"
POOL = "printf '[pool]\\nvolume_group = \"skerry\"\\n' >>/etc/skerry/agent.toml"


def test_a_host_leaves_and_joins_anew_by_what_the_manual_says(operator: Operator) -> None:
    for block in below("Taking a host out"):
        follow(operator, block)
    assert HOST not in operator.type("skerry host list -o name")
    assert not operator.metal.run(HOST, "ls -d /var/lib/skerry-agent /etc/skerry 2>/dev/null || true").strip()
    assert "vol-" not in operator.metal.run(HOST, "lvs --noheadings -o lv_name skerry")

    for package in sorted((ROOT / "build" / "packages").glob("skerry-*.deb")):
        if package.name.startswith(("skerry-common_", "skerry-agent_")):
            operator.metal.put(HOST, package)
    operator.metal.run(HOST, "mv /tmp/skerry-*.deb /root/")
    printed = ""
    for block in below("h1 and h2: the hosts"):
        if "skerry-agent doctor" in block.lines:
            join = re.findall(r"skerry-agent join \S+ \S+", printed)[-1]  # doctor has such a line, too
            operator.metal.run(HOST, f"{POOL}\n{join}")
        printed += follow(operator, block)
    operator.until_ready(HOST)
    operator.make_b()
    operator.until_reached()
    operator.until_clean()
    operator.metal.run(HOST, "rm /root/skerry-*.deb")


def below(heading: str) -> list[Block]:
    """Return what the manual says below a heading for the controller and for the host."""
    return [block for block in blocks() if block.heading == heading and {"ctl", HOST} & set(block.machines)]


def follow(operator: Operator, block: Block) -> str:
    """Type what a block says, with the lab's addresses, of the lab's machines: h1 stays, and b is what is on h2."""
    lines = [line.replace("10.0.0.1", "10.77.1.1").replace(" web ", " b ") for line in block.lines]
    machine = CONTROLLER if "ctl" in block.machines else HOST
    if machine == HOST:
        return operator.metal.run(HOST, "\n".join(lines), timeout_s=PATIENCE_S)
    return operator.type(*(line for line in lines if line != "skerry host create h1"))
