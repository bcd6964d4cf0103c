"""Several controllers on a real PostgreSQL, one killed every so often: nothing is lost, stuck, or done twice."""

import asyncio
import hashlib
import random
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import func, select

from controller.kinds import admission
from controller.kinds.admission import Admission, Context
from controller.store import tables
from tests.crew.live import LiveCloud, LiveController, _named, live_cloud
from tests.patience import PATIENCE_S

VMS = 36
HOSTS = 4
DEATHS = 6


async def prepare(cloud: LiveCloud) -> None:
    await cloud.create("project", "", "system")
    await cloud.create("project", "", "shop")
    for number in range(HOSTS):
        await cloud.create("host", "", f"h{number}")
        await cloud.join(f"h{number}")
    await cloud.create("size", "", "small", vcpus=1, memory_mib=256, disk_gib=1)
    await cloud.create("image", "shop", "tiny")

    def upload(context: Context) -> Admission:
        row = _named(context, "image", "shop", "tiny")
        digest = "sha256:" + hashlib.sha256(row.id.encode()).hexdigest()
        spec = msgspec.structs.replace(row.spec, digest=digest, size_bytes=1 << 20)
        return admission.record(context, row, spec, "content")

    await cloud.insist(upload)
    await cloud.create("network", "shop", "default")
    for number in range(HOSTS):
        await cloud.insist(
            lambda context, name=f"h{number}": admission.change(  # type: ignore[misc]
                context, _named(context, "host", "", name), admission.Patch(spec={"cpu_overcommit": 3.0})
            )
        )
    await cloud.until(lambda one: _ready(one) == HOSTS, limit_s=PATIENCE_S, what="all hosts are ready")


def _ready(one: LiveController) -> int:
    return sum(host.status.state == "ready" for host in one.store.seen.of_kind("host"))


def _running(one: LiveController) -> int:
    return sum(
        vm.status.state == "running" and vm.observed_generation == vm.generation for vm in one.store.seen.of_kind("vm")
    )


def _open(one: LiveController) -> list[object]:
    return [op for op in one.store.seen.operations() if op.finished_at is None]


def _same(cloud: LiveCloud) -> bool:
    first, *others = [one for one in cloud.controllers.values() if one.up.is_set()]
    return all(not first.store.seen.difference(one.store.seen.rows()) for one in others)


async def _kill_now_and_then(cloud: LiveCloud, chance: random.Random) -> None:
    """Kill one controller after the other, each back after a second or two."""
    while cloud.deaths < DEATHS:
        await asyncio.sleep(chance.uniform(0.2, 1.0))
        name = chance.choice(sorted(cloud.controllers))
        cloud.kill(name)
        await asyncio.sleep(chance.uniform(0.2, 1.0))
        await cloud.start(name).up.wait()


def _check_books(cloud: LiveCloud) -> None:
    p = tables.placement.c
    with cloud.engine.connect() as connection:
        for row in connection.execute(select(tables.capacity)):
            sold = connection.execute(select(func.sum(p.vcpus)).where(p.host == row.host)).scalar_one() or 0
            assert row.vcpus_used == sold
            assert row.vcpus_used <= row.vcpus
        seqs = connection.execute(select(tables.change.c.seq).order_by(tables.change.c.seq)).scalars().all()
        assert list(seqs) == list(range(1, len(seqs) + 1))
    runs = Counter(vm for host in cloud.hosts for vm in host.machine.guests.runs)
    assert all(count == 1 for count in runs.values()), f"a guest runs twice: {runs.most_common(1)}"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("names", [("one", "two"), ("one", "two", "three")], ids=len)
async def test_controllers_are_killed_and_no_operation_is_lost(
    postgres_url: str, tmp_path: Path, names: tuple[str, ...]
) -> None:
    chance = random.Random(len(names))
    async with live_cloud(postgres_url, tmp_path, names) as cloud:
        await prepare(cloud)
        async with asyncio.TaskGroup() as group:
            group.create_task(_kill_now_and_then(cloud, chance))
            async with asyncio.TaskGroup() as wishes:
                for number in range(VMS):
                    wishes.create_task(cloud.create("vm", "shop", f"vm{number}", image="tiny", size="small"))
                    await asyncio.sleep(0.1)
            _check_books(cloud)
            async with asyncio.TaskGroup() as wishes:
                for number in range(0, VMS, 3):
                    wishes.create_task(cloud.delete("vm", "shop", f"vm{number}"))
                    await asyncio.sleep(0.1)
        left = VMS - len(range(0, VMS, 3))
        await cloud.until(lambda one: _running(one) == left, limit_s=60, what=f"{left} machines run")
        await cloud.until(lambda one: not _open(one), limit_s=PATIENCE_S, what="every operation has ended")
        await cloud.until(lambda _: _same(cloud), limit_s=PATIENCE_S, what="all controllers see the same")
        _check_books(cloud)
        assert sum(len(host.machine.guests.runs) for host in cloud.hosts) == left


async def test_hosts_go_to_another_controller_by_themselves(postgres_url: str, tmp_path: Path) -> None:
    async with live_cloud(postgres_url, tmp_path, ("one", "two")) as cloud:
        await prepare(cloud)
        cloud.kill("one")
        await cloud.create("vm", "shop", "web", image="tiny", size="small")
        await cloud.until(lambda one: _running(one) == 1, limit_s=60, what="it runs")
        await cloud.until(
            lambda _: {host.at for host in cloud.hosts} == {"two"},
            limit_s=PATIENCE_S,
            what="every host is at the other",
        )


async def test_hosts_spread_over_a_controller_that_comes_later(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.fleet.crew.BALANCED_AFTER_S", 0.0)
    monkeypatch.setattr("controller.fleet.crew.ALIVE_S", 2.0)
    monkeypatch.setattr("controller.fleet.crew.BEAT_S", 0.3)
    async with live_cloud(postgres_url, tmp_path, ("one",)) as cloud:
        await prepare(cloud)
        await cloud.start("two").up.wait()
        await cloud.until(
            lambda _: max(Counter(host.at for host in cloud.hosts).values()) <= HOSTS - 1,
            limit_s=PATIENCE_S,
            what="they spread",
        )
