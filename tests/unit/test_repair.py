"""What is done about each difference: nothing that anybody owns is ever destroyed."""

from typing import Any, Literal

import pytest
from test_audit import DOCS, HERE, NET, OTHER, VM, VOL, claim, domain, vm_row, wishes

from common import names
from common.documents import DomainDoc, NetworkDoc, VolumeDoc, key_of
from common.ids import HostId, Id, RequestId
from controller.fleet.audit import Difference, compare
from controller.fleet.repair import Plan, plan_repairs
from controller.store.rows import Gone, Put
from controller.store.working import WorkingSet
from controller.store.writes import BuryOrphan, Poke, PutDocument, ReleaseAddresses, ReleasePlacement

REQUEST = RequestId("req-1")
STRAY = {kind: Id(f"{kind}-zzzzzzzzzzzz") for kind in ("vm", "vol", "net", "img")}


def orphan(what: str, name: str, owner: Id | None, detail: str = "") -> Difference:
    return Difference(problem="orphan", what=what, name=name, owner=owner, owner_name="", detail=detail)


def plan(seen: WorkingSet, *differences: Difference) -> Plan:
    return plan_repairs(seen, HERE, differences, REQUEST)


@pytest.mark.parametrize(
    ("what", "name", "kind", "doc"),
    [
        ("domain", "vm-zzzzzzzzzzzz", "vm", DomainDoc),
        ("file", "vm-zzzzzzzzzzzz.log", "vm", DomainDoc),
        ("disk", "vol-zzzzzzzzzzzz", "vol", VolumeDoc),
        ("file", "vol-zzzzzzzzzzzz.qcow2-part", "vol", VolumeDoc),
        ("file", "ec29cbaa-bb17-4bf9-831b-b6177aec001c", "vm", DomainDoc),
        ("file", "vol-zzzzzzzzzzzz.uefi-secure", "vol", VolumeDoc),
        ("bridge", "b-zzzzzzzzzzzz", "net", NetworkDoc),
        ("namespace", "net-zzzzzzzzzzzz", "net", NetworkDoc),
        ("fdb", "02:00:00:00:00:99 x-zzzzzzzzzzzz", "net", NetworkDoc),
    ],
)
def test_what_nobody_owns_is_destroyed_by_a_tombstone_under_the_request(
    what: str, name: str, kind: str, doc: Any
) -> None:
    found = plan(wishes(*DOCS), orphan(what, name, None if what == "fdb" else STRAY[kind]))

    assert [one.action for one in found.repairs] == ["destroy"]
    (write,) = found.writes
    assert isinstance(write, BuryOrphan)
    assert (write.host, write.owner, write.request) == (HERE, STRAY[kind], REQUEST)
    assert isinstance(write.doc, doc)
    assert write.doc.id == STRAY[kind]


def test_the_many_parts_of_one_network_need_one_tombstone() -> None:
    parts = [("bridge", "b-zzzzzzzzzzzz"), ("vxlan", "x-zzzzzzzzzzzz"), ("namespace", "net-zzzzzzzzzzzz")]
    found = plan(wishes(*DOCS), *(orphan(what, name, STRAY["net"]) for what, name in parts))

    assert [one.action for one in found.repairs] == ["destroy"] * 3
    assert len(found.writes) == 1


@pytest.mark.parametrize(
    ("difference", "why"),
    [
        (orphan("domain", "somebodys", None), "remove it by hand"),
        (orphan("domain", OTHER, OTHER), "vm db owns it"),
        (orphan("tap", "t0zzzzzzzzzzzz", STRAY["vm"]), "ip link delete t0zzzzzzzzzzzz"),
        (orphan("file", "img-zzzzzzzzzzzz", STRAY["img"]), "remove it by hand"),
    ],
    ids=["a stranger's", "of a machine elsewhere", "a loose tap", "an image's"],
)
def test_what_somebody_owns_or_nobody_knows_is_left_alone(difference: Difference, why: str) -> None:
    found = plan(wishes(*DOCS), difference)

    assert [one.action for one in found.repairs] == ["leave"]
    assert why in found.repairs[0].say
    assert found.writes == ()


@pytest.mark.parametrize("left", ["claim", "document"])
def test_what_still_has_a_claim_or_a_document_anywhere_is_not_destroyed(left: Literal["claim", "document"]) -> None:
    seen = WorkingSet()
    if left == "claim":
        seen.apply([Put(claim(STRAY["vm"], HostId(Id("host-elsewhere00"))))])
    else:
        seen = wishes(*DOCS)
        seen.apply([Gone(vm_row(VM, "web")), Gone(claim())])
    owner = STRAY["vm"] if left == "claim" else VM
    found = plan(seen, orphan("domain", owner, owner))

    assert [one.action for one in found.repairs] == ["leave"]
    assert found.writes == ()


def test_a_tap_goes_with_the_machine_that_nobody_owns() -> None:
    vm = STRAY["vm"]
    found = plan(wishes(*DOCS), orphan("domain", vm, vm), orphan("tap", names.tap(vm, 0), vm))

    assert [one.action for one in found.repairs] == ["destroy", "destroy"]
    assert len(found.writes) == 1


@pytest.mark.parametrize("what", ["domain", "disk", "bridge", "fdb"])
def test_what_is_missing_is_sent_again(what: str) -> None:
    seen = wishes(*DOCS)
    missing = next(one for one in compare(seen, HERE, []) if one.what == what)
    found = plan(seen, missing)

    assert [one.action for one in found.repairs] == ["send again"]
    (write,) = found.writes
    assert isinstance(write, PutDocument)
    assert write.doc in DOCS
    assert write.request == REQUEST


def test_an_entry_that_does_not_belong_into_a_live_network_has_the_network_looked_at() -> None:
    stray = orphan("fdb", f"02:00:00:00:00:99 {names.vxlan(NET)}", None)
    found = plan(wishes(*DOCS), stray, orphan("lease", "02:00:00:00:00:99 10.0.0.9", None, NET))

    assert [one.action for one in found.repairs] == ["send again"] * 2
    (write,) = found.writes
    assert isinstance(write, PutDocument)
    assert isinstance(write.doc, NetworkDoc)


def test_what_is_left_of_a_port_of_nobody_gets_a_tombstone_of_its_own() -> None:
    vm = STRAY["vm"]
    lease = orphan("lease", f"{names.mac(vm, 3)} 10.0.0.9", vm, NET)
    entry = orphan("fdb", f"{names.mac(vm, 3)} {names.vxlan(NET)}", vm)
    found = plan(wishes(*DOCS), lease, entry)

    assert [one.action for one in found.repairs] == ["destroy", "destroy"]
    (write,) = found.writes
    assert isinstance(write, BuryOrphan)
    assert key_of(write.doc) == f"port/{vm}.3"


def test_a_claim_of_what_is_gone_is_given_back_and_one_that_differs_is_planned_anew() -> None:
    seen = wishes(domain())
    seen.apply([Gone(vm_row(VM, "web"))])
    (gone,) = [one for one in compare(seen, HERE, []) if one.problem == "claim"]
    other = wishes(domain())
    other.apply([Gone(claim()), Put(claim(vcpus=9))])
    (differs,) = [one for one in compare(other, HERE, []) if one.problem == "claim"]

    assert plan(seen, gone).writes == (ReleasePlacement(owner=VM), ReleaseAddresses(vm=VM))
    assert plan(other, differs).writes == (Poke(resource=VM),)


def test_a_plan_is_known_by_what_is_in_it() -> None:
    seen = wishes(*DOCS)
    one, other = orphan("domain", "vm-zzzzzzzzzzzz", STRAY["vm"]), orphan("disk", "x", STRAY["vol"])

    assert plan(seen, one).digest == plan(seen, one).digest
    assert plan(seen, one).digest != plan(seen, one, other).digest
    assert plan(seen).repairs == ()
    assert VOL not in {repair.difference.owner for repair in plan(seen, one, other).repairs}
