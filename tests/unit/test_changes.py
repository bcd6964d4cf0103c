"""The log of changes holds every row as it is, and a working set can be led to any other by changes."""

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rows import a_capacity, a_domain, a_host, a_placement, a_vm, host_id, made_id

from common.documents import key_of
from common.errors import Invalid
from common.ids import Id, RequestId, Revision
from common.refusal import Cost, Refusal
from controller.store import rows
from controller.store.changes import Gap, commits_from, decode, encode
from controller.store.rows import (
    Address,
    AnyRow,
    Controller,
    Document,
    Enrolment,
    Event,
    Fact,
    Gone,
    Grave,
    Link,
    Membership,
    Operation,
    Put,
    Token,
    Vni,
    ZoneUse,
    identity,
)
from controller.store.working import WorkingSet

WHY = Refusal(summary="none fits", hosts=2, costs=(Cost(constraint="memory", hosts=2, detail="…"),))

ROWS: list[Any] = [
    a_host(1),
    a_vm(2, "ünï", labels={"a": "b"}, owner=made_id("vm", 9), deleted_at=1.25),
    a_placement(2, 1),
    Membership(group=Id("grp-1"), owner=Id("vm-2"), domain=host_id(1)),
    ZoneUse(zone=Id("zone-1"), controller="ctl-1", revision=Revision(7)),
    a_capacity(1),
    Address(network=Id("net-1"), address="10.0.0.2", vm=Id("vm-2"), index=1, mac="02:00"),
    Vni(network=Id("net-1"), vni=4096),
    Document(
        host=host_id(1),
        key=key_of(a_domain(2)),
        owner=made_id("vm", 2),
        doc=a_domain(2),
        gone=True,
        revision=Revision(7),
    ),
    Operation(
        id=Id("op-1"), verb="create", kind="vm", resource=Id("vm-2"), project="shop", name="web", generation=1,
        actor="a", request=RequestId("req-1"), state="blocked", message="\0\n", progress=0.5, why=WHY,
        previous_spec=b'{"a":1}', created_at=1_800_000_000.123456, finished_at=None, revision=Revision(8),
    ),
    Event(
        seq=2**40, at=0.1, actor="a", request=RequestId(""), action="vm.create", kind="vm", resource=Id("vm-2"),
        project="shop", name="web", message="日本", before=b"", after=b"\xff",
    ),
    Token(digest="d", resource=Id("tok-1"), expires_at=5.0),
    Enrolment(host=host_id(1), join_digest="", join_expires_at=1.0, certificate_serial="ab"),
    Controller(id="ctl-1", url="https://c:8443", version="1", since=1.0, alive=False),
    Link(host=host_id(1), controller="ctl-1", since=2.0),
    Fact(name="epoch", value="ab"),
    Grave(id=Id("vm-2"), kind="vm", project="shop", name="web", public=False, revision=Revision(9)),
]  # fmt: skip


def test_every_type_of_row_is_tried() -> None:
    tried = {type(row) for row in ROWS}
    assert tried == {*get_args(AnyRow), type(ROWS[0])} - {rows.QueueRow}, "queue rows are announced as pokes"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: type(row).__name__)
def test_a_row_comes_out_of_the_log_as_it_went_in(row: Any) -> None:
    changes, poked = decode(encode([Put(row), Gone(row)], {Id("b"), Id("a")}))
    assert changes == [Put(row), Gone(row)]
    assert type(changes[0].row) is type(row)
    assert poked == {Id("a"), Id("b")}


def test_what_is_no_commit_is_not_read() -> None:
    with pytest.raises(Invalid):
        decode("{}")


def test_a_gap_in_the_log_is_seen() -> None:
    line = encode([], [])
    assert [one.seq for one in commits_from([(5, "m", line), (6, "m", line)], 4)] == [5, 6]
    for numbers in ([6], [5, 7]):
        with pytest.raises(Gap):
            commits_from([(number, "m", line) for number in numbers], 4)


def _variants(row: Any) -> list[Any]:
    """Return a row, and another state of the same one where it has such."""
    match row:
        case Link():
            return [row, Link(host=row.host, controller="ctl-2", since=9.0)]
        case Controller():
            return [row, Controller(id=row.id, url="https://d", version="2", since=3.0, alive=True)]
        case _:
            return [row]


POOL = [variant for row in ROWS if not isinstance(row, Event) for variant in _variants(row)]


@given(st.lists(st.sampled_from(POOL)), st.lists(st.sampled_from(POOL)))
def test_a_difference_leads_from_any_state_to_any_other(here: list[Any], there: list[Any]) -> None:
    wanted = {identity(row): row for row in there}
    seen = WorkingSet()
    seen.apply(Put(row) for row in here)
    seen.apply(seen.difference(there))
    assert {identity(row): row for row in seen.rows()} == wanted
    assert not seen.difference(there)
    if seen.get(host_id(1)):
        assert seen.host(host_id(1)).connected == (seen.link(host_id(1)) is not None)
