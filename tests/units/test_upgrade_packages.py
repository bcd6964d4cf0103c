"""`skerry-controller upgrade` with dpkg, apt and the packages as they are; systemd is played by a script."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.manual import blocks
from tests.realkernel.newer import SCHEMA, released, that_never_gets_ready, with_another_schema

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

STORY = """
set -eu
ip link set lo up
export HOME=/root
mkdir -p /usr/local/bin
for name in systemctl journalctl; do install -m 755 /more/played /usr/local/bin/$name; done
cp /debs/*.deb /root/
{install}
echo "# ours" >>/etc/skerry/controller.toml
look() {{
    echo --- look
    dpkg-query -W -f '${{db:Status-Abbrev}}${{Version}} ' skerry-cli skerry-common skerry-controller
    skerry-controller doctor | grep -o "schema [0-9]*"
    tail -n 1 /etc/skerry/controller.toml
    stat -c "%U:%G %a" /etc/skerry/controller.toml
    find /var/lib/skerry-controller ! -user skerry
    skerry project list -o name
    ls /var/lib/skerry-upgrade/*
}}
skerry-controller upgrade /root/skerry-common_*.deb 2>&1 || echo REFUSED
look
echo --- broken
ln -s /more/broken /root/newer
{{
{upgrade}
}} || echo EXIT $?
look
echo --- good
rm /root/newer
ln -s /more/good /root/newer
{upgrade}
look
systemctl stop
"""


def typed(heading: str) -> str:
    """Return what docs/install.md has typed on `ctl` below a heading."""
    return "\n".join(
        line for block in blocks() if (block.heading, block.machines) == (heading, ("ctl",)) for line in block.lines
    )


def test_the_manual_s_controller_rolls_a_broken_release_back_and_keeps_a_good_one(
    on_a_copy: Callable[[str], str], packages: Path, more: Path
) -> None:
    debs = sorted(packages.glob("*.deb"))
    released(debs, more / "broken", 2, that_never_gets_ready)
    released(debs, more / "good", 3, with_another_schema)
    shutil.copy(Path(__file__).with_name("played_systemctl.py"), more / "played")
    (more / "story.sh").write_text(STORY.format(install=typed("ctl: the controller"), upgrade=typed("Upgrading")))
    parts = re.split("^--- (?:look|broken|good)\n", on_a_copy("unshare --net sh /more/story.sh"), flags=re.MULTILINE)
    before, looked, broken, looked_again, good, at_last = parts
    assert "skerry-cli, skerry-controller is installed here, and no newer package of it was named" in before
    assert before.endswith("REFUSED\n")
    state = r"(ii \S+-{} ){{3}}schema {}\n# ours\nroot:skerry 640\ndemo\nsystem\n/var/lib/skerry-upgrade/lock\n"
    assert re.fullmatch(state.format(1, r"\d{4}"), looked), looked

    assert "RuntimeError: planted: not ready" in broken
    assert re.search(r"rolled back: \S+-1 runs and is ready; \S+-2 did not become ready.*\nEXIT 1\n$", broken), broken
    assert looked_again == looked

    assert "skerry-agent is not installed here, and is left out" in good
    assert re.search(r"\S+-3 runs and is ready", good), good
    kept = r"\n/var/lib/skerry-upgrade/former:\ndatabase\nnote.json\npackages\n"
    assert re.fullmatch(state.format(3, SCHEMA) + kept, at_last), at_last
