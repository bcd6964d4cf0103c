"""What must be so from one moment to the next in the simulated world: quotas, protection, kept disks, closed hosts."""

import json
from collections import Counter
from typing import Any

import msgspec
from sqlalchemy import select

from common import names
from common.ids import Id
from controller.store import tables
from controller.store.rows import project_account
from sim.cloud import Cloud
from sim.machine import Machine


class Row(msgspec.Struct, frozen=True):
    """What is looked at of a resource."""

    id: Id
    kind: str
    project: str
    spec: dict[str, Any]
    owner: str | None
    deleted: bool
    counts: dict[str, int]

    @property
    def kept(self) -> bool:
        """Whether it was deleted and can be restored."""
        return self.kind == "vm" and not self.deleted and self.spec["kept_until"] > 0


class Watch:
    """Looks at the world after each act, and holds it against what it saw before."""

    def __init__(self) -> None:
        self._protected: set[Id] = set()
        self._used: dict[tuple[str, str], int] = {}
        self._closed: dict[str, set[str]] = {}
        self._kept: dict[Id, Machine] = {}

    def look(self, cloud: Cloud) -> None:
        """Look once. Raises AssertionError."""
        r = tables.resource.c
        with cloud.world.engine.connect() as connection:
            rows = {
                Id(one.id): Row(
                    Id(one.id),
                    one.kind,
                    one.project,
                    json.loads(one.spec),
                    one.owner,
                    one.deleted_at is not None,
                    json.loads(one.counts),
                )
                for one in connection.execute(
                    select(r.id, r.kind, r.project, r.spec, r.owner, r.deleted_at, r.counts).order_by(r.id)
                )
            }
            books = connection.execute(select(tables.quota)).all()
            placed = {Id(one.owner): one.host for one in connection.execute(select(tables.placement))}
        self._quotas_hold(rows, books)
        self._protected_stay(rows)
        self._closed_take_none(rows, placed)
        self._kept_have_their_disks(cloud, rows, placed)

    def _quotas_hold(self, rows: dict[Id, Row], books: Any) -> None:
        """The books say what is there, and what is over its limit grows no more: the limit was lowered."""
        parents = {one.account: one.parent for one in books if one.parent}
        counted: Counter[tuple[str, str]] = Counter()
        for row in rows.values():
            account = project_account(row.project)
            for counter, amount in row.counts.items():
                for owner in {account, parents.get(account, account)}:
                    counted[owner, counter] += amount
            if row.kind == "vm":
                counted[account, "machines there are"] += 1
        for one in books:
            key = (one.account, one.counter)
            assert one.used == counted[key], (
                f"{one.account}: {one.counter} {one.used} in the books, {counted[key]} there"
            )
            if one.counter == "vms" and one.account.startswith("project/"):
                assert one.used == counted[one.account, "machines there are"], f"{one.account}: not all machines count"
            if one.ceiling is not None and one.used > one.ceiling:
                assert one.used <= self._used.get(key, 0), f"{one.account}: {one.counter} over {one.ceiling}"
            self._used[key] = one.used

    def _protected_stay(self, rows: dict[Id, Row]) -> None:
        """A protected machine is there as long as nobody took that back."""
        for vm in self._protected:
            assert vm in rows, f"{vm} was protected, and is gone"
            assert not rows[vm].deleted, f"{vm} was protected, and is deleted"
            assert not rows[vm].kept, f"{vm} was protected, and is deleted and kept"
        self._protected = {
            row.id for row in rows.values() if row.kind == "vm" and row.spec["protected"] and not row.deleted
        }

    def _closed_take_none(self, rows: dict[Id, Row], placed: dict[Id, str]) -> None:
        """A host that is closed gets no machine."""
        closed = {row.id for row in rows.values() if row.kind == "host" and not row.spec["schedulable"]}
        machines = {vm: at for vm, at in placed.items() if vm.startswith("vm-")}  # a volume goes where its machine is
        here = {str(host): {str(vm) for vm, at in machines.items() if at == host} for host in closed}
        for host, vms in here.items():
            new = vms - self._closed.get(host, vms)
            assert not new, f"{host} was closed, and got {new}"
        self._closed = here

    def _kept_have_their_disks(self, cloud: Cloud, rows: dict[Id, Row], placed: dict[Id, str]) -> None:
        """What is deleted and kept has the disks that it had: a machine that is another one now never had them."""
        machines = {str(node.host): node.machine for node in cloud.world.nodes.values() if node.host not in cloud.liars}
        kept = {}
        for row in rows.values():
            vm = rows.get(Id(row.owner)) if row.owner else None
            if row.kind != "volume" or row.deleted or vm is None or not vm.kept:
                continue
            machine, name = machines.get(placed.get(vm.id, "")), names.volume_file(row.id)
            if machine is not None and machine.has_disk(name):
                kept[row.id] = machine
            elif machine is not None:
                assert self._kept.get(row.id) is not machine, f"{vm.id} is kept, and its disk {row.id} is gone"
        self._kept = kept
