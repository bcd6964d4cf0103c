"""The one writer: many transactions in one commit, each alone in its failure; a full disk keeps nothing of anybody."""

import asyncio
import sqlite3
from typing import Any

import pytest
from sqlalchemy import Engine, event, insert, select, text
from sqlalchemy.exc import DatabaseError

from common.errors import Conflict, OutOfSpace, Temporary
from common.ids import Id, RequestId
from controller.store import checkpoints as checkpoints_module
from controller.store import tables
from controller.store import writer as writer_module
from controller.store.rows import Change, Event, Vni
from controller.store.store import Feed, Store
from controller.store.tx import Tx
from controller.store.writer import GroupWriter
from controller.store.writes import ClaimVni
from tests.patience import PATIENCE_S
from tests.store.desk import Clock, Desk


def happened(message: str = "") -> Event:
    return Event(
        seq=0, at=1.0, actor="a", request=RequestId(""), action="vm.create", kind="vm", resource=Id("vm-1"),
        project="shop", name="web", message=message, before=b"", after=b"",
    )  # fmt: skip


def vnis(engine: Engine) -> set[str]:
    with engine.connect() as connection:
        return set(connection.execute(select(tables.vni.c.network)).scalars())


async def test_a_failing_function_undoes_its_own_work_only(store: Store, engine: Engine) -> None:
    async def good(number: int) -> None:
        await store.step((ClaimVni(network=Id(f"net-{number}")),), (), "")

    def bad(tx: Tx) -> None:
        tx.run(insert(tables.vni).values(network="net-bad", vni=7))
        tx.put(Vni(network=Id("net-bad"), vni=7))
        tx.poked.add(Id("net-bad"))
        raise Conflict("no")

    changes: list[Change] = []
    poked: set[Id] = set()

    def listen(new: list[Change], who: set[Id]) -> None:
        changes.extend(new)
        poked.update(who)

    store.listen(listen)  # type: ignore[arg-type]
    answers = await asyncio.gather(
        good(1), store._writer.submit(bad), good(2), store._writer.submit(bad), good(3), return_exceptions=True
    )
    assert [type(one) for one in answers] == [type(None), Conflict, type(None), Conflict, type(None)]
    assert vnis(engine) == {"net-1", "net-2", "net-3"}
    assert len(changes) == 3
    assert not poked
    assert store.seen.vni(Id("net-bad")) is None


async def test_a_bug_in_a_function_reaches_its_caller_and_nobody_else(store: Store) -> None:
    def buggy(_tx: Tx) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store._writer.submit(buggy)
    await store.append(happened())


async def test_listeners_hear_of_a_commit_before_its_caller_goes_on(store: Store) -> None:
    heard: list[int] = []
    store.listen(lambda changes, _: heard.append(len(changes)))
    await store.append(happened())
    assert heard == [1]


async def test_a_listener_that_fails_keeps_no_caller_waiting(store: Store) -> None:
    def broken(_changes: object, _poked: object) -> None:
        raise ZeroDivisionError

    loud: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: loud.append(context["exception"]))
    store.listen(broken)
    async with asyncio.timeout(PATIENCE_S):
        await store.append(happened())
    assert [type(one) for one in loud] == [ZeroDivisionError]


class Disk:
    """Room for so many pages more than there are."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._limit = 1 << 30
        event.listen(engine, "connect", lambda connection, _: self._set(connection))

    def _set(self, connection: Any) -> None:
        connection.execute(f"PRAGMA max_page_count = {self._limit}")

    async def leave(self, store: Store, spare: int) -> None:
        def limit(tx: Tx) -> None:
            self._limit = tx.run(text("PRAGMA page_count")).scalar_one() + spare
            self._set(tx.connection.connection)

        await store._writer.submit(limit)


@pytest.fixture
def disk(engine: Engine) -> Disk:
    if engine.dialect.name != "sqlite":
        pytest.skip("a full disk is made by a pragma of SQLite")
    return Disk(engine)


def seqs(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        return list(connection.execute(select(tables.event.c.seq)).scalars())


async def test_on_a_full_disk_nothing_is_kept_and_everybody_is_told(disk: Disk, store: Store, engine: Engine) -> None:
    await disk.leave(store, 4)
    heard: list[Change] = []
    store.listen(lambda changes, _: heard.extend(changes))
    small = [store.append(happened("small")) for _ in range(3)]
    large = store.append(happened("x" * 100_000))
    answers = await asyncio.gather(*small, large, store.append(happened("small")), return_exceptions=True)
    kept = sum(one is None for one in answers)
    assert all(isinstance(one, OutOfSpace) for one in answers if one is not None)
    assert isinstance(answers[3], OutOfSpace)
    assert "free space" in answers[3].fix
    assert len(seqs(engine)) == kept == len(heard)


async def test_a_store_on_a_full_disk_works_again_when_there_is_room(disk: Disk, store: Store, engine: Engine) -> None:
    await disk.leave(store, 2)
    for _ in range(3):
        with pytest.raises(OutOfSpace):
            await store.append(happened("x" * 100_000))
    await disk.leave(store, 1000)
    await store.append(happened("x" * 100_000))
    assert len(seqs(engine)) == 1


async def until_full(desk: Desk) -> int:
    for number in range(1000):
        try:
            await desk.create("project", "", f"p{number}", description="x" * 250)
        except OutOfSpace:
            return number
    raise AssertionError("the disk was never full")


async def test_a_create_on_a_full_disk_leaves_nothing_half_made(disk: Disk, desk: Desk, engine: Engine) -> None:
    await disk.leave(desk.store, 40)
    made = await until_full(desk)
    assert made
    with engine.connect() as connection:
        for table, there in ((tables.resource, 1), (tables.operation, 0), (tables.event, 0), (tables.queue, 1)):
            assert len(connection.execute(select(table)).all()) == made + there, table.name  # the domain default
    assert len(list(desk.store.seen.of_kind("project"))) == made


async def test_whatever_fails_the_commit_answers_and_the_writer_goes_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = Feed()
    async with GroupWriter(engine, Clock(), feed.committed) as writer:
        store = Store(writer, feed)
        broken = True

        def commit(connection: object) -> None:
            if broken:
                raise DatabaseError("COMMIT", {}, Exception("database disk image is malformed"))
            connection.commit()  # type: ignore[attr-defined]

        monkeypatch.setattr(engine.dialect, "do_commit", commit)
        with pytest.raises(Temporary, match="malformed"):
            async with asyncio.timeout(PATIENCE_S):
                await store.append(happened())
        broken = False
        await store.append(happened())


async def test_a_log_that_can_not_be_taken_over_loses_no_commit(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def cursor(self) -> "Broken":
            return self

        def execute(self, _statement: str) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        def close(self) -> None: ...

    monkeypatch.setattr(checkpoints_module, "EVERY", 1)
    feed = Feed()
    async with GroupWriter(engine, Clock(), feed.committed) as writer:
        monkeypatch.setattr(writer._checkpoints, "_connection", Broken())
        store = Store(writer, feed)
        for number in range(5):
            await store.append(happened(str(number)))
        assert [event.message for event in await store.events(0, 100)] == ["0", "1", "2", "3", "4"]


async def test_after_the_end_a_request_is_refused(engine: Engine) -> None:
    feed = Feed()
    async with GroupWriter(engine, Clock(), feed.committed) as writer:
        store = Store(writer, feed)
        await store.append(happened())
    with pytest.raises(Temporary, match="stopping"):
        async with asyncio.timeout(PATIENCE_S):
            await store.append(happened())


async def test_a_caller_that_left_holds_up_nobody(store: Store, engine: Engine) -> None:
    task = asyncio.ensure_future(store.step((ClaimVni(network=Id("net-1")),), (), ""))
    await asyncio.sleep(0)
    task.cancel()
    await store.step((ClaimVni(network=Id("net-2")),), (), "")
    assert vnis(engine) == {"net-1", "net-2"}
    assert store.seen.vni(Id("net-1")) is not None


async def test_a_watcher_gets_every_batch_or_is_told_to_start_again(desk: Desk) -> None:
    with desk.store.watch() as watch:
        await desk.create("project", "", "shop")
        batch = await watch.next()
        assert batch is not None
        assert any(getattr(change.row, "name", "") == "shop" for change in batch)
        for _ in range(2000):
            watch.offer(())
        assert await watch.next() is None


async def test_what_waits_longer_than_a_slice_is_in_a_later_commit(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "SLICE_S", 0.0)
    feed, together = Feed(), list[int]()

    def committed(changes: list[Change], poked: set[Id]) -> None:
        together.append(len(changes))
        feed.committed(changes, poked)

    async with GroupWriter(engine, Clock(), committed) as writer:
        store = Store(writer, feed)
        await asyncio.gather(*(store.append(happened(str(number))) for number in range(20)))
        kept = [event.message for event in await store.events(0, 100)]

    assert together == [1] * 20
    assert kept == [str(number) for number in range(20)]


async def test_the_end_waits_for_what_was_submitted(engine: Engine) -> None:
    feed = Feed()
    async with GroupWriter(engine, Clock(), feed.committed) as writer:
        store = Store(writer, feed)
        waiting = [asyncio.ensure_future(store.append(happened())) for _ in range(5)]
        await asyncio.sleep(0)

    assert await asyncio.gather(*waiting) == [None] * 5
    assert len(seqs(engine)) == 5
