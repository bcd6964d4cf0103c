"""A token's life: good from the commit that makes it, worthless from the one that deletes it."""

import msgspec
import pytest

from common.errors import Denied, Invalid, NotFound
from common.kinds import kind_named
from common.kinds.domain import DEFAULT_DOMAIN
from common.kinds.kind import Role
from common.kinds.token import TokenStatus
from common.secret import digest_of
from controller.auth.caller import built_in
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
    assert token.expires_at == bench.clock.now + 90 * 86400
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
    caller = built_in("shop/x", "shop", Role.named(has), bench.context.caller.request, DEFAULT_DOMAIN)
    context = msgspec.structs.replace(bench.context, caller=caller)
    body = NewResource(name="ci", spec={"role": wants})
    if may:
        assert admission.create(context, kind_named("token"), "shop", body).resource.spec.role == wants
        return
    with pytest.raises(
        Denied, match=r"shop/x can't give .* in project shop to token ci, since it lacks that there itself"
    ):
        admission.create(context, kind_named("token"), "shop", body)


async def test_a_token_says_until_when_it_is_good_and_that_it_has_expired(bench: Bench) -> None:
    await bench.project()
    token = await bench.create("token", "shop", "ci", expires_in="2h")
    good = bench.plan(token)
    bench.clock.now += 7200
    late = bench.plan(token)
    assert isinstance(good, Done)
    assert isinstance(late, Done)
    assert good.status == TokenStatus(state="active", expires_at=bench.clock.now)
    assert late.status == TokenStatus(state="expired", expires_at=bench.clock.now)


@pytest.mark.parametrize(("expires_in", "may"), [("366d", True), ("367d", False), ("1s", True), ("999999h", False)])
async def test_no_token_lasts_longer_than_a_year(bench: Bench, expires_in: str, may: bool) -> None:
    await bench.project()
    if may:
        await bench.create("token", "shop", "ci", expires_in=expires_in)
        return
    with pytest.raises(Invalid, match=f"{expires_in} is more than the 366d that a token may last"):
        await bench.create("token", "shop", "ci", expires_in=expires_in)


async def test_a_token_of_a_custom_role_needs_one_of_its_domain(bench: Bench) -> None:
    await bench.project()
    await bench.create("domain", "", "acme")
    everybodys = await bench.create("role", "", "starter", grants=[{"actions": ["vm.start"]}])
    await bench.create("role", "", "theirs", grants=[{"actions": ["vm.start"]}], domain="acme")
    token = await bench.create("token", "shop", "ci", custom_role="starter")
    assert (token.spec.role, token.spec.custom_role) == ("custom", everybodys.id)
    with pytest.raises(NotFound, match="there is no role theirs in this domain"):
        await bench.create("token", "shop", "x", custom_role="theirs")
    with pytest.raises(Invalid, match="a custom role is wanted, and none is named"):
        await bench.create("token", "shop", "x", role="custom")
    with pytest.raises(Invalid, match=r"there is no action vm\.smoke"):
        await bench.create("token", "shop", "x", only=[{"actions": ["vm.smoke"]}])


async def test_delete_wins_from_every_state(bench: Bench) -> None:
    await bench.project()
    token = await bench.create("token", "shop", "ci")
    await bench.delete(token)
    await bench.buried([token], [])
