"""A user's life: a first password, a role in a domain, and an end that takes the sessions along."""

import msgspec
import pytest

from common.errors import Conflict, Denied
from common.kinds import kind_named
from common.kinds.domain import DEFAULT_DOMAIN
from common.kinds.kind import Role
from common.secret import Secret
from controller.auth import passwords
from controller.auth.caller import built_in
from controller.auth.tokens import roles_of
from controller.kinds import admission
from controller.kinds.admission import NewResource, Patch
from controller.kinds.outcome import Done
from controller.store.rows import Token
from controller.store.writes import PutToken
from tests.kinds.bench import Bench


async def test_the_first_password_is_shown_once_and_its_hash_is_kept(bench: Bench) -> None:
    done = await bench.store.admit(bench.admit_create("user", "", "bob"))
    assert done.revealed is not None
    stored = await bench.store.password(done.resource.id)
    assert done.revealed.reveal() not in repr(done)
    assert done.revealed.reveal() not in str(stored)
    assert passwords.verify(stored, done.revealed)
    assert not passwords.verify(stored, Secret("another one"))
    assert done.resource.spec.domain == DEFAULT_DOMAIN
    assert isinstance(bench.plan(done.resource), Done)


async def test_a_users_roles_are_those_of_the_domain_and_of_bindings(bench: Bench) -> None:
    await bench.project()
    bob = await bench.create("user", "", "bob")
    assert roles_of(bob, bench.store.seen) == ()
    await bench.create("binding", "shop", "bob", user="bob", role="member")
    await bench.create("binding", "shop", "more", user="bob", custom_role=await starter(bench))
    bob = await bench.change(bob, role="reader")
    held = {(one.role, one.project) for one in roles_of(bob, bench.store.seen)}
    assert held == {("reader", ""), ("member", "shop"), ("starter", "shop")}


async def starter(bench: Bench) -> str:
    role = await bench.create("role", "", "starter", grants=[{"actions": ["vm.start"]}])
    return role.id


async def test_a_user_goes_after_its_bindings_with_its_sessions_and_its_password(bench: Bench) -> None:
    await bench.project()
    bob = await bench.create("user", "", "bob")
    binding = await bench.create("binding", "shop", "bob", user="bob")
    await bench.write(PutToken(token=Token(digest="d", resource=bob.id)))
    with pytest.raises(Conflict, match="user bob is used by binding bob"):
        await bench.delete(bob)
    await bench.delete(binding)
    await bench.delete(bob)
    assert bench.store.seen.token("d") is None
    await bench.buried([binding, bob], [])
    assert await bench.store.password(bob.id) is None
    assert bench.store.seen.tokens_of(bob.id) == ()


async def test_nobody_gets_hold_of_a_user_who_may_do_more(bench: Bench) -> None:
    """The operators' users are of a domain too: its admin can neither change them nor set their password."""
    await bench.create("project", "", "system")
    root = await bench.create("user", "", "root")
    await bench.create("user", "", "bob")
    await bench.create("binding", "system", "root", user="root", role="admin")
    lead = built_in("lead@default", "shop", Role.ADMIN, bench.context.caller.request)
    held = msgspec.structs.replace(lead.held[0], project="", domain=DEFAULT_DOMAIN)
    lead = msgspec.structs.replace(lead, held=(held,), domain=DEFAULT_DOMAIN)
    context = msgspec.structs.replace(bench.context, caller=lead)
    admission.change(context, bench.named("user", "bob", ""), Patch(spec={"role": "admin"}))
    with pytest.raises(Denied, match=r"lead@default can't give .* in the whole cloud to user root"):
        admission.change(context, root, Patch(spec={"enabled": False}))
    elsewhere = await bench.create("domain", "", "acme")
    stranger = msgspec.structs.replace(context, caller=msgspec.structs.replace(lead, domain=elsewhere.id))
    with pytest.raises(Denied, match=r"lacks user\.create on user eve"):
        admission.create(stranger, kind_named("user"), "", NewResource(name="eve"))
