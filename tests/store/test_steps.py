"""The writes of planners: each a result, so that twice is once; tombstones; what forgetting takes along."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from common.documents import DocKey, VolumeDoc, key_of
from common.ids import HostId, Id, Revision, child_id
from common.kinds.volume import VolumeSpec
from common.secret import Secret
from controller.store.rows import Change, Enrolment, Given, Token
from controller.store.store import Feed, Store
from controller.store.writer import GroupWriter
from controller.store.writes import (
    AnyWrite,
    ClaimAddress,
    ClaimVni,
    CreateChild,
    DeleteChild,
    Forget,
    ForgetHost,
    PutDocument,
    PutEnrolment,
    PutPassword,
    PutToken,
    ReleaseAddresses,
    ReleasePlacement,
    ReleaseVni,
    RemovePassword,
    RemoveToken,
    Tombstone,
)
from sim.database import inline_store
from tests.store.desk import Clock, Desk, take
from tests.store.same import same

HOST = HostId(Id("host-00000000000a"))
OWNER = Id("vm-00000000000a")
NET = Id("net-00000000000a")
DOC = VolumeDoc(id=Id("vol-00000000000a"), size_gib=1, image=None)
KEY = key_of(DOC)


def put(size_gib: int = 1) -> PutDocument:
    return PutDocument(host=HOST, owner=OWNER, doc=VolumeDoc(id=DOC.id, size_gib=size_gib, image=None))


async def revision_of(desk: Desk) -> Revision:
    document = desk.store.seen.document(HOST, KEY)
    assert document is not None
    return document.revision


async def test_a_document_is_put_replaced_and_buried(desk: Desk) -> None:
    await desk.write(put(1))
    first = await revision_of(desk)
    await desk.write(put(2))
    second = await revision_of(desk)
    await desk.write(Tombstone(host=HOST, key=KEY))
    document = desk.store.seen.document(HOST, KEY)
    assert document is not None
    assert document.gone
    assert document.doc == VolumeDoc(id=DOC.id, size_gib=2, image=None)
    assert first < second < document.revision


async def test_burying_twice_keeps_the_revision_that_the_host_was_told(desk: Desk) -> None:
    await desk.write(put())
    await desk.write(Tombstone(host=HOST, key=KEY))
    told = await revision_of(desk)
    await desk.write(Tombstone(host=HOST, key=KEY))
    assert await revision_of(desk) == told


async def test_a_tombstone_goes_when_its_host_says_that_the_thing_is_gone(desk: Desk) -> None:
    await desk.write(put())
    await desk.write(Tombstone(host=HOST, key=KEY))
    assert await desk.store.acknowledge(HOST, [(KEY, await revision_of(desk))]) == (OWNER,)
    assert desk.store.seen.document(HOST, KEY) is None
    assert desk.store.seen.owned_documents(OWNER) == ()


async def test_what_is_wanted_is_not_acknowledged_away(desk: Desk) -> None:
    await desk.write(put())
    assert await desk.store.acknowledge(HOST, [(KEY, Revision(1 << 40))]) == ()
    assert desk.store.seen.document(HOST, KEY) is not None


async def test_the_word_on_an_earlier_tombstone_does_not_count_for_a_later_one(desk: Desk) -> None:
    await desk.write(put())
    await desk.write(Tombstone(host=HOST, key=KEY))
    early = await revision_of(desk)
    await desk.write(put())
    await desk.write(Tombstone(host=HOST, key=KEY))
    assert await desk.store.acknowledge(HOST, [(KEY, early)]) == ()
    assert desk.store.seen.document(HOST, KEY) is not None


async def test_a_host_acknowledges_only_its_own(desk: Desk) -> None:
    await desk.write(put())
    await desk.write(Tombstone(host=HOST, key=KEY))
    other = HostId(Id("host-00000000000b"))
    assert await desk.store.acknowledge(other, [(KEY, await revision_of(desk))]) == ()
    assert await desk.store.acknowledge(HOST, [("volume/vol-00000000000b", Revision(99))]) == ()
    assert desk.store.seen.document(HOST, KEY) is not None


async def test_forgetting_a_host_takes_documents_enrolment_and_capacity_along(desk: Desk) -> None:
    host = await desk.host("h1")
    enrolment = Enrolment(host=host, join_digest="ab", join_expires_at=0, certificate_serial="1")
    await desk.write(PutEnrolment(enrolment=enrolment), PutDocument(host=host, owner=OWNER, doc=DOC))
    await desk.write(ForgetHost(host=host))
    seen = desk.store.seen
    assert (seen.enrolment(host), seen.capacity(host), tuple(seen.documents(host))) == (None, None, ())


async def test_a_join_token_is_good_once_and_for_its_time(desk: Desk) -> None:
    now = desk.clock.now
    await desk.write(
        PutEnrolment(enrolment=Enrolment(host=HOST, join_digest="ab", join_expires_at=now + 9, certificate_serial=""))
    )
    assert await desk.store.use_join_token("", Given(serial="1")) is None
    assert await desk.store.use_join_token("cd", Given(serial="1")) is None
    desk.clock.now += 10
    assert await desk.store.use_join_token("ab", Given(serial="1")) is None
    desk.clock.now -= 5
    used = await desk.store.use_join_token("ab", Given(serial="1"))
    assert used is not None
    assert (used.certificate_serial, used.join_digest) == ("1", "")
    assert await desk.store.use_join_token("ab", Given(serial="2")) is None


async def test_a_renewal_keeps_the_certificate_good_that_was_shown(desk: Desk) -> None:
    assert await desk.store.renewed(HOST, "1", Given(serial="2")) is None
    await desk.write(
        PutEnrolment(enrolment=Enrolment(host=HOST, join_digest="", join_expires_at=0, certificate_serial="1"))
    )
    after = await desk.store.renewed(HOST, "1", Given(serial="2"))
    assert after is not None
    assert (after.certificate_serial, after.previous_serial) == ("2", "1")
    lost = await desk.store.renewed(HOST, "1", Given(serial="3"))
    assert lost is not None
    assert (lost.certificate_serial, lost.previous_serial) == ("3", "1")


async def test_a_child_goes_with_one_poke_of_its_owner(desk: Desk) -> None:
    await desk.project()
    owner = await desk.create("network", "shop", "owner")
    child = CreateChild(
        id=child_id(owner.id, "vol"), kind="volume", project="shop", name="web", owner=owner.id,
        spec=VolumeSpec(size_gib=1, host=HOST),
    )  # fmt: skip
    await desk.write(child)
    await desk.write(child)
    assert [one.id for one in desk.store.seen.children(owner.id)] == [child.id]
    await desk.write(DeleteChild(id=child.id))
    deleted = desk.store.seen.get(child.id)
    assert deleted is not None
    assert deleted.deleted_at == desk.clock.now
    desk.clock.now += 1
    await desk.write(DeleteChild(id=child.id))
    assert desk.store.seen.get(child.id).deleted_at == deleted.deleted_at  # type: ignore[union-attr]
    poked: set[Id] = set()

    def listener(_changes: list[Change], who: set[Id]) -> None:
        poked.update(who)

    desk.store.listen(listener)  # type: ignore[arg-type]
    await desk.write(Forget(resource=child.id))
    assert poked == {owner.id}
    assert desk.store.seen.children(owner.id) == ()


async def test_forgetting_closes_every_operation(desk: Desk) -> None:
    row = await desk.create("project", "", "shop")
    await desk.delete(row)
    await desk.write(Forget(resource=row.id))
    states = {op.verb: op.state for op in desk.store.seen.operations()}
    assert states == {"create": "cancelled", "delete": "done"}
    assert desk.store.seen.get(row.id) is None
    assert desk.store.seen.named("project", "", "shop") is None
    assert (await desk.create("project", "", "shop")).generation == 1


async def test_tokens_of_one_thing_are_removed_singly_or_all(desk: Desk) -> None:
    await desk.project()
    row = await desk.create("token", "shop", "ci")
    seen = desk.store.seen
    await desk.write(PutToken(token=Token(digest="old", resource=row.id)))
    await desk.write(PutToken(token=Token(digest="new", resource=row.id)))
    assert {one.digest for one in seen.tokens_of(row.id)} >= {"old", "new"}
    await desk.write(RemoveToken(resource=row.id, digest="old"))
    assert seen.token("old") is None
    assert seen.token("new") is not None
    await desk.write(RemoveToken(resource=row.id))
    assert seen.tokens_of(row.id) == ()


async def test_sessions_that_expired_long_ago_are_dropped_and_tokens_are_not(desk: Desk, clock: Clock) -> None:
    await desk.project()
    user = await desk.create("user", "", "bob")
    token = await desk.create("token", "shop", "ci")
    await desk.write(PutToken(token=Token(digest="s", resource=user.id, expires_at=clock.now + 10)))
    await desk.store.tidy()
    clock.now += 8 * 86400
    assert len(desk.store.seen.tokens_of(user.id)) == 1
    await desk.store.tidy()
    assert desk.store.seen.tokens_of(user.id) == ()
    clock.now += 900 * 86400
    await desk.store.tidy()
    assert len(desk.store.seen.tokens_of(token.id)) == 1


async def test_a_password_is_replaced_and_forgotten_and_in_no_log(desk: Desk) -> None:
    user = await desk.create("user", "", "bob")
    assert str(await desk.store.password(user.id)).startswith("sha256$")
    await desk.write(PutPassword(user=user.id, hash=Secret("one")))
    assert await desk.store.password(user.id) == "one"
    await desk.write(RemovePassword(user=user.id))
    assert await desk.store.password(user.id) is None


WRITES: dict[str, AnyWrite] = {
    "place": take(HOST, OWNER),
    "release": ReleasePlacement(owner=OWNER),
    "address": ClaimAddress(network=NET, cidr="10.2.0.0/29", vm=OWNER, index=0, mac="02:00:00:00:00:01"),
    "release-address": ReleaseAddresses(vm=OWNER),
    "vni": ClaimVni(network=NET),
    "release-vni": ReleaseVni(network=NET),
    "put": put(),
    "bury": Tombstone(host=HOST, key=KEY),
    "enrol": PutEnrolment(enrolment=Enrolment(host=HOST, join_digest="", join_expires_at=0, certificate_serial="")),
    "token": PutToken(token=Token(digest="d", resource=OWNER)),
    "remove-token": RemoveToken(resource=OWNER),
    "password": PutPassword(user=OWNER, hash=Secret("h")),
    "remove-password": RemovePassword(user=OWNER),
    "child": CreateChild(
        id=Id("vol-00000000000c"), kind="volume", project="shop", name="c", owner=OWNER, spec=VolumeSpec(size_gib=1)
    ),
    "delete-child": DeleteChild(id=Id("vol-00000000000c")),
    "forget": Forget(resource=Id("vol-00000000000c")),
}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(sorted(set(WRITES) - {"place"})), max_size=12))
def test_a_write_applied_twice_is_applied_once(names: list[str]) -> None:
    with inline_store() as (once, run, _), inline_store() as (twice, run_twice, _):
        for name in names:
            run(once.step((WRITES[name],), (), ""))
            run_twice(twice.step((WRITES[name],), (), ""))
            run_twice(twice.step((WRITES[name],), (), ""))
        same(once.seen, twice.seen)


@pytest.mark.parametrize("name", sorted(WRITES))
async def test_the_working_set_is_what_a_restart_would_load(
    desk: Desk, store: Store, engine: Engine, name: str
) -> None:
    host = await desk.host("h1")
    await desk.write(take(host, OWNER))
    await desk.write(*(WRITES[one] for one in ("address", "vni", "put", "enrol", "token", "child")))
    if name != "place":
        await desk.write(WRITES[name])
    fresh = Feed()
    async with GroupWriter(engine, desk.clock, fresh.committed) as writer:
        await Store(writer, fresh).load(alone=True)
    same(store.seen, fresh.seen, revisions=True)


async def test_a_document_key_is_its_hosts_own(desk: Desk) -> None:
    other = HostId(Id("host-00000000000b"))
    await desk.write(put(), PutDocument(host=other, owner=OWNER, doc=DOC))
    await desk.write(Tombstone(host=other, key=DocKey(KEY)))
    mine = desk.store.seen.document(HOST, KEY)
    assert mine is not None
    assert not mine.gone


async def test_an_endpoint_is_noted_and_nothing_else_of_an_enrolment_is_overwritten(desk: Desk) -> None:
    await desk.store.note_endpoint(HOST, "10.77.0.11", 1400)
    assert desk.store.seen.enrolment(HOST) is None, "a host that was forgotten comes not back by its last word"
    enrolment = Enrolment(host=HOST, join_digest="ab", join_expires_at=9, certificate_serial="")
    await desk.write(PutEnrolment(enrolment=enrolment))
    await desk.store.note_endpoint(HOST, "10.77.0.11", 1400)
    noted = desk.store.seen.enrolment(HOST)
    assert noted == msgspec.structs.replace(enrolment, vtep="10.77.0.11", underlay_mtu=1400)
