"""A token's life: good from the commit that makes it, worthless from the one that deletes it."""

import msgspec
import pytest

from common.errors import Denied
from common.kinds import kind_named
from common.kinds.kind import Role
from common.secret import digest_of
from controller.auth.caller import Caller
from controller.kinds import admission
from controller.kinds.admission import NewResource
from controller.kinds.outcome import Do, Done
from controller.store.writes import Forget, RemoveToken
from tests.kinds.bench import Bench


async def test_the_text_is_shown_once_and_its_hash_is_good_at_once(bench: Bench) -> None:
    await bench.project()
    done = await bench.store.admit(bench.admit_create("token", "shop", "ci", role="reader"))
    assert done.revealed is not None
    assert done.revealed.reveal().startswith("skt_")
    token = bench.store.seen.token(digest_of(done.revealed.reveal()))
    assert token is not None
    assert (token.project, token.role) == ("shop", Role.READER)
    assert isinstance(bench.plan(done.resource), Done)
    assert done.revealed.reveal() not in repr(done)


async def test_deleting_it_revokes_it_before_any_turn(bench: Bench) -> None:
    await bench.project()
    done = await bench.store.admit(bench.admit_create("token", "shop", "ci"))
    assert done.revealed is not None
    digest = digest_of(done.revealed.reveal())
    await bench.delete(done.resource)
    assert bench.store.seen.token(digest) is None
    outcome = await bench.step(done.resource)
    assert isinstance(outcome, Do)
    assert outcome.writes == (RemoveToken(resource=done.resource.id), Forget(resource=done.resource.id))
    assert bench.store.seen.get(done.resource.id) is None


async def test_a_new_text_ends_the_old_one(bench: Bench) -> None:
    await bench.project()
    first = await bench.store.admit(bench.admit_create("token", "shop", "ci"))
    second = await bench.store.admit(admission.reissue(bench.context, first.resource))
    assert first.revealed is not None
    assert second.revealed is not None
    assert bench.store.seen.token(digest_of(first.revealed.reveal())) is None
    assert bench.store.seen.token(digest_of(second.revealed.reveal())) is not None


@pytest.mark.parametrize(("has", "wants", "may"), [("member", "admin", False), ("admin", "admin", True)])
async def test_nobody_gives_a_role_that_they_lack(bench: Bench, has: str, wants: str, may: bool) -> None:
    await bench.project()
    caller = Caller(actor="shop/x", project="shop", role=Role.named(has), request=bench.context.caller.request)
    context = msgspec.structs.replace(bench.context, caller=caller)
    body = NewResource(name="ci", spec={"role": wants})
    if may:
        assert admission.create(context, kind_named("token"), "shop", body).resource.spec.role == wants
        return
    with pytest.raises(Denied, match=f"is a {has} and can't make a token that may do more"):
        admission.create(context, kind_named("token"), "shop", body)


async def test_delete_wins_from_every_state(bench: Bench) -> None:
    await bench.project()
    token = await bench.create("token", "shop", "ci")
    await bench.delete(token)
    await bench.buried([token], [])
