"""A dump of a database in use is one state of it, and a cloud goes on from it."""

import asyncio
from pathlib import Path

from common.clock import system_clock
from controller.store.opening import open_store
from tests.postgres import Cluster
from tests.store.desk import Clock, Desk, take


async def test_a_dump_taken_while_controllers_write_is_restored_whole(cluster: Cluster, postgres_url: str) -> None:
    name = postgres_url.partition("?")[0].rpartition("/")[2]
    dump = Path(postgres_url.rpartition("=")[2]) / f"{name}.dump"
    async with open_store(postgres_url, system_clock) as store:
        await store.load(alone=False)
        desk = Desk(store, Clock())
        host = await desk.host("h1", vcpus=100)

        async def write() -> None:
            for number in range(60):
                await desk.create("project", "", f"p{number}")
                await desk.write(take(host, f"vm-{number:012d}", disk_gib=1, memory_mib=1))

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(write())
            await asyncio.sleep(0.1)
            await asyncio.to_thread(cluster.run, "pg_dump", "--format=custom", f"--file={dump}", name)

    restored = cluster.database()
    cluster.run("pg_restore", "--no-owner", f"--dbname={restored.partition('?')[0].rpartition('/')[2]}", str(dump))
    async with open_store(restored, system_clock) as store:
        queue = await store.load(alone=False)
        projects = {row.name for row in store.seen.of_kind("project")}
        assert projects == {f"p{number}" for number in range(len(projects))}
        assert {row.resource for row in queue} == {row.id for row in store.seen}
        assert len(store.seen.placed_on(host)) in (len(projects), len(projects) - 1)
        assert store.seen.used(host).vcpus == len(store.seen.placed_on(host))
        events = await store.events(0, 1000, None)
        made = await Desk(store, Clock(), seed=1).create("project", "", "afterwards")
        assert made.revision > max(row.revision for row in store.seen.of_kind("project") if row.id != made.id)
        assert (await store.events(events[-1].seq, 10, None))[0].name == "afterwards"
