"""The CPU that a VM's guest sees: what hosts share when it is started, and the same until it is started anew."""

import msgspec
import pytest

from common.codec import to_pack
from common.cpus import LEVELS
from common.documents import DomainDoc, DomainSeen, GuestCpu
from common.errors import Conflict, Denied
from common.ids import HostId
from common.kinds import kind_named
from common.kinds.kind import AnyResource
from common.protocol import CPU_MODEL, Capability, GuestCpus, Inventory
from controller.api.cpus import cpus_of
from controller.kinds import admission
from controller.kinds.host import traits_of
from controller.kinds.processor import admit_cpu, cpu_remarks, with_cpu
from controller.scheduler.inventory import Inventory as Hosts
from controller.store.rows import Traits
from tests.kinds.bench import Bench, inventory

V2, V3 = LEVELS["x86-64-v2"], LEVELS["x86-64-v3"]
KNOWS = Capability(name=CPU_MODEL, works=True)


def gives(flags: frozenset[str], virtualisation: str = "kvm") -> Inventory:
    cpu = GuestCpus(vendor="Intel", flags=tuple(flags))
    return inventory(guest_cpu=cpu, virtualisation=virtualisation, capabilities=(KNOWS,))


async def a_host(bench: Bench, name: str, found: Inventory) -> HostId:
    host = await bench.connected_host(name)
    bench.store.seen.host(host).inventory = found
    await bench.rest(bench.named("host", name, ""))
    return host


async def a_vm(bench: Bench, host: HostId, name: str = "web", **spec: object) -> AnyResource:
    vm = await bench.create("vm", "shop", name, image="tiny", size="small", **spec)
    for _ in range(3):
        for child in bench.store.seen.children(vm.id):
            await bench.rest(child)
        await bench.rest(vm, host)
    return vm


def doc(bench: Bench, host: HostId, vm: AnyResource) -> DomainDoc:
    found = bench.documents(host)[f"domain/{vm.id}"].doc  # type: ignore[index]
    assert isinstance(found, DomainDoc)
    return found


async def runs(bench: Bench, host: HostId, vm: AnyResource, state: str = "running") -> None:
    """Have the host say how it is, and the controller think about it."""
    now = doc(bench, host, vm)
    seen = DomainSeen(
        state=state, start_generation=now.start_generation, boot_generation=now.boot_generation, started_at=1.0,  # type: ignore[arg-type]
        vcpus=now.vcpus if state == "running" else 0, memory_mib=now.memory_mib if state == "running" else 0,
    )  # fmt: skip
    bench.report(host, f"domain/{vm.id}", done=state == "running", seen=seen)
    await bench.rest(vm, host)


async def ask(bench: Bench, vm: AnyResource, verb: str) -> None:
    what = next(one for one in kind_named("vm").verbs if one.name == verb)
    await bench.store.admit(admission.verb(bench.context, bench.now(vm), what, {}))


@pytest.fixture
async def host(bench: Bench) -> HostId:
    await bench.furniture()
    return await a_host(bench, "h1", gives(V3 | {"aes"}))


async def test_a_guest_sees_what_all_hosts_of_its_make_share(bench: Bench, host: HostId) -> None:
    await a_host(bench, "h2", gives(V2 | {"aes"}))
    await a_host(bench, "h3", gives(frozenset(), virtualisation="tcg"))
    vm = await a_vm(bench, host)
    assert doc(bench, host, vm).cpu == GuestCpu(wish="shared", flags=tuple(sorted(V2 | {"aes"})))


async def test_a_run_keeps_its_cpu_whoever_joins_and_the_next_has_what_is_shared_then(
    bench: Bench, host: HostId
) -> None:
    vm = await a_vm(bench, host)
    await runs(bench, host, vm)
    first = doc(bench, host, vm)
    assert set(first.cpu.flags) == V3 | {"aes"}  # type: ignore[union-attr]
    await a_host(bench, "h2", gives(V2))
    await runs(bench, host, vm)
    assert doc(bench, host, vm) == first
    await ask(bench, vm, "reboot")
    await bench.rest(vm, host)
    assert set(doc(bench, host, vm).cpu.flags) == V2  # type: ignore[union-attr]


async def test_while_its_host_is_silent_nothing_is_chosen_anew(bench: Bench, host: HostId) -> None:
    vm = await a_vm(bench, host)
    await runs(bench, host, vm)
    first = doc(bench, host, vm)
    view = bench.store.seen.host(host)
    view.connected, view.inventory, view.reports = False, None, {}
    await a_host(bench, "h2", gives(V2))
    await bench.rest(bench.named("host", "h1", ""))
    await bench.rest(vm, host)
    assert doc(bench, host, vm) == first


async def test_a_host_that_lost_flags_starts_it_with_what_is_left(bench: Bench, host: HostId) -> None:
    vm = await a_vm(bench, host)
    await runs(bench, host, vm, "stopped")
    bench.store.seen.host(host).inventory = gives(V2)
    await bench.rest(bench.named("host", "h1", ""))
    await bench.rest(vm, host)
    assert set(doc(bench, host, vm).cpu.flags) == V2  # type: ignore[union-attr]


async def test_a_level_is_what_the_hosts_of_that_level_share(bench: Bench, host: HostId) -> None:
    await a_host(bench, "h2", gives(V3 | {"vaes"}))
    await a_host(bench, "h3", gives(V2))
    vm = await a_vm(bench, host, cpu="x86-64-v3")
    assert set(doc(bench, host, vm).cpu.flags) == V3  # type: ignore[union-attr]


async def test_a_level_that_no_host_reaches_is_refused_with_the_flags_and_the_way_out(
    bench: Bench, host: HostId
) -> None:
    await a_host(bench, "h2", gives(V2))
    vm = await bench.create("vm", "shop", "web", image="tiny", size="small", cpu="x86-64-v4")
    hosts = Hosts(bench.store.seen)
    for row in bench.store.seen.of_kind("host"):
        hosts.refresh(HostId(row.id))
    place = bench.plan(vm)
    refusal = hosts.would_choose(place.demand)  # type: ignore[union-attr]
    cost = next(one for one in refusal.costs if one.constraint == "cpu")  # type: ignore[union-attr]
    assert cost.hosts == 2
    assert "a CPU of x86-64-v4, which needs the flags abm, avx, avx2, avx512bw" in cost.detail
    assert refusal.smallest_change == (  # type: ignore[union-attr]
        "ask for a CPU that host h1 can give (--cpu x86-64-v3): "
        "it lacks avx512bw, avx512cd, avx512dq, avx512f, avx512vl"
    )


async def test_another_level_is_refused_where_its_host_lacks_it_and_waits_for_a_restart_where_not(
    bench: Bench, host: HostId
) -> None:
    vm = await a_vm(bench, host)
    await runs(bench, host, vm)
    with pytest.raises(Conflict, match=r"host h1, which can't give it a CPU of x86-64-v4: it lacks avx512bw"):
        await bench.change(vm, cpu="x86-64-v4")
    await bench.change(vm, cpu="x86-64-v3")
    for child in bench.store.seen.children(vm.id):
        await bench.rest(child)
    done = await bench.rest(vm, host)
    words = (
        "its CPU is what all hosts share; what all hosts of x86-64-v3 share waits for a restart: skerry vm reboot web"
    )
    assert words in done.status.message  # type: ignore[union-attr]
    assert doc(bench, host, vm).cpu.wish == "shared"  # type: ignore[union-attr]
    assert done.status.cpu == f"what all hosts share: x86-64-v3, {len(V3) + 1} flags"  # type: ignore[union-attr]


async def test_all_of_its_hosts_cpu_is_for_operators(bench: Bench, host: HostId) -> None:
    vm = await a_vm(bench, host, cpu="host")
    assert doc(bench, host, vm).cpu is None
    tenant = msgspec.structs.replace(bench.context.caller, held=())
    row = bench.now(vm)
    was = msgspec.structs.replace(row, spec=msgspec.structs.replace(row.spec, cpu="shared"))
    with pytest.raises(Denied):
        admit_cpu(row, was, bench.store.seen, tenant)


async def test_a_machine_of_very_much_memory_has_its_hosts_cpu_and_says_why(bench: Bench, host: HostId) -> None:
    vm = await a_vm(bench, host, cpu="x86-64-v3")
    vast = msgspec.structs.replace(doc(bench, host, vm), memory_mib=513 * 1024, boot_generation=2)
    found = with_cpu(vast, bench.now(vm), bench.store.seen, host)
    assert found.cpu is None
    (why,) = cpu_remarks(bench.now(vm), bench.store.seen, host, found)
    assert why == "its CPU is all that its host has: with more than 512 GiB of memory it can have no other"


async def test_an_older_agent_is_never_sent_the_field(bench: Bench) -> None:
    await bench.furniture()
    host = await a_host(bench, "h1", inventory())
    vm = await a_vm(bench, host)
    plain = msgspec.msgpack.decode(to_pack(doc(bench, host, vm)))
    assert "cpu" not in plain
    assert cpus_of(bench.store.seen).silent == ("h1",)


def test_an_agent_that_cannot_ask_just_now_has_what_it_had_and_an_older_one_nothing() -> None:
    known = Traits(make="kvm Intel", flags=("avx",))
    mute = inventory(capabilities=(Capability(name=CPU_MODEL, works=False),))
    assert traits_of(mute, known) == known
    assert traits_of(inventory(), known) == Traits()


async def test_which_hosts_hold_the_others_back_is_named(bench: Bench, host: HostId) -> None:
    await a_host(bench, "h2", gives(V3 | {"aes"}))
    await a_host(bench, "h3", gives(V2))
    (make,) = cpus_of(bench.store.seen).items
    assert make.make == "kvm Intel"
    assert [(cpu.wish, cpu.hosts, cpu.level) for cpu in make.cpus] == [
        ("shared", 3, "x86-64-v2"),
        ("x86-64-v2", 3, "x86-64-v2"),
        ("x86-64-v3", 2, "x86-64-v3"),
    ]
    (cost,) = make.costs
    assert (cost.named, cost.level) == (("h3",), "x86-64-v3")
    assert set(cost.flags) == (V3 | {"aes"}) - V2
