"""Every route that is of a kind: refused without its action, served with it and nothing else."""

from api_world import P, World

from common.kinds.actions import ACTIONS
from controller.api.openapi import openapi
from controller.api.routes import ROUTES, Route

NAMES = {
    "domain": "default", "project": "a", "user": "bob", "role": "mine", "binding": "bob", "token": "a-reader",
    "region": "north", "zone": "z1", "rack": "r1", "host": "h1", "size": "small", "image": "disk", "keypair": "me",
    "network": "default", "group": "apart", "volume": "web", "snapshot": "before", "vm": "web", "schedule": "nights",
}  # fmt: skip


async def furnished(cloud: World) -> None:
    """Have one thing of each kind."""
    host = await cloud.host("h1")
    vm = await cloud.vm("a", "web", host)
    host.serial[vm.id] = b"hello"
    await cloud.make(f"{P}/a/volumes", "data", {"size_gib": 1, "vm": "web"})
    await cloud.make(f"{P}/a/snapshots", "before", {"volume": "data"})
    await cloud.make("/v1/users", "bob")
    await cloud.make("/v1/roles", "mine", {"grants": [{"actions": ["vm.start"]}]})
    await cloud.make("/v1/regions", "north")
    await cloud.make("/v1/zones", "z1", {"region": "north"})
    await cloud.make("/v1/racks", "r1", {"zone": "z1"})
    await cloud.make(f"{P}/a/bindings", "bob", {"user": "bob"})
    await cloud.make(f"{P}/a/keypairs", "me", {"public_key": "ssh-ed25519 AAAAC3Nza me"})
    await cloud.make(f"{P}/a/groups", "apart", {"policy": "anti-affinity"})
    await cloud.make(f"{P}/a/schedules", "nights", {"action": "stop", "vms": ["web"], "cron": "0 20 * * *"})


async def holder(cloud: World, name: str, actions: list[str]) -> None:
    """Make a token for these actions only, in the whole cloud."""
    grants = [{"actions": actions[start : start + 60]} for start in range(0, len(actions), 60)]
    made = await cloud.make(f"{P}/system/tokens", name, {"role": "admin", "only": grants})
    cloud.tokens[name] = made["revealed"]


async def ask(cloud: World, route: Route, as_: str) -> int:
    assert route.kind is not None
    path = route.path.format(project="a", name=NAMES[route.kind.name])
    rehearsed = f"{path}?dry_run=true" if route.mutates else path
    return (await cloud.call(route.method, rehearsed, as_=as_)).status


async def test_every_route_is_refused_without_its_action_and_served_with_it_alone(cloud: World) -> None:
    await furnished(cloud)
    document = openapi("test")["paths"]
    wrong = []
    for number, action in enumerate(ACTIONS):
        await holder(cloud, f"with{number}", [action.name])
        await holder(cloud, f"without{number}", [one.name for one in ACTIONS if one.name != action.name])
        routes = [route for route in ROUTES if route.permission == action.name]
        assert routes, action.name
        for route in routes:
            assert route.method.lower() in document[route.path]
            granted = await ask(cloud, route, f"with{number}")
            refused = await ask(cloud, route, f"without{number}")
            if granted in (401, 403, 404) or refused not in (403, 404):
                wrong.append((route.method, route.path, granted, refused))
    assert not wrong
