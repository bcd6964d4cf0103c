"""A pool that fills is closed before it is full: what is there stays, nothing new comes, and everybody is told why."""

import msgspec
import pytest

from common.errors import NoCapacity
from common.ids import HostId
from common.kinds.kind import AnyResource
from common.protocol import HostMetrics, Metrics
from common.refusal import Refusal
from controller.kinds.demand import demand_of
from controller.kinds.outcome import Blocked, Do, Done
from controller.kinds.shape import shape_of
from controller.scheduler.inventory import Inventory
from controller.store.writes import Amend
from tests.kinds.bench import Bench
from tests.kinds.test_volume import attached, machine


def fills(bench: Bench, host: HostId, data: float, metadata: float = 0.0) -> None:
    """Have a host say how full its pool is."""
    figures = HostMetrics(
        cpu_percent=0.0, memory_used_mib=0, disk_used_gib=0.0, load_1=0.0, net_rx_bytes=0, net_tx_bytes=0,
        agent_rss_mib=1.0, guests_running=0, pool_percent=data, pool_metadata_percent=metadata,
    )  # fmt: skip
    bench.store.seen.host(host).metrics = Metrics(at=1.0, host=figures, guests=())


def disk(bench: Bench, host: HostId) -> int:
    capacity = bench.store.seen.capacity(host)
    assert capacity is not None
    return capacity.disk_gib


async def looked_at(bench: Bench) -> AnyResource:
    row = bench.named("host", "h1", "")
    await bench.seen_through(row)
    return bench.now(row)


@pytest.mark.parametrize(("data", "metadata"), [(85.0, 0.0), (20.0, 91.5)])
async def test_sales_stop_at_the_watermark_of_data_or_metadata(bench: Bench, data: float, metadata: float) -> None:
    _, host = await machine(bench)
    fills(bench, host, 84.9, 84.9)
    await looked_at(bench)
    assert disk(bench, host) == 100
    fills(bench, host, data, metadata)
    row = bench.named("host", "h1", "")
    step = await bench.step(row)
    assert isinstance(step, Do)
    (event,) = [write for write in step.writes if isinstance(write, Amend)]
    assert event.what == "pool-closed"
    assert "sales stop at 85 %" in event.message
    assert disk(bench, host) == 10, "what is sold, and no more"
    row = await looked_at(bench)
    assert (row.status.pool_percent, row.status.pool_metadata_percent) == (int(data), int(metadata))
    assert f"the pool of host h1 is {int(data)} % full" in row.status.message


async def test_what_finds_no_room_says_that_it_is_for_the_pool(bench: Bench) -> None:
    stage = await attached(bench)
    fills(bench, stage.host, 90)
    await looked_at(bench)
    snapshot = await bench.create("snapshot", "shop", "before", volume="data")
    blocked = await bench.rest(snapshot)
    assert isinstance(blocked, Blocked)
    assert "the pool of host h1 is 90 % full: sales stop at 85 %" in blocked.why.summary
    with pytest.raises(NoCapacity, match="the pool of host h1 is 90 % full"):
        await bench.change(stage.volume, size_gib=11)

    vm = await bench.create("vm", "shop", "more", image="tiny", size="small")
    shape = shape_of(vm, bench.store.seen)
    assert shape is not None
    inventory = Inventory(bench.store.seen)
    inventory.refresh(stage.host)
    refusal = inventory.would_choose(demand_of(vm, shape, bench.store.seen))
    assert isinstance(refusal, Refusal)
    assert [(cost.constraint, cost.hosts) for cost in refusal.costs] == [("disk", 1), ("pool", 1)]
    assert "90 % full" in refusal.costs[1].detail
    assert "make room in a pool" in refusal.smallest_change


async def test_a_pool_opens_again_well_below_the_watermark_and_stays_as_it_was_in_silence(bench: Bench) -> None:
    _, host = await machine(bench)
    await bench.change(bench.named("host", "h1", ""), pool_watermark_percent=50)
    fills(bench, host, 60)
    await looked_at(bench)
    fills(bench, host, 48)
    await looked_at(bench)
    assert disk(bench, host) == 10, "it does not flutter"
    bench.store.seen.host(host).metrics = None
    row = await looked_at(bench)
    assert (disk(bench, host), row.status.pool_percent) == (10, 48)
    fills(bench, host, 46.9)
    row = bench.named("host", "h1", "")
    step = await bench.step(row)
    assert isinstance(step, Do)
    assert [write.what for write in step.writes if isinstance(write, Amend)] == ["pool-opened"]
    row = await looked_at(bench)
    assert (disk(bench, host), row.status.pool_closed, row.status.message) == (100, "", "")


async def test_a_host_that_has_sold_everything_tells_that_its_pool_closes_and_opens_once_each(bench: Bench) -> None:
    stage = await attached(bench, 90)
    told: list[str] = []
    for percent in (60, 90, 91, 90, 84, 81, 80):
        fills(bench, stage.host, percent)
        for _ in range(3):
            step = await bench.step(bench.named("host", "h1", ""))
            told += [write.what for write in step.writes if isinstance(write, Amend)] if isinstance(step, Do) else []
    assert told == ["pool-closed", "pool-opened"]
    assert disk(bench, stage.host) == 100


async def test_an_agent_that_tells_nothing_of_its_pool_closes_nothing(bench: Bench) -> None:
    _, host = await machine(bench)
    figures = msgspec.json.decode(b"[0,0,0,0,0,0,1,0]", type=HostMetrics)
    bench.store.seen.host(host).metrics = Metrics(at=1.0, host=figures, guests=())
    done = await bench.rest(bench.named("host", "h1", ""))
    assert isinstance(done, Done)
    assert disk(bench, host) == 100
