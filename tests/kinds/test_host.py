"""A host's life: a token, an agent, what it sells, silence, and an end that no machine on it can hold up."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import Conflict
from common.ids import HostId, Id
from common.kinds.host import HostSpec, HostStatus
from common.secret import digest_of
from controller.kinds import admission
from controller.kinds.host import JOIN_TOKEN_S, capacity_of
from controller.kinds.outcome import Do, Done, Wait
from controller.store.rows import Capacity
from controller.store.writes import ForgetHost, SetCapacity
from tests.kinds.bench import Bench, inventory
from tests.store.desk import take


async def test_making_a_host_gives_a_token_that_is_stored_as_a_hash(bench: Bench) -> None:
    done = await bench.store.admit(bench.admit_create("host", "", "h1"))
    assert done.revealed is not None
    enrolment = bench.store.seen.enrolment(HostId(done.resource.id))
    assert enrolment is not None
    assert enrolment.join_digest == digest_of(done.revealed.reveal())
    assert enrolment.join_expires_at == bench.clock.now + JOIN_TOKEN_S
    outcome = bench.plan(done.resource)
    assert isinstance(outcome, Done)
    assert (outcome.status.state, outcome.status.message) == ("expected", "waits for its agent to join")
    bench.clock.now += JOIN_TOKEN_S + 1
    late = bench.plan(done.resource)
    assert isinstance(late, Done)
    assert late.status.message == "its join token is out of date: skerry host token h1"


async def test_what_it_has_becomes_what_it_sells_then_it_is_ready(bench: Bench) -> None:
    host = await bench.connected_host("h1")
    row = bench.named("host", "h1", "")
    first = await bench.step(row)
    assert isinstance(first, Do)
    wanted = Capacity(host=host, vcpus=16, memory_mib=8192, disk_gib=100)
    assert first.writes == (SetCapacity(capacity=wanted),)
    done = bench.plan(row)
    assert isinstance(done, Done)
    status = done.status
    assert (status.state, status.address, status.cpu_threads) == ("ready", "10.77.0.11", 4)  # type: ignore[attr-defined]


async def test_less_memory_or_other_ratios_are_noted(bench: Bench) -> None:
    await bench.connected_host("h1")
    row = bench.named("host", "h1", "")
    await bench.rest(row)
    await bench.change(row, memory_overcommit=0.5)
    assert isinstance(await bench.step(row), Do)
    capacity = bench.store.seen.capacity(HostId(row.id))
    assert capacity is not None
    assert capacity.memory_mib == 4096


async def test_a_closed_host_says_so(bench: Bench) -> None:
    await bench.connected_host("h1")
    row = bench.named("host", "h1", "")
    await bench.change(row, schedulable=False)
    done = await bench.rest(row)
    assert isinstance(done, Done)
    assert done.status.state == "cordoned"


async def test_a_silent_host_says_since_when(bench: Bench) -> None:
    host = await bench.connected_host("h1")
    row = bench.named("host", "h1", "")
    await bench.rest(row)
    view = bench.store.seen.host(host)
    view.connected, view.since = False, 1_800_000_000.0
    done = bench.plan(row)
    assert isinstance(done, Done)
    assert done.status.state == "unreachable"
    assert done.status.message == "host h1 has not been connected since 2027-01-15T08:00:00Z"
    view.since = 0
    since_start = bench.plan(row)
    assert isinstance(since_start, Done)
    assert since_start.status.message.endswith("since this controller started")


async def test_a_new_token_ends_what_was_joined_with_the_old(bench: Bench) -> None:
    host = await bench.connected_host("h1")
    await bench.store.admit(admission.reissue(bench.context, bench.named("host", "h1", "")))
    enrolment = bench.store.seen.enrolment(host)
    assert enrolment is not None
    assert enrolment.certificate_serial == ""
    assert enrolment.join_digest


async def test_a_host_with_machines_can_not_be_deleted(bench: Bench) -> None:
    await bench.furniture()
    host = await bench.connected_host("h1")
    vm = await bench.create("vm", "shop", "web", image="tiny", size="small")
    await bench.write(take(host, vm.id))
    with pytest.raises(Conflict, match="host h1 has vm web"):
        await bench.delete(bench.named("host", "h1", ""))
    await bench.delete(vm)
    await bench.delete(bench.named("host", "h1", ""))


async def test_a_host_is_forgotten_with_all_that_is_on_it(bench: Bench) -> None:
    await bench.furniture()
    host = await bench.connected_host("h1")
    row = bench.named("host", "h1", "")
    vm = await bench.create("vm", "shop", "web", image="tiny", size="small")
    await bench.rest(vm, host)
    await bench.rest(bench.named("network", "default"))
    await bench.delete(vm)
    await bench.delete(row)
    first = await bench.step(row)
    assert isinstance(first, Do)
    assert first.writes == (ForgetHost(host=host),)
    waiting = bench.plan(row)
    assert isinstance(waiting, Wait)
    assert waiting.message == "until 2 of projects is gone"
    await bench.buried([vm, row], [])
    seen = bench.store.seen
    assert (seen.get(host), seen.enrolment(host), seen.capacity(host), seen.placed_on(host)) == (None, None, None, ())
    assert isinstance(await bench.rest(bench.named("network", "default")), Done)


@pytest.mark.parametrize("steps", range(3))
async def test_delete_wins_from_every_state(bench: Bench, steps: int) -> None:
    await bench.connected_host("h1")
    row = bench.named("host", "h1", "")
    for _ in range(steps):
        await bench.step(row)
    await bench.delete(row)
    await bench.buried([row], [])


@given(
    threads=st.integers(1, 512),
    memory=st.integers(0, 1 << 22),
    spec=st.builds(
        HostSpec,
        cpu_overcommit=st.floats(0.1, 64),
        memory_overcommit=st.floats(0.1, 4),
        reserved_memory_mib=st.integers(0, 1 << 22),
    ),
)
def test_what_it_sells_is_never_negative_and_never_more_than_the_ratio(
    threads: int, memory: int, spec: HostSpec
) -> None:
    has = msgspec.structs.replace(inventory(), cpu_threads=threads, memory_mib=memory)
    sells = capacity_of(HostId(Id("host-0")), spec, has)
    assert 0 <= sells.vcpus <= threads * spec.cpu_overcommit
    assert 0 <= sells.memory_mib <= max(0, memory - spec.reserved_memory_mib) * spec.memory_overcommit


# --- its ratios, changed while it sells ---------------------------------------------------------------------------


async def test_a_ratio_takes_effect_at_once_and_is_shown_with_what_is_sold(bench: Bench) -> None:
    host = await bench.connected_host("h1")
    row = bench.named("host", "h1", "")
    await bench.rest(row)
    await bench.write(take(host, "vm-1", vcpus=12, memory_mib=4096))
    done = await bench.rest(row)
    assert isinstance(done, Done)
    status = done.status
    assert isinstance(status, HostStatus)
    assert (status.sells_vcpus, status.sold_vcpus, status.sells_memory_mib, status.message) == (16, 12, 8192, "")
    await bench.change(row, cpu_overcommit=8.0, memory_overcommit=1.5)
    step = await bench.step(row)
    assert isinstance(step, Do)
    done = await bench.rest(row)
    assert isinstance(done, Done)
    assert (done.status.sells_vcpus, done.status.sells_memory_mib) == (32, 12288)  # type: ignore[attr-defined]


async def test_what_is_sold_stays_sold_where_a_ratio_is_lowered_and_that_is_said(bench: Bench) -> None:
    host = await bench.connected_host("h1")
    row = bench.named("host", "h1", "")
    await bench.rest(row)
    await bench.write(take(host, "vm-1", vcpus=12, memory_mib=4096))
    await bench.change(row, cpu_overcommit=2.0)
    done = await bench.rest(row)
    assert isinstance(done, Done)
    assert done.status.state == "ready"
    assert done.status.message == "has sold 12 of 8 vCPUs: its machines run on, new ones go elsewhere"
