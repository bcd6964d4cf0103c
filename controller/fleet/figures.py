"""What hosts say of their load: held against what is placed on them, and kept many hosts at a time."""

import asyncio
from collections.abc import Callable

import msgspec
import structlog

from common.documents import DocKey
from common.errors import SkerryError
from common.ids import HostId, Id
from common.protocol import Metrics
from controller.fleet.attached import pool_moved
from controller.fleet.lies import Lies
from controller.metrics.intake import Measures
from controller.store.working import WorkingSet

log = structlog.get_logger(__name__)

EVERY_S = 0.25
"""Vectors wait so long for others: reckoning with one at a time was 40 % of the work of 1,000 quiet hosts."""


class Figures:
    """The vectors that came since they were last kept, the newest of each host. `run` keeps them."""

    def __init__(self, seen: WorkingSet, lies: Lies, measures: Measures, poke: Callable[[Id], None]) -> None:
        self._seen = seen
        self._lies = lies
        self._measures = measures
        self._poke = poke
        self._told: dict[HostId, Metrics] = {}

    async def take(self, host: HostId, said: Metrics) -> None:
        """Take in figures of a host and of the machines that are placed on it."""
        if said.guests:
            said = await self._own(host, said)
        self._told[host] = said

    def forget(self, host: HostId) -> None:
        """Forget what a host said a moment ago: it speaks to another controller."""
        self._told.pop(host, None)

    async def run(self) -> None:
        """Keep what came, until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            await self.keep()

    async def keep(self) -> None:
        """Keep what came until now."""
        if not self._told:
            return
        told, self._told = self._told, {}
        for host, taken in self._measures.take(told).items():
            if taken.metrics:
                view = self._seen.host(host)
                moved, view.metrics = pool_moved(view.metrics, taken.metrics), taken.metrics
                if moved:
                    self._poke(host)
            if taken.refused:
                await self._refuse(host, taken.refused)

    async def _refuse(self, host: HostId, words: str) -> None:
        try:
            await self._lies.told(host, "figures", words)
        except SkerryError as err:
            log.warning("lie of a host not noted", host=host, lie="figures", error=err.detail)

    async def _own(self, host: HostId, said: Metrics) -> Metrics:
        """Return a vector with none but the machines that are on its host; note claims to others."""
        placed = {one.owner for one in self._seen.placed_on(host) if one.owner.startswith("vm-")}
        if all(guest.vm in placed for guest in said.guests):
            return said
        for guest in said.guests:
            there = self._seen.placement(guest.vm)
            if there and there.host != host and self._seen.document(host, DocKey(f"domain/{guest.vm}")) is None:
                await self._lies.told(host, "claim", f"figures of {guest.vm}, which is elsewhere")
        return msgspec.structs.replace(said, guests=tuple(guest for guest in said.guests if guest.vm in placed))
