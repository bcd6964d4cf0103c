"""Several controllers, one database, in the simulated world: whoever dies, all is as if one never did."""

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import update

from common.errors import SkerryError
from common.faults import Died
from common.ids import Id, RequestId
from common.kinds import kind_named
from controller.kinds import admission
from controller.kinds.admission import Admission, Context, NewResource
from controller.loop.loop import OTHERS_FIRST_S
from controller.store import queue, tables
from controller.store.crew import ALIVE_S
from controller.store.rows import Event, QueueRow
from controller.store.tx import Tx
from sim.cloud import OPERATOR, Cloud
from sim.world import Lost
from tests.crew import crew_checks as checks
from tests.crew.crew_world import CrewWorld
from tests.crew.sharing import SharingController
from tests.sim import checks as sim_checks
from tests.sim.lives import prepare


@pytest.fixture(params=[2, 3])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CrewWorld]:
    world = CrewWorld(tmp_path, names=("one", "two", "three")[: request.param], seed=request.param)
    yield world
    world.close()


@pytest.fixture
def cloud(world: CrewWorld) -> Cloud:
    cloud = Cloud(world)
    prepare(cloud, hosts=3)
    return cloud


def event(what: str) -> Event:
    return Event(
        seq=0,
        at=1.0,
        actor="test",
        request=RequestId("req-1"),
        action=f"test.{what}",
        kind="project",
        resource=Id("prj-000000000000"),
        project="",
        name="",
        message="",
        before=b"",
        after=b"",
    )


def project(one: SharingController, world: CrewWorld, name: str) -> Admission:
    context = Context(seen=one.store.seen, caller=OPERATOR, now=world.now, entropy=world.random.randbytes)
    return admission.create(context, kind_named("project"), "", NewResource(name=name))


def test_machines_run_wherever_they_were_asked_for(cloud: Cloud, world: CrewWorld) -> None:
    for number in range(6):
        cloud.create("vm", "shop", f"vm{number}", image="tiny", size="small")
        world.run(0.2)
    checks.all_running(cloud, world, 6)
    checks.quiet(cloud, world)


def test_a_machine_placed_by_one_controller_is_finished_by_the_one_with_its_host(
    cloud: Cloud, world: CrewWorld
) -> None:
    started = world.now
    for number in range(9):
        cloud.create("vm", "shop", f"vm{number}", image="tiny", size="small")
        world.asked += 1
        world.run(0.05)
    checks.all_running(cloud, world, 9)
    assert world.now - started < OTHERS_FIRST_S, "waited until it was looked at anyway"


def test_what_one_controller_changed_the_others_leave_to_it_for_a_while(
    cloud: Cloud, world: CrewWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.create("image", "shop", "empty")
    world.run(10)
    taken: list[tuple[str, float]] = []
    take = queue.take

    def noted(tx: Tx, worker: str, resources: Sequence[Id], own: Sequence[Id] = ()) -> tuple[QueueRow, ...]:
        taken.extend((worker, world.now) for _ in resources)
        return take(tx, worker, resources, own)

    monkeypatch.setattr(queue, "take", noted)
    asked = world.controller
    assert isinstance(asked, SharingController)
    began = world.now
    cloud.create("vm", "shop", "waits", image="empty", size="small")
    world.run(OTHERS_FIRST_S / 2)
    assert {worker for worker, _ in taken} == {asked.crew.me.id}
    world.run(OTHERS_FIRST_S)
    assert {worker for worker, _ in taken} == {one.crew.me.id for one in world.alive()}
    assert world.now - began < 2 * OTHERS_FIRST_S


def test_a_controllers_hosts_and_work_are_another_ones_within_seconds(cloud: Cloud, world: CrewWorld) -> None:
    for number in range(6):
        cloud.create("vm", "shop", f"vm{number}", image="tiny", size="small")
    world.run(0.01)
    world.kill("one")
    world.hold("one", 300)
    checks.all_running(cloud, world, 6, limit_s=12)
    assert all(name != "one" for name in world.at.values())
    checks.quiet(cloud, world)


def test_a_dead_controllers_lease_is_given_up(cloud: Cloud, world: CrewWorld) -> None:
    doomed = world.controller
    assert isinstance(doomed, SharingController)
    dies = {"now": False}

    def hook(process: str, point: str) -> None:
        if process == doomed.name and dies["now"] and point == "loop.vm.planned":
            raise Died

    world.hook = hook
    dies["now"] = True
    cloud.create("vm", "shop", "web", image="tiny", size="small")
    world.run_until(lambda: world.controllers[doomed.name] is None, limit_s=1, what="it dies with the lease")
    world.hold(doomed.name, 300)
    checks.all_running(cloud, world, 1, limit_s=12)


@pytest.mark.parametrize("seconds", [-86400.0, 86400.0])
def test_a_clock_that_is_set_neither_hides_who_died_nor_buries_who_lives(
    cloud: Cloud, world: CrewWorld, seconds: float
) -> None:
    dies, *others = world.controllers
    for name in others:
        world.set_controllers_clock(name, seconds)
    world.run(30)
    assert [len(one.crew.others) for one in world.alive()] == [len(others)] * len(world.controllers)
    world.kill(dies)
    world.hold(dies, 60)
    world.run(ALIVE_S + 10)
    assert [len(one.crew.others) for one in world.alive()] == [len(others) - 1] * len(others)
    checks.quiet(cloud, world)


def test_what_is_on_a_host_goes_on_as_soon_as_the_host_is_at_another_controller(cloud: Cloud, world: CrewWorld) -> None:
    cloud.create("vm", "shop", "web", image="tiny", size="small", host="h0")
    checks.all_running(cloud, world, 1)
    holder = world.at["h0"]
    dies = {"now": False}

    def hook(process: str, point: str) -> None:
        if process == holder and dies["now"] and point == "loop.vm.planned":
            raise Died

    world.hook = hook
    dies["now"] = True
    cloud.verb("shop", "web", "reboot")
    world.run_until(lambda: world.controllers[holder] is None, limit_s=1, what="it dies with the lease")
    world.hold(holder, 300)
    died = world.now

    def rebooted() -> bool:
        vm = world.alive()[0].store.seen.named("vm", "shop", "web")
        return vm is not None and vm.observed_generation == vm.generation and vm.status.state == "running"

    world.run_until(rebooted, limit_s=ALIVE_S - 1, what="it is rebooted before the dead one is buried")
    assert world.now - died < ALIVE_S - 1


def test_a_host_that_was_forgotten_by_mistake_is_noted_again(cloud: Cloud, world: CrewWorld) -> None:
    buried = world.controllers[world.at["h0"]]
    other = next(one for one in world.alive() if one is not buried)
    assert buried
    world.within(other.name, lambda one: one.store.bury(buried.crew.me.id))
    world.run(0.05)
    assert not other.crew.others or buried.crew.me not in other.crew.others
    world.run(5)
    assert buried.crew.me in other.crew.others
    checks.quiet(cloud, world)


def test_a_controller_without_its_database_lets_its_hosts_go_and_comes_back(cloud: Cloud, world: CrewWorld) -> None:
    cut_off = world.controllers[world.at["h0"]]
    assert cut_off
    cut_off.writer.cut_off = True
    world.asked = next(n for n, one in enumerate(world.alive()) if one is not cut_off)
    cloud.create("vm", "shop", "web", image="tiny", size="small", host="h0")
    world.run_until(
        lambda: len(world.nodes["h0"].machine.guests.runs) == 1, limit_s=40, what="h0 is served by another controller"
    )
    cut_off.writer.cut_off = False
    checks.quiet(cloud, world)


def test_a_host_that_comes_to_another_controller_leaves_the_first(cloud: Cloud, world: CrewWorld) -> None:
    node = world.nodes["h0"]
    before = world.at["h0"]
    cloud.create("vm", "shop", "web", image="tiny", size="small", host="h0")
    checks.all_running(cloud, world, 1)
    assert node.wire
    node.wire = None  # the agent dials anew while the first controller still believes in its link
    node.session = None
    world.run(2)
    assert world.at["h0"] != before
    first = world.controllers[before]
    assert first
    assert first.sessions.get(node.host) is None
    checks.quiet(cloud, world)


def test_one_that_was_away_longer_than_the_log_lasts_starts_again_from_all_there_is(
    cloud: Cloud, world: CrewWorld
) -> None:
    away, busy = world.alive()[:2]
    away.reads_at = world.now + 1e6
    world.within(busy.name, lambda one: one.store.append(event("first")))
    for number in range(3):
        world.within(busy.name, lambda one, n=number: one.store.admit(project(one, world, f"late{n}")))  # type: ignore[misc]
    with world.engine.begin() as connection:
        connection.execute(update(tables.change).values(at=0.0))
    world.within(busy.name, lambda one: one.store.prune())
    with away.store.watch() as watch:
        world.within(away.name, SharingController.catch_up)
        assert world.within(away.name, lambda _: watch.next()) is None
    assert away.store.seen.named("project", "", "late2")
    away.reads_at = None
    checks.quiet(cloud, world)


@pytest.mark.parametrize("seed", range(int(os.environ.get("SKERRY_CREW_SEEDS", "4"))))
def test_whatever_dies_every_operation_ends(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    names = ("one", "two", "three")[: chance.choice((2, 3))]
    doomed: dict[str, int] = {}

    def hook(process: str, _point: str) -> None:
        if process in doomed:
            doomed[process] -= 1
            if doomed[process] < 0:
                del doomed[process]
                raise Died

    world = CrewWorld(tmp_path, names=names, seed=seed, hook=hook)
    try:
        cloud = Cloud(world)
        prepare(cloud, hosts=3)
        live_dangerously(cloud, world, chance, doomed, steps=60)
        doomed.clear()
        for node in world.nodes.values():
            node.cut_off = False
            node.machine.hiccups = 0
        checks.quiet(cloud, world)
        clear(cloud, world)
    finally:
        world.close()


def live_dangerously(cloud: Cloud, world: CrewWorld, chance: random.Random, doomed: dict[str, int], steps: int) -> None:
    """Make, use and delete machines while everything dies now and then."""
    for _ in range(steps):
        vm = f"vm{chance.randrange(8)}"
        wish: Callable[[], object] = chance.choice(
            (
                lambda vm=vm: cloud.create("vm", "shop", vm, image="tiny", size="small"),
                lambda vm=vm: cloud.create("vm", "shop", vm, image="tiny", size="small"),
                lambda vm=vm: cloud.verb("shop", vm, chance.choice(("stop", "start", "reboot"))),
                lambda vm=vm: cloud.delete("vm", "shop", vm),
            )
        )
        with suppress(SkerryError, Lost):
            wish()
        accident = chance.random()
        node = world.nodes[chance.choice(sorted(world.nodes))]
        if accident < 0.12:
            world.kill(chance.choice(sorted(world.controllers)))
        elif accident < 0.3:
            doomed[chance.choice([*world.controllers, node.machine.name])] = chance.randrange(80)
        elif accident < 0.4 and node.wire:
            node.wire.accidents.append(chance.choice(("lose", "repeat", "swap")))
        elif accident < 0.45 and node.wire:
            node.wire.pull()
        elif accident < 0.5:
            world.kill_agent(node.machine.name)
        world.run(chance.choice((0.003, 0.03, 0.3, 3.0)))
        sim_checks.always(cloud)


def clear(cloud: Cloud, world: CrewWorld) -> None:
    """Delete all there is, and find nothing left."""
    for kinds in (("vm",), ("network", "image"), ("size", "host"), ("project",)):
        for kind in kinds:
            for row in list(cloud.seen.of_kind(kind)):
                if row.deleted_at is None and row.name != "system":
                    cloud.delete(kind, row.project, row.name)
        world.run_until(
            lambda kinds=kinds: all(  # type: ignore[misc]
                row.name == "system" for one in world.alive() for kind in kinds for row in one.store.seen.of_kind(kind)
            ),
            limit_s=200,
            what=f"{kinds} are gone",
        )
    world.run(10)
    sim_checks.machines_empty(cloud)
    sim_checks.empty(cloud)
    checks.same(world)
