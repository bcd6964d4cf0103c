"""What namespace hosts can't show: libvirtd under systemd, KVM domains, thin volumes, all the modules."""

import tarfile
from pathlib import Path

import pytest

from common.run import CommandFailed
from lab.guest import tiny
from lab.layout import ROOT
from lab.machine import SPARE, Machine

pytestmark = [pytest.mark.host, pytest.mark.timeout(600)]

DOMAIN = """
<domain type='kvm'>
  <name>proof</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type>
    <kernel>/srv/proof/vmlinuz</kernel><initrd>/srv/proof/initrd</initrd>
    <cmdline>console=ttyS0 quiet panic=5</cmdline></os>
  <features><acpi/></features>
  <cpu mode='host-passthrough'/>
  <on_poweroff>destroy</on_poweroff><on_crash>destroy</on_crash>
  <devices><serial type='file'><source path='/srv/proof/serial.log'/></serial></devices>
</domain>
"""
UNIT = """
[Service]
Type=notify
NotifyAccess=all
ExecStart=/bin/sh -c 'systemd-notify --ready; exec sleep infinity'
"""


@pytest.fixture
def guest(tmp_path: Path, real_kernel: Machine) -> None:
    """Put kernel and initrd of the image `tiny`, and a domain that boots them, into the machine."""
    folder = tmp_path / "proof"
    folder.mkdir()
    with tarfile.open(tiny(ROOT / "build" / "guest")) as tar:
        for name in ("vmlinuz", "initrd"):
            tar.extract(name, folder)
    (folder / "domain.xml").write_text(DOMAIN)
    real_kernel.put(folder, "/srv/")


@pytest.mark.usefixtures("guest")
def test_libvirtd_under_systemd_runs_a_kvm_domain(real_kernel: Machine) -> None:
    try:
        real_kernel.run("virsh -q create /srv/proof/domain.xml", timeout_s=120)
        found = real_kernel.run(
            "for _ in $(seq 90); do grep -s 'skerry-tiny: Linux' /srv/proof/serial.log && exit; sleep 1; done; "
            "echo 'it did not boot:'; tail -n 20 /srv/proof/serial.log; virsh domstate proof",
            timeout_s=120,
        )
        assert found.startswith("skerry-tiny: Linux")
        assert "kvm support: enabled" in real_kernel.run("virsh qemu-monitor-command proof --hmp 'info kvm'")
    finally:
        real_kernel.run("virsh -q destroy proof || true; rm -r /srv/proof")
    assert real_kernel.run("systemctl is-active libvirtd").strip() == "active"


def test_a_thin_volume_is_made_copied_and_removed(real_kernel: Machine) -> None:
    real_kernel.run(f"pvcreate -q {SPARE}; vgcreate -q proof {SPARE}; lvcreate -q -T -L 1G proof/pool")
    try:
        seen = real_kernel.run(
            "exec 2>&1; lvcreate -q -V 4G -T proof/pool -n one; echo kept >/dev/proof/one; sync; "
            "lvcreate -q -s -n two proof/one; lvchange -q -ay -K proof/two; echo lost! >/dev/proof/one; sync; "
            "head -c 5 /dev/proof/two; lvs --noheadings -o lv_name,origin proof; lvremove -qy proof/one proof/two"
        )
        assert "kept\n" in seen
        assert "two" in seen
        assert real_kernel.run("lvs --noheadings -o lv_name proof").split() == ["pool"]
    finally:
        real_kernel.run(f"vgremove -qy proof; pvremove -q {SPARE}")


def test_a_unit_is_started_when_it_says_that_it_is_ready(real_kernel: Machine) -> None:
    real_kernel.run(f"cat >/run/systemd/system/proof.service <<'END'\n{UNIT}END\nsystemctl daemon-reload")
    try:
        real_kernel.run("systemctl start proof")
        assert real_kernel.run("systemctl is-active proof").strip() == "active"
    finally:
        real_kernel.run("systemctl stop proof; rm /run/systemd/system/proof.service; systemctl daemon-reload")


def test_its_kernel_has_what_production_has(real_kernel: Machine) -> None:
    modules = "kvm_amd dm_thin_pool nf_conntrack_bridge vxlan vrf wireguard sch_netem"
    real_kernel.run(f"for module in {modules}; do modprobe $module; done")
    rules = "table bridge proof { chain one { ct state established accept; }; }"
    real_kernel.run(f"echo '{rules}' | nft -f -; nft delete table bridge proof")


def test_what_fails_in_it_is_told(real_kernel: Machine) -> None:
    with pytest.raises(CommandFailed, match=r"ended with 3: it went wrong"):
        real_kernel.run("echo it went wrong >&2; exit 3")
