"""Data volumes of a machine that runs: attached once they are ready, asked back from the guest, and said meanwhile."""

import xml.etree.ElementTree as ET
from typing import Any

import msgspec

from agent.drivers.hypervisor import LiveDisk, LiveDomain
from agent.drivers.place import Place
from agent.kinds.domain_disks import AttachDisk, DataView, DetachDisk, Tried, next_step, note
from agent.kinds.domain_plan import plan
from agent.kinds.domain_xml import DATA_TARGETS, domain_xml
from agent.kinds.unit import Do, Settled, Wait
from common.documents import DataDisk, DomainDoc, DomainSeen
from common.ids import Id
from common.kinds.volume import MOST_ATTACHED
from tests.unit.test_domain_plan import BOOT, PLACE, VM, doc, live, view, wish

ROOT, ONE, TWO = Id("vol-0123456789ab"), Id("vol-111111111111"), Id("vol-222222222222")


def having(*volumes: Id) -> DomainDoc:
    return doc(data=tuple(DataDisk(volume=one) for one in volumes))


def running(*volumes: Id) -> LiveDomain:
    disks = tuple(LiveDisk(volume=one, target=target) for one, target in zip(volumes, DATA_TARGETS, strict=False))
    return live(doc(), disks=(LiveDisk(volume=ROOT, target="vda"), *disks))


def step(of: DomainDoc, domain: LiveDomain, now: float = 0, place: Place = PLACE, **seen: Any) -> Any:
    found = next_step(of, domain, place, DataView(**seen), now)
    return found[0] if found else None


def test_what_is_lacking_is_attached_at_a_free_target_with_its_id_for_a_serial_number() -> None:
    attach = step(having(ONE, TWO), running(ONE))
    assert isinstance(attach, AttachDisk)
    disk = ET.fromstring(attach.xml)
    assert (disk.findtext("serial"), disk.find("target").get("dev")) == (TWO, "vdd")  # type: ignore[union-attr]
    assert step(having(ONE, TWO), running(ONE, TWO)) is None


def test_a_disk_of_a_volume_group_is_a_block_device() -> None:
    attach = step(having(ONE), running(), place=msgspec.structs.replace(PLACE, volume_group="vg0"))
    disk = ET.fromstring(attach.xml)
    assert disk.get("type") == "block"
    assert disk.find("source").get("dev") == f"/dev/vg0/{ONE}"  # type: ignore[union-attr]
    assert disk.find("driver").get("type") == "raw"  # type: ignore[union-attr]


def test_what_is_not_ready_or_still_in_use_elsewhere_is_waited_for_and_said() -> None:
    assert step(having(ONE), running(), missing=(ONE,)) is None
    assert step(having(ONE), running(), held={ONE: "vm-zzzzzzzzzzzz"}) is None
    for seen, words in (
        (DataView(missing=(ONE,)), f"waiting for volume {ONE}"),
        (DataView(held={ONE: "vm-zzzzzzzzzzzz"}), f"{ONE} is still in use by vm-zzzzzzzzzzzz"),
    ):
        outcome = plan(wish(having(ONE)), view(running(), data=seen), 100)
        assert isinstance(outcome, Wait)
        assert outcome.reports[0].done
        assert isinstance(outcome.reports[0].seen, DomainSeen)
        assert words in outcome.reports[0].seen.data_note


def test_a_guest_that_clings_is_asked_again_and_again_and_its_root_disk_is_never_asked_for() -> None:
    detach = step(having(TWO), running(ONE, TWO))
    assert detach == DetachDisk(vm=VM, volume=ONE, target="vdc")
    asked = {ONE: Tried(at=100)}
    assert step(having(TWO), running(ONE, TWO), 110, tried=asked) is None
    assert step(having(TWO), running(ONE, TWO), 116, tried=asked) == detach
    assert step(having(TWO), running(ONE, TWO), 90, tried=asked) == detach, "the clock was set back"
    assert f"its guest has not let go of volume {ONE}; unmount" in note(having(), running(ONE), DataView(tried=asked))
    assert step(doc(volumes=()), running()) is None


def test_what_libvirt_refuses_is_said_and_does_not_stop_the_machine_from_being_as_wished() -> None:
    said = DataView(tried={ONE: Tried(at=100, said="no more slots")})
    outcome = plan(wish(having(ONE)), view(running(), data=said), 101)
    assert isinstance(outcome, Wait)
    assert "can't be attached while it runs: no more slots; stop and start" in outcome.message
    assert isinstance(plan(wish(having(ONE)), view(running(), data=said), 200), Do)
    assert isinstance(plan(wish(having(ONE)), view(running(ONE)), 101), Settled)


def test_a_machine_starts_once_its_data_volumes_are_ready() -> None:
    waits = plan(wish(having(ONE)), view(None, data=DataView(missing=(ONE,))), 0)
    assert isinstance(waits, Wait)
    assert f"waiting for volume {ONE}" in waits.message


def test_slots_for_all_that_may_come_are_there_from_the_start() -> None:
    def slots(of: DomainDoc) -> int:
        root = ET.fromstring(domain_xml(of, PLACE, BOOT).text)
        return len(root.findall("devices/controller[@model='pcie-root-port']"))

    assert slots(having()) == slots(having(ONE, TWO)) == len(doc().nics) + 1 + 3 + MOST_ATTACHED
    root = ET.fromstring(domain_xml(having(ONE, TWO), PLACE, BOOT).text)
    assert [one.get("dev") for one in root.iterfind("devices/disk/target")] == ["vda", "vdc", "vdd"]
    assert len(DATA_TARGETS) == MOST_ATTACHED
