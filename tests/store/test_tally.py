"""The recount: whatever the books say, they say what is there once it was looked at, and it is told."""

from collections.abc import Mapping

from sqlalchemy import Engine, text

from common.kinds.domain import DEFAULT_DOMAIN
from controller.fleet.tally import Tally
from controller.store.rows import EventQuery, domain_account
from controller.store.store import Store
from tests.store.desk import Clock, Desk
from tests.store.test_quota import SHOP, furnish, used


def tally(store: Store, standard: Mapping[str, int] | None = None) -> Tally:
    return Tally(store, standard or {}, Clock(), every_s=300.0)


async def told(store: Store) -> list[str]:
    events = await store.events(0, 1000, EventQuery())
    return [one.message for one in events if one.action == "quota.recounted"]


async def test_what_is_right_is_left_alone(desk: Desk) -> None:
    await furnish(desk)
    await tally(desk.store).look()
    revision = desk.store.seen.revision
    assert await tally(desk.store).look() == ()
    assert desk.store.seen.revision == revision
    assert await told(desk.store) == []
    assert desk.store.seen.quotas_audited
    assert desk.store.seen.quotas_audited.differences == 0


async def test_a_database_of_a_release_without_quotas_is_counted(desk: Desk, engine: Engine) -> None:
    await furnish(desk)
    await desk.create("vm", "shop", "web", image="tiny", size="small")
    before = await used(desk.store)
    with engine.begin() as connection:
        connection.execute(text("UPDATE resource SET counts = '{}'"))
        connection.execute(text("DELETE FROM quota"))
    await desk.store.load(alone=not desk.store.shared)
    assert desk.store.seen.counted("shop") == {}
    assert len(await tally(desk.store, {"vms": 1}).look()) > 3
    assert await used(desk.store) == before
    assert await used(desk.store, domain_account(DEFAULT_DOMAIN)) == before
    assert await ceiling(desk.store) == 1
    (message,) = await told(desk.store)
    assert "put right: " in message


async def test_books_that_are_wrong_are_put_right_and_told(desk: Desk, engine: Engine) -> None:
    await furnish(desk)
    with engine.begin() as connection:
        connection.execute(text("UPDATE quota SET used = used + 7 WHERE counter = 'networks'"))
    found = await tally(desk.store).look()
    assert "project/shop networks: 8 in the books, 1 counted" in found
    assert (await used(desk.store))["networks"] == 1
    assert "project/shop networks: 8 in the books, 1 counted" in (await told(desk.store))[0]


async def test_a_new_default_holds_from_the_next_start_and_own_limits_stay(desk: Desk) -> None:
    await furnish(desk)
    await tally(desk.store, {"vms": 5}).look()
    assert await ceiling(desk.store) == 5
    project = desk.store.seen.named("project", "", "shop")
    assert project
    await desk.change(project, quota={"vms": 9})
    await tally(desk.store, {"vms": 3}).look()
    assert await ceiling(desk.store) == 9


async def ceiling(store: Store) -> int | None:
    return next(one.ceiling for one in await store.standings() if (one.account, one.counter) == (SHOP, "vms"))
