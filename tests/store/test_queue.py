"""The durable queue: leases that one worker holds, and pokes that are never lost."""

from common.ids import Id
from controller.store import queue
from controller.store.queue import Finished
from controller.store.rows import QueueRow
from controller.store.store import Store
from controller.store.tx import Tx
from controller.store.writes import Forget, Poke
from tests.store.desk import Desk


async def finish(desk: Desk, done: Finished) -> float | None:
    return await desk.store._writer.submit(lambda tx: queue.finish(tx, done))


async def queued_rows(desk: Desk) -> list[QueueRow]:
    """Return the queue, without the domain that there always is."""
    return [row for row in await desk.store.load(alone=True) if row.resource != "dom-000000000000"]


async def test_what_is_committed_is_queued_and_due_at_once(desk: Desk) -> None:
    row = await desk.create("project", "", "shop")
    (queued,) = await queued_rows(desk)
    assert (queued.resource, queued.due_at) == (row.id, 0.0)


async def test_a_leased_row_is_not_given_to_another_worker(desk: Desk) -> None:
    row = await desk.create("project", "", "shop")
    assert [one.resource for one in await desk.store.take("ctl-a", [row.id])] == [row.id]
    assert await desk.store.take("ctl-b", [row.id]) == ()
    assert len(await desk.store.take("ctl-a", [row.id])) == 1


async def test_a_lease_runs_out(desk: Desk) -> None:
    row = await desk.create("project", "", "shop")
    await desk.store.take("ctl-a", [row.id])
    desk.clock.now += queue.LEASE_S + 1
    assert len(await desk.store.take("ctl-b", [row.id])) == 1


async def test_the_only_controller_drops_the_leases_of_a_dead_one(desk: Desk) -> None:
    row = await desk.create("project", "", "shop")
    await desk.store.take("ctl-a", [row.id])
    await desk.store.load(alone=False)
    assert await desk.store.take("ctl-b", [row.id]) == ()
    await desk.store.load(alone=True)
    assert len(await desk.store.take("ctl-b", [row.id])) == 1


async def test_a_worker_that_ends_frees_its_own_leases_only(desk: Desk) -> None:
    one, other = await desk.create("project", "", "shop"), await desk.create("project", "", "lab")
    await desk.store.take("ctl-a", [one.id])
    await desk.store.take("ctl-b", [other.id])
    await desk.store._writer.submit(lambda tx: queue.drop_leases(tx, "ctl-a"))
    assert [row.resource for row in await desk.store.take("ctl-c", [one.id, other.id])] == [one.id]


async def test_finishing_puts_the_row_off(desk: Desk) -> None:
    row = await desk.create("project", "", "shop")
    (leased,) = await desk.store.take("ctl-a", [row.id])
    assert await finish(desk, Finished(resource=row.id, pokes=leased.pokes, due_at=99.0)) == 99.0
    (queued,) = await queued_rows(desk)
    assert queued.due_at == 99.0
    assert len(await desk.store.take("ctl-b", [row.id])) == 1


async def test_a_poke_during_the_turn_makes_it_due_at_once(desk: Desk) -> None:
    row = await desk.create("project", "", "shop")
    (leased,) = await desk.store.take("ctl-a", [row.id])
    await desk.write(Poke(resource=row.id))
    assert await finish(desk, Finished(resource=row.id, pokes=leased.pokes, due_at=99.0)) == 0.0


async def test_finishing_what_is_gone_says_so(desk: Desk) -> None:
    row = await desk.create("project", "", "shop")
    (leased,) = await desk.store.take("ctl-a", [row.id])
    await desk.write(Forget(resource=row.id))
    assert await finish(desk, Finished(resource=row.id, pokes=leased.pokes, due_at=99.0)) is None
    assert await queued_rows(desk) == []


async def test_every_poke_counts(store: Store) -> None:
    other = Id("prj-00000000000a")
    for _ in range(3):
        await store.step((Poke(resource=other), Poke(resource=other)), (), "")

    def read(tx: Tx) -> int:
        return next(row.pokes for row in queue.all_rows(tx) if row.resource == other)

    assert await store._writer.submit(read) == 6
