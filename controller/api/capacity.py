"""How many more machines of each size fit: by the rules of choosing, from the hosts as they are now."""

import asyncio
from collections.abc import Callable

import msgspec
from aiohttp import web

from common.kinds.kind import AnyResource
from controller.api.call import Call
from controller.api.ports import Store
from controller.api.query import refuse_unknown
from controller.api.render import answer
from controller.scheduler.capacity import Fits, Stock, how_many
from controller.scheduler.columns import Room

CAPACITY_PARAMETERS = {
    "size": "of this size only, by name or id; else of each there is",
    "zone": "in this zone only, by name or id",
}

TakeStock = Callable[[], Stock]
"""Gives the hosts as they are now."""


class SizeFits(msgspec.Struct, frozen=True, kw_only=True):
    """How many more of one size fit; of one that machines choose their share of, the smallest share counts."""

    size: str
    vcpus: int
    memory_mib: int
    disk_gib: int
    fits: Fits


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes, by name."""

    items: tuple[SizeFits, ...]


class Capacities:
    """The handler."""

    def __init__(self, store: Store, take_stock: TakeStock) -> None:
        self._store = store
        self._take_stock = take_stock

    async def show(self, call: Call) -> web.Response:
        """Answer how many more fit. Counting may take a moment, and holds nobody up."""
        query, seen = call.request.query, self._store.seen
        refuse_unknown(query, CAPACITY_PARAMETERS)
        wanted = [seen.find("size", "", query["size"])] if "size" in query else seen.of_kind("size")
        sizes = sorted((size for size in wanted if size.deleted_at is None), key=lambda size: size.name)
        zone = seen.find("zone", "", query["zone"]).id if "zone" in query else None
        needs = {size.name: _room(size) for size in sizes}
        found = await asyncio.to_thread(how_many, self._take_stock(), needs, zone)
        items = tuple(SizeFits(size=size.name, **needs[size.name]._asdict(), fits=found[size.name]) for size in sizes)
        return answer(Capacity(items=items))


def _room(size: AnyResource) -> Room:
    return Room(size.spec.vcpus, size.spec.memory_mib, size.spec.disk_gib)
