"""The auditor: names everything that is there unwanted, or wanted and not there, or not as the books say."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import names
from common.documents import (
    AnyDoc,
    DomainDoc,
    DomainSeen,
    GuestMetadata,
    NetworkDoc,
    PortDoc,
    Report,
    VolumeDoc,
    key_of,
)
from common.ids import HostId, Id, Revision
from common.kinds.kind import Resource
from common.kinds.vm import VmSpec, VmStatus
from common.protocol import Found
from controller.fleet.audit import Difference, compare
from controller.store.rows import Document, Gone, Placement, Put
from controller.store.working import WorkingSet

HERE, THERE = HostId(Id("host-00000000000a")), HostId(Id("host-00000000000b"))
VM, OTHER = Id("vm-00000000000a"), Id("vm-00000000000b")
VOL, NET = Id("vol-00000000000a"), Id("net-00000000000a")
MAC, FAR_MAC = names.mac(VM, 0), names.mac(OTHER, 0)


def domain(vcpus: int = 1) -> DomainDoc:
    metadata = GuestMetadata(instance_id=VM, hostname="web", project="p", public_keys=(), user_data="", host="h")
    return DomainDoc(
        id=VM, name="web", project="p", vcpus=vcpus, memory_mib=64, kernel=None, volumes=(VOL,), nics=(),
        power="running", start_generation=1, boot_generation=1, restart="never", stop_grace_s=0, nocloud=False,
        metadata=metadata,
    )  # fmt: skip


def port(vm: Id, mac: str, address: str, host: HostId) -> PortDoc:
    return PortDoc(
        vm=vm, index=0, network=NET, mac=mac, address=address, hostname="x", host=host, vtep="10.77.0.12"
    )  # fmt: skip


NETWORK = NetworkDoc(id=NET, vni=7, cidr="10.0.0.0/24", gateway="10.0.0.1", mtu=1450, domain="n.p.internal")
DOCS: tuple[AnyDoc, ...] = (
    domain(), VolumeDoc(id=VOL, size_gib=1, image=None), NETWORK, port(VM, MAC, "10.0.0.2", HERE),
    port(OTHER, FAR_MAC, "10.0.0.3", THERE),
)  # fmt: skip

BRIDGE, VXLAN, INNER, OUTER = names.bridge(NET), names.vxlan(NET), names.gateway_inner(NET), names.gateway_outer(NET)
AS_WISHED: tuple[Found, ...] = tuple(
    Found(what=what, name=name, owner=owner)
    for what, name, owner in (
        ("domain", VM, VM),
        ("file", f"{VM}.log", VM),
        ("disk", VOL, VOL),
        ("bridge", BRIDGE, NET),
        ("vxlan", VXLAN, NET),
        ("namespace", NET, NET),
        ("veth", OUTER, NET),
        ("veth", INNER, NET),
        ("dnsmasq", f"/run/skerry-agent/networks/{NET}", NET),
        ("fdb", f"02:00:00:00:00:01 {OUTER}", NET),
        ("fdb", f"{MAC} {names.tap(VM, 0)}", VM),
        ("neighbour", f"10.0.0.2 {MAC} {INNER}", VM),
        ("fdb", f"{FAR_MAC} {VXLAN}", OTHER),
        ("neighbour", f"10.0.0.3 {FAR_MAC} {VXLAN}", OTHER),
        ("lease", f"{MAC} 10.0.0.2", VM),
        ("image", "ab" * 32, None),
    )
)
"""As the agent's kinds word it."""

NEVER_MISSED = {"file", "lease", "image", "dnsmasq"}


def vm_row(vm: Id, name: str) -> Any:
    return Resource(
        id=vm, kind="vm", project="p", name=name, labels={}, generation=1, observed_generation=1,
        spec=VmSpec(image="", size="", networks=("n",)), status=VmStatus(), owner=None, created_at=0, deleted_at=None,
        revision=Revision(1),
    )  # fmt: skip


def claim(vm: Id = VM, host: HostId = HERE, vcpus: int = 1) -> Placement:
    return Placement(owner=vm, host=host, vcpus=vcpus, memory_mib=64, disk_gib=1)


def wishes(*docs: AnyDoc, gone: bool = False) -> WorkingSet:
    seen = WorkingSet()
    owners = {NET: NET, VOL: VOL}
    for doc in docs:
        owner = NET if isinstance(doc, PortDoc) else owners.get(doc.id, VM)
        document = Document(host=HERE, key=key_of(doc), owner=owner, doc=doc, gone=gone, revision=Revision(1))
        seen.apply([Put(document)])
    seen.apply([Put(vm_row(VM, "web")), Put(vm_row(OTHER, "db")), Put(claim())])
    return seen


def test_a_host_that_is_as_wished_has_no_difference() -> None:
    assert compare(wishes(*DOCS), HERE, AS_WISHED) == ()


@pytest.mark.parametrize("lost", [one for one in AS_WISHED if one.what not in NEVER_MISSED], ids=lambda f: f.name)
def test_whatever_is_not_there_is_missed(lost: Found) -> None:
    differences = compare(wishes(*DOCS), HERE, [one for one in AS_WISHED if one != lost])
    local_entries = {f"02:00:00:00:00:01 {OUTER}", f"{MAC} {names.tap(VM, 0)}"}
    if lost.name in local_entries:
        assert differences == (), "a stopped machine has no tap, and the gateway's entry goes with its device"
        return
    (one,) = differences
    assert (one.problem, one.what, one.name) == ("missing", lost.what, lost.name)


@pytest.mark.parametrize("what", sorted(NEVER_MISSED))
def test_what_comes_and_goes_is_never_missed(what: str) -> None:
    assert compare(wishes(*DOCS), HERE, [one for one in AS_WISHED if one.what != what]) == ()


def test_a_missing_thing_is_named_with_its_owner() -> None:
    (one,) = compare(wishes(domain()), HERE, [])
    assert one == Difference(problem="missing", what="domain", name=VM, owner=VM, owner_name="vm web")


@pytest.mark.parametrize(
    "stray",
    [
        Found(what="domain", name="vm-zzzzzzzzzzzz", owner=Id("vm-zzzzzzzzzzzz")),
        Found(what="domain", name="somebodys", owner=None),
        Found(what="disk", name="vol-zzzzzzzzzzzz", owner=Id("vol-zzzzzzzzzzzz")),
        Found(what="file", name="vol-zzzzzzzzzzzz.qcow2-part", owner=Id("vol-zzzzzzzzzzzz")),
        Found(what="file", name="ec29cbaa-bb17-4bf9-831b-b6177aec001c", owner=Id("vm-zzzzzzzzzzzz"), detail="TPM"),
        Found(what="file", name="vol-zzzzzzzzzzzz.uefi-secure", owner=Id("vol-zzzzzzzzzzzz")),
        Found(what="bridge", name="b-zzzzzzzzzzzz", owner=Id("net-zzzzzzzzzzzz")),
        Found(what="fdb", name=f"02:00:00:00:00:99 {VXLAN}", owner=None),
        Found(what="lease", name="02:00:00:00:00:99 10.0.0.9", owner=None),
        Found(what="logical-volume", name="vg0/backup", owner=None),
    ],
    ids=lambda f: f.name,
)
def test_what_nobody_wants_is_an_orphan(stray: Found) -> None:
    (one,) = compare(wishes(*DOCS), HERE, (*AS_WISHED, stray))
    assert (one.problem, one.what, one.name, one.owner) == ("orphan", stray.what, stray.name, stray.owner)


def test_files_and_images_that_belong_to_nobody_are_left_to_their_own_sweeps() -> None:
    strays = (Found(what="file", name="direct-io-x", owner=None), Found(what="image", name="cd" * 32, owner=None))
    assert compare(wishes(*DOCS), HERE, (*AS_WISHED, *strays)) == ()


def test_what_is_on_its_way_out_is_neither_missed_nor_an_orphan() -> None:
    seen = wishes(*DOCS, gone=True)
    assert compare(seen, HERE, AS_WISHED) == ()
    assert compare(seen, HERE, ()) == ()


def test_what_another_host_should_have_is_an_orphan_here() -> None:
    differences = compare(wishes(*DOCS), THERE, AS_WISHED)
    assert {one.problem for one in differences} == {"orphan"}
    assert ("domain", VM, "vm web") in {(one.what, one.name, one.owner_name) for one in differences}


@pytest.mark.parametrize(
    "stray",
    [
        Found(what="domain", name=OTHER, owner=OTHER, detail="running"),
        Found(what="tap", name=names.tap(OTHER, 0), owner=OTHER),
        Found(what="file", name=f"{OTHER}.log", owner=OTHER),
    ],
    ids=lambda f: f.what,
)
def test_a_machine_that_belongs_elsewhere_is_an_orphan_also_where_its_port_is_known(stray: Found) -> None:
    (one,) = compare(wishes(*DOCS), HERE, (*AS_WISHED, stray))
    assert (one.problem, one.what, one.name, one.owner_name) == ("orphan", stray.what, stray.name, "vm db")


def test_a_claim_of_what_is_gone_is_named() -> None:
    seen = wishes()
    seen.apply([Put(claim(Id("vm-zzzzzzzzzzzz"), vcpus=3))])
    (one,) = compare(seen, HERE, [])
    assert (one.problem, one.name) == ("claim", "vm-zzzzzzzzzzzz")
    assert one.detail == "3 vCPUs and 64 MiB are claimed for what is gone"


@pytest.mark.parametrize("sold", [claim(vcpus=2), claim(host=THERE)])
def test_a_machine_told_otherwise_than_sold_is_named(sold: Placement) -> None:
    seen = wishes(domain())
    seen.apply([Put(sold)])
    differences = compare(seen, HERE, [AS_WISHED[0]])
    assert [(one.problem, one.name, one.owner_name) for one in differences] == [("claim", VM, "vm web")]


@pytest.mark.parametrize(("runs", "problems"), [(2, []), (3, ["claim"])])
def test_a_machine_that_shrinks_with_its_next_start_keeps_what_it_runs_with(runs: int, problems: list[str]) -> None:
    seen = wishes(*DOCS)
    seen.apply([Put(claim(vcpus=2))])
    shown = DomainSeen(
        state="running", start_generation=1, boot_generation=1, started_at=1.0, vcpus=runs, memory_mib=64
    )
    key = key_of(domain())
    seen.host(HERE).reports = {key: Report(key=key, revision=Revision(1), done=True, seen=shown)}
    assert [one.problem for one in compare(seen, HERE, AS_WISHED)] == problems


def test_a_machine_that_nothing_is_claimed_for_is_named() -> None:
    seen = wishes(domain())
    seen.apply([Gone(claim())])
    (one,) = compare(seen, HERE, [AS_WISHED[0]])
    assert (one.problem, one.what, one.name, one.owner_name) == ("claim", "placement", VM, "vm web")
    assert one.detail == f"the host was told {(HERE, 1, 64)}, the books have no claim"


@given(st.sets(st.integers(0, len(AS_WISHED) - 1)), st.sets(st.sampled_from(["b-zzzzzzzzzzzz", "x-zzzzzzzzzzzz"])))
def test_every_difference_is_named_once_and_nothing_else(lost: set[int], strays: set[str]) -> None:
    kept = [one for index, one in enumerate(AS_WISHED) if index not in lost]
    extra = [Found(what="bridge", name=name, owner=names.owner_of(name)) for name in strays]
    differences = compare(wishes(*DOCS), HERE, (*kept, *extra))
    assert {one.name for one in differences if one.problem == "orphan"} == strays
    missing = {(one.what, one.name) for one in differences if one.problem == "missing"}
    assert missing <= {(AS_WISHED[index].what, AS_WISHED[index].name) for index in lost}
    assert len({msgspec.json.encode(one) for one in differences}) == len(differences)
