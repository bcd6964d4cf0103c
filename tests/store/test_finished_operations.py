"""Operations: promises that are kept, said to be under way, or overtaken; never open for ever, never kept for ever."""

import msgspec
import pytest

from common.ids import Id
from common.kinds.kind import AnyResource, Status
from common.refusal import Refusal
from controller.store import mutations
from controller.store.mutations import Conclusion
from controller.store.queue import Finished
from controller.store.rows import Operation, OperationState
from controller.store.store import Feed, Store
from controller.store.writer import GroupWriter
from tests.store.desk import Desk


def found(
    row: AnyResource, state: OperationState, *, said: str = "", message: str = "", why: Refusal | None = None
) -> Conclusion:
    status = Status(state=said or state, message=message, why=why)
    return Conclusion(resource=row, status=status, state=state, message=message, progress=0.5, why=why)


async def conclude(desk: Desk, row: AnyResource, conclusion: Conclusion) -> float | None:
    finished = Finished(resource=row.id, pokes=1, due_at=desk.clock.now + 60)
    return await desk.store.conclude(conclusion, desk.store.seen.open_operations(row.id), finished)


def the_operation(desk: Desk, row: AnyResource, verb: str) -> Operation:
    return next(op for op in desk.store.seen.operations() if op.resource == row.id and op.verb == verb)


async def test_what_came_true_is_done(desk: Desk) -> None:
    row = await desk.create("project", "", "shop")
    desk.clock.now += 7
    await conclude(desk, row, found(row, "done", said="active"))
    operation = the_operation(desk, row, "create")
    assert (operation.state, operation.progress, operation.finished_at) == ("done", 1.0, desk.clock.now)
    now = desk.now(row)
    assert (now.status.state, now.observed_generation) == ("active", 1)
    assert [one.action for one in await desk.store.events(0, 9, None)] == [
        "project.create",
        "operation.done",
        "project.active",
    ]


async def test_an_operation_of_a_later_generation_is_not_done_by_an_earlier_one(desk: Desk) -> None:
    row = await desk.create("project", "", "shop")
    await desk.change(row, description="new")
    await conclude(desk, row, found(row, "done", said="active"))
    assert the_operation(desk, row, "create").state == "done"
    assert the_operation(desk, row, "set").state == "running"
    assert desk.now(row).observed_generation == 1
    await conclude(desk, row, found(desk.now(row), "done", said="active"))
    assert the_operation(desk, row, "set").state == "done"


async def test_a_block_says_why_and_is_taken_back(desk: Desk) -> None:
    row = await desk.create("project", "", "shop")
    why = Refusal(summary="none of 3 hosts fits")
    await conclude(desk, row, found(row, "blocked", message=why.summary, why=why))
    blocked = the_operation(desk, row, "create")
    assert (blocked.state, blocked.message, blocked.why) == ("blocked", why.summary, why)
    assert desk.now(row).status.why == why
    await conclude(desk, desk.now(row), found(desk.now(row), "done", said="active"))
    assert the_operation(desk, row, "create").why is None


async def test_looking_again_at_what_stays_the_same_writes_no_event(desk: Desk) -> None:
    row = await desk.create("project", "", "shop")
    await conclude(desk, row, found(row, "done", said="active"))
    before = desk.now(row)
    await conclude(desk, before, found(before, "done", said="active"))
    assert desk.now(row).revision == before.revision
    assert len(await desk.store.events(0, 9, None)) == 3


async def test_a_status_does_not_overwrite_a_wish_that_came_meanwhile(desk: Desk) -> None:
    row = await desk.create("project", "", "shop")
    await desk.change(row, description="new")
    await desk.delete(row)
    await conclude(desk, row, found(row, "running", said="waiting"))
    now = desk.now(row)
    assert (now.spec.description, now.generation, now.deleted_at) == ("new", 3, desk.clock.now)
    assert now.status.state == "waiting"


async def test_a_finished_operation_is_never_opened_again(desk: Desk) -> None:
    row = await desk.create("project", "", "shop")
    (stale,) = desk.store.seen.open_operations(row.id)
    await conclude(desk, row, found(row, "done", said="active"))
    await desk.store.step((), (stale,), "still at it")
    assert the_operation(desk, row, "create").state == "done"
    finished = Finished(resource=row.id, pokes=1, due_at=0)
    await desk.store.conclude(found(row, "running", message="again"), (stale,), finished)
    assert the_operation(desk, row, "create").message != "again"


async def test_a_step_says_on_the_operation_what_is_done(desk: Desk) -> None:
    row = await desk.create("project", "", "shop")
    await desk.store.step((), desk.store.seen.open_operations(row.id), "making it")
    assert the_operation(desk, row, "create").message == "making it"


@pytest.mark.parametrize("restart", [True, False])
async def test_old_finished_operations_are_dropped_and_open_ones_kept(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, restart: bool
) -> None:
    monkeypatch.setattr(mutations, "FINISHED_KEPT", 3)
    monkeypatch.setattr(mutations, "DROP_EVERY", 1)
    still_open = await desk.create("project", "", "open")
    for number in range(12):
        desk.clock.now += 1
        row = await desk.create("project", "", f"p{number}")
        await conclude(desk, row, found(row, "done", said="active"))
    if restart:
        feed = Feed()
        async with GroupWriter(desk.store._writer._engine, desk.clock, feed.committed) as writer:  # type: ignore[attr-defined]
            await Store(writer, feed).load(alone=True)
        kept = list(feed.seen.operations())
        assert sorted(op.name for op in kept if op.finished_at) == ["p10", "p11", "p9"]
    else:
        kept = list(desk.store.seen.operations())
        assert len(kept) <= 3 + 1 + 1
    assert the_operation(desk, still_open, "create").finished_at is None
    assert still_open.id in {op.resource for op in kept}


async def test_an_operation_of_what_is_gone_stays_readable(desk: Desk) -> None:
    operation = msgspec.structs.replace((await desk.create("project", "", "shop")), id=Id("prj-x"))
    assert desk.store.seen.open_operations(operation.id) == ()
