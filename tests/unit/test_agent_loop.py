"""The agent's loop over a kind of unit that behaves: boxes that are built in steps and may depend on another box."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest
import structlog

from agent.kinds.unit import Do, Mark, Settled, UnitKey, Wait, Wish
from agent.loop import BACKOFF_CAP_S, MAX_STEPS, SLOW_TIMER_S, Loop, backoff_s
from agent.memory import DirectLane, Memory, open_memory
from common.documents import Desired, DocKey, Report, VolumeDoc, key_of
from common.errors import Temporary
from common.faults import Died, Faults
from common.ids import Id, RequestId, Revision
from common.protocol import DesiredBatch, Found, reports_digest
from tests.patience import PATIENCE_S

A, B = Id("vol-00000000000a"), Id("vol-00000000000b")


class Lay(msgspec.Struct, frozen=True):
    """Add one GiB."""

    box: Id


class Wipe(msgspec.Struct, frozen=True):
    """Remove it."""

    destroys: ClassVar[bool] = True
    box: Id


class Boxes:
    """`world` has the size of every box. Box B waits for box A; a gone box is marked, then wiped."""

    name = "volume"

    def __init__(self) -> None:
        self.world: dict[Id, int] = {}
        self.problems: list[Exception] = []
        """Raised by the next applies, first to last."""
        self.applied: list[object] = []
        self.observed = 0
        self.wipes_unasked = False
        self.in_circles = False
        self.gate: asyncio.Event | None = None

    async def observe(self, wish: Wish) -> dict[Id, int]:
        self.observed += 1
        return dict(self.world)

    def plan(self, wish: Wish, seen: dict[Id, int], now: float) -> Do[Lay] | Do[Wipe] | Mark | Wait | Settled:
        (item,) = wish.items.values()
        doc = item.doc
        assert isinstance(doc, VolumeDoc)
        if self.in_circles:
            return Do(Lay(doc.id), "going in circles")
        if item.gone or self.wipes_unasked:
            if "gone-at" not in wish.marks:
                return Mark(name="gone-at", value=str(now))
            if doc.id in seen:
                return Do(Wipe(doc.id), "wiping")
        elif doc.id == B and seen.get(A, 0) == 0:
            return Wait(message="waits for the other box", seconds=600)
        elif seen.get(doc.id, 0) < doc.size_gib:
            return Do(Lay(doc.id), f"at {seen.get(doc.id, 0)} of {doc.size_gib}")
        return Settled(reports=(Report(key=item.key, revision=item.revision, done=True),))

    async def apply(self, step: Lay | Wipe) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.problems:
            raise self.problems.pop(0)
        self.applied.append(step)
        match step:
            case Lay(box=box):
                self.world[box] = self.world.get(box, 0) + 1
            case Wipe(box=box):
                self.world.pop(box, None)

    async def survey(self) -> tuple[Found, ...]:
        return ()


class Bench:
    """A loop with its own time."""

    def __init__(self, memory: Memory, faults: Faults | None = None) -> None:
        self.now = 1000.0
        self.memory = memory
        self.boxes = Boxes()
        self.sent: list[Report] = []
        self.loop = self.new_loop(faults)

    def new_loop(self, faults: Faults | None = None) -> Loop:
        self.loop = Loop(
            memory=self.memory, kinds=[self.boxes], sink=self.sent.append,
            clock=lambda: self.now, timer=lambda: self.now, chance=lambda: 0.5, faults=faults,
        )  # fmt: skip
        return self.loop

    async def want(self, *items: Desired) -> None:
        self.loop.changed(await self.memory.apply(DesiredBatch(items=items)))

    async def work(self) -> int:
        """Take turns until none is due; return how many it took."""
        turns = 0
        while units := self.loop.due():
            for unit in units:
                await self.loop.turn(unit)
                turns += 1
            assert turns < 1000, "the loop never comes to rest"
        return turns


def box(box_id: Id, revision: int, *, size: int = 1, gone: bool = False) -> Desired:
    doc = VolumeDoc(id=box_id, size_gib=size, image=None)
    return Desired(key=key_of(doc), revision=Revision(revision), doc=doc, gone=gone)


def unit(box_id: Id) -> UnitKey:
    return UnitKey(f"volume/{box_id}")


@pytest.fixture
async def memory(tmp_path: Path) -> AsyncIterator[Memory]:
    opened = await open_memory(tmp_path / "memory.db", lane=DirectLane())
    yield opened
    await opened.close()


@pytest.fixture
def bench(memory: Memory) -> Bench:
    return Bench(memory)


def plain(reports: Iterable[Report]) -> list[Report]:
    """Return reports without the steps they tell of."""
    return [msgspec.structs.replace(report, steps=()) for report in reports]


async def test_a_turn_takes_steps_until_the_plan_rests_and_reports(bench: Bench) -> None:
    await bench.want(box(A, 1, size=3))

    await bench.work()

    assert bench.boxes.world[A] == 3
    assert [report.message for report in bench.sent] == ["at 0 of 3", "at 1 of 3", "at 2 of 3", ""]
    assert plain(bench.loop.reports()) == [Report(key=DocKey(unit(A)), revision=Revision(1), done=True)]


async def test_at_the_start_every_unit_on_disk_is_due(bench: Bench) -> None:
    await bench.memory.apply(DesiredBatch(items=(box(A, 1), box(B, 2))))

    loop = bench.new_loop()

    assert set(loop.due()) == {unit(A), unit(B)}
    assert not loop.looked.is_set()
    await bench.work()
    assert loop.looked.is_set()
    assert bench.boxes.world == {A: 1, B: 1}


async def test_a_unit_that_settles_wakes_the_one_that_waits(bench: Bench) -> None:
    await bench.want(box(B, 1))
    await bench.work()
    assert bench.sent[-1].message == "waits for the other box"

    await bench.want(box(A, 2))
    await bench.work()

    assert bench.boxes.world == {A: 1, B: 1}, "without the wake-up B would have waited 600 s"


async def test_a_unit_that_only_waits_is_looked_at_once_per_slow_timer(bench: Bench) -> None:
    await bench.want(box(B, 1))
    await bench.work()
    seen = bench.boxes.observed
    bench.now += SLOW_TIMER_S * 1.3

    await bench.work()

    assert bench.boxes.observed == seen + 1


async def test_drift_is_repaired_by_the_slow_timer(bench: Bench) -> None:
    await bench.want(box(A, 1))
    await bench.work()
    bench.boxes.world.clear()
    assert await bench.work() == 0

    bench.now += SLOW_TIMER_S * 1.3
    await bench.work()

    assert bench.boxes.world == {A: 1}


async def test_a_failing_step_backs_off_and_says_why(bench: Bench) -> None:
    bench.boxes.problems = [Temporary("no room in the shed")] * 3
    await bench.want(box(A, 1))
    pauses = []
    while bench.boxes.problems:
        await bench.work()
        pauses.append(bench.loop.next_due_s())
        bench.now += pauses[-1] + 1e-6

    assert bench.loop.reports()[0].problem == "no room in the shed"
    assert pauses == sorted(pauses)
    assert len(set(pauses)) == 3
    await bench.work()
    assert plain(bench.loop.reports()) == [Report(key=DocKey(unit(A)), revision=Revision(1), done=True)]


def test_the_back_off_has_a_cap_and_jitter() -> None:
    assert backoff_s(0, 1.0) < 1
    assert backoff_s(1000, 1.0) == BACKOFF_CAP_S
    assert backoff_s(1000, 0.0) == BACKOFF_CAP_S / 2


async def test_an_unexpected_exception_is_reported_and_stops_nothing(bench: Bench) -> None:
    bench.boxes.problems = [KeyError("shelf")]
    await bench.want(box(A, 1))

    await bench.work()

    assert "KeyError" in bench.loop.reports()[0].problem
    bench.now += 5
    await bench.work()
    assert bench.boxes.world == {A: 1}


async def test_a_change_of_wish_ends_the_back_off_and_a_poke_only_shortens_it(bench: Bench) -> None:
    bench.boxes.problems = [Temporary("no")] * 6
    await bench.want(box(A, 1))
    for _ in range(5):
        await bench.work()
        bench.now += bench.loop.next_due_s() + 1e-6
    await bench.work()
    assert bench.loop.next_due_s() > 5

    bench.loop.poke(unit(A))
    assert 0 < bench.loop.next_due_s() <= 1.0
    await bench.want(box(A, 2))
    assert bench.loop.next_due_s() == 0


async def test_a_tombstone_is_carried_out_marked_reported_and_then_forgotten(bench: Bench) -> None:
    await bench.want(box(A, 1))
    await bench.work()
    await bench.want(box(A, 2, gone=True))
    await bench.work()

    assert bench.boxes.world == {}
    assert bench.memory.wish(unit(A)).marks == {"gone-at": "1000.0"}
    last = Report(key=DocKey(unit(A)), revision=Revision(2), done=True)
    assert plain(bench.loop.last_words()) == [last]

    await bench.loop.delivered([last])

    assert not bench.memory.items
    assert bench.loop.reports() == ()
    assert bench.loop.due() == ()
    assert bench.memory.wish(unit(A)).marks == {}


async def test_a_tombstone_whose_report_was_lost_is_answered_again(bench: Bench) -> None:
    await bench.want(box(A, 2, gone=True))
    await bench.work()
    await bench.loop.delivered(bench.loop.last_words())
    bench.sent.clear()

    await bench.want(box(A, 2, gone=True))
    await bench.work()

    assert plain(bench.sent) == [Report(key=DocKey(unit(A)), revision=Revision(2), done=True)]


async def test_nothing_is_destroyed_without_a_tombstone(bench: Bench) -> None:
    await bench.want(box(A, 1))
    await bench.work()
    bench.boxes.wipes_unasked = True

    bench.now += SLOW_TIMER_S * 1.3
    await bench.work()

    assert bench.boxes.world == {A: 1}
    assert "no tombstone asks for it" in bench.loop.reports()[0].problem
    assert not bench.loop.reports()[0].done


async def test_a_plan_that_goes_in_circles_is_stopped_and_named(bench: Bench) -> None:
    bench.boxes.in_circles = True
    await bench.want(box(A, 1))

    assert await bench.work() == 1
    assert len(bench.boxes.applied) == MAX_STEPS
    assert "did not come to rest" in bench.loop.reports()[0].problem


@pytest.mark.parametrize("death", range(6))
async def test_dying_after_any_step_is_made_good_by_the_next_life(memory: Memory, death: int) -> None:
    reached: list[str] = []

    def hook(point: str) -> None:
        reached.append(point)
        if len(reached) == death + 1:
            raise Died(point)

    bench = Bench(memory, Faults(hook))
    try:
        await bench.want(box(A, 1, size=3))
        await bench.work()
        await bench.want(box(A, 2, gone=True))
        await bench.work()
    except Died:
        bench.new_loop()
        await bench.want(box(A, 2, gone=True))
        await bench.work()
    assert bench.boxes.world == {}
    assert bench.loop.last_words()


async def test_delete_overtakes_work_between_two_steps(bench: Bench) -> None:
    bench.boxes.gate = asyncio.Event()
    await bench.want(box(A, 1, size=50))
    async with asyncio.TaskGroup() as group:
        turn = group.create_task(bench.loop.turn(unit(A)))
        await asyncio.sleep(0)
        await bench.want(box(A, 2, gone=True))
        bench.boxes.gate.set()
        await turn

    assert bench.boxes.world == {}
    assert sum(isinstance(step, Lay) for step in bench.boxes.applied) == 1


async def test_a_poke_during_a_turn_is_not_lost(bench: Bench) -> None:
    bench.boxes.gate = asyncio.Event()
    await bench.want(box(A, 1))
    async with asyncio.TaskGroup() as group:
        turn = group.create_task(bench.loop.turn(unit(A)))
        await asyncio.sleep(0)
        bench.loop.poke(unit(A))
        assert bench.loop.due() == (), "one turn at a time"
        bench.boxes.gate.set()
        await turn

    assert bench.loop.due() == (unit(A),)


async def test_the_shell_runs_in_real_time_and_ends_with_its_task(memory: Memory) -> None:
    boxes = Boxes()
    reports: asyncio.Queue[Report] = asyncio.Queue()
    loop = Loop(memory=memory, kinds=[boxes], sink=reports.put_nowait)
    running = asyncio.ensure_future(loop.run())
    loop.changed(await memory.apply(DesiredBatch(items=(box(A, 1), box(B, 2)))))
    done: set[DocKey] = set()
    async with asyncio.timeout(PATIENCE_S):
        while len(done) < 2:
            report = await reports.get()
            if report.done:
                done.add(report.key)

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert boxes.world == {A: 1, B: 1}


# --- the steps that were taken ------------------------------------------------------------------------------------


async def test_a_report_tells_the_steps_that_led_to_it(bench: Bench) -> None:
    await bench.want(box(A, 1, size=3))
    await bench.work()

    (report,) = bench.loop.reports()
    assert [step.what for step in report.steps] == ["at 0 of 3", "at 1 of 3", "at 2 of 3"]
    assert all(step.seconds is not None for step in report.steps)
    assert [len(one.steps) for one in bench.sent] == [1, 2, 3, 3]
    assert bench.sent[0].steps[0].seconds is None


async def test_a_step_that_failed_keeps_its_count_and_its_cause(bench: Bench) -> None:
    bench.boxes.problems = [Temporary("no room in the shed")] * 3
    await bench.want(box(A, 1))
    for _ in range(4):
        await bench.work()
        bench.now += 60

    (step,) = bench.loop.reports()[0].steps
    assert (step.what, step.failures, step.problem) == ("at 0 of 1", 3, "no room in the shed")
    assert step.seconds == 180
    assert [one.steps[-1].failures for one in bench.sent if one.steps and one.problem] == [1, 2, 3]


async def test_steps_are_of_the_present_wish_and_bounded(bench: Bench) -> None:
    await bench.want(box(A, 1, size=30))
    await bench.work()
    many = bench.loop.reports()[0].steps
    await bench.want(box(A, 2, size=31))
    await bench.work()

    assert [step.what for step in many] == [f"at {number} of 30" for number in range(6, 30)]
    assert [step.what for step in bench.loop.reports()[0].steps] == ["at 30 of 31"]


async def test_steps_are_in_no_digest(bench: Bench) -> None:
    await bench.want(box(A, 1))
    await bench.work()

    assert bench.loop.reports()[0].steps
    assert bench.loop.observed_digest() == reports_digest(plain(bench.loop.reports()))


async def test_the_log_of_a_turn_names_the_request_that_asked_for_it(bench: Bench) -> None:
    item = msgspec.structs.replace(box(A, 1), request=RequestId("req-1"))
    await bench.want(item)
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        await bench.work()

    assert [line["request"] for line in lines if line["event"] == "step applied"] == ["req-1"]
