"""A rack's life: a row that others refer to, and that goes when nothing uses it any more."""

import pytest

from common.errors import Conflict, Invalid
from common.kinds.kind import AnyResource
from controller.kinds.outcome import Do, Done
from controller.store.writes import Forget
from tests.kinds.bench import Bench


async def made(bench: Bench) -> AnyResource:
    await bench.create("zone", "", "z1")
    return await bench.create("rack", "", "r1", zone="z1")


async def test_it_is_there_at_once(bench: Bench) -> None:
    done = bench.plan(await made(bench))
    assert isinstance(done, Done)
    assert done.status.state == "active"


async def test_it_stays_as_long_as_a_host_is_in_it(bench: Bench) -> None:
    row = await made(bench)
    user = await bench.create("host", "", "h1", rack="r1")
    with pytest.raises(Conflict, match=r"rack .* is used by host h1"):
        await bench.delete(row)
    await bench.delete(user)
    await bench.delete(row)
    await bench.buried([user], [])
    assert bench.plan(row) == Do(writes=(Forget(resource=row.id),), say="forgetting the rack")


async def test_it_never_leaves_its_zone(bench: Bench) -> None:
    row = await made(bench)
    await bench.create("zone", "", "z2")
    with pytest.raises(Invalid, match="zone can't change once it is made"):
        await bench.change(row, zone="z2")
