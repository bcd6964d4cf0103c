"""Who calls and what they may do: roles of every form, held in every place, against things in every place."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import Denied, Unauthenticated
from common.ids import Id, RequestId, Revision
from common.kinds import KINDS, kind_named
from common.kinds.actions import ACTIONS, LOOKS, actions_of, matching, of_role
from common.kinds.domain import DEFAULT_DOMAIN, DomainSpec
from common.kinds.image import ImageSpec
from common.kinds.kind import Resource, Role, Scope, Status
from common.kinds.network import NetworkSpec
from common.kinds.project import ProjectSpec
from common.kinds.role import Grant, RoleSpec
from common.kinds.size import SizeSpec
from common.kinds.token import TokenSpec
from common.kinds.user import UserSpec
from common.secret import digest_of
from controller.auth.caller import Caller, Past, authorise, built_in, find, projects_of, sees, sees_past
from controller.auth.rights import Held, Permit, Subject, collection_of, spelt_out, subject_of
from controller.auth.tokens import authenticate
from controller.store.rows import Gone, Put, Token
from controller.store.working import WorkingSet

REQUEST = RequestId("req-1")
SECRET = "skt_" + "5" * 64
ACME = Id("dom-00000000acme")


def caller(project: str, role: Role) -> Caller:
    return built_in(f"{project}/t", project, role, REQUEST, "" if project == "system" else DEFAULT_DOMAIN)


def domain_caller(domain: Id, role: Role = Role.ADMIN) -> Caller:
    held = Held(role=role.name.lower(), permits=(Permit(actions=of_role(role)),), domain=domain)
    return Caller(actor="bob@somewhere", request=REQUEST, held=(held,), domain=domain)


def row(kind: str, name: str, project: str, spec: Any, **labels: str) -> Any:
    return Resource(
        id=Id(f"{kind_named(kind).prefix}-{name:0>12}"), kind=kind, project=project, name=name, labels=labels,
        generation=1, observed_generation=1, spec=spec, status=Status(), owner=None, created_at=1.0, deleted_at=None,
        revision=Revision(1),
    )  # fmt: skip


def world() -> WorkingSet:
    """Return projects a and b of the default domain and x of acme, with something of everything."""
    seen = WorkingSet()
    acme = Resource(
        id=ACME, kind="domain", project="", name="acme", labels={}, generation=1, observed_generation=1,
        spec=DomainSpec(), status=Status(), owner=None, created_at=1.0, deleted_at=None, revision=Revision(1),
    )  # fmt: skip
    projects = [("a", DEFAULT_DOMAIN), ("b", DEFAULT_DOMAIN), ("system", DEFAULT_DOMAIN), ("x", ACME)]
    rows = [acme, *(row("project", name, "", ProjectSpec(domain=domain)) for name, domain in projects)]
    rows += [row("user", f"user{domain[-4:]}", "", UserSpec(domain=domain)) for domain in (DEFAULT_DOMAIN, ACME)]
    rows += [row("network", f"net{name}", name, NetworkSpec(), env="dev") for name, _ in projects]
    rows += [row("image", f"pub{name}", name, ImageSpec(public=True)) for name, _ in projects]
    rows += [row("size", "small", "", SizeSpec(vcpus=1, memory_mib=64, disk_gib=1))]
    rows += [row("role", "everybodys", "", RoleSpec(grants=()))]
    seen.apply(Put(one) for one in rows)
    return seen


def test_every_action_is_made_from_the_descriptors() -> None:
    names = [action.name for action in ACTIONS]

    assert len(names) == len(set(names))
    for kind in KINDS:
        words = {name.partition(".")[2] for name in names if name.partition(".")[0] == kind.name}
        declared = {verb.name for verb in kind.verbs} | {extra.name for extra in kind.extras}
        made = {word for word in ("create", "change", "delete") if getattr(kind, word) is not None}
        assert words == {"read", *declared, *made}
        assert {one.name for one in actions_of(kind)} == {f"{kind.name}.{word}" for word in words}
    assert matching("*") == set(names)
    assert matching("vm.*") == {name for name in names if name.startswith("vm.")}
    assert not matching("vm.smoke")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("role", Role)
def test_a_built_in_role_is_what_the_descriptors_say(kind: Any, role: Role) -> None:
    seen = world()
    here = collection_of(kind, "a" if kind.scope is Scope.PROJECT else "", seen)

    for action in actions_of(kind):
        own = caller("a", role).may(action.name, here)
        everywhere = caller("system", role).may(action.name, here)
        assert everywhere == (role >= action.role)
        if kind.scope is Scope.PROJECT:
            assert own == (role >= action.role)
            assert not caller("b", role).may(action.name, here)
            assert domain_caller(DEFAULT_DOMAIN, role).may(action.name, here) == (role >= action.role)
            assert not domain_caller(ACME, role).may(action.name, here)
        elif action.name not in LOOKS or kind.name == "host":
            assert not own or action.name == "host.read"


def test_a_domains_admin_has_its_domain_and_nothing_else() -> None:
    seen = world()
    admin = domain_caller(ACME)

    known = {one.name for one in seen if sees(admin, seen, one)}

    assert known == {"acme", "x", "useracme", "netx", "puba", "pubb", "pubx", "pubsystem", "small", "everybodys"}
    assert admin.may("project.create", subject_of(row("project", "y", "", ProjectSpec(domain=ACME)), seen))
    assert not admin.may(
        "project.create", subject_of(row("project", "y", "", ProjectSpec(domain=DEFAULT_DOMAIN)), seen)
    )
    assert not admin.may("domain.change", subject_of(seen.find("domain", "", "acme"), seen))
    assert not admin.may("size.create", collection_of(kind_named("size"), "", seen))
    assert projects_of(admin, seen) == {"", "x"}


def test_the_admin_of_the_default_domain_is_no_operator() -> None:
    seen = world()
    admin = domain_caller(DEFAULT_DOMAIN)

    assert not admin.may("token.create", collection_of(kind_named("token"), "system", seen))
    assert not sees(admin, seen, seen.find("network", "system", "netsystem"))
    assert not admin.operates
    assert caller("system", Role.ADMIN).operates
    assert not caller("system", Role.MEMBER).operates


def test_a_projects_token_sees_its_project_its_domain_and_the_clouds() -> None:
    seen = world()

    known = {one.name for one in seen if sees(caller("a", Role.ADMIN), seen, one)}

    assert known == {"a", "neta", "user0000", "puba", "pubb", "pubx", "pubsystem", "small", "everybodys"}


def test_a_refusal_names_the_action_the_thing_and_who_can_grant_it() -> None:
    seen = world()
    with pytest.raises(Denied) as low:
        authorise(
            caller("a", Role.READER), "vm.delete", Subject(kind="vm", project="a", domain=DEFAULT_DOMAIN, name="web")
        )
    with pytest.raises(Denied) as foreign:
        authorise(caller("a", Role.ADMIN), "vm.read", collection_of(kind_named("vm"), "b", seen))
    with pytest.raises(Denied) as cloud:
        authorise(caller("a", Role.ADMIN), "host.create", collection_of(kind_named("host"), "", seen))
    with pytest.raises(Denied) as nobody:
        authorise(caller("system", Role.ADMIN), "keypair.change", collection_of(kind_named("keypair"), "a", seen))

    assert low.value.detail == "a/t lacks vm.delete on vm web in project a: it is reader in project a"
    assert "admin of project a or of its domain" in low.value.fix
    assert "vms in project b" in foreign.value.detail
    assert "operators" in cloud.value.fix
    assert "nobody has keypair.change" in nobody.value.detail


def test_a_role_of_ones_own_grants_single_actions_on_single_things() -> None:
    grants = (
        Grant(actions=("vm.start", "vm.read"), labels={"env": "dev"}),
        Grant(actions=("vm.delete",), names=("web", "db")),
    )
    held = Held(role="mine", permits=spelt_out(grants), project="a", domain=DEFAULT_DOMAIN)
    who = Caller(actor="a/t", request=REQUEST, held=(held,))

    def may(action: str, name: str, project: str = "a", **labels: str) -> bool:
        return who.may(action, Subject(kind="vm", project=project, domain=DEFAULT_DOMAIN, name=name, labels=labels))

    assert may("vm.start", "web", env="dev")
    assert not may("vm.start", "web", env="live")
    assert not may("vm.start", "web", project="b", env="dev")
    assert may("vm.delete", "db", env="live")
    assert not may("vm.delete", "other", env="dev")
    assert not may("vm.stop", "web", env="dev")
    assert who.may("vm.start", Subject(kind="vm", project="a", domain=DEFAULT_DOMAIN, collection=True))
    assert not who.may("vm.stop", Subject(kind="vm", project="a", domain=DEFAULT_DOMAIN, collection=True))


PATTERNS = st.sampled_from(["*", "*.read", "vm.*", "vm.start", "network.*", "network.read", "token.*", "project.*"])
GRANTS = st.lists(
    st.builds(
        lambda actions, names, labels: Grant(actions=tuple(actions), names=tuple(names), labels=labels),
        st.lists(PATTERNS, min_size=1, max_size=3),
        st.lists(st.sampled_from(["web", "db"]), max_size=2, unique=True),
        st.dictionaries(st.sampled_from(["env", "tier"]), st.sampled_from(["dev", "web"]), max_size=2),
    ),
    max_size=3,
)
SUBJECTS = st.builds(
    lambda kind, project, name, labels: Subject(
        kind=kind, project=project, domain=DEFAULT_DOMAIN, name=name, labels=labels
    ),
    st.sampled_from(["vm", "network", "token"]),
    st.sampled_from(["a", "b"]),
    st.sampled_from(["web", "db", "x"]),
    st.dictionaries(st.sampled_from(["env", "tier"]), st.sampled_from(["dev", "web"]), max_size=2),
)


def holder(grants: list[Grant], project: str = "a", only: list[Grant] | None = None) -> Caller:
    held = Held(role="mine", permits=spelt_out(tuple(grants)), project=project, domain=DEFAULT_DOMAIN)
    return Caller(actor="a/t", request=REQUEST, held=(held,), only=spelt_out(tuple(only or ())))


@settings(max_examples=150, deadline=None)
@given(mine=GRANTS, given_=GRANTS, subject=SUBJECTS, action=st.sampled_from([one.name for one in ACTIONS]))
def test_nobody_who_gives_what_they_have_gives_more(
    mine: list[Grant], given_: list[Grant], subject: Subject, action: str
) -> None:
    if not holder(mine).has(spelt_out(tuple(given_)), "a", DEFAULT_DOMAIN) and holder(given_).may(action, subject):
        assert holder(mine).may(action, subject)


@settings(max_examples=150, deadline=None)
@given(mine=GRANTS, only=GRANTS, subject=SUBJECTS, action=st.sampled_from([one.name for one in ACTIONS]))
def test_a_limit_takes_away_and_never_adds(mine: list[Grant], only: list[Grant], subject: Subject, action: str) -> None:
    limited = holder(mine, only=only).may(action, subject)

    assert not limited or holder(mine).may(action, subject)
    if only:
        assert not limited or holder(only).may(action, subject)


def test_what_was_in_an_earlier_project_of_that_name_is_not_the_present_ones() -> None:
    seen = world()
    who = caller("a", Role.ADMIN)

    def past(at: float) -> Past:
        return Past(kind="vm", project="a", domain="", name="web", id=Id("vm-000000000000"), at=at)

    assert sees_past(who, seen, past(2.0))
    assert not sees_past(who, seen, past(0.5))
    assert sees_past(caller("system", Role.READER), seen, past(0.5))


def test_what_is_not_there_and_what_is_not_ones_own_are_the_same_words() -> None:
    seen = world()
    said = []
    for name in ("useracme", "usernobody"):
        with pytest.raises(Exception, match="there is no user") as refused:
            find(caller("a", Role.ADMIN), seen, kind_named("user"), "", name)
        said.append((str(refused.value).replace(name, "NAME"), refused.value.fix))  # type: ignore[attr-defined]

    assert said[0] == said[1]
    assert "acme" not in said[0][1]


def test_a_token_stands_for_its_project_and_role_until_it_is_deleted_or_expires() -> None:
    seen = world()
    token = row("token", "ci", "a", TokenSpec(role="member"))
    seen.apply([Put(token), Put(Token(digest=digest_of(SECRET), resource=token.id, expires_at=100.0))])

    who = authenticate(f"Bearer {SECRET}", seen, REQUEST, 99.0)

    assert (who.actor, who.project, who.domain, who.expires_at) == ("a/ci", "a", DEFAULT_DOMAIN, 100.0)
    assert [held.role for held in who.held] == ["member"]
    with pytest.raises(Unauthenticated, match="token ci of project a has expired, at 1970-01-01T00:01:40Z"):
        authenticate(f"Bearer {SECRET}", seen, REQUEST, 100.0)
    seen.apply([Gone(token)])
    with pytest.raises(Unauthenticated, match="not known, or was revoked"):
        authenticate(f"Bearer {SECRET}", seen, REQUEST, 99.0)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer skt_1", f"Basic {SECRET}", f"Bearer {SECRET}"])
def test_whoever_shows_no_good_token_is_nobody(header: str | None) -> None:
    with pytest.raises(Unauthenticated) as refused:
        authenticate(header, WorkingSet(), REQUEST, 0.0)
    assert refused.value.fix
