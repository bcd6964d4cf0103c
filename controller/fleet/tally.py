"""The recount of quotas: what things count beside what they should, what accounts use beside what is in them, limits
beside those that hold. What differs is put right at once, and said: no tenant shall wait until somebody acts.

It runs before the controller serves, since a release that counted otherwise (or not at all) may have run before, and
then all the time. On a database with several controllers each does it: what is written is held against what was found.
"""

import asyncio
from collections.abc import Sequence

import msgspec
import structlog

from common.clock import Clock
from common.errors import SkerryError
from common.ids import Id, new_request_id
from controller.kinds.quotas import ACCOUNTS, Standard, account_of, counts_of, set_limits
from controller.store.rows import Event, Standing
from controller.store.store import Store
from controller.store.working import Agreement
from controller.store.writes import AnyWrite, Recharge, Recount, SetLimits

log = structlog.get_logger(__name__)

TOGETHER = 256
"""Things that are counted before others have their turn, and that are put right in one transaction."""

NAMED = 5
"""Differences that an event names."""


class Tally:
    """Counts anew, for ever."""

    def __init__(self, store: Store, standard: Standard, clock: Clock, *, every_s: float) -> None:
        self._store = store
        self._seen = store.seen
        self._standard = standard
        self._clock = clock
        self._every_s = every_s

    async def run(self) -> None:
        """Count once in each interval, until cancelled."""
        while self._every_s:
            await asyncio.sleep(self._every_s)
            await self.look()

    async def look(self) -> tuple[str, ...]:
        """Count everything, put right what differs, and return it in words. A store that can't be written is tried
        again at the next look."""
        try:
            found = (*await self._things(), *await self._accounts())
            await self._note(found)
        except SkerryError as err:
            log.warning("quotas not counted anew", error=err.detail)
            return ()
        return found

    async def _things(self) -> tuple[str, ...]:
        """Have each thing count what it should."""
        wrong: list[Recharge] = []
        for number, row in enumerate(tuple(self._seen)):
            if number % TOGETHER == 0:
                await asyncio.sleep(0)
            if self._seen.get(row.id) is row and (counts := counts_of(row, self._seen)) != row.counts:
                wrong.append(Recharge(resource=row.id, counted=row.counts, counts=counts))
        for start in range(0, len(wrong), TOGETHER):
            await self._write(wrong[start : start + TOGETHER])
        return tuple(f"{self._seen.name_of(one.resource)} counted {one.counted or 'nothing'}" for one in wrong)

    async def _accounts(self) -> tuple[str, ...]:
        """Have accounts use what is in them, and be limited as their projects and domains say."""
        standings = await self._store.standings()
        await self._store.catch_up()
        wrong = [one for one in standings if one.used != one.counted]
        limits = self._limits(standings)
        if wrong or limits:
            await self._write([*limits, Recount()])
        return tuple(f"{one.account} {one.counter}: {one.used} in the books, {one.counted} counted" for one in wrong)

    def _limits(self, standings: Sequence[Standing]) -> list[SetLimits]:
        """Return the writes that set limits which are not, or are others: the controller's defaults may have changed.

        Only where they are still as they were found: whoever changes a project meanwhile sets them itself.
        """
        found: dict[str, dict[str, Standing]] = {}
        for one in standings:
            found.setdefault(one.account, {})[one.counter] = one
        writes: list[SetLimits] = []
        for row in (row for kind in ACCOUNTS for row in self._seen.of_kind(kind) if row.deleted_at is None):
            here = found.get(account_of(row), {})
            ceilings = {name: one.ceiling for name, one in here.items()}
            writes += [
                msgspec.structs.replace(write, instead_of=ceilings)
                for write in set_limits(row, None, self._standard)
                if ceilings != write.limits or any(one.parent != write.parent for one in here.values())
            ]
        return writes

    async def _write(self, writes: Sequence[AnyWrite]) -> None:
        await self._store.step(tuple(writes), (), "")

    async def _note(self, found: Sequence[str]) -> None:
        before, now = self._seen.quotas_audited, self._clock()
        same = before is not None and bool(before.differences) == bool(found)
        since = before.since if before and same else now
        self._seen.quotas_audited = Agreement(at=now, differences=len(found), since=since)
        if not found:
            return
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        message = f"{len(found)} differences, put right: {'; '.join(found[:NAMED])}{more}"
        log.warning("quotas counted anew", differences=len(found), first=found[0])
        await self._store.append(_event(message, now))


def _event(message: str, now: float) -> Event:
    return Event(
        seq=0,
        at=now,
        actor="skerry",
        request=new_request_id(),
        action="quota.recounted",
        kind="quota",
        resource=Id(""),
        project="",
        name="",
        message=message,
        before=b"",
        after=b"",
    )
