"""A region's life: a row that others refer to, and that goes when nothing uses it any more."""

import pytest

from common.errors import Conflict
from common.kinds.kind import AnyResource
from controller.kinds.outcome import Do, Done
from controller.store.writes import Forget
from tests.kinds.bench import Bench


async def made(bench: Bench) -> AnyResource:
    return await bench.create("region", "", "north")


async def test_it_is_there_at_once(bench: Bench) -> None:
    done = bench.plan(await made(bench))
    assert isinstance(done, Done)
    assert done.status.state == "active"


async def test_it_stays_as_long_as_a_zone_is_in_it(bench: Bench) -> None:
    row = await made(bench)
    user = await bench.create("zone", "", "z1", region="north")
    with pytest.raises(Conflict, match=r"region .* is used by zone z1"):
        await bench.delete(row)
    await bench.delete(user)
    await bench.delete(row)
    await bench.buried([user], [])
    assert bench.plan(row) == Do(writes=(Forget(resource=row.id),), say="forgetting the region")
