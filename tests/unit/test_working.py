"""The working set: every row by the keys that readers need, whatever order it came, changed and went in."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.documents import DocKey, Report, VolumeDoc
from common.errors import NotFound
from common.ids import HostId, Id, RequestId, Revision
from common.kinds import kind_named
from common.kinds.host import HostSpec
from common.kinds.image import ImageSpec
from common.kinds.kind import AnyResource, Resource
from common.kinds.network import NetworkSpec
from common.kinds.token import TokenSpec
from common.kinds.vm import VmSpec
from common.kinds.volume import VolumeSpec
from controller.store.rows import (
    Address,
    AnyRow,
    Change,
    Document,
    Enrolment,
    Gone,
    Operation,
    Placement,
    Put,
    Token,
    Vni,
)
from controller.store.working import WorkingSet
from tests.store.same import same

HOST = HostId(Id("host-1"))
SPECS: dict[str, Any] = {"network": NetworkSpec(), "image": ImageSpec(), "volume": VolumeSpec(size_gib=1)}


def row(
    kind: str, name: str, *, project: str = "shop", spec: Any = None, owner: str | None = None, revision: int = 1,
    deleted_at: float | None = None, created_at: float = 0,
) -> AnyResource:  # fmt: skip
    return Resource(
        id=Id(f"{kind}-{project}-{name}"), kind=kind, project=project, name=name, labels={}, generation=1,
        observed_generation=0, spec=SPECS[kind] if spec is None else spec, status=kind_named(kind).status(),
        owner=Id(owner) if owner else None, created_at=created_at, deleted_at=deleted_at, revision=Revision(revision),
    )  # fmt: skip


def vm(name: str, *networks: str, **other: Any) -> AnyResource:
    spec = VmSpec(
        image="image-shop-tiny", size="size--small", networks=tuple(f"network-shop-{one}" for one in networks)
    )
    return row("vm", name, spec=spec, **other)


def filled(*rows: AnyRow | AnyResource) -> WorkingSet:
    seen = WorkingSet()
    seen.apply(Put(one) for one in rows)
    return seen


def operation(number: int, *, finished_at: float | None = None, created_at: float = 0) -> Operation:
    return Operation(
        id=Id(f"op-{number}"), verb="set", kind="vm", resource=Id("vm-shop-web"), project="shop", name="web",
        generation=1, actor="a", request=RequestId(""), state="running", message="", progress=0, why=None,
        previous_spec=b"", created_at=created_at, finished_at=finished_at, revision=Revision(number),
    )  # fmt: skip


# --- resources ----------------------------------------------------------------------------------------------------


def test_a_resource_is_found_by_id_name_kind_and_owner() -> None:
    volume = row("volume", "web", owner="vm-shop-web")
    seen = filled(vm("web", "a"), volume)
    assert seen.get(volume.id) == volume
    assert seen.named("volume", "shop", "web") == volume
    assert list(seen.of_kind("volume")) == [volume]
    assert seen.children(Id("vm-shop-web")) == (volume,)
    assert seen.name_of(volume.id) == "web"
    assert seen.name_of("vol-gone") == "vol-gone"


def test_users_follow_the_spec() -> None:
    seen = filled(row("network", "a"), row("network", "b"), vm("web", "a", "b"))
    assert [one.name for one in seen.users(Id("network-shop-a"))] == ["web"]
    seen.apply([Put(vm("web", "b", revision=2))])
    assert seen.users(Id("network-shop-a")) == ()
    assert [one.name for one in seen.users(Id("network-shop-b"))] == ["web"]
    assert [one.name for one in seen.users(Id("image-shop-tiny"))] == ["web"]
    seen.apply([Gone(vm("web", "b"))])
    assert seen.users(Id("network-shop-b")) == ()


def test_what_is_wanted_counts_wholes_not_parts() -> None:
    web, part = vm("web", "a", deleted_at=1.0), row("volume", "web", owner="vm-shop-web")
    db, loose = vm("db", "a"), row("volume", "loose")
    seen = filled(web, part, db, loose, row("volume", "db", owner="vm-shop-db"))
    everything = list(seen)
    assert {one.id for one in seen.wanted(everything)} == {db.id, loose.id}
    assert seen.wanted([part]) == ()
    orphan = row("volume", "orphan", owner="vm-shop-never")
    assert seen.wanted([orphan]) == (orphan,)


def test_the_revision_is_the_highest_ever_seen() -> None:
    seen = filled(row("network", "a", revision=7), row("network", "b", revision=3))
    seen.apply([Gone(row("network", "a", revision=7))])
    assert seen.revision == 7


# --- finding what a user means --------------------------------------------------------------------------------------


def test_a_project_finds_its_own_before_public_ones() -> None:
    public = row("image", "tiny", project="system", spec=ImageSpec(public=True))
    own = row("image", "tiny")
    assert filled(public).find("image", "shop", "tiny") == public
    assert filled(public, own).find("image", "shop", "tiny") == own
    assert filled(public).find("image", "shop", public.id) == public


def test_of_public_ones_with_one_name_the_oldest_is_meant() -> None:
    new = row("image", "tiny", project="aaa", spec=ImageSpec(public=True), created_at=2)
    old = row("image", "tiny", project="zzz", spec=ImageSpec(public=True), created_at=1)
    assert filled(new, old).find("image", "shop", "tiny") == old


@pytest.mark.parametrize("by", ["tiny", "image-lab-tiny"])
def test_what_is_another_projects_is_not_found(by: str) -> None:
    seen = filled(row("image", "tiny", project="lab"), row("image", "mine"))
    with pytest.raises(NotFound) as refused:
        seen.find("image", "shop", by)
    assert refused.value.detail == f"there is no image {by} in project shop"
    assert refused.value.fix == "there is mine"


def test_an_id_of_another_kind_is_not_found() -> None:
    with pytest.raises(NotFound):
        filled(row("network", "a")).find("image", "shop", "network-shop-a")


# --- rows beside --------------------------------------------------------------------------------------------------


def placement(owner: str, host: str = "host-1", vcpus: int = 1) -> Placement:
    return Placement(owner=Id(owner), host=HostId(Id(host)), vcpus=vcpus, memory_mib=2, disk_gib=3)


def test_use_is_the_sum_of_placements() -> None:
    seen = filled(placement("a"), placement("b", vcpus=4))
    seen.apply([Put(placement("b", vcpus=2))])
    assert (seen.used(HOST).vcpus, seen.used(HOST).memory_mib, seen.used(HOST).disk_gib) == (3, 4, 6)
    seen.apply([Put(placement("b", host="host-2")), Gone(placement("a"))])
    assert seen.used(HOST).vcpus == 0
    assert seen.placed_on(HOST) == ()
    assert seen.used(HostId(Id("host-2"))).vcpus == 1


def test_addresses_come_in_nic_order() -> None:
    rows = [
        Address(network=Id(f"net-{n}"), address=f"10.0.{n}.2", vm=Id("vm-1"), index=n, mac=f"m{n}") for n in (2, 0, 1)
    ]
    seen = filled(*rows)
    assert [one.index for one in seen.addresses(Id("vm-1"))] == [0, 1, 2]
    assert [one.mac for one in seen.ports(Id("net-2"))] == ["m2"]
    seen.apply([Gone(rows[0])])
    assert list(seen.ports(Id("net-2"))) == []


def test_open_operations_are_those_not_finished_oldest_first() -> None:
    seen = filled(operation(2, created_at=5), operation(1, created_at=9), operation(3, finished_at=1.0))
    assert [one.id for one in seen.open_operations(Id("vm-shop-web"))] == ["op-2", "op-1"]
    seen.apply([Put(operation(2, finished_at=2.0))])
    assert [one.id for one in seen.open_operations(Id("vm-shop-web"))] == ["op-1"]
    assert len(list(seen.operations())) == 3


def test_a_token_is_good_while_its_row_is_wanted() -> None:
    spec = TokenSpec(role="member")
    token = Token(digest="d", resource=Id("token-shop-ci"))
    seen = filled(row("token", "ci", spec=spec), token)
    assert seen.token("d") == token
    assert seen.token("other") is None
    seen.apply([Put(row("token", "ci", spec=spec, deleted_at=1.0))])
    assert seen.token("d") is None


def test_a_report_counts_for_the_present_revision_of_its_document() -> None:
    doc = VolumeDoc(id=Id("vol-1"), size_gib=1, image=None)
    key = DocKey("volume/vol-1")

    def document(revision: int) -> Document:
        return Document(host=HOST, key=key, owner=Id("vol-1"), doc=doc, gone=False, revision=Revision(revision))

    seen = filled(document(5))
    assert seen.report(HOST, key) is None
    seen.host(HOST).reports[key] = Report(key=key, revision=Revision(5), done=True)
    assert seen.report(HOST, key) is not None
    seen.apply([Put(document(6))])
    assert seen.report(HOST, key) is None
    assert seen.report(HostId(Id("host-2")), key) is None


def test_nothing_is_kept_of_what_is_gone() -> None:
    """A controller runs for years: what was made and went again must leave nothing, not even an empty place."""
    host = row("host", "h1", project="", spec=HostSpec())
    seen = filled(*POOL, host)
    seen.host(HostId(host.id)).connected = True
    seen.apply([Gone(one) for one in (*POOL, host) if not isinstance(one, Resource) or seen.get(one.id) is one])
    assert seen.used(HOST).vcpus == 0
    kept = {
        name: value
        for name, value in vars(seen).items()
        if name not in {"revision", "_by_kind", "processors"} and value
    }
    assert kept == {}
    assert seen.processors.makes() == {}


# --- property -----------------------------------------------------------------------------------------------------

POOL: list[AnyRow | AnyResource] = [
    vm("web", "a"), vm("web", "b", revision=2), vm("db", "a", deleted_at=1.0), row("network", "a"), row("network", "b"),
    row("volume", "web", owner="vm-shop-web"), placement("vm-shop-web"), placement("vm-shop-db"),
    Address(network=Id("network-shop-a"), address="10.0.0.2", vm=Id("vm-shop-web"), index=0, mac="m"),
    Vni(network=Id("network-shop-a"), vni=7), operation(1), operation(2, finished_at=1.0),
    Enrolment(host=HOST, join_digest="", join_expires_at=0, certificate_serial=""),
    Document(
        host=HOST, key=DocKey("volume/v"), owner=Id("volume-shop-web"),
        doc=VolumeDoc(id=Id("v"), size_gib=1, image=None), gone=False, revision=Revision(1),
    ),
]  # fmt: skip


def identity(one: AnyRow | AnyResource) -> tuple[str, ...]:
    match one:
        case Resource() | Operation():
            return (type(one).__name__, one.id)
        case Placement():
            return ("placement", one.owner)
        case _:
            return (type(one).__name__,)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, len(POOL) - 1)), max_size=60))
def test_it_is_what_the_last_word_on_each_row_makes_it(moves: list[tuple[bool, int]]) -> None:
    seen, last = WorkingSet(), dict[tuple[str, ...], Change]()
    for there, index in moves:
        one = POOL[index]
        before = last.pop(identity(one), None)
        change: Change = Put(one) if there else Gone(before.row if isinstance(before, Put) else one)
        if there or isinstance(before, Put):
            seen.apply([change])
            last[identity(one)] = change
    same(seen, filled(*(change.row for change in last.values() if isinstance(change, Put))), revisions=True)
