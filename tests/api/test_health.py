"""What load balancers, scrapers and init systems see."""

from pathlib import Path

from api_world import P, World, world
from prometheus_client.parser import text_string_to_metric_families

from common.protocol import GuestMetrics
from controller.api.metrics import HTTP, METRICS
from controller.config import parse


def read(text: bytes) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


async def test_health_needs_no_token_and_readiness_says_why_not(cloud: World) -> None:
    healthy = await cloud.call("GET", "/healthz", as_=None)
    ready = await cloud.call("GET", "/readyz", as_=None)
    cloud.unready = ("the loop has not turned for 12 s",)
    unready = await cloud.call("GET", "/readyz", as_=None)

    assert (healthy.status, healthy.json) == (200, {"status": "ok"})
    assert (ready.status, ready.json) == (200, {"ready": True, "reasons": []})
    assert unready.status == 503
    assert unready.json["reasons"] == ["the loop has not turned for 12 s"]


async def test_metrics_show_hosts_machines_and_the_control_plane(cloud: World) -> None:
    host = await cloud.host("h1")
    vm = await cloud.vm("a", "web", host)
    cloud.measure(host, (GuestMetrics(vm.id, 3_000_000_000, 128, 10, 20, 30, 40),))

    reply = await cloud.call("GET", "/metrics", as_=None)

    assert reply.status == 200
    found = read(reply.raw)
    labels = {"project": "a", "vm": "web", "vm_id": vm.id, "host": "h1"}
    assert found["skerry_vm_cpu_seconds_total"] == [(labels, 3.0)]
    assert found["skerry_vm_network_transmit_bytes_total"] == [(labels, 40.0)]
    assert found["skerry_host_connected"] == [({"host": "h1"}, 1.0)]
    assert found["skerry_host_memory_used_bytes"] == [({"host": "h1"}, 2048.0 * (1 << 20))]
    assert found["skerry_host_pool_percent"] == [({"host": "h1"}, 0.0)]
    assert found["skerry_host_pool_closed"] == [({"host": "h1"}, 0.0)]
    assert found["skerry_host_vcpus_sold"] == [({"host": "h1"}, 1.0)]
    assert found["skerry_ready"] == [({}, 1.0)]
    assert ({"kind": "vm", "project": "a", "state": "running"}, 1.0) in found["skerry_resources"]
    route = {"method": "PUT", "route": "/v1/projects/{project}/images/{name}/content", "status": "202"}
    assert (route, 1.0) in found["skerry_http_request_seconds_count"]


async def test_every_metric_of_the_table_is_exposed(cloud: World) -> None:
    await cloud.call("GET", "/healthz")
    text = (await cloud.call("GET", "/metrics")).raw.decode()

    for shown in (*METRICS, HTTP):
        assert f"# TYPE {shown.name}" in text, shown.name


async def test_a_host_that_speaks_of_guests_it_does_not_have_is_not_believed(cloud: World) -> None:
    host, other = await cloud.host("h1"), await cloud.host("h2")
    vm = await cloud.vm("a", "web", host)
    there = cloud.store.seen.placement(vm.id)
    assert there is not None
    liar = other if there.host == host.id else host
    cloud.measure(liar, (GuestMetrics(vm.id, 9, 9, 9, 9, 9, 9),))

    assert "skerry_vm_cpu_seconds_total" not in read((await cloud.call("GET", "/metrics")).raw)


async def test_unknown_addresses_do_not_make_new_series(cloud: World) -> None:
    for number in range(20):
        await cloud.call("GET", f"/nothing/{number}")

    found = read((await cloud.call("GET", "/metrics")).raw)
    routes = {labels["route"] for labels, _ in found["skerry_http_request_seconds_count"]}

    assert not [route for route in routes if "nothing" in route]


async def test_closed_metrics_are_for_the_system_project(tmp_path: Path) -> None:
    async with world(tmp_path, parse("[api]\nmetrics_open = false\n", "x")) as cloud:
        await cloud.make("/v1/projects", "a")
        await cloud.token("tenant", "a", "admin")
        await cloud.token("scraper", "system", "reader")

        assert (await cloud.call("GET", "/metrics", as_=None)).status == 401
        assert (await cloud.call("GET", "/metrics", as_="tenant")).status == 403
        assert (await cloud.call("GET", "/metrics", as_="scraper")).status == 200


async def test_answers_say_that_they_are_not_to_be_kept_or_guessed_at(cloud: World) -> None:
    for path in ("/v1/me", "/healthz", "/v1/nothing", f"{P}/a/vms"):
        reply = await cloud.call("GET", path)
        assert reply.headers["Cache-Control"] == "no-store"
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
