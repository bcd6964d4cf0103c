"""The loop: take a queue row, look, plan, commit ONE step, look again, until the plan says that it waits or is done.

All that a turn knows is in the store: it may die at any line, and the next turn of any controller goes on.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

import msgspec
import structlog
from structlog.contextvars import bound_contextvars

from common.clock import Clock
from common.errors import Conflict, NoCapacity, SkerryError
from common.faults import Faults
from common.ids import HostId, Id
from common.kinds.kind import AnyResource, Resource, Status
from common.refusal import Refusal
from controller.kinds.affinity import Turn, turn_of
from controller.kinds.outcome import LOOK_AGAIN_S, Blocked, Do, Done, Outcome, Place, Wait
from controller.kinds.planners import planner_of
from controller.loop.due import Due
from controller.loop.taken import host_says, hosts_of, on_hosts, request_of, stamped
from controller.scheduler.choose import Choice
from controller.scheduler.inventory import Inventory
from controller.store.mutations import Conclusion
from controller.store.queue import Finished
from controller.store.rows import (
    Address,
    Capacity,
    Change,
    Enrolment,
    Gone,
    Membership,
    OperationStep,
    Placement,
    QueueRow,
)
from controller.store.store import Store
from controller.store.writes import AnyWrite, Taken

log = structlog.get_logger(__name__)

AT_ONCE = 64
"""Turns under way together."""

MOST_STEPS = 64
"""Steps of one turn; a plan that never comes to rest is a bug, and is looked at again later instead of for ever."""

MOST_CONFLICTS = 8
RETRY_S = 2.0

COUNT_S = 1.0
"""A host's figures follow what is placed on it by so much: many placements are one change of its status."""

OTHERS_FIRST_S = 3.0
"""What another controller changed it also goes on with; this one looks after so long whether it did."""


class _Found(msgspec.Struct, frozen=True):
    """How a turn ended, for the status and the open operations."""

    state: Literal["running", "blocked", "done"]
    status: Status
    message: str
    progress: float = 0.0
    why: Refusal | None = None


class Loop:
    """Turns resources until each is as wished. `run` is the shell around `turn`; a simulator calls `drain`.

    `clock` is the time that plans are given and rows are stamped with; `timer` (monotonic seconds) is what turns are
    scheduled by, so that a clock that is set anew delays nothing.
    """

    def __init__(self, store: Store, clock: Clock, faults: Faults, worker: str, timer: Clock = time.monotonic) -> None:
        self._store = store
        self._seen = store.seen
        self._clock = clock
        self._timer = timer
        self._faults = faults
        self._worker = worker
        self._due = Due()
        self._busy: set[Id] = set()
        self._again: set[Id] = set()
        self._blocked: set[Id] = set()
        self._passed_over: set[Id] = set()
        """Blocked while claims of others were chosen and not committed: those may fail, and be free again."""
        self._choosing = 0
        """Claims that are chosen and not committed yet."""
        self._wake = asyncio.Event()
        self.inventory = Inventory(store.seen)
        self._turned_at = timer()
        store.listen(self._changed, others=self._followed)

    # --- what makes a resource due --------------------------------------------------------------------------------

    def start(self, rows: Sequence[QueueRow]) -> None:
        """Make everything due: whatever was under way when the last process died goes on."""
        for row in rows:
            self._due.put(row.resource, 0.0)
        for host in self._seen.of_kind("host"):
            self.inventory.refresh(HostId(host.id))
        self._wake.set()

    @property
    def busy(self) -> frozenset[Id]:
        """The resources whose turn is under way."""
        return frozenset(self._busy)

    def poke(self, resource: Id, *, own: bool = True) -> None:
        """Make a resource due now. Not `own`: another controller changed something, and is the first to look."""
        turn = self._whose(resource)
        if turn is Turn.THEIRS:
            self._due.put(resource, self._timer() + LOOK_AGAIN_S)  # it may be mine by then
        elif turn is Turn.ANYONES and not own:
            self._due.put(resource, self._timer() + OTHERS_FIRST_S)
        elif resource in self._busy:
            self._again.add(resource)
        else:
            self._due.put(resource, 0.0)
        self._wake.set()

    def _whose(self, resource: Id) -> Turn:
        row = self._seen.get(resource)
        return turn_of(row, self._seen, self._worker) if row else Turn.ANYONES

    def host_changed(self, host: HostId) -> None:
        """A host came, went, or said what it has: look at it, at what it carries, and at what found no host."""
        self.inventory.refresh(host)
        self.poke(host)
        for owner in {document.owner for document in self._seen.documents(host)}:
            self.poke(owner)
        for placement in self._seen.placed_on(host):
            for resource in (placement.owner, *(child.id for child in self._seen.children(placement.owner))):
                self.poke(resource)
        self._retry_blocked()

    def _retry_blocked(self) -> None:
        for resource in self._blocked:
            self.poke(resource)

    def _changed(self, changes: Sequence[Change], poked: set[Id]) -> None:
        """Every commit of this controller comes by here: what depends on what it changed is looked at."""
        self._look(changes, poked, own=True)

    def _followed(self, changes: Sequence[Change], poked: set[Id]) -> None:
        """So does every commit of another one."""
        self._look(changes, poked, own=False)

    def _look(self, changes: Sequence[Change], poked: set[Id], *, own: bool) -> None:
        for change in changes:
            row = change.row
            match row:
                case Resource():
                    self._resource_changed(row, gone=isinstance(change, Gone), own=own)
                case Placement():
                    self.inventory.refresh(row.host)
                    if isinstance(change, Gone):
                        self.poke(row.host, own=own)
                        self._retry_blocked()
                    else:
                        self._due.put(row.host, self._timer() + (COUNT_S if own else OTHERS_FIRST_S))
                case Membership():
                    self.poke(row.group, own=own)
                case Capacity():
                    self.inventory.refresh(row.host)
                    self._retry_blocked()
                case Enrolment():
                    self.poke(row.host, own=own)
                case Address() if isinstance(change, Gone):
                    self._retry_blocked()
                case _:
                    pass
        for resource in poked:
            self.poke(resource, own=own)

    def _resource_changed(self, row: AnyResource, *, gone: bool, own: bool) -> None:
        if row.kind == "host":
            self.inventory.refresh(HostId(row.id))
            if row.observed_generation < row.generation:
                self._retry_blocked()  # it may have been opened
        if row.kind == "zone" and row.observed_generation < row.generation:
            self._retry_blocked()  # it may have to survive less
        if gone:
            self._due.drop(row.id)
            self._blocked.discard(row.id)
        if gone or row.deleted_at is not None or row.observed_generation < row.generation:
            for user in self._seen.users(row.id):
                self.poke(user.id, own=own)
        if row.owner:
            self.poke(row.owner, own=own)

    # --- turns ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Turn until cancelled."""
        limit = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                self._turned_at = self._timer()
                for row in await self._take():
                    await limit.acquire()
                    task = group.create_task(self._guarded(row))
                    task.add_done_callback(lambda _: limit.release())
                await self._rest()

    def late_s(self) -> float:
        """Return the seconds since it last took something or found nothing due: for readiness."""
        return self._timer() - self._turned_at

    async def _rest(self) -> None:
        """Wait for a poke or for the next due moment, a second at most (readiness shows a loop that hangs)."""
        at = self._due.next_at()
        pause = 1.0 if at is None else min(1.0, max(0.0, at - self._timer()))
        if pause == 0.0:
            await asyncio.sleep(0)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):  # `wait_for` of Python 3.11 loses a cancellation that meets a wake
                await self._wake.wait()

    def next_at(self) -> float | None:
        """Return the moment at which something is due: when a simulator has to call `drain` again."""
        return self._due.next_at()

    async def drain(self, most: int = 10_000) -> int:
        """Turn what is due now, one after another, until nothing is. Returns how many turns that took."""
        turns = 0
        while turns < most and (rows := await self._take()):
            for row in rows:
                await self.turn(row)
                turns += 1
        return turns

    async def _take(self) -> tuple[QueueRow, ...]:
        wanted: list[Id] = []
        while not wanted:
            popped = self._due.pop(self._timer(), AT_ONCE)
            if not popped:
                return ()
            wanted = [one for one in popped if not self._rests(one)]
        self._busy.update(wanted)
        rows: tuple[QueueRow, ...] = ()
        try:
            # What is on a host that is connected here by now, the controller that had it before has no use for.
            own = [one for one in wanted if self._whose(one) is Turn.MINE]
            rows = await self._store.take(self._worker, wanted, own)
        except SkerryError as err:
            log.warning("queue not read", error=err.detail)
        for resource in set(wanted) - {row.resource for row in rows}:
            self._busy.discard(resource)
            if self._seen.get(resource) is not None:
                self._due.put(resource, self._timer() + RETRY_S)
        return rows

    def _rests(self, resource: Id) -> bool:
        """Say whether there is nothing to do here, and look again later."""
        seconds = LOOK_AGAIN_S if self._whose(resource) is Turn.THEIRS else self._rests_s(resource)
        if seconds is not None:
            self._due.put(resource, self._timer() + seconds)
        return seconds is not None

    def _rests_s(self, resource: Id) -> float | None:
        """Look without a lease: a plan is pure, so where it has nothing to change nothing needs to be written.

        Returns in how many seconds to look again; None where there is something to do.
        """
        row = self._seen.get(resource)
        if row is None or row.deleted_at is not None or row.observed_generation < row.generation:
            return None
        if self._seen.open_operations(resource):
            return None
        try:
            outcome = planner_of(row.kind).plan(row, self._seen, self._clock())
        except Exception:
            return None  # the turn meets the same bug, and logs it
        if not isinstance(outcome, Done) or outcome.status != row.status:
            return None
        self._blocked.discard(resource)
        return outcome.seconds

    async def _guarded(self, row: QueueRow) -> None:
        """The top of a turn: a bug in one planner is logged and tried again, and stops nothing else."""
        try:
            await self.turn(row)
        except Exception:
            log.exception("turn failed", resource=row.resource)
            self._busy.discard(row.resource)
            self._due.put(row.resource, self._timer() + 10 * RETRY_S)

    async def turn(self, row: QueueRow) -> None:
        """Bring one resource as far as it goes now."""
        with bound_contextvars(request=request_of(self._seen, row.resource)):
            await self._turn(row)

    async def _turn(self, row: QueueRow) -> None:
        resource = row.resource
        self._again.discard(resource)
        conflicts = 0
        for _ in range(MOST_STEPS):
            subject = self._seen.get(resource)
            if subject is None:
                break
            if turn_of(subject, self._seen, self._worker) is Turn.THEIRS:
                await self._hand_over(resource)
                break
            outcome = planner_of(subject.kind).plan(subject, self._seen, self._clock())
            self._faults.reached(f"loop.{subject.kind}.planned")
            try:
                if not await self._advance(subject, outcome, row, retries=conflicts):
                    break
            except Conflict as err:
                conflicts += 1
                if conflicts > MOST_CONFLICTS:
                    await self._finish(subject, row, _Found("running", subject.status, err.detail), RETRY_S)
                    break
            except NoCapacity as err:
                status = msgspec.structs.replace(subject.status, state="blocked")
                await self._block(subject, row, status, err.refusal or Refusal(summary=err.detail))
                break
            except SkerryError as err:
                log.warning("step not taken", resource=resource, error=err.detail)
                self._due.put(resource, self._timer() + RETRY_S)
                break
        else:
            log.error("plan does not come to rest", resource=resource, steps=MOST_STEPS)
            self._due.put(resource, self._timer() + 10 * RETRY_S)
        self._busy.discard(resource)
        if resource in self._again:
            self._again.discard(resource)
            self._due.put(resource, 0.0)

    async def _hand_over(self, resource: Id) -> None:
        """Leave the rest to the controller that has its host: that is told by this commit."""
        self._blocked.discard(resource)
        try:
            await self._store.hand_over(self._worker, resource)
        except SkerryError as err:
            log.warning("turn not handed over", resource=resource, error=err.detail)

    async def _advance(self, subject: AnyResource, outcome: Outcome, row: QueueRow, retries: int) -> bool:
        """Carry out what a plan says, which could not be done so many times before. True: look again."""
        match outcome:
            case Do():
                await self._step(subject, outcome.writes, outcome.say, retries)
                return True
            case Place():
                return await self._place(subject, outcome, row, retries)
            case Wait():
                found = _Found("running", outcome.status, outcome.message, outcome.progress)
                await self._finish(subject, row, found, outcome.seconds)
            case Blocked():
                await self._block(subject, row, outcome.status, outcome.why)
            case Done():
                self._blocked.discard(subject.id)
                found = _Found("done", outcome.status, outcome.status.state, 1.0)
                await self._finish(subject, row, found, outcome.seconds)
        return False

    async def _step(self, subject: AnyResource, writes: tuple[AnyWrite, ...], say: str, retries: int) -> None:
        """Commit one step, under the request that it is taken for."""
        operations = self._seen.open_operations(subject.id)
        host = hosts_of(self._seen, writes)
        steps = on_hosts(self._seen, subject.id) if operations else ()
        taken = Taken(began=self._clock(), host=host, retries=retries, steps=steps)
        await self._store.step(stamped(self._seen, subject, writes), operations, say, taken)
        tell = log.info if operations else log.debug
        tell("step committed", resource=subject.id, kind=subject.kind, name=subject.name, step=say, host=host)

    async def _place(self, subject: AnyResource, outcome: Place, row: QueueRow, retries: int) -> bool:
        demand = outcome.demand
        seen_at = self._seen.revision
        choice = self.inventory.choose(demand)
        if not isinstance(choice, Choice):
            if self._choosing:
                self._passed_over.add(subject.id)
            await self._block(subject, row, outcome.status, choice)
            return False
        self._choosing += 1
        say = f"placed on host {self._seen.name_of(choice.host)}"
        try:
            await self._step(subject, (outcome.claim(choice, self._worker, seen_at), *outcome.writes), say, retries)
        finally:
            self._choosing -= 1
            self.inventory.settle(choice, demand)
            if self._seen.placement(subject.id) is None:
                self._retry_passed_over()
            elif not self._choosing:
                self._passed_over.clear()
        self._blocked.discard(subject.id)
        return True

    def _retry_passed_over(self) -> None:
        """A claim failed: whoever was refused for its sake may fit now. Not all that is blocked: two that fail for
        another reason would poke each other for ever."""
        waiting, self._passed_over = self._passed_over, set()
        for resource in waiting & self._blocked:
            self.poke(resource)

    async def _block(self, subject: AnyResource, row: QueueRow, status: Status, why: Refusal) -> None:
        self._blocked.add(subject.id)
        shown = msgspec.structs.replace(status, message=why.summary, why=why)
        await self._finish(subject, row, _Found("blocked", shown, why.summary, 0.0, why), LOOK_AGAIN_S)

    def _phase(self, subject: AnyResource, found: _Found) -> OperationStep | None:
        """Return what a wish waits for, as a step of its timeline. What a host does is told by the host's own steps."""
        if found.state == "done" or host_says(self._seen, subject.id, found.message):
            return None
        what = "blocked" if found.state == "blocked" else f"waits: {found.message}"
        cause = found.why.summary if found.why else ""
        return OperationStep(at=self._clock(), what=what, cause=cause, phase=True)

    async def _finish(self, subject: AnyResource, row: QueueRow, found: _Found, seconds: float) -> None:
        operations = self._seen.open_operations(subject.id)
        conclusion = Conclusion(
            resource=subject,
            status=found.status,
            state=found.state,
            message=found.message,
            progress=found.progress,
            why=found.why,
            steps=on_hosts(self._seen, subject.id) if operations else (),
            phase=self._phase(subject, found) if operations else None,
        )
        finished = Finished(resource=subject.id, pokes=row.pokes, due_at=self._clock() + seconds)
        due_at = await self._store.conclude(conclusion, operations, finished)
        if due_at is not None:
            self._due.put(subject.id, self._timer() + seconds if due_at else 0.0)
