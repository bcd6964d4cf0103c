"""Makes rows in a store the way callers do, for tests of the store and of the planners."""

import random
from typing import Any

from common.ids import HostId, Id, RequestId
from common.kinds import kind_named
from common.kinds.kind import SYSTEM_PROJECT, AnyResource, Role
from controller.auth.caller import built_in
from controller.kinds import admission
from controller.kinds.admission import Admission, Context, NewResource, Patch
from controller.store.rows import Capacity, Placement
from controller.store.store import Store
from controller.store.writes import AnyWrite, SetCapacity, TakePlacement

OPERATOR = built_in("system/root", SYSTEM_PROJECT, Role.ADMIN, RequestId("req-1"))


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Desk:
    """Admits and commits."""

    def __init__(self, store: Store, clock: Clock, *, seed: int = 7) -> None:
        self.store = store
        self.clock = clock
        self._entropy = random.Random(seed).randbytes

    @property
    def context(self) -> Context:
        """Return an operator's context."""
        return Context(seen=self.store.seen, caller=OPERATOR, now=self.clock.now, entropy=self._entropy)

    def admit_create(self, kind: str, project: str, name: str, **spec: Any) -> Admission:
        """Admit a create, and commit nothing."""
        return admission.create(self.context, kind_named(kind), project, NewResource(name=name, spec=spec))

    async def create(self, kind: str, project: str, name: str, **spec: Any) -> AnyResource:
        """Make something."""
        done = await self.store.admit(self.admit_create(kind, project, name, **spec))
        return done.resource

    async def change(self, row: AnyResource, **spec: Any) -> AnyResource:
        """Change it."""
        done = await self.store.admit(admission.change(self.context, self.now(row), Patch(spec=spec)))
        return done.resource

    async def delete(self, row: AnyResource) -> AnyResource:
        """Have its deletion accepted."""
        done = await self.store.admit(admission.delete(self.context, self.now(row)))
        return done.resource

    def now(self, row: AnyResource) -> AnyResource:
        """Return a row as it stands by now."""
        found = self.store.seen.get(row.id)
        assert found is not None, f"{row.kind} {row.name} is gone"
        return found

    async def write(self, *writes: AnyWrite) -> None:
        """Commit writes as one step."""
        await self.store.step(writes, (), "")

    async def project(self, name: str = "shop") -> None:
        """Have a project."""
        await self.create("project", "", name)

    async def host(self, name: str, *, vcpus: int = 8, memory_mib: int = 8192, disk_gib: int = 100) -> HostId:
        """Have a host that sells this much."""
        row = await self.create("host", "", name)
        host = HostId(row.id)
        capacity = Capacity(host=host, vcpus=vcpus, memory_mib=memory_mib, disk_gib=disk_gib)
        await self.write(SetCapacity(capacity=capacity))
        return host


def take(host: HostId, owner: str, *, vcpus: int = 1, memory_mib: int = 512, disk_gib: int = 10) -> TakePlacement:
    """Return the write that takes capacity."""
    return TakePlacement(
        placement=Placement(owner=Id(owner), host=host, vcpus=vcpus, memory_mib=memory_mib, disk_gib=disk_gib)
    )
