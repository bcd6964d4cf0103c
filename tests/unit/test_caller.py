"""Who calls and what they may do: a matrix of roles, projects and kinds."""

from typing import Any

import pytest

from common.errors import Denied, Unauthenticated
from common.ids import Id, RequestId, Revision
from common.kinds import KINDS, kind_named
from common.kinds.image import ImageSpec
from common.kinds.kind import Resource, Role, Scope, Status
from common.kinds.project import ProjectSpec
from common.kinds.size import SizeSpec
from common.kinds.token import TokenSpec
from common.secret import digest_of
from controller.auth.caller import Caller, authorise, sees, sees_history
from controller.auth.tokens import authenticate
from controller.store.rows import Gone, Put, Token
from controller.store.working import WorkingSet

REQUEST = RequestId("req-1")
SECRET = "skt_" + "5" * 64


def caller(project: str, role: Role) -> Caller:
    return Caller(actor=f"{project}/t", project=project, role=role, request=REQUEST)


def row(kind: str, name: str, project: str, spec: Any) -> Any:
    return Resource(
        id=Id(f"{kind_named(kind).prefix}-{name:0>12}"), kind=kind, project=project, name=name, labels={}, generation=1,
        observed_generation=1, spec=spec, status=Status(), owner=None, created_at=1.0, deleted_at=None,
        revision=Revision(1),
    )  # fmt: skip


def allowed(who: Caller, kind: Any, need: Role | None, project: str) -> bool:
    try:
        authorise(who, kind, need, project, "made")
    except Denied:
        return False
    return True


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("need", [*Role, None])
def test_the_whole_matrix(kind: Any, role: Role, need: Role | None) -> None:
    own, other = caller("a", role), caller("b", role)

    if need is None:
        assert not allowed(caller("system", Role.ADMIN), kind, need, "a")
        assert not allowed(own, kind, need, "a")
    elif kind.scope is Scope.PROJECT:
        assert allowed(own, kind, need, "a") == (role >= need)
        assert not allowed(other, kind, need, "a")
        assert allowed(caller("system", role), kind, need, "a") == (role >= need)
    else:
        assert allowed(own, kind, need, "") == (need is Role.READER and role >= kind.read)
        assert allowed(caller("system", role), kind, need, "") == (
            role is Role.ADMIN or (need is Role.READER and role >= kind.read)
        )
    if need is not None:
        assert allowed(caller("system", Role.ADMIN), kind, need, "a")


def test_a_refusal_names_the_caller_the_role_and_the_way_out() -> None:
    with pytest.raises(Denied) as low:
        authorise(caller("a", Role.READER), kind_named("vm"), Role.MEMBER, "a", "made")
    with pytest.raises(Denied) as foreign:
        authorise(caller("a", Role.ADMIN), kind_named("vm"), Role.READER, "b", "listed")
    with pytest.raises(Denied) as cloud:
        authorise(caller("a", Role.ADMIN), kind_named("host"), Role.ADMIN, "", "made")

    assert "a/t is a reader" in low.value.detail
    assert "role member" in low.value.fix
    assert "of project b" in foreign.value.fix
    assert "operators" in cloud.value.detail


def test_only_an_admin_of_system_operates() -> None:
    assert caller("system", Role.ADMIN).operates
    assert not caller("system", Role.MEMBER).operates
    assert not caller("a", Role.ADMIN).operates


def test_what_a_project_may_know_of() -> None:
    mine, theirs = caller("a", Role.READER), caller("b", Role.ADMIN)
    image = row("image", "i", "a", ImageSpec())
    public = row("image", "p", "a", ImageSpec(public=True))
    project = row("project", "a", "", ProjectSpec())
    size = row("size", "s", "", SizeSpec(vcpus=1, memory_mib=64, disk_gib=1))

    assert [sees(mine, one) for one in (image, public, project, size)] == [True, True, True, True]
    assert [sees(theirs, one) for one in (image, public, project, size)] == [False, True, False, True]
    assert all(sees(caller("system", Role.READER), one) for one in (image, public, project, size))


def test_history_takes_the_role_that_reads_the_kind() -> None:
    assert sees_history(caller("a", Role.READER), "vm", "a")
    assert not sees_history(caller("a", Role.READER), "token", "a")
    assert sees_history(caller("a", Role.ADMIN), "token", "a")
    assert not sees_history(caller("a", Role.ADMIN), "vm", "b")
    assert not sees_history(caller("a", Role.ADMIN), "host", "")
    assert sees_history(caller("system", Role.READER), "host", "")
    assert not sees_history(caller("a", Role.READER), "of-another-version", "a")


@pytest.fixture
def seen() -> WorkingSet:
    """Give a working set with one token of project a."""
    made = WorkingSet()
    token = row("token", "ci", "a", TokenSpec())
    digest = Token(digest=digest_of(SECRET), resource=token.id, project="a", role=Role.MEMBER)
    made.apply([Put(token), Put(digest)])
    return made


@pytest.mark.parametrize("header", [f"Bearer {SECRET}", f"bearer  {SECRET}", f" Bearer {SECRET} "])
def test_a_good_token_is_its_project_and_role(seen: WorkingSet, header: str) -> None:
    who = authenticate(header, seen, REQUEST)

    assert who == Caller(actor="a/ci", project="a", role=Role.MEMBER, request=REQUEST)


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", SECRET, f"Basic {SECRET}", f"Bearer {SECRET}0", f"Bearer {SECRET[:-1]}6",
     f"Bearer {SECRET}\nX: y", f"Bearer {SECRET}, Bearer {SECRET}", "Bearer skj_" + "5" * 64],
)  # fmt: skip
def test_anything_else_is_nobody_and_the_token_is_not_repeated(seen: WorkingSet, header: str | None) -> None:
    with pytest.raises(Unauthenticated) as caught:
        authenticate(header, seen, REQUEST)

    assert "5555" not in caught.value.detail + caught.value.fix
    assert "skerry token create" in caught.value.fix


def test_a_token_whose_deletion_was_accepted_is_nobody(seen: WorkingSet) -> None:
    token = seen.named("token", "a", "ci")
    assert token is not None
    gone = row("token", "ci", "a", TokenSpec())
    seen.apply([Gone(token)])
    with pytest.raises(Unauthenticated):
        authenticate(f"Bearer {SECRET}", seen, REQUEST)
    assert gone.id == token.id
