"""How many more fit: what is counted is what can then be made, and one more is refused with the reason."""

from typing import Any

import pytest
from api_world import P, World
from test_openapi import schema


async def count(cloud: World, query: str = "", **more: Any) -> Any:
    reply = await cloud.call("GET", f"/v1/capacity{query}", **more)
    assert reply.status == 200, reply.raw
    schema("Capacity").validate(reply.json)
    return reply.json


async def furnished(cloud: World, *, guarded: bool) -> None:
    """Have two hosts of 8 vCPUs in zone z1, and one in none."""
    await cloud.needs("a")
    await cloud.make("/v1/zones", "z1", {"n_minus_one": guarded})
    for name in ("h1", "h2", "h3"):
        await cloud.host(name, threads=2)
    for name in ("h1", "h2"):
        generation = str((await cloud.call("GET", f"/v1/hosts/{name}")).headers["ETag"])
        await cloud.call("PATCH", f"/v1/hosts/{name}", {"spec": {"zone": "z1"}}, headers={"If-Match": generation})
    await cloud.until(
        lambda: all(host.status.zone == "z1" for host in cloud.store.seen.of_kind("host") if host.name != "h3")
    )


@pytest.mark.parametrize(("guarded", "fits"), [(False, 16), (True, 8)])
async def test_as_many_as_are_counted_are_placed_and_one_more_is_refused(
    cloud: World, guarded: bool, fits: int
) -> None:
    await furnished(cloud, guarded=guarded)
    (one,) = (await count(cloud, "?size=small&zone=z1"))["items"]
    assert one["size"] == "small"
    assert one["fits"]["fits"] == fits
    assert one["fits"]["with_one_host_lost"] == 8
    assert one["fits"]["limits"] == [{"what": "vcpus", "hosts": 2, "named": ["h1", "h2"]}]
    made = [
        await cloud.make(f"{P}/a/vms", f"vm{number}", {"image": "disk", "size": "small", "zone": "z1"})
        for number in range(fits + 1)
    ]
    await cloud.settled(made[-1]["operation"]["id"], "blocked")
    seen = cloud.store.seen
    await cloud.until(lambda: sum(seen.placement(vm.id) is not None for vm in seen.of_kind("vm")) == fits)
    (after,) = (await count(cloud, "?size=small&zone=z1"))["items"]
    assert after["fits"]["fits"] == 0
    assert after["fits"]["with_one_host_lost"] == 0
    last = seen.get(made[-1]["resource"]["id"])
    assert last is not None
    assert ("n-1" in [cost.constraint for cost in last.status.why.costs]) == guarded


async def test_all_zones_and_sizes_are_told_without_a_query(cloud: World) -> None:
    await furnished(cloud, guarded=False)
    await cloud.make("/v1/sizes", "huge", {"vcpus": 100, "memory_mib": 512, "disk_gib": 1})
    huge, small = (await count(cloud, as_="a-reader"))["items"]
    assert (huge["size"], huge["fits"]["fits"]) == ("huge", 0)
    assert small["fits"]["fits"] == 24
    assert small["fits"]["with_one_host_lost"] == 16
    assert [(zone["zone"], zone["fits"]) for zone in small["fits"]["zones"]] == [("", 8), ("z1", 16)]


async def test_what_is_not_there_is_named(cloud: World) -> None:
    reply = await cloud.call("GET", "/v1/capacity?size=none")
    assert reply.status == 404
    assert "there is no size none" in reply.json["detail"]
    assert (await cloud.call("GET", "/v1/capacity?zone=z9")).status == 404
    assert (await cloud.call("GET", "/v1/capacity?colour=red")).status == 400


async def test_a_dry_run_says_which_host_a_guarded_zone_would_give(cloud: World) -> None:
    await furnished(cloud, guarded=True)
    body = {"name": "web", "spec": {"image": "disk", "size": "small", "zone": "z1"}}
    reply = await cloud.call("POST", f"{P}/a/vms?dry_run=true", body)
    assert reply.json["next"]["what"] == "placed"


async def test_what_hosts_share_of_a_cpu_is_shown_to_everybody(cloud: World) -> None:
    await cloud.host("h1")
    reply = await cloud.call("GET", "/v1/cpus")
    schema("Cpus").validate(reply.json)
    assert reply.json == {"items": [], "silent": ["h1"]}
