"""A controller's store in a folder of its own, filled with as much as a benchmark needs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy import delete, update

from common.clock import system_clock
from common.codec import to_json
from common.ids import Id, RequestId
from common.kinds import kind_named
from common.kinds.kind import SYSTEM_PROJECT, Role
from common.kinds.vm import VmStatus
from controller import bootstrap
from controller.auth.caller import built_in
from controller.kinds import admission
from controller.kinds.admission import Context, NewResource
from controller.store import tables
from controller.store.database import migrate, open_database
from controller.store.store import Feed, Store
from controller.store.tx import Tx
from controller.store.writer import GroupWriter

PROJECT = "bench"
OPERATOR = built_in("system/bench", SYSTEM_PROJECT, Role.ADMIN, RequestId("req-bench"))


@asynccontextmanager
async def opened(database: Path) -> AsyncIterator[Store]:
    """Open a store, made where it is missing, as the controller opens it."""
    engine = open_database(f"sqlite:///{database}")
    try:
        await asyncio.to_thread(migrate, engine)
        feed = Feed()
        async with GroupWriter(engine, system_clock, feed.committed) as writer:
            store = Store(writer, feed)
            await store.load(alone=True)
            await bootstrap.ensure_system_project(store, system_clock)
            yield store
    finally:
        engine.dispose()


async def create(store: Store, kind: str, name: str, spec: dict[str, object]) -> Id:
    """Admit a resource as the API does; return its id."""
    context = Context(seen=store.seen, caller=OPERATOR, now=system_clock())
    admitted = admission.create(context, kind_named(kind), PROJECT, NewResource(name=name, spec=spec))
    return (await store.admit(admitted)).resource.id


async def fill(store: Store, vms: int, at_once: int = 64) -> None:
    """Make a project with so many VMs that are at rest, as if hosts had made them true."""
    await create(store, "project", PROJECT, {})
    await create(store, "size", "small", {"vcpus": 1, "memory_mib": 512, "disk_gib": 10})
    await create(store, "image", "tiny", {"format": "kernel"})
    await create(store, "network", "default", {"cidr": "10.0.0.0/16"})
    spec: dict[str, object] = {"image": "tiny", "size": "small"}
    await together((f"vm-{number:06d}" for number in range(vms)), lambda name: create(store, "vm", name, spec), at_once)
    await store._writer.submit(_put_to_rest)  # a short cut that only a benchmark may take


async def together(names: Iterable[str], work: Callable[[str], Awaitable[object]], at_once: int) -> None:
    """Do work for each name, so many at a time."""
    left = iter(names)

    async def worker() -> None:
        for name in left:
            await work(name)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(worker())


def _put_to_rest(tx: Tx) -> None:
    c = tables.resource.c
    status = to_json(VmStatus(state="running", host="h1", addresses=("10.0.0.2",))).decode()
    tx.run(update(tables.resource).where(c.kind == "vm").values(observed_generation=1, status=status))
    tx.run(delete(tables.operation))
    tx.run(delete(tables.queue))
