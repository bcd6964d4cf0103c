"""The life of one thing of each kind in the simulated world, from its making to its end, whatever dies meanwhile."""

from collections.abc import Callable

from common.ids import Id
from sim.cloud import Cloud
from tests.sim import checks

LIMIT_S = 400.0

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG9w me@desk"


def prepare(cloud: Cloud, hosts: int = 2) -> None:
    """Have hosts, a project, and what a VM needs."""
    cloud.world.run(0.1)
    cloud.create("project", "", "system")
    for number in range(hosts):
        cloud.create("host", "", f"h{number}")
        cloud.join(f"h{number}")
    cloud.create("project", "", "shop")
    cloud.create("size", "", "small", vcpus=1, memory_mib=512, disk_gib=10)
    cloud.create("size", "", "large", vcpus=3, memory_mib=2048, disk_gib=20)
    cloud.create("image", "shop", "tiny")
    cloud.upload("shop", "tiny")
    cloud.create("network", "shop", "default")
    cloud.world.run(3)


def clear(cloud: Cloud) -> None:
    """Delete all there is, in the order that users have to keep, and check that nothing is left of it anywhere."""
    quiet(cloud)
    for kind in ("snapshot", "schedule", "vm", "group", "token", "keypair", "network"):
        for row in list(cloud.seen.of_kind(kind)):
            if row.deleted_at is None:
                cloud.delete(kind, row.project, row.name)
    gone(cloud, "snapshot", "vm", "network")
    for kind in ("volume", "image", "size"):
        for row in list(cloud.seen.of_kind(kind)):
            if row.deleted_at is None:
                cloud.delete(kind, row.project, row.name)
    gone(cloud, "volume", "image", "size")
    for row in list(cloud.seen.of_kind("project")):
        if row.name != "system":
            cloud.delete("project", "", row.name)
    gone(cloud, "schedule", "group", "token", "keypair")
    quiet(cloud)
    checks.machines_empty(cloud)
    for row in list(cloud.seen.of_kind("host")):
        cloud.delete("host", "", row.name)
    gone(cloud, "host")
    cloud.world.run(10)
    checks.empty(cloud)


def quiet(cloud: Cloud) -> None:
    """Let everything come to rest, and check that wish and reality are one."""
    cloud.world.run(130)
    checks.always(cloud)
    checks.quiet(cloud)


def gone(cloud: Cloud, *kinds: str) -> None:
    """Wait until nothing of these kinds is left."""

    def none_left() -> bool:
        return cloud.world.controller is not None and not any(list(cloud.seen.of_kind(kind)) for kind in kinds)

    cloud.world.run_until(none_left, limit_s=LIMIT_S, what=f"{kinds} are gone")


def reaches(cloud: Cloud, kind: str, project: str, name: str, state: str) -> None:
    """Wait until a thing is seen through and in a state."""

    def there() -> bool:
        row = cloud.seen.named(kind, project, name) if cloud.world.controller else None
        return row is not None and row.observed_generation == row.generation and row.status.state == state

    cloud.world.run_until(there, limit_s=LIMIT_S, what=f"{kind} {name} is {state}")


def vanishes(cloud: Cloud, kind: str, project: str, name: str) -> None:
    """Delete a thing and wait until it is gone."""
    cloud.insist(lambda: cloud.delete(kind, project, name))
    cloud.world.run_until(
        lambda: cloud.world.controller is not None and cloud.seen.named(kind, project, name) is None,
        limit_s=LIMIT_S,
        what=f"{kind} {name} is gone",
    )


def domain(cloud: Cloud) -> None:
    """A domain is made, gets a project, and is deleted with it."""
    cloud.insist(lambda: cloud.create("domain", "", "acme"))
    reaches(cloud, "domain", "", "acme", "active")
    cloud.insist(lambda: cloud.create("project", "", "rockets", domain="acme"))
    reaches(cloud, "project", "", "rockets", "active")
    cloud.insist(lambda: cloud.delete("project", "", "rockets"))
    vanishes(cloud, "domain", "", "acme")


def project(cloud: Cloud) -> None:
    """A project is made, described and deleted."""
    cloud.insist(lambda: cloud.create("project", "", "other"))
    reaches(cloud, "project", "", "other", "active")
    cloud.insist(lambda: cloud.change("project", "", "other", description="another one"))
    reaches(cloud, "project", "", "other", "active")
    vanishes(cloud, "project", "", "other")


def user(cloud: Cloud) -> None:
    """A user is made, disabled, and deleted."""
    cloud.insist(lambda: cloud.create("user", "", "bob"))
    reaches(cloud, "user", "", "bob", "active")
    cloud.insist(lambda: cloud.change("user", "", "bob", enabled=False))
    reaches(cloud, "user", "", "bob", "disabled")
    vanishes(cloud, "user", "", "bob")


def role(cloud: Cloud) -> None:
    """A role is made, a token has it, and both go."""
    cloud.insist(lambda: cloud.create("role", "", "starter", grants=[{"actions": ["vm.start"]}]))
    reaches(cloud, "role", "", "starter", "active")
    cloud.insist(lambda: cloud.create("token", "shop", "ci", custom_role="starter"))
    cloud.insist(lambda: cloud.delete("token", "shop", "ci"))
    vanishes(cloud, "role", "", "starter")


def binding(cloud: Cloud) -> None:
    """A user is bound in a project, to another role, and unbound."""
    cloud.insist(lambda: cloud.create("user", "", "bob"))
    cloud.insist(lambda: cloud.create("binding", "shop", "bob", user="bob", role="reader"))
    reaches(cloud, "binding", "shop", "bob", "active")
    cloud.insist(lambda: cloud.change("binding", "shop", "bob", role="admin"))
    reaches(cloud, "binding", "shop", "bob", "active")
    vanishes(cloud, "binding", "shop", "bob")
    vanishes(cloud, "user", "", "bob")


def token(cloud: Cloud) -> None:
    """A token is made, made anew, and revoked."""
    cloud.insist(lambda: cloud.create("token", "shop", "ci", role="member"))
    reaches(cloud, "token", "shop", "ci", "active")
    cloud.insist(lambda: cloud.reissue("token", "shop", "ci"))
    reaches(cloud, "token", "shop", "ci", "active")
    vanishes(cloud, "token", "shop", "ci")


def host(cloud: Cloud) -> None:
    """A host joins, is closed to new machines, joins anew, and is deleted."""
    cloud.insist(lambda: cloud.create("host", "", "extra"))
    cloud.insist(lambda: cloud.join("extra"))
    reaches(cloud, "host", "", "extra", "ready")
    cloud.insist(lambda: cloud.change("host", "", "extra", schedulable=False))
    reaches(cloud, "host", "", "extra", "cordoned")
    cloud.insist(lambda: cloud.join("extra"))
    cloud.insist(lambda: cloud.change("host", "", "extra", schedulable=True))
    reaches(cloud, "host", "", "extra", "ready")
    vanishes(cloud, "host", "", "extra")
    cloud.world.remove_machine("extra")


def size(cloud: Cloud) -> None:
    """A size is made, used by a VM that goes with it, and deleted."""
    cloud.insist(lambda: cloud.create("size", "", "big", vcpus=2, memory_mib=1024, disk_gib=20))
    reaches(cloud, "size", "", "big", "active")
    vanishes(cloud, "size", "", "big")


def image(cloud: Cloud) -> None:
    """An image is made, filled, booted from, and deleted together with its VM."""
    cloud.insist(lambda: cloud.create("image", "shop", "kernel", format="kernel"))
    reaches(cloud, "image", "shop", "kernel", "empty")
    cloud.insist(lambda: cloud.create("vm", "shop", "web", image="kernel", size="small"))
    cloud.insist(lambda: cloud.upload("shop", "kernel"))
    reaches(cloud, "image", "shop", "kernel", "active")
    reaches(cloud, "vm", "shop", "web", "running")
    cloud.insist(lambda: cloud.delete("vm", "shop", "web"))
    vanishes(cloud, "image", "shop", "kernel")


def keypair(cloud: Cloud) -> None:
    """A key is made and deleted."""
    cloud.insist(lambda: cloud.create("keypair", "shop", "me", public_key=KEY))
    reaches(cloud, "keypair", "shop", "me", "active")
    vanishes(cloud, "keypair", "shop", "me")


def network(cloud: Cloud) -> None:
    """A network gets VMs on two hosts, loses them, and is deleted while they still go."""
    cloud.insist(lambda: cloud.create("network", "shop", "back", cidr="10.30.0.0/29"))
    reaches(cloud, "network", "shop", "back", "active")
    for name, where in (("web", "h0"), ("db", "h1")):
        cloud.insist(
            lambda name=name, where=where: cloud.create(  # type: ignore[misc]
                "vm", "shop", name, image="tiny", size="small", networks=["back"], host=where
            )
        )
    reaches(cloud, "vm", "shop", "web", "running")
    reaches(cloud, "vm", "shop", "db", "running")
    vanishes(cloud, "vm", "shop", "web")
    cloud.insist(lambda: cloud.delete("vm", "shop", "db"))
    vanishes(cloud, "network", "shop", "back")


def region(cloud: Cloud) -> None:
    """A region is made, described and deleted."""
    cloud.insist(lambda: cloud.create("region", "", "north"))
    reaches(cloud, "region", "", "north", "active")
    cloud.insist(lambda: cloud.change("region", "", "north", description="cold"))
    reaches(cloud, "region", "", "north", "active")
    vanishes(cloud, "region", "", "north")


def zone(cloud: Cloud) -> None:
    """A zone is made, and deleted once its rack goes."""
    cloud.insist(lambda: cloud.create("zone", "", "z1"))
    reaches(cloud, "zone", "", "z1", "active")
    cloud.insist(lambda: cloud.create("rack", "", "r1", zone="z1"))
    cloud.insist(lambda: cloud.delete("rack", "", "r1"))
    vanishes(cloud, "zone", "", "z1")


def rack(cloud: Cloud) -> None:
    """A rack is made, gets a host, loses it, and is deleted."""
    cloud.insist(lambda: cloud.create("zone", "", "z1"))
    cloud.insist(lambda: cloud.create("rack", "", "r1", zone="z1"))
    reaches(cloud, "rack", "", "r1", "active")
    cloud.insist(lambda: cloud.change("host", "", "h0", rack="r1"))
    cloud.world.run(3)
    cloud.insist(lambda: cloud.change("host", "", "h0", rack=None))
    vanishes(cloud, "rack", "", "r1")
    vanishes(cloud, "zone", "", "z1")


def group(cloud: Cloud) -> None:
    """A group keeps two machines apart and a third one waiting, and goes with the last of them."""
    cloud.insist(lambda: cloud.create("group", "shop", "db", policy="anti-affinity"))
    for name in ("a", "b", "c"):
        cloud.insist(lambda name=name: cloud.create("vm", "shop", name, image="tiny", size="small", groups=["db"]))  # type: ignore[misc]

    def apart() -> bool:
        return cloud.world.controller is not None and len(cloud.seen.crowd(_id(cloud, "group", "db"))) == 2

    cloud.world.run_until(apart, limit_s=LIMIT_S, what="two are apart")
    checks.always(cloud)
    placed = [name for name in ("a", "b", "c") if cloud.seen.placement(_id(cloud, "vm", name))]
    vanishes(cloud, "vm", "shop", placed[0])
    for name in {"a", "b", "c"} - {placed[0]}:
        reaches(cloud, "vm", "shop", name, "running")
        cloud.insist(lambda name=name: cloud.delete("vm", "shop", name))  # type: ignore[misc]
    vanishes(cloud, "group", "shop", "db")


def _id(cloud: Cloud, kind: str, name: str) -> Id:
    row = cloud.seen.named(kind, "shop", name)
    return row.id if row else Id("")


def volume(cloud: Cloud) -> None:
    """A root disk is made and goes with its VM; a data volume is attached, grows, is detached, and outlives it."""
    cloud.insist(lambda: cloud.create("volume", "shop", "data", size_gib=5))
    cloud.insist(lambda: cloud.create("vm", "shop", "web", image="tiny", size="small"))
    reaches(cloud, "volume", "shop", "web", "ready")
    reaches(cloud, "vm", "shop", "web", "running")
    cloud.insist(lambda: _of_volume(cloud, "attach", vm="web"))
    reaches(cloud, "volume", "shop", "data", "attached")
    cloud.insist(lambda: cloud.change("volume", "shop", "data", size_gib=8))
    reaches(cloud, "volume", "shop", "data", "attached")
    cloud.insist(lambda: _of_volume(cloud, "detach"))
    reaches(cloud, "volume", "shop", "data", "detached")
    cloud.insist(lambda: _of_volume(cloud, "attach", vm="web"))
    reaches(cloud, "volume", "shop", "data", "attached")
    vanishes(cloud, "vm", "shop", "web")
    reaches(cloud, "volume", "shop", "data", "detached")
    vanishes(cloud, "volume", "shop", "data")
    gone(cloud, "volume")


def _of_volume(cloud: Cloud, verb: str, **takes: object) -> None:
    cloud.verb("shop", "data", verb, kind="volume", **takes)


def snapshot(cloud: Cloud) -> None:
    """Two snapshots are taken while a VM runs with the volume, which is reverted while it is off, and both go."""
    cloud.insist(lambda: cloud.create("vm", "shop", "web", image="tiny", size="small"))
    cloud.insist(lambda: cloud.create("volume", "shop", "data", size_gib=5, vm="web"))
    reaches(cloud, "volume", "shop", "data", "attached")
    for name in ("first", "second"):
        cloud.insist(lambda name=name: cloud.create("snapshot", "shop", name, volume="data"))  # type: ignore[misc]
        reaches(cloud, "snapshot", "shop", name, "ready")
    cloud.insist(lambda: cloud.verb("shop", "web", "stop"))
    reaches(cloud, "vm", "shop", "web", "stopped")
    cloud.insist(lambda: _of_volume(cloud, "revert", snapshot="first"))
    cloud.insist(lambda: cloud.verb("shop", "web", "start"))
    reaches(cloud, "volume", "shop", "data", "attached")
    reaches(cloud, "vm", "shop", "web", "running")
    vanishes(cloud, "snapshot", "shop", "first")
    cloud.insist(lambda: cloud.delete("snapshot", "shop", "second"))
    vanishes(cloud, "vm", "shop", "web")
    vanishes(cloud, "volume", "shop", "data")


def clone(cloud: Cloud) -> None:
    """A volume is made from a snapshot whose volume a VM runs with, goes to that VM, and outlives its origin."""
    cloud.insist(lambda: cloud.create("vm", "shop", "web", image="tiny", size="small"))
    cloud.insist(lambda: cloud.create("volume", "shop", "data", size_gib=5, vm="web"))
    reaches(cloud, "volume", "shop", "data", "attached")
    cloud.insist(lambda: cloud.create("snapshot", "shop", "first", volume="data"))
    cloud.insist(lambda: cloud.create("volume", "shop", "twin", snapshot="first"))
    reaches(cloud, "volume", "shop", "twin", "detached")
    vanishes(cloud, "snapshot", "shop", "first")
    cloud.insist(lambda: cloud.verb("shop", "twin", "attach", kind="volume", vm="web"))
    reaches(cloud, "volume", "shop", "twin", "attached")
    vanishes(cloud, "vm", "shop", "web")
    vanishes(cloud, "volume", "shop", "data")
    reaches(cloud, "volume", "shop", "twin", "detached")
    vanishes(cloud, "volume", "shop", "twin")


def vm(cloud: Cloud) -> None:
    """A VM is made, stopped, started, rebooted, deleted, restored, and deleted."""
    cloud.insist(lambda: cloud.create("vm", "shop", "web", image="tiny", size="small", nocloud=True))
    reaches(cloud, "vm", "shop", "web", "running")
    cloud.insist(lambda: cloud.verb("shop", "web", "stop"))
    reaches(cloud, "vm", "shop", "web", "stopped")
    cloud.insist(lambda: cloud.verb("shop", "web", "start"))
    reaches(cloud, "vm", "shop", "web", "running")
    cloud.insist(lambda: cloud.verb("shop", "web", "reboot"))
    reaches(cloud, "vm", "shop", "web", "running")
    cloud.insist(lambda: cloud.delete("vm", "shop", "web", keep=True))
    reaches(cloud, "vm", "shop", "web", "deleted")
    cloud.insist(lambda: cloud.verb("shop", "web", "restore"))
    reaches(cloud, "vm", "shop", "web", "running")
    vanishes(cloud, "vm", "shop", "web")


def schedule(cloud: Cloud) -> None:
    """A schedule is made, stops a VM when it is due, and is deleted; so is the VM."""
    cloud.insist(lambda: cloud.create("vm", "shop", "web", image="tiny", size="small"))
    reaches(cloud, "vm", "shop", "web", "running")
    cloud.insist(lambda: cloud.create("schedule", "shop", "always", action="stop", vms=["web"], cron="* * * * *"))
    reaches(cloud, "schedule", "shop", "always", "active")
    cloud.world.run(70)
    reaches(cloud, "vm", "shop", "web", "stopped")
    vanishes(cloud, "schedule", "shop", "always")
    vanishes(cloud, "vm", "shop", "web")


def running(cloud: Cloud, **spec: object) -> None:
    """A VM runs."""
    cloud.insist(lambda: cloud.create("vm", "shop", "web", image="tiny", size="small", **spec))
    reaches(cloud, "vm", "shop", "web", "running")


def resized(cloud: Cloud) -> None:
    """A VM grows at once, and shrinks with a later reboot."""
    running(cloud)
    cloud.insist(lambda: cloud.verb("shop", "web", "resize", size="large", restart=True))
    reaches(cloud, "vm", "shop", "web", "running")
    cloud.insist(lambda: cloud.verb("shop", "web", "resize", size="small"))
    reaches(cloud, "vm", "shop", "web", "running")
    cloud.insist(lambda: cloud.verb("shop", "web", "reboot"))
    reaches(cloud, "vm", "shop", "web", "running")
    vanishes(cloud, "vm", "shop", "web")


def rebuilt(cloud: Cloud) -> None:
    """A VM with UEFI and a TPM gets a new disk, and another one, and is deleted in the middle of the next."""
    running(cloud, firmware="uefi", tpm=True)
    cloud.insist(lambda: cloud.verb("shop", "web", "rebuild"))
    reaches(cloud, "vm", "shop", "web", "running")
    cloud.insist(lambda: cloud.verb("shop", "web", "stop"))
    cloud.insist(lambda: cloud.verb("shop", "web", "rebuild"))
    reaches(cloud, "vm", "shop", "web", "stopped")
    cloud.insist(lambda: cloud.verb("shop", "web", "rebuild"))
    cloud.world.run(1)
    vanishes(cloud, "vm", "shop", "web")


def rescued(cloud: Cloud) -> None:
    """A VM with UEFI and a TPM is rescued, and again, and goes back to its own disk."""
    running(cloud, firmware="uefi", tpm=True)
    for _ in range(2):
        cloud.insist(lambda: cloud.verb("shop", "web", "rescue"))
        reaches(cloud, "vm", "shop", "web", "running")
    cloud.insist(lambda: cloud.verb("shop", "web", "unrescue"))
    reaches(cloud, "vm", "shop", "web", "running")
    vanishes(cloud, "vm", "shop", "web")


CHANGES: dict[str, Callable[[Cloud], None]] = {
    "vm resized": resized,
    "vm rebuilt": rebuilt,
    "vm rescued": rescued,
    "volume cloned": clone,
}
"""Other lives of a kind, with its rarer turns."""

LIVES: dict[str, Callable[[Cloud], None]] = {
    "domain": domain,
    "project": project,
    "user": user,
    "role": role,
    "binding": binding,
    "token": token,
    "host": host,
    "size": size,
    "image": image,
    "keypair": keypair,
    "network": network,
    "region": region,
    "zone": zone,
    "rack": rack,
    "group": group,
    "volume": volume,
    "snapshot": snapshot,
    "vm": vm,
    "schedule": schedule,
}
