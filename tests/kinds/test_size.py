"""A size's life: a row that never changes, and goes when nothing uses it any more."""

import pytest

from common.errors import Conflict, Invalid
from common.kinds.kind import AnyResource
from controller.kinds.outcome import Do, Done, Wait
from controller.store.writes import Forget
from tests.kinds.bench import Bench


async def made(bench: Bench) -> AnyResource:
    await bench.furniture()
    return await bench.create("size", "", "mine", vcpus=1, memory_mib=512, disk_gib=10)


async def test_it_is_there_at_once(bench: Bench) -> None:
    done = bench.plan(await made(bench))
    assert isinstance(done, Done)
    assert done.status.state == "active"


async def test_it_never_changes(bench: Bench) -> None:
    row = await made(bench)
    with pytest.raises(Invalid, match="vcpus can't change once it is made"):
        await bench.change(row, vcpus=2)


async def test_it_stays_as_long_as_a_machine_uses_it(bench: Bench) -> None:
    row = await made(bench)
    host = await bench.connected_host("h1")
    vm = await bench.create("vm", "shop", "web", image="tiny", size="mine")
    await bench.rest(vm, host)
    with pytest.raises(Conflict, match=r"size mine is used by vm (shop/)?web"):
        await bench.delete(row)
    await bench.delete(vm)
    await bench.delete(row)
    waiting = bench.plan(row)
    assert isinstance(waiting, Wait)
    assert waiting.message == "used until 1 of projects is gone"
    await bench.buried([vm], [host])
    assert bench.plan(row) == Do(writes=(Forget(resource=row.id),), say="forgetting the size")
    await bench.buried([row], [])
