"""Two domains with something of every kind in each: whoever is of one never reads a name of the other."""

import asyncio
import random

import pytest
from api_world import P, World

from common.kinds.actions import ACTIONS
from controller.api.routes import ROUTES
from tests.patience import PATIENCE_S

SECRET = "zebra"
"""Part of every name in domain zebra-domain."""

PATTERNS = ["*", "*.read", *sorted({f"{one.kind}.*" for one in ACTIONS})]


async def furnished(cloud: World) -> None:
    """Have a domain with something of everything, each with a telling name."""
    host = await cloud.host("h1")
    shop = f"{SECRET}-shop"
    await cloud.make("/v1/domains", f"{SECRET}-domain")
    await cloud.make("/v1/projects", shop, {"domain": f"{SECRET}-domain"})
    await cloud.make("/v1/users", f"{SECRET}-user", {"domain": f"{SECRET}-domain"})
    spec = {"grants": [{"actions": ["vm.start"]}], "domain": f"{SECRET}-domain"}
    await cloud.make("/v1/roles", f"{SECRET}-role", spec)
    await cloud.make(f"{P}/{shop}/bindings", f"{SECRET}-binding", {"user": f"{SECRET}-user"})
    await cloud.make(f"{P}/{shop}/tokens", f"{SECRET}-token", {"custom_role": f"{SECRET}-role"})
    await cloud.make(f"{P}/{shop}/keypairs", f"{SECRET}-key", {"public_key": "ssh-ed25519 AAAAC3Nza me"})
    await cloud.make(f"{P}/{shop}/groups", f"{SECRET}-group", {"policy": "anti-affinity"})
    await cloud.vm(shop, f"{SECRET}-vm", host)
    schedule = {"action": "stop", "vms": [f"{SECRET}-vm"], "cron": "0 20 * * *"}
    await cloud.make(f"{P}/{shop}/schedules", f"{SECRET}-schedule", schedule)
    cloud.measure(host, ())


async def stranger(cloud: World, seed: int) -> str:
    """Give a user of the default domain with random roles: in the domain, in a project, of one's own or built in."""
    chosen = random.Random(seed)
    name = f"user{seed}"
    grants = [{"actions": chosen.sample(PATTERNS, 3)}, {"actions": ["*"], "labels": {"env": "dev"}}]
    await cloud.make("/v1/roles", f"role{seed}", {"grants": grants})
    own = {"role": chosen.choice(["reader", "member", "admin"])}
    role = chosen.choice([{}, own, {"custom_role": f"role{seed}"}])
    made = await cloud.make("/v1/users", name, role)
    await cloud.make(f"{P}/a/bindings", name, {"user": name, "custom_role": f"role{seed}"})
    login = await cloud.call("POST", "/v1/login", {"user": name, "password": made["revealed"]}, as_=None)
    cloud.tokens[name] = login.json["token"]
    return name


@pytest.mark.parametrize("seed", range(4))
async def test_no_answer_names_what_is_another_domains(cloud: World, seed: int) -> None:
    await furnished(cloud)
    who = await stranger(cloud, seed)
    theirs = [row.id for row in cloud.store.seen if SECRET in row.name]
    operations = [one.id for one in cloud.store.seen.operations() if SECRET in one.name]
    generations = {one: cloud.store.seen.get(one).generation for one in theirs}  # type: ignore[union-attr]
    bodies = {"user": theirs[0], "custom_role": theirs[0], "networks": theirs[:1], "domain": theirs[0]}

    asked = [("GET", path) for path in ("/v1/me", "/v1/operations?limit=1000", "/v1/events?limit=1000", "/v1/top")]
    asked += [("GET", f"/v1/operations/{one}") for one in operations]
    asked += [("POST", f"/v1/operations/{one}/cancel") for one in operations]
    for route in ROUTES:
        if route.kind is not None and not (route.extra and route.extra.returns == "websocket"):
            for one in theirs if "{name}" in route.path else [""]:
                asked.append((route.method, route.path.format(project="a", name=one)))
    for method, path in asked:
        if method == "DELETE" and path.rpartition("/")[2] not in theirs:
            continue
        body = None if method in ("GET", "DELETE") else {"name": "x", "spec": bodies}
        reply = await cloud.call(method, path, body, as_=who, headers={"If-Match": "*"})
        assert SECRET.encode() not in reply.raw, (method, path, reply.raw)

    async with cloud.client.get("/v1/watch", headers={"Authorization": f"Bearer {cloud.tokens[who]}"}) as watch:
        async with asyncio.timeout(PATIENCE_S):
            heard = await watch.content.readuntil(b"event: bookmark")
    assert SECRET.encode() not in heard
    assert {one: cloud.store.seen.get(one).generation for one in theirs} == generations  # type: ignore[union-attr]
