"""What the CPUs of hosts share, make by make and level by level, and which hosts have less than the others."""

from collections import defaultdict

import msgspec
from aiohttp import web

from common.cpus import LEVELS, Flags, level_of, shared
from common.ids import HostId
from controller.api.call import Call
from controller.api.ports import Store
from controller.api.query import refuse_unknown
from controller.api.render import answer
from controller.store.working import WorkingSet

NAMED_MOST = 5


class SharedCpu(msgspec.Struct, frozen=True, kw_only=True):
    """The CPU that machines get which ask for this, when they are started next."""

    wish: str
    """`shared`, or the level that is asked for."""
    level: str
    """That it reaches."""
    hosts: int
    """That take such a machine."""
    flags: tuple[str, ...]


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """Hosts that are alike, and what the others would share without them."""

    hosts: int
    named: tuple[str, ...]
    """Some of them."""
    level: str
    """That the others would reach."""
    flags: tuple[str, ...]
    """What the others would share more."""


class Make(msgspec.Struct, frozen=True, kw_only=True):
    """Hosts between which machines could move: of one virtualisation and one vendor."""

    make: str
    cpus: tuple[SharedCpu, ...]
    costs: tuple[Costs, ...]


class Cpus(msgspec.Struct, frozen=True, kw_only=True):
    """The makes, and the hosts that have not said what they can give: guests there have all that their host has."""

    items: tuple[Make, ...]
    silent: tuple[str, ...]


def cpus_of(seen: WorkingSet) -> Cpus:
    """Return what hosts share."""
    makes = seen.processors.makes()
    said = {host for hosts in makes.values() for host in hosts}
    silent = (row.name for row in seen.of_kind("host") if row.deleted_at is None and row.id not in said)
    items = tuple(_make(name, hosts, seen) for name, hosts in sorted(makes.items()))
    return Cpus(items=items, silent=tuple(sorted(silent)))


def _make(name: str, hosts: dict[HostId, Flags], seen: WorkingSet) -> Make:
    alike: dict[Flags, list[str]] = defaultdict(list)
    for host, flags in hosts.items():
        alike[flags].append(seen.name_of(host))
    all_share = shared(alike)
    costs = []
    for flags, names in alike.items():
        without = shared(other for other in alike if other != flags)
        if more := without - all_share:
            named = tuple(sorted(names)[:NAMED_MOST])
            costs.append(Costs(hosts=len(names), named=named, level=level_of(without), flags=tuple(sorted(more))))
    cpus = [_cpu("shared", frozenset(), alike), *(_cpu(wish, needs, alike) for wish, needs in LEVELS.items())]
    return Make(
        make=name,
        cpus=tuple(cpu for cpu in cpus if cpu.hosts),
        costs=tuple(sorted(costs, key=lambda cost: (-len(cost.flags), cost.named))),
    )


def _cpu(wish: str, needs: Flags, alike: dict[Flags, list[str]]) -> SharedCpu:
    found = shared(alike, needs)
    count = sum(len(names) for flags, names in alike.items() if needs <= flags)
    return SharedCpu(wish=wish, level=level_of(found), hosts=count, flags=tuple(sorted(found)))


class CpusShown:
    """The handler."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def show(self, call: Call) -> web.Response:
        """Answer what hosts share."""
        refuse_unknown(call.request.query, ())
        return answer(cpus_of(self._store.seen))
