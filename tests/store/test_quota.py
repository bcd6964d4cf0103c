"""Quotas hold exactly: under creates that run at once, on two controllers, and wherever the process dies."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from common.errors import Conflict, QuotaExceeded
from common.faults import Died, Faults
from common.kinds import COUNTERS
from common.kinds.domain import DEFAULT_DOMAIN
from common.kinds.kind import AnyResource
from common.refusal import Shortfall
from controller.kinds import admission
from controller.kinds.quotas import counts_of
from controller.store.rows import domain_account
from controller.store.store import Feed, Store
from controller.store.writer import InlineWriter
from controller.store.writes import Forget, Recharge, Recount, SetLimits
from sim.database import memory_engine
from tests.store.desk import Clock, Desk
from tests.store.test_shared_postgresql import desks, until

GIB = 1 << 30
SHOP, LAB = "project/shop", "project/lab"


def limits(**of: int) -> SetLimits:
    wanted: dict[str, int | None] = {counter.name: of.get(counter.name) for counter in COUNTERS}
    return SetLimits(account=SHOP, limits=wanted, parent=domain_account(DEFAULT_DOMAIN))


async def used(store: Store, account: str = SHOP) -> dict[str, int]:
    """Return what an account uses, once it is sure that the books, a recount and the working set agree on it."""
    standings = await store.standings()
    assert [one for one in standings if one.used != one.counted] == []
    found = {one.counter: one.used for one in standings if one.account == account and one.used}
    if account.startswith("project/"):
        assert store.seen.counted(account.removeprefix("project/")) == found
    for row in store.seen:
        assert row.counts == counts_of(row, store.seen), row.name
    return found


async def at_once(asked: list[Any]) -> list[AnyResource | QuotaExceeded]:
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(one, QuotaExceeded) for one in answers if isinstance(one, BaseException)), answers
    return answers  # type: ignore[return-value]


async def test_of_forty_creates_at_once_as_many_succeed_as_the_limit_allows(desk: Desk) -> None:
    await desk.project()
    await desk.write(limits(networks=13))
    answers = await at_once([desk.create("network", "shop", f"n{number}") for number in range(40)])
    assert sum(isinstance(one, QuotaExceeded) for one in answers) == 27
    assert await used(desk.store) == {"networks": 13}


async def test_of_creates_on_two_controllers_as_many_succeed_as_the_limit_allows(postgres_url: str) -> None:
    async with desks(postgres_url) as both:
        one, other = both
        await one.project()
        await one.write(limits(networks=17))
        await until(lambda: other.store.seen.named("project", "", "shop"))
        answers = await at_once([both[n % 2].create("network", "shop", f"n{n}") for n in range(60)])
        assert sum(isinstance(answer, QuotaExceeded) for answer in answers) == 43
        await until(lambda: other.store.seen.counted("shop") == one.store.seen.counted("shop"))
        for desk in both:
            assert await used(desk.store) == {"networks": 17}


async def test_a_domain_holds_the_sum_of_its_projects(desk: Desk) -> None:
    acme = await desk.create("domain", "", "acme", quota={"keypairs": 7})
    await desk.create("project", "", "shop", domain="acme", quota={"keypairs": 5})
    await desk.create("project", "", "lab", domain="acme")
    await desk.project("else")
    key = "ssh-ed25519 AAAA"
    asked = [desk.create("keypair", project, f"k{n}", public_key=key) for n in range(10) for project in ("shop", "lab")]
    answers = await at_once([*asked, *(desk.create("keypair", "else", f"k{n}", public_key=key) for n in range(3))])
    assert sum(not isinstance(one, QuotaExceeded) for one in answers) == 7 + 3
    shop, lab = [(await used(desk.store, one)).get("keypairs", 0) for one in (SHOP, LAB)]
    assert shop <= 5
    assert shop + lab == 7
    assert await used(desk.store, domain_account(acme.id)) == {"keypairs": 7}
    assert await used(desk.store, "project/else") == {"keypairs": 3}
    with pytest.raises(QuotaExceeded, match="domain acme may have 7 keypairs, has 7, and this asks for 1 more") as full:
        await desk.create("keypair", "lab", "more", public_key=key)
    assert "skerry quota set --domain acme --keypairs 8" in full.value.fix


async def test_a_machine_counts_all_that_it_will_have_and_gives_it_back_when_it_is_gone(desk: Desk) -> None:
    await furnish(desk)
    await desk.write(limits(vms=1))
    vm = await desk.create("vm", "shop", "web", image="tiny", size="small")
    has = {"vms": 1, "vcpus": 2, "memory_mib": 512, "disk_gib": 10, "volumes": 1, "addresses": 1}
    furniture = {"images": 1, "image_gib": 1, "networks": 1}
    assert await used(desk.store) == furniture | has
    await desk.delete(vm)
    with pytest.raises(QuotaExceeded):
        await desk.create("vm", "shop", "next", image="tiny", size="small")
    await desk.write(Forget(resource=vm.id))
    assert await used(desk.store) == furniture


async def test_a_refusal_names_limit_use_and_the_way_out_and_leaves_nothing(desk: Desk) -> None:
    await furnish(desk)
    await desk.write(limits(vcpus=5, memory_mib=1024))
    for name in ("a", "b"):
        await desk.create("vm", "shop", name, image="tiny", size="small")
    before = await used(desk.store)
    with pytest.raises(QuotaExceeded) as refused:
        await desk.create("vm", "shop", "c", image="tiny", size="small")
    assert await used(desk.store) == before
    assert refused.value.shortfalls == (
        Shortfall(of="project", name="shop", counter="vcpus", limit=5, used=4, asked=2),
        Shortfall(of="project", name="shop", counter="memory_mib", limit=1024, used=1024, asked=512),
    )
    assert refused.value.detail.startswith("project shop may have 5 vCPUs, has 4, and this asks for 2 more; ")
    assert "skerry quota set shop --vcpus 6 --memory-mib 1536" in refused.value.fix
    assert refused.value.refusal is not None
    assert refused.value.refusal.smallest_change.startswith("1 vCPUs less, or a limit of 6 for project shop")


async def test_a_change_is_charged_for_what_it_adds(desk: Desk) -> None:
    await desk.project()
    image = await desk.create("image", "shop", "tiny")
    await desk.write(limits(image_gib=2))
    with pytest.raises(QuotaExceeded, match="may have 2 GiB of images, has 0, and this asks for 3 more"):
        await uploaded(desk, image, 2 * GIB + 1)
    image = await uploaded(desk, image, 2 * GIB)
    assert await used(desk.store) == {"images": 1, "image_gib": 2}
    await desk.write(Forget(resource=image.id))
    assert await used(desk.store) == {}


async def test_a_lowered_limit_takes_nothing_away_and_stops_what_is_new(desk: Desk) -> None:
    await desk.project()
    rows = [await desk.create("network", "shop", f"n{number}") for number in range(3)]
    project = desk.store.seen.named("project", "", "shop")
    assert project
    await desk.change(project, quota={"networks": 2})
    for row in rows[:2]:
        with pytest.raises(QuotaExceeded, match=r"may have 2 networks, has [32], and this asks for 1 more"):
            await desk.create("network", "shop", "next")
        await desk.write(Forget(resource=row.id))
    await desk.create("network", "shop", "next")
    assert await used(desk.store) == {"networks": 2}


async def test_what_was_counted_otherwise_is_counted_anew_whatever_the_limits(desk: Desk, engine: Engine) -> None:
    await desk.project()
    rows = [await desk.create("network", "shop", f"n{number}") for number in range(3)]
    await desk.write(limits(networks=1))
    with engine.begin() as connection:
        connection.execute(text("UPDATE quota SET used = 40 WHERE counter = 'networks'"))
        connection.execute(text("UPDATE resource SET counts = '{}' WHERE kind = 'network'"))
    standing = next(one for one in await desk.store.standings() if (one.account, one.counter) == (SHOP, "networks"))
    assert (standing.used, standing.counted, standing.ceiling) == (40, 0, 1)
    recharges = [Recharge(resource=row.id, counted={}, counts={"networks": 1}) for row in rows]
    await desk.write(*recharges, Recount())
    assert await used(desk.store) == {"networks": 3}
    with pytest.raises(Conflict, match="changed meanwhile"):
        await desk.write(recharges[0])


async def test_deleting_is_possible_where_the_books_say_that_nothing_is_there(desk: Desk, engine: Engine) -> None:
    await desk.project()
    row = await desk.create("network", "shop", "net")
    with engine.begin() as connection:
        connection.execute(text("UPDATE quota SET used = 0"))
    await desk.write(Forget(resource=row.id))
    assert await used(desk.store) == {}


async def test_a_counter_that_is_new_is_charged_from_its_first_thing_on(desk: Desk, engine: Engine) -> None:
    await furnish(desk)
    before = await used(desk.store)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM quota WHERE counter = 'addresses' AND account = 'project/shop'"))
        connection.execute(text("DELETE FROM quota WHERE counter = 'vcpus' AND account != 'project/shop'"))
    await desk.create("vm", "shop", "web", image="tiny", size="small")
    assert (await used(desk.store))["addresses"] == 1
    assert await used(desk.store, domain_account(DEFAULT_DOMAIN)) == await used(desk.store) != before


async def test_what_nothing_counts_can_not_be_limited(desk: Desk) -> None:
    with pytest.raises(admission.Invalid, match="project shop: nothing counts cows"):
        await desk.create("project", "", "shop", quota={"cows": 3})


async def furnish(desk: Desk) -> None:
    await desk.project()
    await desk.create("size", "", "small", vcpus=2, memory_mib=512, disk_gib=10)
    await uploaded(desk, await desk.create("image", "shop", "tiny"), GIB)
    await desk.create("network", "shop", "default")


async def uploaded(desk: Desk, image: AnyResource, size_bytes: int) -> AnyResource:
    """Give an image its bytes."""
    spec = msgspec.structs.replace(desk.now(image).spec, digest="sha256:" + "a" * 64, size_bytes=size_bytes)
    done = await desk.store.admit(admission.record(desk.context, desk.now(image), spec, "content"))
    return done.resource


# --- with deaths ---------------------------------------------------------------------------------------------------

POINTS = ("store.begin", "store.commit", "store.committed")


class Mortal:
    """A store in memory whose process dies where a test says, and comes again over the same database."""

    def __init__(self, engine: Engine, run: Callable[[Any], Any]) -> None:
        self.engine = engine
        self.run = run
        self.faults = Faults()
        self._born()

    def _born(self) -> None:
        feed = Feed()
        self._writer = InlineWriter(self.engine, Clock(), feed.committed, self.faults)
        store = Store(self._writer, feed)
        self.run(store.load(alone=True))
        self.desk = Desk(store, Clock(), seed=id(store))

    def do(self, act: Callable[[Desk], Any], dies_at: str = "") -> bool:
        """Act, and say whether the process lived; one that died is followed by another one."""

        def hook(point: str) -> None:
            if point == dies_at:
                raise Died

        self.faults.hook = hook
        try:
            self.run(act(self.desk))
        except Died:
            self.faults.hook = lambda _: None
            self._writer.close()
            self._born()
            return False
        finally:
            self.faults.hook = lambda _: None
        return True

    def close(self) -> None:
        self._writer.close()


@contextmanager
def mortal() -> Iterator[Mortal]:
    engine, loop = memory_engine(), asyncio.new_event_loop()
    made = Mortal(engine, loop.run_until_complete)
    try:
        yield made
    finally:
        made.close()
        engine.dispose()
        loop.close()


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("what", ["create", "bury"])
def test_a_death_at_any_point_leaves_row_and_charge_together(point: str, what: str) -> None:
    with mortal() as cloud:
        cloud.do(lambda desk: desk.project())
        cloud.do(lambda desk: desk.write(limits(networks=1)))
        if what == "bury":
            cloud.do(lambda desk: desk.create("network", "shop", "net"))
        assert not cloud.do(act(what, 0), dies_at=point)
        there = cloud.desk.store.seen.named("network", "shop", "net0" if what == "create" else "net")
        done = point == "store.committed"
        assert (there is not None) is (done if what == "create" else not done)
        assert cloud.run(used(cloud.desk.store)) == ({"networks": 1} if there else {})


def act(what: str, number: int) -> Callable[[Desk], Any]:
    """Return something that a caller, or a planner, does."""

    async def bury(desk: Desk) -> None:
        rows = sorted((one for one in desk.store.seen if one.project == "shop"), key=lambda one: one.id)
        free = [one for one in rows if not desk.store.seen.users(one.id)]
        if free:
            await desk.write(Forget(resource=free[number % len(free)].id))

    async def upload(desk: Desk) -> None:
        images = sorted((one for one in desk.store.seen.of_kind("image")), key=lambda one: one.id)
        if images:
            await uploaded(desk, images[number % len(images)], number * GIB // 2)

    match what:
        case "create":
            return lambda desk: desk.create("network", "shop", f"net{number}")
        case "vm":
            return lambda desk: desk.create("vm", "shop", f"vm{number}", image="tiny", size="small")
        case "image":
            return lambda desk: desk.create("image", "shop", f"image{number}")
        case "upload":
            return upload
        case "limit":
            return lambda desk: desk.write(limits(vms=number, networks=number + 1, image_gib=number))
        case _:
            return bury


STEPS = st.tuples(
    st.sampled_from(("create", "vm", "vm", "image", "upload", "limit", "bury", "bury")),
    st.integers(0, 4),
    st.sampled_from(("", "", "", *POINTS)),
)


@settings(max_examples=20, deadline=None)
@given(steps=st.lists(STEPS, min_size=5, max_size=15))
def test_the_books_equal_a_recount_and_no_limit_is_passed(steps: list[tuple[str, int, str]]) -> None:
    with mortal() as cloud:
        cloud.do(furnish)
        for what, number, dies_at in steps:
            before, refused = cloud.run(used(cloud.desk.store)), None
            try:
                cloud.do(act(what, number), dies_at)
            except (QuotaExceeded, Conflict, admission.NotFound) as err:
                refused = err
            after = cloud.run(used(cloud.desk.store))
            if refused:
                assert after == before
                assert all(one.used + one.asked > one.limit for one in refused.shortfalls)
            ceilings = {one.counter: one.ceiling for one in cloud.run(cloud.desk.store.standings())}
            grown = [name for name in after if after[name] > before.get(name, 0)]
            assert all(ceilings.get(name) is None or after[name] <= ceilings[name] for name in grown)
