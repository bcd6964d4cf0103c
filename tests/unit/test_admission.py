"""Admission: from a body to rows that can be committed, or a refusal that says what to do. Pure, over a working set."""

import random
import re
from typing import Any

import msgspec
import pytest

from common.codec import convert
from common.errors import Conflict, Denied, Invalid, NotFound
from common.ids import RequestId, Revision
from common.kinds import KINDS, kind_named
from common.kinds.kind import AnyResource, Name, Role, Spec, fields
from common.secret import digest_of
from controller.auth.caller import Caller, built_in
from controller.kinds import admission
from controller.kinds.admission import Admission, Context, NewResource, Patch
from controller.store.rows import Change, Put, Token
from controller.store.working import WorkingSet
from controller.store.writes import PutEnrolment, PutToken

OPERATOR = built_in("system/root", "system", Role.ADMIN, RequestId("req-1"))
MEMBER = built_in("a/ci", "a", Role.MEMBER, RequestId("req-2"))


class Desk:
    """Admits, and takes over what was admitted as a store would."""

    def __init__(self) -> None:
        self.seen = WorkingSet()
        self.now = 1000.0
        self._entropy = random.Random(7).randbytes
        for project in ("system", "a", "b"):
            self.create("project", "", project)

    def context(self, caller: Caller = OPERATOR) -> Context:
        return Context(seen=self.seen, caller=caller, now=self.now, entropy=self._entropy)

    def commit(self, admitted: Admission) -> Any:
        revision = Revision(self.seen.revision + 1)
        row = msgspec.structs.replace(admitted.resource, revision=revision)
        operation = msgspec.structs.replace(admitted.operation, revision=revision)
        changes: list[Change] = [Put(row), Put(operation), *(Put(one) for one in admitted.closes)]
        changes += [Put(write.token) for write in admitted.writes if isinstance(write, PutToken)]
        self.seen.apply(changes)
        return row

    def create(
        self, kind: str, project: str, name: str, spec: dict[str, Any] | None = None, caller: Caller = OPERATOR
    ) -> Any:
        body = NewResource(name=name, spec=spec or {})
        return self.commit(admission.create(self.context(caller), kind_named(kind), project, body))

    def needs(self, project: str = "a") -> None:
        self.create("size", "", "small", {"vcpus": 1, "memory_mib": 512, "disk_gib": 10})
        self.create("network", project, "default")
        self.create("image", project, "disk")


@pytest.fixture
def desk() -> Desk:
    """Give a desk with projects system, a and b."""
    return Desk()


def body(name: str, **spec: Any) -> NewResource:
    return NewResource(name=name, spec=spec)


# --- create -------------------------------------------------------------------------------------------------------


def test_a_create_is_one_resource_one_operation_and_one_event(desk: Desk) -> None:
    desk.needs()

    admitted = admission.create(desk.context(MEMBER), kind_named("vm"), "a", body("web", image="disk", size="small"))

    row, operation, event = admitted.resource, admitted.operation, admitted.event
    assert (row.kind, row.project, row.name, row.generation) == ("vm", "a", "web", 1)
    assert (operation.resource, operation.verb, operation.state) == (row.id, "create", "running")
    assert (event.action, event.actor, event.request) == ("vm.create", "a/ci", "req-2")
    assert event.before == b""
    assert msgspec.json.decode(event.after)["size"] == row.spec.size
    assert admitted.was is None
    assert admitted.revealed is None


def test_references_are_stored_as_ids_whether_given_by_name_or_id(desk: Desk) -> None:
    desk.needs()
    size, image = desk.seen.named("size", "", "small"), desk.seen.named("image", "a", "disk")
    network = desk.seen.named("network", "a", "default")
    assert size
    assert image
    assert network

    by_name = desk.create("vm", "a", "one", {"image": "disk", "size": "small"})
    by_id = desk.create("vm", "a", "two", {"image": image.id, "size": size.id, "networks": [network.id]})

    assert (by_name.spec.image, by_name.spec.size, by_name.spec.networks) == (image.id, size.id, (network.id,))
    assert by_name.spec == by_id.spec


def test_what_is_taken_is_a_conflict_in_the_same_project_only(desk: Desk) -> None:
    desk.create("network", "a", "back")

    desk.create("network", "b", "back")
    with pytest.raises(Conflict, match="network back in project a"):
        desk.create("network", "a", "back")


def test_a_name_that_is_on_its_way_out_is_still_taken_and_says_so(desk: Desk) -> None:
    row = desk.create("network", "a", "back")
    desk.commit(admission.delete(desk.context(), row))

    with pytest.raises(Conflict, match="being deleted"):
        desk.create("network", "a", "back")


def test_nothing_is_made_in_a_project_that_is_not_there_or_goes(desk: Desk) -> None:
    desk.commit(admission.delete(desk.context(), desk.seen.named("project", "", "b")))

    with pytest.raises(NotFound, match="no project nowhere"):
        desk.create("network", "nowhere", "x")
    with pytest.raises(Conflict, match="being deleted"):
        desk.create("network", "b", "x")


def test_references_to_other_projects_are_not_found_and_public_ones_are(desk: Desk) -> None:
    desk.needs("a")
    desk.create("image", "b", "theirs")
    desk.create("image", "b", "shared", {"public": True})
    theirs = desk.seen.named("image", "b", "theirs")
    assert theirs

    desk.create("vm", "a", "web", {"image": "shared", "size": "small"}, MEMBER)
    for reference in ("theirs", theirs.id):
        with pytest.raises(NotFound) as caught:
            desk.create("vm", "a", "x", {"image": reference, "size": "small"}, MEMBER)
        assert caught.value.errors[0].field == "spec.image"
        assert "theirs" not in caught.value.fix


def test_a_reference_of_the_wrong_kind_or_on_its_way_out_is_refused(desk: Desk) -> None:
    desk.needs()
    network = desk.seen.named("network", "a", "default")
    image = desk.create("image", "a", "old")
    assert network
    desk.commit(admission.delete(desk.context(), image))

    with pytest.raises(NotFound):
        desk.create("vm", "a", "x", {"image": network.id, "size": "small"})
    with pytest.raises(Conflict, match="image old is being deleted"):
        desk.create("vm", "a", "x", {"image": "old", "size": "small"})


def test_secrets_are_shown_once_and_only_their_hash_is_written(desk: Desk) -> None:
    admitted = admission.create(desk.context(), kind_named("token"), "a", body("ci", role="member"))

    assert admitted.revealed is not None
    text = admitted.revealed.reveal()
    _, write = admitted.writes
    assert isinstance(write, PutToken)
    ends = desk.now + 90 * 86400
    assert write.token == Token(digest=digest_of(text), resource=admitted.resource.id, expires_at=ends)
    assert text not in repr(admitted)
    assert text.encode() not in admitted.event.after


def test_a_new_join_token_replaces_the_one_before(desk: Desk) -> None:
    host = desk.create("host", "", "h1")

    admitted = admission.reissue(desk.context(), host)

    (write,) = admitted.writes
    assert admitted.revealed is not None
    assert isinstance(write, PutEnrolment)
    assert write.enrolment.join_digest == digest_of(admitted.revealed.reveal())
    assert write.enrolment.certificate_serial == ""


# --- fields -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["web", "w", "a-1", "a" * 63])
def test_good_names(name: str) -> None:
    assert convert(name, Name, "name") == name  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["", "Web", "1a", "-a", "a-", "a_b", "a.b", "a b", "a/b", "ä", "a\n", "a\x00", "a" * 64, "..", "٣"]
)
def test_bad_names(name: str) -> None:
    with pytest.raises(Invalid):
        convert(name, Name, "name")  # type: ignore[arg-type]


def test_no_pattern_of_any_kind_lets_a_last_newline_pass() -> None:
    """`$` alone matches before a last newline in Python."""
    texts = [repr(msgspec.json.schema(of)) for of in (*(kind.spec for kind in KINDS), NewResource)]
    patterns = {found for text in texts for found in re.findall(r"'pattern': ['\"](.*?)['\"](?:, '|})", text)}

    assert len(patterns) >= 5
    for pattern in patterns:
        assert "$(?!" in pattern, pattern


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_server_set_field_of_every_kind_is_refused_in_bodies(desk: Desk, kind: Any) -> None:
    for field in fields(kind.spec):
        if field.server_set and kind.create is not None:
            with pytest.raises(Invalid) as caught:
                admission.create(desk.context(), kind, "a", NewResource(name="x", spec={field.name: field.default}))
            assert caught.value.errors[0].field == f"spec.{field.name}"


def test_a_pin_to_a_host_is_the_operators(desk: Desk) -> None:
    desk.needs()
    desk.create("host", "", "h1")
    spec = {"image": "disk", "size": "small", "host": "h1"}

    with pytest.raises(Denied):
        desk.create("vm", "a", "web", spec, MEMBER)
    assert desk.create("vm", "a", "web", spec).spec.host.startswith("host-")


# --- change -------------------------------------------------------------------------------------------------------


def test_a_change_merges_and_counts(desk: Desk) -> None:
    host = desk.create("host", "", "h1", {"cpu_overcommit": 2.0})

    admitted = admission.change(desk.context(), host, Patch(spec={"schedulable": False}))

    assert admitted.resource.spec.cpu_overcommit == 2.0
    assert admitted.resource.spec.schedulable is False
    assert admitted.resource.generation == 2
    assert admitted.was is host
    assert admitted.event.action == "host.set"
    assert msgspec.json.decode(admitted.event.before)["schedulable"] is True
    assert msgspec.json.decode(admitted.operation.previous_spec)["schedulable"] is True


def test_labels_are_replaced_as_a_whole_or_left_alone(desk: Desk) -> None:
    host = desk.commit(
        admission.create(desk.context(), kind_named("host"), "", NewResource(name="h1", labels={"a": "1", "b": "2"}))
    )

    left = admission.change(desk.context(), host, Patch(spec={})).resource
    replaced = admission.change(desk.context(), host, Patch(labels={"c": "3"})).resource
    emptied = admission.change(desk.context(), host, Patch(labels={})).resource

    assert left.labels == {"a": "1", "b": "2"}
    assert replaced.labels == {"c": "3"}
    assert emptied.labels == {}


def test_fixed_fields_and_things_on_their_way_out_do_not_change(desk: Desk) -> None:
    desk.needs()
    vm = desk.create("vm", "a", "web", {"image": "disk", "size": "small"})

    with pytest.raises(Invalid, match="size can't change"):
        admission.change(desk.context(), vm, Patch(spec={"size": "small"}))
    gone = desk.commit(admission.delete(desk.context(), vm))
    for mutate in (
        lambda: admission.change(desk.context(), gone, Patch(labels={})),
        lambda: admission.verb(desk.context(), gone, kind_named("vm").verbs[0]),
        lambda: admission.record(desk.context(), gone, gone.spec, "content"),
    ):
        with pytest.raises(Conflict, match="being deleted"):
            mutate()


def test_verbs_are_changes_of_spec(desk: Desk) -> None:
    desk.needs()
    vm = desk.create("vm", "a", "web", {"image": "disk", "size": "small"})

    verbs = {verb.name: verb for verb in kind_named("vm").verbs}
    for verb in (verbs[name] for name in ("start", "stop", "reboot")):
        admitted = admission.verb(desk.context(MEMBER), vm, verb)
        assert admitted.resource.spec != vm.spec
        assert admitted.resource.generation == 2
        assert admitted.operation.verb == verb.name
        assert admitted.event.action == f"vm.{verb.name}"


# --- delete and cancel --------------------------------------------------------------------------------------------


def test_a_delete_is_accepted_again_and_again_and_overtakes_what_is_open(desk: Desk) -> None:
    desk.needs()
    vm = desk.create("vm", "a", "web", {"image": "disk", "size": "small"})
    desk.now += 5

    admitted = admission.delete(desk.context(), vm)
    gone = desk.commit(admitted)
    again = admission.delete(desk.context(), gone)

    assert admitted.resource.deleted_at == desk.now
    assert [(one.verb, one.state) for one in admitted.closes] == [("create", "cancelled")]
    assert admitted.event.after == b""
    assert again.resource.deleted_at == gone.deleted_at
    assert again.closes == ()


def test_what_is_used_can_not_go_and_the_users_are_named(desk: Desk) -> None:
    desk.needs()
    for number in range(7):
        desk.create("vm", "a", f"web-{number}", {"image": "disk", "size": "small"})

    with pytest.raises(Conflict) as caught:
        admission.delete(desk.context(MEMBER), desk.seen.named("image", "a", "disk"))

    assert len(re.findall("vm web-", caught.value.detail)) == 5
    assert "2 more" in caught.value.detail


def test_users_in_other_projects_are_counted_not_named(desk: Desk) -> None:
    desk.needs("b")
    desk.create("image", "a", "shared", {"public": True})
    desk.create("vm", "b", "secret-name", {"image": "shared", "size": "small"})
    image = desk.seen.named("image", "a", "shared")

    with pytest.raises(Conflict) as to_member:
        admission.delete(desk.context(MEMBER), image)
    with pytest.raises(Conflict) as to_operator:
        admission.delete(desk.context(), image)

    assert "1 of other projects" in to_member.value.detail
    assert "secret-name" not in to_member.value.detail
    assert "secret-name" in to_operator.value.detail


def test_what_is_used_by_things_that_go_may_go(desk: Desk) -> None:
    desk.needs()
    vm = desk.create("vm", "a", "web", {"image": "disk", "size": "small"})
    desk.commit(admission.delete(desk.context(), vm))

    admitted = admission.delete(desk.context(), desk.seen.named("image", "a", "disk"))

    assert admitted.resource.deleted_at is not None


def test_cancelling_a_create_is_a_delete_and_a_change_is_set_back(desk: Desk) -> None:
    host = desk.create("host", "", "h1")
    (made,) = desk.seen.open_operations(host.id)
    changed = admission.change(desk.context(), host, Patch(spec={"schedulable": False}))
    row = desk.commit(changed)

    back = admission.cancel(desk.context(), changed.operation)
    gone = admission.cancel(desk.context(), made)

    assert back.resource.spec == host.spec
    assert back.resource.generation == row.generation + 1
    assert back.operation.verb == "cancel"
    assert gone.resource.deleted_at is not None


@pytest.mark.parametrize("verb", ["start", "reboot", "rescue", "resize"])
def test_no_number_of_a_wish_is_given_twice_though_it_was_cancelled(desk: Desk, verb: str) -> None:
    what = next(one for one in kind_named("vm").verbs if one.name == verb)
    desk.needs()
    image = desk.seen.named("image", "a", "disk")
    assert image is not None
    filled = msgspec.structs.replace(image.spec, digest="sha256:" + "a" * 64)
    desk.commit(admission.record(desk.context(), image, filled, "content"))
    vm = desk.create("vm", "a", "web", {"image": "disk", "size": "small"})
    given = {"size": "small", "restart": True} if verb == "resize" else {}
    seen: set[tuple[int, ...]] = {numbers(vm)}
    for _ in range(3):
        asked = admission.verb(desk.context(), vm, what, given)
        wished = desk.commit(asked)
        assert numbers(wished) not in seen
        seen.add(numbers(wished))
        vm = desk.commit(admission.cancel(desk.context(), asked.operation))
        assert vm.spec.boot_generation == 1
        assert vm.spec.rescue is None


def numbers(vm: AnyResource) -> tuple[int, ...]:
    """Return what a host tells one wish from another by."""
    return vm.spec.start_generation, vm.spec.boot_generation, vm.spec.rescue_generation


def test_what_is_over_going_or_overtaken_can_not_be_cancelled(desk: Desk) -> None:
    host = desk.create("host", "", "h1")
    first = admission.change(desk.context(), host, Patch(spec={"schedulable": False}))
    second = admission.change(desk.context(), desk.commit(first), Patch(spec={"cpu_overcommit": 1.0}))
    row = desk.commit(second)
    done = msgspec.structs.replace(second.operation, state="done", finished_at=1.0)
    deleted = admission.delete(desk.context(), row)
    desk.commit(deleted)

    with pytest.raises(Conflict, match="changed after"):
        admission.cancel(desk.context(), first.operation)
    with pytest.raises(Conflict, match="has ended"):
        admission.cancel(desk.context(), done)
    with pytest.raises(Conflict, match="can't be taken back"):
        admission.cancel(desk.context(), deleted.operation)


def test_the_same_wish_at_the_same_moment_gives_the_same_rows() -> None:
    one, other = Desk(), Desk()

    assert one.create("network", "a", "x") == other.create("network", "a", "x")


def test_an_admission_changes_nothing_by_itself(desk: Desk) -> None:
    desk.needs()
    before = {row.id: row for row in desk.seen}

    admission.create(desk.context(), kind_named("network"), "a", body("x"))
    admission.delete(desk.context(), desk.seen.named("network", "a", "default"))

    assert {row.id: row for row in desk.seen} == before
    assert all(isinstance(row.spec, Spec) and isinstance(row.id, str) for row in before.values())
