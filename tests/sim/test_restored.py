"""An older database in place of the one that hosts know: they take its word, and lose nothing it does not know of."""

import sqlite3

import msgspec
import pytest
from sqlalchemy import select

from common.codec import from_pack, to_pack
from common.documents import Desired
from common.faults import Died
from common.ids import Id, Revision
from controller.fleet.audit import compare
from controller.kinds import admission
from controller.kinds.admission import Admission, Context
from controller.store import tables
from sim.cloud import OPERATOR, Cloud
from sim.process import Agent, Controller
from sim.world import Node
from tests.sim.lives import prepare, quiet, reaches


def boot(cloud: Cloud, name: str) -> Id:
    done = cloud.create("vm", "shop", name, image="tiny", size="small")
    reaches(cloud, "vm", "shop", name, "running")
    return done.resource.id


def orphans(cloud: Cloud, node: Node) -> set[Id | None]:
    found = cloud.world.within_agent(node, Agent.survey)
    assert found is not None
    return {one.owner for one in compare(cloud.seen, node.host, found) if one.problem == "orphan"}


def guests(cloud: Cloud) -> set[str]:
    return {str(vm) for node in cloud.world.nodes.values() for vm in node.machine.guests.runs}


def events(cloud: Cloud, action: str) -> list[str]:
    c = tables.event.c
    with cloud.world.engine.connect() as connection:
        return list(connection.execute(select(c.message).where(c.action == action)).scalars())


def repair(cloud: Cloud, node: Node) -> None:
    """Repair what an audit finds, as `skerry audit repair` does."""
    found = cloud.world.within_agent(node, Agent.survey)
    assert found is not None
    differences = compare(cloud.seen, node.host, found)

    async def ask(controller: Controller) -> Admission:
        row = controller.store.seen.get(node.host)
        assert row is not None
        writes = controller.hosts.plan_repairs(node.host, differences, OPERATOR.request).writes
        context = Context(seen=controller.store.seen, caller=OPERATOR, now=cloud.world.now)
        return await controller.store.admit(admission.repair(context, row, writes, "repaired"))

    cloud.world.within_controller(ask)


@pytest.mark.parametrize("told", [True, False], ids=["told", "found out"])
def test_hosts_follow_a_restored_database_and_destroy_nothing_it_does_not_know(cloud: Cloud, told: bool) -> None:
    prepare(cloud, hosts=2)
    old = boot(cloud, "old")
    gone = boot(cloud, "gone")
    cloud.world.run(10)
    image = cloud.world.backup()

    new = boot(cloud, "new")
    cloud.delete("vm", "shop", "gone")
    for _ in range(3):
        cloud.verb("shop", "old", "reboot")
        cloud.world.run(20)
    assert guests(cloud) == {old, new}

    cloud.deleted.clear()
    cloud.world.restore(image, told=told)
    cloud.world.run(120)
    assert guests(cloud) == {old, new, gone}, "what it knows runs, what it does not know runs on"
    named = {one for node in cloud.world.nodes.values() for one in orphans(cloud, node)}
    assert new in named
    assert not named & {old, gone}
    found_out = any("newer than the database" in said for said in events(cloud, "host.lied"))
    assert found_out is not told, "where nobody said so, the first hosts to come find out"

    cloud.verb("shop", "old", "reboot")
    cloud.world.run(60)
    vm = cloud.find("vm", "shop", "old")
    assert (vm.status.state, vm.observed_generation) == ("running", vm.generation)
    cloud.delete("vm", "shop", "gone")
    cloud.world.run(60)
    assert guests(cloud) == {old, new}

    cloud.deleted.add(new)
    cloud.deleted.update(one for one in named if one is not None)
    for node in cloud.world.nodes.values():
        repair(cloud, node)
    cloud.world.run(30)
    assert guests(cloud) == {old}
    quiet(cloud)


def test_a_tombstone_of_the_restored_past_is_not_taken_for_done(cloud: Cloud) -> None:
    """The host has the machine at a later revision than the tombstone's, and has reported it done."""
    prepare(cloud, hosts=1)
    vm = boot(cloud, "web")
    node = cloud.world.nodes["h0"]
    node.cut_off = True
    assert node.wire
    node.wire.pull()
    cloud.world.run(10)
    cloud.delete("vm", "shop", "web")
    cloud.world.run(1)
    image = cloud.world.backup()
    cloud.world.kill_agent("h0")
    know_the_future(node)
    cloud.world.restore(image, told=True)
    node.cut_off = False
    cloud.world.run(120)
    assert cloud.seen.get(vm) is None
    assert guests(cloud) == set()
    assert not orphans(cloud, node)


def know_the_future(node: Node) -> None:
    """Have a host hold its documents at revisions that the database has not come to."""
    with sqlite3.connect(node.machine.memory_file) as database:
        for key, raw in database.execute("SELECT key, item FROM document").fetchall():
            item = from_pack(raw, Desired, key)
            later = msgspec.structs.replace(item, revision=Revision(item.revision + 1000))
            values = (to_pack(later), later.revision, key)
            database.execute("UPDATE document SET item = ?, revision = ? WHERE key = ?", values)


def test_an_agent_that_dies_while_it_begins_anew_ends_well(cloud: Cloud) -> None:
    prepare(cloud, hosts=1)
    old = boot(cloud, "old")
    image = cloud.world.backup()
    new = boot(cloud, "new")
    deaths = 0

    def hook(process: str, point: str) -> None:
        nonlocal deaths
        if process == "h0" and point == "memory.anew" and deaths < 2:
            deaths += 1
            raise Died

    cloud.world.hook = hook
    cloud.world.kill_agent("h0")
    cloud.world.restore(image, told=True)
    cloud.world.run(120)
    assert deaths >= 1
    assert guests(cloud) == {old, new}
    assert orphans(cloud, cloud.world.nodes["h0"]) >= {new}
