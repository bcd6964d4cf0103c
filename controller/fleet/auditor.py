"""The audit that goes on all the time: every connected host once in a while, and what it found for everybody to see."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from common.clock import Clock
from common.errors import SkerryError
from common.ids import HostId, RequestId, new_request_id
from common.kinds.kind import AnyResource
from controller.fleet.audit import Difference
from controller.fleet.links import ALONE
from controller.store.rows import Event, Link
from controller.store.store import Store
from controller.store.working import Agreement

log = structlog.get_logger(__name__)

SETTLE_S = 10.0
"""What is found is looked at again after so long: work that is under way is no difference."""

NAMED = 5
"""Differences that an event names."""

Audit = Callable[[HostId, RequestId], Awaitable[tuple[Difference, ...]]]


class Auditor:
    """Audits one host after another, for ever."""

    def __init__(
        self,
        store: Store,
        audit: Audit,
        clock: Clock,
        *,
        every_s: float,
        settle_s: float = SETTLE_S,
        mine: Callable[[Link], bool] = ALONE.mine,
    ) -> None:
        self._store = store
        self._mine = mine
        self._seen = store.seen
        self._audit = audit
        self._clock = clock
        self._every_s = every_s
        self._settle_s = settle_s

    async def run(self) -> None:
        """Audit until cancelled; each host once in the interval, spread over it."""
        while self._every_s:
            hosts = self._connected()
            for host in hosts:
                await asyncio.sleep(self._every_s / len(hosts))
                await self.look(host)
            if not hosts:
                await asyncio.sleep(min(self._every_s, 10.0))

    async def look(self, host: HostId) -> None:
        """Audit one host and note what was found. A host that can't be asked is passed over."""
        request = new_request_id()
        try:
            found = await self._audit(host, request)
            if found:
                await asyncio.sleep(self._settle_s)
                again = {_thing(one) for one in await self._audit(host, request)}
                found = tuple(one for one in found if _thing(one) in again)
        except SkerryError as err:
            log.info("host not audited", host=host, why=err.detail)
            return
        row = self._seen.get(host)
        if row is not None and row.deleted_at is None:
            await self._note(row, found, request)

    def _connected(self) -> list[HostId]:
        """Return the hosts that are connected to this controller: of several, each audits its own."""
        hosts = sorted(HostId(row.id) for row in self._seen.of_kind("host"))
        return [host for host in hosts if self._seen.host(host).connected and self._is_mine(host)]

    def _is_mine(self, host: HostId) -> bool:
        link = self._seen.link(host)
        return link is None or self._mine(link)

    async def _note(self, row: AnyResource, found: Sequence[Difference], request: RequestId) -> None:
        view, now = self._seen.host(HostId(row.id)), self._clock()
        before = view.audited
        same = before is not None and bool(before.differences) == bool(found)
        view.audited = Agreement(at=now, differences=len(found), since=before.since if before and same else now)
        if same or (before is None and not found):
            return
        log.warning("host differs" if found else "host agrees again", host=row.id, name=row.name, count=len(found))
        what, message = ("differs", _words(row, found)) if found else ("agrees", "wish and reality are one again")
        try:
            await self._store.append(_event(row, what, message, request, now))
        except SkerryError as err:
            log.warning("audit not noted", host=row.id, error=err.detail)


def _thing(one: Difference) -> tuple[str, str, str]:
    return one.problem, one.what, one.name


def _words(row: AnyResource, found: Sequence[Difference]) -> str:
    named = ", ".join(f"{one.problem}: {one.what} {one.name}" for one in found[:NAMED])
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return f"{len(found)} differences: {named}{more}; skerry audit repair {row.name}"


def _event(row: AnyResource, what: str, message: str, request: RequestId, now: float) -> Event:
    return Event(
        seq=0,
        at=now,
        actor="skerry",
        request=request,
        action=f"{row.kind}.{what}",
        kind=row.kind,
        resource=row.id,
        project=row.project,
        name=row.name,
        message=message,
        before=b"",
        after=b"",
    )
