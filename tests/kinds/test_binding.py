"""A binding: a user's role in a project, from one commit to another."""

import msgspec
import pytest

from common.errors import Denied, NotFound
from common.kinds import kind_named
from common.kinds.domain import DEFAULT_DOMAIN
from common.kinds.kind import Role
from controller.auth.caller import built_in
from controller.auth.tokens import roles_of
from controller.kinds import admission
from controller.kinds.admission import NewResource
from controller.kinds.outcome import Done
from tests.kinds.bench import Bench


async def test_a_binding_holds_from_its_commit_until_it_is_deleted(bench: Bench) -> None:
    await bench.project()
    bob = await bench.create("user", "", "bob")
    binding = await bench.create("binding", "shop", "bob", user="bob", role="reader")
    assert isinstance(bench.plan(binding), Done)
    assert [held.role for held in roles_of(bob, bench.store.seen)] == ["reader"]
    await bench.change(binding, role="admin")
    assert [held.role for held in roles_of(bob, bench.store.seen)] == ["admin"]
    await bench.delete(binding)
    assert roles_of(bob, bench.store.seen) == ()
    await bench.buried([binding], [])


async def test_a_projects_admin_binds_users_of_its_domain_and_gives_what_it_has(bench: Bench) -> None:
    await bench.project()
    await bench.create("domain", "", "acme")
    await bench.create("user", "", "eve", domain="acme")
    await bench.create("user", "", "bob")

    def make(role: Role, user: str, given: str) -> None:
        caller = built_in("shop/x", "shop", role, bench.context.caller.request, DEFAULT_DOMAIN)
        context = msgspec.structs.replace(bench.context, caller=caller)
        body = NewResource(name="b", spec={"user": user, "role": given})
        admission.create(context, kind_named("binding"), "shop", body)

    make(Role.ADMIN, "bob", "admin")
    with pytest.raises(NotFound, match="there is no user eve"):
        make(Role.ADMIN, "eve", "reader")
    with pytest.raises(NotFound):
        make(Role.MEMBER, "bob", "reader")


async def test_an_operator_may_bind_a_guest_from_another_domain(bench: Bench) -> None:
    await bench.project()
    await bench.create("domain", "", "acme")
    eve = await bench.create("user", "", "eve", domain="acme")
    await bench.create("binding", "shop", "eve", user="eve", role="reader")
    (held,) = roles_of(eve, bench.store.seen)
    assert (held.project, held.domain) == ("shop", DEFAULT_DOMAIN)


async def test_a_binding_in_project_system_holds_in_the_whole_cloud_and_only_operators_give_it(bench: Bench) -> None:
    await bench.create("project", "", "system")
    await bench.create("user", "", "bob")
    lead = built_in("shop/x", "shop", Role.ADMIN, bench.context.caller.request, DEFAULT_DOMAIN)
    context = msgspec.structs.replace(bench.context, caller=lead)
    with pytest.raises(Denied):
        admission.create(context, kind_named("binding"), "system", NewResource(name="b", spec={"user": "bob"}))
    await bench.create("binding", "system", "bob", user="bob", role="reader")
    (held,) = roles_of(bench.named("user", "bob", ""), bench.store.seen)
    assert held.where == "in the whole cloud"
