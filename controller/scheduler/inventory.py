"""The hosts as columns, kept up to date host by host, with what is chosen but not yet committed already taken off."""

from collections import Counter, defaultdict

import msgspec

from common.ids import HostId, Id
from common.refusal import Cost, Refusal
from controller.scheduler.capacity import Stock
from controller.scheduler.choose import Choice, Demand, choose
from controller.scheduler.columns import Columns, HostRow, Offer, Place, Room
from controller.scheduler.rules import Crowd, Rule
from controller.scheduler.survival import Survival, wanted_elsewhere
from controller.store.keeping import keep
from controller.store.places import rack_of, zone_of
from controller.store.rows import Capacity, Traits
from controller.store.working import WorkingSet


class Inventory:
    """Rows for all hosts of a working set. `refresh` after anything about a host changed."""

    def __init__(self, seen: WorkingSet) -> None:
        self._seen = seen
        self._pending: dict[HostId, dict[Id, Demand]] = defaultdict(dict)
        self._joining: dict[Id, dict[Id, HostId]] = defaultdict(dict)
        """Of each group the members that are chosen for a host, and not committed yet."""
        self._columns = Columns()
        self._closed: dict[HostId, str] = {}
        """Hosts whose pools are too full to sell more, and how it is said."""
        self._offers: dict[HostId, tuple[Traits, Offer]] = {}
        self._loads: dict[HostId, Counter[Room]] = {}
        """Of each host that was asked for, the machines to be started elsewhere if it is lost."""
        self._survival = Survival(self._columns, self._load, self._is_guarded)

    def choose(self, demand: Demand) -> Choice | Refusal:
        """Choose a host and take the demand off its free capacity until `settle`."""
        choice = self.would_choose(demand)
        if isinstance(choice, Choice):
            self._pending[choice.host][demand.owner] = demand
            for rule in demand.groups:
                self._joining[rule.group][demand.owner] = choice.host
            self.refresh(choice.host)
        return choice

    def would_choose(self, demand: Demand) -> Choice | Refusal:
        """Say which host would be chosen now; nothing is reserved."""
        crowds = [self._crowd(rule, demand.owner) for rule in demand.groups]
        found = choose(self._columns, demand, crowds, self._survival)
        return self._with_pools(found) if isinstance(found, Refusal) else found

    def _with_pools(self, refusal: Refusal) -> Refusal:
        """Name the hosts that would have the room on paper, and whose pools are too full to sell it."""
        if not self._closed:
            return refusal
        first = next(iter(self._closed.values()))
        cost = Cost(constraint="pool", hosts=len(self._closed), detail=first)
        way_out = f"{refusal.smallest_change}; or make room in a pool ({first})"
        return msgspec.structs.replace(refusal, costs=(*refusal.costs, cost), smallest_change=way_out)

    def take_stock(self) -> Stock:
        """Return all of it as it is now, to be counted elsewhere."""
        return Stock(
            columns=self._columns.copy(),
            loads={host: self._load(host).copy() for host in self._columns.hosts},
            guarded=frozenset(zone.id for zone in self._seen.of_kind("zone") if zone.spec.n_minus_one),
        )

    def settle(self, choice: Choice, demand: Demand) -> None:
        """The claim of a choice was committed or refused: from here on only the working set counts."""
        del self._pending[choice.host][demand.owner]
        if not self._pending[choice.host]:
            del self._pending[choice.host]
        for rule in demand.groups:
            del self._joining[rule.group][demand.owner]
            if not self._joining[rule.group]:
                del self._joining[rule.group]
        self.refresh(choice.host)

    def refresh(self, host: HostId) -> None:
        """Take over what the working set says of a host."""
        self._loads.pop(host, None)
        row, capacity = self._seen.get(host), self._seen.capacity(host)
        if row is None or capacity is None or row.deleted_at is not None:
            self._columns.drop(host)
            self._closed.pop(host, None)
            self._offers.pop(host, None)
            return
        keep(self._closed, host, row.status.pool_closed, there=bool(row.status.pool_closed))
        rack, zone = rack_of(self._seen.get, row), zone_of(self._seen.get, row)
        self._columns.put(
            HostRow(
                host=host,
                name=row.name,
                connected=self._seen.host(host).connected,
                schedulable=row.spec.schedulable,
                free=self._free(host, capacity),
                total=Room(capacity.vcpus, capacity.memory_mib, capacity.disk_gib),
                rack=Place(rack.id, rack.name) if rack else None,
                zone=Place(zone.id, zone.name) if zone else None,
                offer=self._offer(host, capacity.traits),
            )
        )

    def _offer(self, host: HostId, traits: Traits) -> Offer:
        """Return what a host can do: made anew only where it says something else: rows change with every claim."""
        known = self._offers.get(host)
        if known is None or known[0] != traits:
            known = self._offers[host] = (traits, Offer(frozenset(traits.flags), frozenset(traits.can)))
        return known[1]

    def _free(self, host: HostId, capacity: Capacity) -> Room:
        used = self._seen.used(host)
        vcpus, memory_mib = capacity.vcpus - used.vcpus, capacity.memory_mib - used.memory_mib
        disk_gib = capacity.disk_gib - used.disk_gib
        for demand in self._pending[host].values() if host in self._pending else ():
            if self._seen.placement(demand.owner) is None:  # a claim is in the books before its turn hears of it
                vcpus -= demand.vcpus
                memory_mib -= demand.memory_mib
                disk_gib -= demand.disk_gib
        return Room(vcpus, memory_mib, disk_gib)

    def _load(self, host: HostId) -> Counter[Room]:
        found = self._loads.get(host)
        if found is None:
            found = self._loads[host] = Counter()
            for one in self._seen.placed_on(host):
                if (vm := self._seen.get(one.owner)) and wanted_elsewhere(vm):
                    found[Room(one.vcpus, one.memory_mib, one.disk_gib)] += 1
            for demand in self._pending[host].values() if host in self._pending else ():
                if demand.survives and self._seen.placement(demand.owner) is None:
                    found[demand.room] += 1
        return found

    def _is_guarded(self, zone: str) -> bool:
        row = self._seen.get(Id(zone))
        return bool(row and row.spec.n_minus_one)

    def _crowd(self, rule: Rule, owner: Id) -> Crowd:
        """Count the other members of a group where they are, or are about to be."""
        members = Counter(self._seen.crowd(rule.group))
        for member, host in self._joining[rule.group].items() if rule.group in self._joining else ():
            row = self._columns.rows.get(host)
            if member != owner and row is not None and self._seen.placement(member) is None:
                members[self._columns.domain(row, rule.over).id] += 1
        return Crowd(rule=rule, members=members)
