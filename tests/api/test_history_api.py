"""History over HTTP: what a machine used, who may see it, and every question that can't be answered says why."""

import math
from typing import Any, cast

import pytest
from api_world import Clock, Host, P, World

from common.ids import HostId, Id, RequestId, new_id
from common.protocol import GuestMetrics, HostMetrics, Metrics
from common.tls import Peer
from controller.fleet.hosts import Hosts
from controller.fleet.sessions import Session, Sessions
from controller.store.rows import Event, EventQuery


def tell(cloud: World, host: Host, guests: dict[Id, int], times: int = 5) -> None:
    """Have a host tell of itself and its guests, each of which uses so much CPU, for so many intervals."""
    clock = cast(Clock, cloud.clock)
    for number in range(times):
        told = tuple(
            GuestMetrics(vm, number * 50_000_000 * cpu, 100 + number, 0, 0, 0, 1000 * number)
            for vm, cpu in guests.items()
        )
        clock.now += 5
        vector = Metrics(at=clock.now, host=HostMetrics(25.0, 2048, 7.0, 0.5, 0, 0, 40.0, 1), guests=told)
        cloud.history.take({host.id: vector})


@pytest.fixture
async def host(cloud: World) -> Host:
    """Give a host."""
    return await cloud.host("h1")


async def test_a_machine_s_history_is_answered_in_steps(cloud: World, host: Host) -> None:
    vm = await cloud.vm("a", "web", host)
    tell(cloud, host, {vm.id: 40})
    reply = await cloud.call("GET", f"{P}/a/vms/web/metrics?from=-2m&step=5", as_="a-reader")
    assert reply.status == 200, reply.raw
    assert (reply.json["name"], reply.json["id"], reply.json["agg"], reply.json["step"]) == ("web", vm.id, "avg", 5)
    series = {one["metric"]: one for one in reply.json["series"]}
    assert list(series) == ["cpu", "memory", "disk_read", "disk_write", "net_rx", "net_tx"]
    assert [value for value in series["cpu"]["values"] if value is not None] == [40, 40, 40, 40]
    assert [value for value in series["memory"]["values"] if value is not None] == [100, 101, 102, 103, 104]
    assert series["net_tx"]["unit"] == "B/s"
    assert len(series["cpu"]["values"]) == (reply.json["end"] - reply.json["start"]) // 5


async def test_a_value_is_the_mean_the_highest_or_the_last(cloud: World, host: Host) -> None:
    vm = await cloud.vm("a", "web", host)
    cast(Clock, cloud.clock).now = 1_800_000_000.0
    tell(cloud, host, {vm.id: 40})
    for how, value in (("avg", 102), ("max", 104), ("last", 104)):
        path = f"{P}/a/vms/web/metrics?metric=memory&from=1800000000&to=1800000060&step=60&agg={how}"
        (series,) = (await cloud.call("GET", path)).json["series"]
        assert series["values"] == [value], how


BAD = {
    "metric=heat": ("metric", "a vm has no metric 'heat'"),
    "from=yesterday": ("from", "'yesterday' is no moment"),
    "from=-1y": ("from", "'-1y' is no moment"),
    "to=-2h": ("from", "is not before to"),
    "from=now": ("from", "is not before to"),
    "from=-500d": ("from", "the span has 500 days"),
    "from=-1d&step=5": ("step", "the span has 1728"),
    "step=4": ("step", "is not a whole number from 5"),
    "step=1m": ("step", "is not a whole number from 5"),
    "agg=median": ("agg", "'median' is no aggregate"),
    "since=-1h": ("since", "there is no such parameter"),
}


async def test_a_question_that_can_t_be_answered_names_the_parameter(cloud: World, host: Host) -> None:
    await cloud.vm("a", "web", host)
    for query, (parameter, words) in BAD.items():
        reply = await cloud.call("GET", f"{P}/a/vms/web/metrics?{query}")
        assert reply.status == 400, (query, reply.raw)
        assert reply.json["errors"][0]["field"] == parameter, query
        assert words in reply.json["detail"], query
        assert reply.json["fix"], query


async def test_too_fine_a_step_says_which_one_would_do(cloud: World, host: Host) -> None:
    await cloud.vm("a", "web", host)
    reply = await cloud.call("GET", f"{P}/a/vms/web/metrics?from=-7d&step=10")
    again = await cloud.call("GET", f"{P}/a/vms/web/metrics?from=-7d&{reply.json['fix']}")
    assert (reply.status, again.status) == (400, 200)


async def test_without_a_step_any_span_is_answered_with_a_few_hundred_values(cloud: World, host: Host) -> None:
    await cloud.vm("a", "web", host)
    for span in ("5s", "1m", "1h", "6h", "1d", "7d", "30d", "366d"):
        reply = await cloud.call("GET", f"{P}/a/vms/web/metrics?metric=cpu&from=-{span}")
        assert 1 <= len(reply.json["series"][0]["values"]) <= 400, span


async def test_a_machine_that_is_gone_is_found_by_its_id_in_its_own_project(cloud: World, host: Host) -> None:
    gone = new_id("vm")
    tell(cloud, host, {gone: 40})
    assert (await cloud.call("GET", f"{P}/a/vms/{gone}/metrics")).status == 404, "it never was"
    await cloud.store.append(
        Event(
            seq=0, at=cloud.clock(), actor="a/a-member", request=RequestId(""), action="vm.create", kind="vm",
            resource=gone, project="a", name="web", message="", before=b"", after=b"",
        )
    )  # fmt: skip
    assert (await cloud.call("GET", f"{P}/a/vms/web/metrics")).status == 404
    assert (await cloud.call("GET", f"{P}/b/vms/{gone}/metrics", as_="b-admin")).status == 404
    reply = await cloud.call("GET", f"{P}/a/vms/{gone}/metrics?metric=cpu&from=-2m", as_="a-reader")
    assert reply.status == 200, reply.raw
    assert reply.json["name"] == "web"
    assert 40 in reply.json["series"][0]["values"]


async def test_hosts_are_shown_to_the_system_project_only(cloud: World, host: Host) -> None:
    tell(cloud, host, {})
    reply = await cloud.call("GET", "/v1/hosts/h1/metrics?metric=cpu&from=-1m")
    assert 25 in reply.json["series"][0]["values"]
    for path in ("/v1/hosts/h1/metrics", "/v1/top?of=hosts"):
        refused = await cloud.call("GET", path, as_="a-admin")
        assert refused.status == 403
        assert "project system" in refused.json["fix"]
    (top,) = (await cloud.call("GET", "/v1/top?of=hosts")).json["items"]
    assert (top["name"], top["figures"]["cpu"], top["vcpus"]) == ("h1", 25, 8)


async def test_the_busiest_are_first_and_each_project_sees_its_own(cloud: World, host: Host) -> None:
    quiet, busy = await cloud.vm("a", "quiet", host), await cloud.vm("a", "busy", host)
    other = await cloud.vm("b", "other", host)
    tell(cloud, host, {quiet.id: 1, busy.id: 90, other.id: 50})

    async def names(query: str, as_: str = "root") -> list[str]:
        reply = await cloud.call("GET", f"/v1/top{query}", as_=as_)
        assert reply.status == 200, reply.raw
        return [one["name"] for one in reply.json["items"]]

    assert await names("") == ["busy", "other", "quiet"]
    assert await names("?project=b") == ["other"]
    assert await names("?limit=1") == ["busy"]
    assert await names("?sort=memory") == ["busy", "other", "quiet"]
    assert await names("", "a-reader") == ["busy", "quiet"]
    assert await names("?project=a", "b-reader") == []
    (top,) = (await cloud.call("GET", "/v1/top?limit=1")).json["items"]
    assert top["figures"]["cpu"] == 90
    assert (top["host"], top["project"], top["vcpus"], top["memory_mib"]) == ("h1", "a", 1, 512)
    cast(Clock, cloud.clock).now += 120
    assert await names("") == [], "what is old is not shown as the newest"
    for query in ("?of=disks", "?sort=heat", "?limit=0", "?x=1"):
        assert (await cloud.call("GET", f"/v1/top{query}")).status == 400


# --- what a host says ---------------------------------------------------------------------------------------------


def fleet(cloud: World) -> Hosts:
    """Return the fleet's books over this controller."""
    nothing = cast(Any, None)
    return Hosts(
        cloud.store,
        nothing,
        Sessions(),
        images=nothing,
        version="test",
        clock=cloud.clock,
        changed=lambda _host: None,
        poke=lambda _thing: None,
        measures=cloud.history,
    )


def link(host: Host) -> Session:
    """Return a session of a host."""
    return Session(Peer(host=host.id, serial="1", expires_at=1e12))


def vector(at: float, guests: tuple[GuestMetrics, ...] = (), load: float = 0.5) -> Metrics:
    """Return a vector."""
    return Metrics(at=at, host=HostMetrics(1.0, 2048, 7.0, load, 0, 0, 40.0, 1), guests=guests)


async def refusals(cloud: World, host: HostId) -> list[str]:
    """Return what the event table says of figures that were not believed."""
    wanted = EventQuery(resource=host, action="host.lied")
    return [event.message for event in await cloud.store.events(0, 100, wanted)]


async def test_a_host_that_lies_is_named_once_and_harms_nobody(cloud: World, host: Host) -> None:
    vm, hosts, honest = await cloud.vm("a", "web", host), fleet(cloud), await cloud.host("h2")
    for _ in range(5):
        now = cloud.clock()
        await hosts.received(link(host), vector(now, load=math.nan))
        await hosts.drain()
        await hosts.received(link(host), vector(now + 3600))
        await hosts.received(link(honest), vector(now))
        await hosts.drain()
    assert await refusals(cloud, host.id) == ["it sent figures that can't be: of the host itself: load_1 is nan"]
    assert await refusals(cloud, honest.id) == []
    assert cloud.store.seen.host(honest.id).metrics is not None
    await hosts.received(link(host), vector(cloud.clock(), (GuestMetrics(vm.id, 1, 7, 0, 0, 0, 0),)))
    await hosts.drain()
    seen = cloud.store.seen.host(host.id).metrics
    assert seen is not None
    assert [one.vm for one in seen.guests] == [vm.id]
    cast(Clock, cloud.clock).now += 700
    await hosts.received(link(host), vector(cloud.clock() - 900))
    await hosts.drain()
    assert "behind this controller's" in (await refusals(cloud, host.id))[-1].replace("of this", "this")


async def test_what_a_host_says_of_what_is_not_a_machine_of_its_own_is_not_kept(cloud: World, host: Host) -> None:
    vm, other = await cloud.vm("a", "web", host), await cloud.host("h2")
    (volume,) = cloud.store.seen.children(vm.id)
    told = tuple(GuestMetrics(Id(thing), 1, 7, 0, 0, 0, 0) for thing in (vm.id, volume.id, "nonsense", other.id))
    hosts = fleet(cloud)
    await hosts.received(link(host), vector(cloud.clock(), told))
    await hosts.received(link(other), vector(cloud.clock(), told))
    await hosts.drain()
    assert {one.thing for one in cloud.history.newest(0)} == {host.id, other.id, vm.id}
    assert [one.host for one in cloud.history.newest(0) if one.thing == vm.id] == [host.id]
    await cloud.history.close()
    assert cloud.history.size_bytes > 0
