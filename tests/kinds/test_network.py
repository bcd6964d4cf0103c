"""A network's life: a VNI, the same documents on every host that has a port of it, and none anywhere else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.documents import NetworkDoc, PortDoc
from common.errors import Invalid
from common.ids import HostId
from common.kinds.kind import AnyResource
from common.names import mac
from controller.kinds.network import guest_mtu
from controller.kinds.outcome import Do, Done, Wait
from controller.store.rows import Enrolment
from controller.store.writes import ClaimAddress, ClaimVni, PutEnrolment, ReleaseAddresses, ReleasePlacement
from sim.database import inline_store
from tests.kinds.bench import Bench
from tests.store.desk import Clock, take


async def with_hosts(bench: Bench, count: int = 2) -> tuple[AnyResource, list[HostId]]:
    """Return a network that has its VNI, and hosts without any port."""
    await bench.furniture()
    network = bench.named("network", "default")
    hosts = [await bench.connected_host(f"h{n}", f"10.77.0.1{n}") for n in range(count)]
    await bench.rest(network)
    return network, hosts


async def port(bench: Bench, network: AnyResource, name: str, host: HostId) -> AnyResource:
    """Return a VM that has a port of the network, on a host."""
    vm = await bench.create("vm", "shop", name, image="tiny", size="small")
    claim = ClaimAddress(network=network.id, cidr=network.spec.cidr, vm=vm.id, index=0, mac=mac(vm.id, 0))
    await bench.write(take(host, vm.id), claim)
    return vm


async def unplug(bench: Bench, vm: AnyResource) -> None:
    await bench.write(ReleaseAddresses(vm=vm.id), ReleasePlacement(owner=vm.id))


def ports_on(bench: Bench, host: HostId) -> dict[str, PortDoc]:
    """Return the live ports that a host knows, by name."""
    docs = [one.doc for one in bench.store.seen.documents(host) if not one.gone]
    return {doc.hostname: doc for doc in docs if isinstance(doc, PortDoc)}


async def test_a_new_network_has_a_vni_and_is_on_no_host(bench: Bench) -> None:
    await bench.furniture()
    network = bench.named("network", "default")
    first = await bench.step(network)
    assert isinstance(first, Do)
    assert first.writes == (ClaimVni(network=network.id),)
    done = bench.plan(network)
    assert isinstance(done, Done)
    assert (done.status.vni, done.status.ports, done.status.hosts) == (4096, 0, 0)  # type: ignore[attr-defined]


async def test_every_host_of_a_network_knows_every_port(bench: Bench) -> None:
    network, (one, two) = await with_hosts(bench)
    await port(bench, network, "web", one)
    await bench.rest(network)
    assert not bench.documents(two)
    await port(bench, network, "db", two)
    done = await bench.rest(network)
    assert isinstance(done, Done)
    assert (done.status.ports, done.status.hosts) == (2, 2)  # type: ignore[attr-defined]
    assert ports_on(bench, one) == ports_on(bench, two)
    web = ports_on(bench, two)["web"]
    assert (web.host, web.vtep, web.address, web.network) == (one, "10.77.0.10", "10.20.0.2", network.id)
    doc = bench.documents(one)[f"network/{network.id}"].doc  # type: ignore[index]
    assert doc == NetworkDoc(
        id=network.id, vni=4096, cidr="10.20.0.0/24", gateway="10.20.0.1", mtu=1450, domain="default.shop.internal"
    )


async def test_the_last_port_takes_the_network_off_its_host(bench: Bench) -> None:
    network, (one, two) = await with_hosts(bench)
    web, db = await port(bench, network, "web", one), await port(bench, network, "db", two)
    await bench.rest(network)
    await unplug(bench, web)
    await bench.rest(network)
    assert all(document.gone for document in bench.documents(one).values())
    assert set(ports_on(bench, two)) == {"db"}
    await bench.destroyed(one)
    await bench.destroyed(two)
    assert not bench.documents(one)
    await unplug(bench, db)
    await bench.rest(network)
    await bench.destroyed(two)
    assert not bench.documents(two)


async def test_a_port_that_comes_back_before_the_host_let_go_is_wanted_again(bench: Bench) -> None:
    network, (one, _) = await with_hosts(bench)
    web = await port(bench, network, "web", one)
    await bench.rest(network)
    await unplug(bench, web)
    await bench.rest(network)
    await port(bench, network, "mail", one)
    await bench.rest(network)
    documents = bench.documents(one)
    assert not documents[f"network/{network.id}"].gone  # type: ignore[index]
    assert documents[f"port/{web.id}.0"].gone  # type: ignore[index]


async def test_another_tunnel_endpoint_is_told_to_every_host(bench: Bench) -> None:
    network, (one, two) = await with_hosts(bench)
    await port(bench, network, "web", one)
    await port(bench, network, "db", two)
    await bench.rest(network)
    moved = Enrolment(host=one, join_digest="", join_expires_at=0, certificate_serial="1", vtep="10.99.0.1")
    await bench.write(PutEnrolment(enrolment=moved))
    await bench.rest(network)
    assert ports_on(bench, two)["web"].vtep == "10.99.0.1"


async def test_the_mtu_fits_the_narrowest_underlay(bench: Bench) -> None:
    _, (one, _) = await with_hosts(bench)
    assert guest_mtu(bench.store.seen) == 1450
    narrow = Enrolment(
        host=one, join_digest="", join_expires_at=0, certificate_serial="1", vtep="10.77.0.10", underlay_mtu=1400
    )
    await bench.write(PutEnrolment(enrolment=narrow))
    assert guest_mtu(bench.store.seen) == 1350


async def test_a_deleted_network_waits_for_its_vms_then_for_its_hosts(bench: Bench) -> None:
    network, (one, _) = await with_hosts(bench)
    vm = await bench.create("vm", "shop", "web", image="tiny", size="small")
    await bench.rest(vm, one)
    await bench.rest(network)
    await bench.delete(vm)
    await bench.delete(network)
    waiting = await bench.rest(network)
    assert isinstance(waiting, Wait)
    assert waiting.message == "used until vm web is gone"
    for row in (vm, bench.named("volume", "web")):
        await bench.rest(row)
    await bench.buried([vm], [one])
    waiting = await bench.rest(network)
    assert isinstance(waiting, Wait)
    assert waiting.message == "host h0 removes it"
    await bench.destroyed(one)
    assert isinstance(await bench.rest(network), Do)
    assert (bench.store.seen.get(network.id), bench.store.seen.vni(network.id)) == (None, None)


@pytest.mark.parametrize("steps", range(3))
async def test_delete_wins_from_every_state(bench: Bench, steps: int) -> None:
    await bench.furniture()
    host = await bench.connected_host("h1")
    network = bench.named("network", "default")
    for _ in range(steps):
        await bench.step(network)
    await bench.delete(network)
    await bench.buried([network], [host])
    assert bench.store.seen.vni(network.id) is None


@pytest.mark.parametrize(
    ("cidr", "why"),
    [
        ("10.20.0.1/24", "has host bits set"),
        ("10.20.0.0/15", "has host bits set|/15"),
        ("10.0.0.0/8", "has a /8; a network has /16 to /29"),
        ("10.0.0.0/30", "has a /30"),
        ("300.0.0.0/24", "is no subnet"),
        ("224.0.0.0/24", "can't be used by machines"),
        ("127.0.0.0/24", "can't be used by machines"),
        ("169.254.0.0/16", "can't be used by machines"),
        ("240.0.0.0/24", "can't be used by machines"),
        ("0.0.0.0/24", "can't be used by machines"),
    ],
)
async def test_a_subnet_that_can_not_be_is_refused(bench: Bench, cidr: str, why: str) -> None:
    await bench.project()
    with pytest.raises(Invalid, match=why):
        bench.admit_create("network", "shop", "back", cidr=cidr)


@settings(max_examples=25, deadline=None)
@given(moves=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), max_size=14))
def test_hosts_know_exactly_the_ports_there_are(moves: list[tuple[int, int]]) -> None:
    """Whatever came and went: a host with a port knows every port, one without knows nothing."""
    with inline_store() as (store, run, _):
        bench = Bench(store, Clock())

        async def live() -> None:
            network, hosts = await with_hosts(bench, 3)
            where: dict[int, tuple[AnyResource, HostId]] = {}
            for count, (number, which) in enumerate(moves):
                if number in where:
                    await unplug(bench, where.pop(number)[0])
                else:
                    where[number] = await port(bench, network, f"vm{count}", hosts[which]), hosts[which]
                if count % 3 == 0:
                    await bench.rest(network)
            await bench.rest(network)
            for host in hosts:
                await bench.destroyed(host)
            assert isinstance(await bench.rest(network), Done)
            live = {vm.name for vm, _ in where.values()}
            for host in hosts:
                used = any(on == host for _, on in where.values())
                assert set(ports_on(bench, host)) == (live if used else set())
                assert bool(bench.documents(host)) == used

        run(live())
