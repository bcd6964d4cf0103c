"""The definition that libvirt gets."""

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.drivers import cpu_models, firmware
from agent.drivers.firmware import Started
from agent.drivers.hypervisor import NAMESPACE
from agent.drivers.place import BootFiles
from agent.kinds.domain_xml import domain_xml
from common import names
from common.documents import DomainDoc, GuestCpu, Nic
from common.errors import Temporary
from common.ids import Id
from common.protocol import GuestCpus
from tests.unit.test_domain_plan import BOOT, PLACE, VM, doc


def tree(of: DomainDoc, boot: BootFiles | None = BOOT, **place: Any) -> ET.Element:
    return ET.fromstring(domain_xml(of, msgspec.structs.replace(PLACE, **place), boot).text)


def test_names_come_from_the_id() -> None:
    root = tree(doc())
    assert root.findtext("name") == VM
    assert root.findtext("uuid") == names.domain_uuid(VM)
    assert root.find("devices/interface/target").get("dev") == names.tap(VM, 0)  # type: ignore[union-attr]
    assert root.find("devices/disk/source").get("file") == "/pool/vol-0123456789ab.qcow2"  # type: ignore[union-attr]
    assert root.find("devices/serial/log").get("file") == f"/logs/{VM}.log"  # type: ignore[union-attr]


def test_smbios_uuid_and_serial_are_equal_and_say_ec2() -> None:
    entries = {e.get("name"): e.text for e in tree(doc()).iterfind("sysinfo/system/entry")}
    assert entries["uuid"] == entries["serial"] == names.domain_uuid(VM)
    assert entries["uuid"].startswith("ec2")


def test_the_domain_type_follows_the_host() -> None:
    assert tree(doc()).get("type") == "qemu"
    assert tree(doc(), virtualisation="kvm").get("type") == "kvm"


def test_the_host_caches_nothing_where_direct_io_works() -> None:
    driver = tree(doc(), direct_io=True).find("devices/disk/driver")
    assert driver is not None
    assert (driver.get("cache"), driver.get("io")) == ("none", "native")


def test_kernel_boot_takes_the_images_command_line_or_the_default() -> None:
    assert tree(doc()).findtext("os/cmdline") == "console=ttyS0"
    assert tree(doc(), BootFiles(kernel="/k", initrd="/i", cmdline="quiet")).findtext("os/cmdline") == "quiet"
    assert tree(doc(kernel=None), None).find("os/kernel") is None


def test_metadata_carries_owner_and_generations() -> None:
    element = tree(doc(start_generation=3, boot_generation=5)).find(f"metadata/{{{NAMESPACE}}}domain")
    assert element is not None
    assert element.get("owner") == VM
    assert (element.get("start_generation"), element.get("boot_generation")) == ("3", "5")


def test_the_shape_ignores_generations_and_follows_everything_else() -> None:
    shape = domain_xml(doc(), PLACE, BOOT).shape
    assert domain_xml(doc(start_generation=9, boot_generation=9), PLACE, BOOT).shape == shape
    assert domain_xml(doc(vcpus=2), PLACE, BOOT).shape != shape
    assert domain_xml(doc(), msgspec.structs.replace(PLACE, volumes=Path("/other")), BOOT).shape != shape


def test_every_disk_and_nic_is_there_in_order() -> None:
    nics = tuple(
        Nic(index=i, network=Id(f"net-{i}00000000000"), mac=f"02:00:00:00:00:0{i}", mtu=1400) for i in range(3)
    )
    root = tree(doc(volumes=(Id("vol-000000000000"), Id("vol-111111111111")), nics=nics))
    assert [t.get("dev") for t in root.iterfind("devices/disk/target")] == ["vda", "vdb"]
    assert [s.get("bridge") for s in root.iterfind("devices/interface/source")] == [
        names.bridge(n.network) for n in nics
    ]
    assert {m.get("size") for m in root.iterfind("devices/interface/mtu")} == {"1400"}


def test_text_from_users_can_not_break_out() -> None:
    root = tree(doc(name="a</title><x/>", project="&\x00"))
    assert root.findtext("title") == "&/a</title><x/>"
    assert root.find("x") is None


def test_the_crash_policy_follows_the_wish() -> None:
    assert tree(doc()).findtext("on_crash") == "restart"
    assert tree(doc(restart="never")).findtext("on_crash") == "destroy"


def test_the_nocloud_disk_is_one_that_every_cloud_kernel_can_see() -> None:
    seeds = [disk for disk in tree(doc(nocloud=True)).iterfind("devices/disk") if disk.find("readonly") is not None]
    (seed,) = seeds
    target = seed.find("target")
    assert target is not None
    assert (seed.get("device"), target.get("bus")) == ("disk", "virtio")
    assert all(disk.find("readonly") is None for disk in tree(doc()).iterfind("devices/disk"))


def test_a_guests_cpu_is_written_flag_by_flag_and_what_the_base_has_beyond_it_is_taken_away() -> None:
    cpu = tree(doc(cpu=GuestCpu(wish="shared", flags=("avx", "sse2")))).find("cpu")
    assert cpu is not None
    assert (cpu.get("mode"), cpu.findtext("model")) == ("custom", "qemu64")
    policies = {one.get("name"): one.get("policy") for one in cpu.iterfind("feature")}
    assert {name for name, policy in policies.items() if policy == "require"} == {"avx", "sse2"}
    assert policies["svm"] == "disable"


def test_without_one_it_has_all_that_its_host_has() -> None:
    assert tree(doc()).find("cpu").get("mode") == "maximum"  # type: ignore[union-attr]
    assert tree(doc(), virtualisation="kvm").find("cpu").get("mode") == "host-passthrough"  # type: ignore[union-attr]


CAPABILITIES = """<domainCapabilities><cpu><mode name='host-passthrough' supported='yes'/>
<mode name='host-model' supported='yes'><model fallback='forbid'>EPYC</model><vendor>AMD</vendor>
<feature policy='require' name='x2apic'/><feature policy='disable' name='vme'/></mode></cpu></domainCapabilities>"""


def test_what_a_host_can_give_is_asked_with_the_model_that_is_most_like_it() -> None:
    asked = ET.fromstring(cpu_models.host_model(CAPABILITIES))
    assert (asked.tag, asked.findtext("arch"), asked.findtext("model")) == ("cpu", "x86_64", "EPYC")
    with pytest.raises(Temporary, match="no model"):
        cpu_models.host_model("<domainCapabilities/>")
    answer = """<cpu><model>EPYC</model><vendor>AMD</vendor><feature policy='require' name='avx'/>
    <feature policy='disable' name='svm'/><feature name='aes'/><feature policy='require' name='vme'/></cpu>"""
    found = cpu_models.guest_cpus(cpu_models.host_model(CAPABILITIES), answer)
    assert found == GuestCpus(vendor="AMD", flags=("aes", "avx"))


def features(root: ET.Element) -> dict[str | None, str | None]:
    return {one.get("name"): one.get("enabled") for one in root.iterfind("os/firmware/feature")}


def test_a_machine_with_bios_has_nothing_of_uefi_in_its_definition() -> None:
    root = tree(doc())
    assert root.find("os").get("firmware") is None  # type: ignore[union-attr]
    assert (root.find("os/nvram"), root.find("features/smm"), root.find("devices/tpm")) == (None, None, None)


def test_secure_boot_asks_for_keys_and_for_variables_that_only_the_firmware_can_write() -> None:
    root = tree(doc(firmware="uefi-secure"))
    assert features(root) == {"secure-boot": "yes", "enrolled-keys": "yes"}
    assert root.find("features/smm").get("state") == "on"  # type: ignore[union-attr]
    assert root.find("os/loader").get("secure") == "yes"  # type: ignore[union-attr]


def test_plain_uefi_asks_for_firmware_that_checks_nothing() -> None:
    root = tree(doc(firmware="uefi"))
    assert root.find("os").get("firmware") == "efi"  # type: ignore[union-attr]
    assert features(root) == {"secure-boot": "no", "enrolled-keys": "no"}
    assert (root.find("features/smm"), root.find("os/loader")) == (None, None)


def test_variables_go_with_the_disk_that_is_booted_from_and_the_sort_of_firmware() -> None:
    root, rescue = Id("vol-000000000000"), Id("vol-111111111111")
    kept = {
        tree(doc(firmware=firmware, volumes=volumes)).findtext("os/nvram")
        for firmware in ("uefi", "uefi-secure")
        for volumes in ((root,), (rescue, root))
    }
    assert kept == {
        "/variables/vol-000000000000.uefi",
        "/variables/vol-000000000000.uefi-secure",
        "/variables/vol-111111111111.uefi",
        "/variables/vol-111111111111.uefi-secure",
    }
    assert {names.owner_of(Path(one).name) for one in kept if one} == {root, rescue}


def test_a_machine_that_waits_for_its_disk_is_defined_without_firmware() -> None:
    assert tree(doc(firmware="uefi", volumes=())).find("os").get("firmware") is None  # type: ignore[union-attr]


def test_a_tpm_is_one_of_version_2() -> None:
    backend = tree(doc(tpm=True)).find("devices/tpm/backend")
    assert backend is not None
    assert (backend.get("type"), backend.get("version")) == ("emulator", "2.0")


@pytest.mark.parametrize(
    ("loader", "started"),
    [
        ("", Started("bios", tpm=False)),
        ("<loader readonly='yes' type='pflash'>/code</loader>", Started("uefi", tpm=False)),
        ("<loader readonly='yes' secure='no' type='pflash'>/code</loader>", Started("uefi", tpm=False)),
        ("<loader readonly='yes' secure='yes' type='pflash'>/code</loader>", Started("uefi-secure", tpm=False)),
    ],
)
def test_what_a_run_was_started_with_is_read_from_its_loader(loader: str, started: Started) -> None:
    assert firmware.started(f"<domain><os>{loader}</os><devices/></domain>") == started
    with_tpm = f"<domain><os>{loader}</os><devices><tpm model='tpm-crb'/></devices></domain>"
    assert firmware.started(with_tpm) == started._replace(tpm=True)


def test_a_tpm_is_to_be_had_where_libvirt_has_an_emulator_for_it() -> None:
    def capabilities(supported: str, backend: str) -> str:
        enum = f"<enum name='backendModel'><value>{backend}</value></enum>"
        return f"<domainCapabilities><devices><tpm supported='{supported}'>{enum}</tpm></devices></domainCapabilities>"

    assert firmware.emulates_tpm(capabilities("yes", "emulator"))
    assert not firmware.emulates_tpm(capabilities("yes", "passthrough"))
    assert not firmware.emulates_tpm(capabilities("no", "emulator"))
    assert not firmware.emulates_tpm("<domainCapabilities/>")
