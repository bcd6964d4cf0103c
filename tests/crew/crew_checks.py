"""What must be so in a world with several controllers."""

from controller.fleet.audit import compare
from sim.cloud import Cloud
from sim.process import Agent
from tests.crew.crew_world import CrewWorld
from tests.sim import checks


def running(world: CrewWorld) -> int:
    """Return how many guests run."""
    return sum(len(node.machine.guests.runs) for node in world.nodes.values())


def all_running(cloud: Cloud, world: CrewWorld, count: int, *, limit_s: float = 60.0) -> None:
    """Wait until so many machines run, on every controller's word."""

    def there() -> bool:
        return bool(world.alive()) and all(
            sum(vm.status.state == "running" for vm in one.store.seen.of_kind("vm")) == count for one in world.alive()
        )

    world.run_until(there, limit_s=limit_s, what=f"{count} machines run")
    assert running(world) == count


def same(world: CrewWorld) -> None:
    """All controllers see the same rows."""
    first, *others = world.alive()
    for other in others:
        assert not first.store.seen.difference(other.store.seen.rows()), f"{first.name} and {other.name} differ"


def quiet(cloud: Cloud, world: CrewWorld) -> None:
    """Hold once nothing moves any more: wish and reality are one, and each link is where it says."""
    world.run(130)
    checks.always(cloud)
    same(world)
    seen = world.alive()[0].store.seen
    for node in world.nodes.values():
        name = node.machine.name
        holder = world.controllers[world.at[name]]
        assert holder is not None
        link = seen.link(node.host)
        assert link is not None, f"{name} is linked nowhere"
        assert link.controller == holder.crew.me.id, f"{name} is at {holder.name}, the books say {link.controller}"
        assert node.agent is not None
        found = world.within_agent(node, Agent.survey)
        assert found is not None
        assert not compare(seen, node.host, found)
        for document in seen.documents(node.host):
            report = holder.store.seen.report(node.host, document.key)
            assert report is not None, f"nothing said of {document.key} to {holder.name}"
            assert report.done, f"not done: {report}"
    for operation in seen.operations():
        explained = operation.state == "blocked" and operation.why is not None
        assert operation.finished_at is not None or explained, f"not ended, not explained: {operation}"
    for row in seen:
        assert row.deleted_at is None, f"still there: {row}"
        assert row.observed_generation == row.generation or row.status.state == "blocked", f"not seen through: {row}"
