"""This controller among those that share its database: it says that it lives, takes over from those that died, and
sees that every host it is connected to is noted as its own.

All of it is repaired at every beat, not only noted once: a controller that was cut off from the database for a while,
and was buried by the others, is back with the hosts that stayed connected to it as soon as it gets through again.
"""

import asyncio
import time
from collections.abc import Callable

import structlog

from common.clock import Clock
from common.errors import SkerryError
from common.ids import HostId, Id
from common.protocol import Controllers
from controller.fleet.sessions import Sessions
from controller.store.crew import ALIVE_S
from controller.store.rows import Controller, Link
from controller.store.store import Store

log = structlog.get_logger(__name__)

BEAT_S = 1.5

PRUNE_EVERY_S = 60.0
GO_LIMIT_S = 3.0

CUT_OFF_S = 12.0
"""A controller that can't beat for so long (the writer waits 10 s of it) is of no use to its hosts."""

BALANCED_AFTER_S = 20.0
"""Hosts are sent on to a controller that has been there for so long."""


class Crew:
    """This one of several controllers. `timer` (monotonic seconds) is what its pauses go by: clocks may be set."""

    def __init__(
        self,
        store: Store,
        me: Controller,
        sessions: Sessions,
        busy: Callable[[], frozenset[Id]],
        timer: Clock = time.monotonic,
    ) -> None:
        self._store = store
        self._seen = store.seen
        self.me = me
        self._sessions = sessions
        self._timer = timer
        self._busy = busy
        self._steady_since: float | None = None
        """Since when every beat got through in time; None: the last one did not."""
        self._beaten_at = timer()
        self._told: tuple[str, ...] = ()
        """The controllers' addresses, as the hosts here know them."""
        self._known: dict[str, float] = {}
        """Another controller that lives -> since when this one knows."""

    @property
    def others(self) -> tuple[Controller, ...]:
        """The other controllers that live."""
        return tuple(one for one in self._seen.controllers() if one.alive and one.id != self.me.id)

    @property
    def urls(self) -> tuple[str, ...]:
        """Where the controllers are dialled, dead ones that may come back included."""
        return tuple(sorted({one.url for one in self._seen.controllers()}))

    # --- for the fleet ----------------------------------------------------------------------------------------------

    async def take(self, host: HostId) -> None:
        """Note that a host is connected here."""
        await self._store.take_link(host, self.me.id)

    async def leave(self, host: HostId) -> None:
        """Note that it is not any more. Where that fails, a beat does it, or the others' verdict that this one died."""
        try:
            await self._store.leave_link(host, self.me.id)
        except SkerryError as err:
            log.warning("end of a link not noted", host=host, error=err.detail)

    def mine(self, link: Link) -> bool:
        """Say whether a link is one to this controller."""
        return link.controller == self.me.id

    # --- life -------------------------------------------------------------------------------------------------------

    async def enter(self) -> None:
        """Be there, from now on."""
        await self._store.enter(self.me)

    async def run(self) -> None:
        """Beat until cancelled; then leave everything to the others at once."""
        pruned_at = self._timer()
        try:
            while True:
                await self.beat()
                if self._timer() - pruned_at > PRUNE_EVERY_S:
                    pruned_at = self._timer()
                    await self._prune()
                await asyncio.sleep(BEAT_S)
        finally:
            await self._go()

    async def _prune(self) -> None:
        try:
            await self._store.prune()
        except SkerryError as err:
            log.warning("log of changes not pruned", error=err.detail)

    async def _go(self) -> None:
        try:
            async with asyncio.timeout(GO_LIMIT_S):
                await self._store.bury(self.me.id)
        except (SkerryError, TimeoutError) as err:
            log.warning("not taken leave of: the others will notice", error=str(err))

    async def beat(self) -> None:
        """Say that this one lives; put right what is not noted as it is; take over from who died."""
        try:
            if not await self._store.beat(self.me, self._busy()):
                log.warning("this controller had been taken for dead by the others")
            self._tell_hosts()
            await self._note_links()
            if self._is_steady():
                for one in await self._store.reap(self.me):
                    log.warning("controller taken for dead", controller=one)
                self._balance()
        except SkerryError as err:
            self._steady_since = None
            log.warning("beat not noted", error=err.detail)
            if self._timer() - self._beaten_at > CUT_OFF_S:
                self._let_go()

    def _is_steady(self) -> bool:
        """After a time in which nobody could beat, everybody first gets the time to."""
        now = self._timer()
        late = now - self._beaten_at > ALIVE_S / 2
        self._beaten_at = now
        if late or self._steady_since is None:
            self._steady_since = now
        return now - self._steady_since >= ALIVE_S

    def _let_go(self) -> None:
        """Have the hosts dial another controller, which may get through to the database."""
        for session in self._sessions.all():
            session.close("this controller can't reach its database")

    async def _note_links(self) -> None:
        here = {session.host for session in self._sessions.all() if not session.reason}
        for link in self._seen.links():
            if self.mine(link) and link.host not in here:
                await self._store.leave_link(link.host, self.me.id)
        for host in here:
            if self._seen.link(host) is None:
                await self._store.take_link(host, self.me.id)

    def _tell_hosts(self) -> None:
        """Have the hosts know the controllers that came since their welcome: they may be the last that are left."""
        if (urls := self.urls) != self._told:
            self._told = urls
            for session in self._sessions.all():
                session.send(Controllers(urls=urls))

    def _balance(self) -> None:
        """Send some hosts on where others have fewer: they dial another controller then. A few at a time."""
        now = self._timer()
        self._known = {one.id: self._known.get(one.id, now) for one in self.others}
        settled = [one for one, since in self._known.items() if now - since > BALANCED_AFTER_S]
        if not settled:
            return
        links = self._seen.links()
        own = [link.host for link in links if self.mine(link)]
        fair = -(-len(links) // (len(settled) + 1))
        surplus = len(own) - fair - max(1, fair // 10)
        for host in own[: min(surplus, max(1, len(own) // 50))] if surplus > 0 else ():
            if session := self._sessions.get(host):
                session.close("other controllers have fewer hosts")
