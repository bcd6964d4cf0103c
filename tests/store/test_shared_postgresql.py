"""Several stores on one PostgreSQL: each sees every commit once and in order, whatever happens to its connections."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import OperationalError

from common.clock import system_clock
from common.errors import Conflict, SkerryError, Temporary
from common.ids import Id
from controller.store import changes, shared, tables
from controller.store.database import open_database
from controller.store.opening import open_store
from controller.store.rows import Change, Event, Put
from controller.store.store import Store
from controller.store.tx import Tx
from controller.store.writes import ClaimVni
from tests.patience import PATIENCE_S
from tests.postgres import Cluster, running_cluster
from tests.store.desk import Clock, Desk, take


@asynccontextmanager
async def desks(url: str, count: int = 2) -> AsyncIterator[list[Desk]]:
    """Give so many controllers' stores on one database."""
    if not count:
        yield []
        return
    async with open_store(url, system_clock) as store, desks(url, count - 1) as others:
        await store.load(alone=False)
        yield [Desk(store, Clock(), seed=count), *others]


async def until(true: Callable[[], object], limit_s: float = PATIENCE_S) -> None:
    async with asyncio.timeout(limit_s):
        while not true():  # noqa: ASYNC110 - what is waited for is another store's business
            await asyncio.sleep(0.005)


def same(one: Store, other: Store) -> bool:
    return not one.seen.difference(other.seen.rows())


async def test_what_one_commits_the_other_sees_in_a_moment(postgres_url: str) -> None:
    async with desks(postgres_url) as (one, other):
        row = await one.create("project", "", "shop")
        assert one.store.seen.get(row.id) is not None
        await until(lambda: other.store.seen.get(row.id), limit_s=0.5)


async def test_a_write_sees_all_that_was_committed_before_it(postgres_url: str) -> None:
    async with desks(postgres_url) as (one, other):
        for number in range(20):
            writer, reader = (one, other) if number % 2 else (other, one)
            row = await writer.create("project", "", f"p{number}")
            await reader.store.take("w", [])  # any write will do
            assert reader.store.seen.get(row.id) is not None


async def test_every_commit_arrives_once_and_in_order_everywhere(postgres_url: str) -> None:
    async with desks(postgres_url, 3) as all_desks:
        heard: list[list[int]] = [[] for _ in all_desks]

        def listening(into: list[int]) -> Callable[[list[Change], set[Id]], None]:
            return lambda changes, _: into.extend(
                one.row.seq for one in changes if isinstance(one, Put) and isinstance(one.row, Event)
            )

        for desk, into in zip(all_desks, heard, strict=True):
            desk.store.listen(listening(into))  # type: ignore[arg-type]
        names = [f"p{number}" for number in range(60)]
        await asyncio.gather(*(all_desks[n % 3].create("project", "", name) for n, name in enumerate(names)))
        await until(lambda: all(len(one) == 60 for one in heard))
        assert heard[0] == heard[1] == heard[2] == sorted(heard[0])
        assert same(all_desks[0].store, all_desks[1].store)
        assert same(all_desks[0].store, all_desks[2].store)


async def test_of_creates_of_one_name_on_two_controllers_one_wins(postgres_url: str) -> None:
    async with desks(postgres_url) as (one, other):
        asked = [desk.admit_create("project", "", "shop") for desk in (one, other) for _ in range(5)]
        stores = [desk.store for desk in (one, other) for _ in range(5)]
        answers = await asyncio.gather(
            *(store.admit(what) for store, what in zip(stores, asked, strict=True)), return_exceptions=True
        )
        assert sum(not isinstance(answer, BaseException) for answer in answers) == 1
        assert all(isinstance(answer, Conflict) for answer in answers if isinstance(answer, BaseException))


async def test_two_controllers_sell_no_capacity_twice(postgres_url: str) -> None:
    async with desks(postgres_url) as (one, other):
        host = await one.host("h1", vcpus=30)
        asked = [
            (one, other)[number % 2].write(take(host, f"vm-{number:012d}", disk_gib=1, memory_mib=1))
            for number in range(80)
        ]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(answer is None for answer in answers) == 30
        await until(lambda: same(one.store, other.store))
        assert one.store.seen.used(host).vcpus == other.store.seen.used(host).vcpus == 30


async def test_two_controllers_give_no_vni_twice(postgres_url: str) -> None:
    async with desks(postgres_url) as (one, other):
        networks = [Id(f"net-{number:012d}") for number in range(40)]
        await asyncio.gather(*((one, other)[n % 2].write(ClaimVni(network=net)) for n, net in enumerate(networks)))
        await until(lambda: same(one.store, other.store))
        assert len({one.store.seen.vni(network) for network in networks}) == 40


async def test_one_lease_is_had_by_one(postgres_url: str) -> None:
    async with desks(postgres_url) as (one, other):
        rows = [(await one.create("project", "", f"p{number}")).id for number in range(10)]
        taken = await asyncio.gather(one.store.take("ctl-1", rows), other.store.take("ctl-2", rows))
        assert sorted(len(those) for those in taken) == [0, 10]


async def test_a_row_that_is_locked_is_passed_over(postgres_url: str) -> None:
    engine = open_database(postgres_url)
    try:
        async with desks(postgres_url, 1) as (desk,):
            rows = [(await desk.create("project", "", f"p{number}")).id for number in range(3)]
            with engine.begin() as elsewhere:
                elsewhere.execute(
                    select(tables.queue).where(tables.queue.c.resource == rows[0]).with_for_update()
                ).all()
                async with asyncio.timeout(PATIENCE_S):
                    taken = await desk.store.take("ctl-1", rows)
            assert {row.resource for row in taken} == set(rows[1:])
    finally:
        engine.dispose()


async def test_lost_connections_lose_and_repeat_nothing(cluster: Cluster, postgres_url: str) -> None:
    async with desks(postgres_url) as (one, other):
        done: list[str] = []

        async def create(number: int) -> None:
            name = f"p{number}"
            await (one, other)[number % 2].create("project", "", name)
            done.append(name)

        async with asyncio.TaskGroup() as group:
            for number in range(60):
                group.create_task(create(number))
                await asyncio.sleep(0.005)
                if number % 15 == 7:
                    await asyncio.to_thread(cluster.cut)
        assert len(done) == 60
        await until(lambda: same(one.store, other.store))
        engine = open_database(postgres_url)
        with engine.connect() as connection:
            names = connection.execute(select(tables.event.c.name)).scalars().all()
            seqs = connection.execute(select(tables.change.c.seq).order_by(tables.change.c.seq)).scalars().all()
        engine.dispose()
        assert sorted(names) == sorted(done)
        assert list(seqs) == list(range(1, len(seqs) + 1))


async def test_a_commit_whose_answer_was_lost_is_found_and_not_repeated(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks after the server has committed, before the controller hears of it."""
    async with desks(postgres_url) as (one, other):
        breaks = iter([True])
        deliver = shared.SharedWriter._deliver

        def lost(self: shared.SharedWriter, *args: object) -> None:
            if self._jobs is one.store._writer._jobs and args[2] and next(breaks, False):  # type: ignore[attr-defined]
                raise OperationalError("COMMIT", {}, ConnectionError("the answer was lost"))
            deliver(self, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(shared.SharedWriter, "_deliver", lost)
        row = await one.create("project", "", "shop")
        assert next(breaks, None) is None
        assert one.store.seen.get(row.id) == row
        await until(lambda: same(one.store, other.store))
        assert len(await one.store.events(0, 10, None)) == 1


async def test_a_transaction_is_tried_again_after_a_deadlock(postgres_url: str) -> None:
    async with desks(postgres_url, 1) as (desk,):
        tries: list[int] = []

        def stumbles(tx: Tx) -> str:
            tries.append(1)
            tx.run(text("SELECT 1"))
            if len(tries) < 3:
                raise OperationalError("UPDATE", {}, Exception("deadlock detected"))
            return "done"

        assert await desk.store._writer.submit(stumbles) == "done"
        assert len(tries) == 3


async def test_a_bug_in_one_transaction_harms_no_other(postgres_url: str) -> None:
    async with desks(postgres_url, 1) as (desk,):
        wrong = desk.store._writer.submit(lambda tx: tx.run(text("SELECT no_such_column")))
        answers = await asyncio.gather(wrong, desk.create("project", "", "shop"), return_exceptions=True)
        assert isinstance(answers[0], Exception)
        assert not isinstance(answers[0], SkerryError)
        assert desk.store.seen.named("project", "", "shop")


async def test_one_that_was_away_for_longer_than_the_log_lasts_loads_everything(
    cluster: Cluster, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desks(postgres_url) as (one, other):
        kept = await one.create("project", "", "kept")
        gone = await one.create("project", "", "gone")
        await until(lambda: same(one.store, other.store))
        with other.store.watch() as watch, monkeypatch.context() as patch:
            patch.setattr(other.store._writer, "_catch_up", lambda *_: False)
            await one.delete(gone)
            await one.change(kept, description="changed")
            await one.create("project", "", "new")
            engine = open_database(postgres_url)
            with engine.begin() as connection:
                connection.execute(update(tables.change).values(at=0.0))
            engine.dispose()
            await one.store.prune()
            patch.undo()
            await until(lambda: same(one.store, other.store))
            assert await watch.next() is None
        assert other.store.seen.named("project", "", "new")
        assert (row := other.store.seen.get(kept.id))
        assert row.spec.description == "changed"


async def test_the_log_is_pruned_but_for_its_end(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with desks(postgres_url) as (one, other):
        for number in range(5):
            await one.create("project", "", f"p{number}")
        monkeypatch.setattr(changes, "KEPT_S", -60.0)
        engine = open_database(postgres_url)
        with engine.connect() as connection:
            before = connection.execute(select(tables.change.c.seq)).scalars().all()
        await one.store.prune()
        with engine.connect() as connection:
            left = connection.execute(select(tables.change.c.seq)).scalars().all()
        engine.dispose()
        assert len(before) > 5
        assert list(left) == [max(before)]
        row = await other.create("project", "", "more")
        await until(lambda: one.store.seen.get(row.id))


async def test_a_value_that_does_not_fit_is_the_callers_to_mend(postgres_url: str) -> None:
    async with desks(postgres_url, 1) as (desk,):
        host = await desk.host("h1")
        with pytest.raises(SkerryError, match="does not fit"):
            await desk.write(take(host, "vm-" + "x" * 60))
        with pytest.raises(SkerryError, match="does not fit"):
            await desk.write(take(host, "vm-000000000001", vcpus=2**40))


async def test_a_crash_of_the_server_loses_nothing_that_was_answered() -> None:
    with running_cluster() as cluster:
        url = cluster.database()
        async with desks(url) as (one, other):
            answered: list[str] = []
            refused: list[str] = []

            async def create(number: int) -> None:
                try:
                    await (one, other)[number % 2].create("project", "", f"p{number}")
                    answered.append(f"p{number}")
                except (Temporary, Conflict):
                    refused.append(f"p{number}")

            async with asyncio.TaskGroup() as group:
                for number in range(40):
                    group.create_task(create(number))
                    await asyncio.sleep(0.005)
                    if number == 20:
                        await asyncio.to_thread(cluster.stop, "immediate")
                        await asyncio.to_thread(cluster.start)
            assert len(answered) + len(refused) == 40
            await until(lambda: same(one.store, other.store))
            there = {row.name for row in one.store.seen.of_kind("project")}
            assert set(answered) <= there


async def test_a_database_that_stays_away_is_told_and_then_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "PATIENCE_S", 0.5)
    with running_cluster() as cluster:
        async with desks(cluster.database(), 1) as (desk,):
            await desk.create("project", "", "before")
            await asyncio.to_thread(cluster.stop, "immediate")
            with pytest.raises(Temporary, match="can't be written"):
                await desk.create("project", "", "during")
            await asyncio.to_thread(cluster.start)
            await desk.create("project", "", "after")
            assert {row.name for row in desk.store.seen.of_kind("project")} >= {"before", "after"}
