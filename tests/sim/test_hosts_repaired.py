"""A host is made to differ in every way, audited and repaired: it agrees again, and nothing else was touched."""

from pathlib import Path

from sqlalchemy import delete

from common.ids import HostId, Id, body
from controller.fleet.audit import Difference, compare
from controller.fleet.repair import Repair, plan_repairs
from controller.kinds import admission
from controller.kinds.admission import Context
from controller.store import tables
from sim.cloud import OPERATOR, Cloud
from sim.process import Agent, Controller
from tests.sim.lives import prepare, reaches
from tests.sim.test_crash_points import world


def audit(cloud: Cloud) -> tuple[Difference, ...]:
    async def survey(agent: Agent) -> object:
        return await agent.survey()

    node = cloud.world.nodes["h0"]
    return compare(cloud.seen, node.host, cloud.world.within_agent(node, survey))  # type: ignore[arg-type]


def repair(cloud: Cloud) -> tuple[Repair, ...]:
    """Carry out the plan for what an audit finds, as the API does."""
    plan = plan_repairs(cloud.seen, cloud.world.nodes["h0"].host, audit(cloud), OPERATOR.request)

    async def commit(controller: Controller) -> None:
        context = Context(seen=controller.store.seen, caller=OPERATOR, now=cloud.world.now)
        await controller.store.admit(admission.repair(context, cloud.find("host", "", "h0"), plan.writes, "repair"))

    cloud.world.within_controller(commit)
    cloud.world.run(60)
    return plan.repairs


def forget(cloud: Cloud, vm: Id) -> None:
    """Have the books lose a machine, its volume and all their claims and documents, as no API would; then restart."""
    cloud.world.kill_controller()
    with cloud.world.engine.begin() as rows:
        for table, column in (("resource", "id"), ("queue", "resource"), ("document", "owner"), ("address", "vm")):
            one = tables.METADATA.tables[table]
            rows.execute(delete(one).where(one.c[column].like(f"%{body(vm)}")))
        documents = tables.document
        rows.execute(delete(documents).where(documents.c.key.like(f"%{body(vm)}%")))
    cloud.world.run(5)


def test_what_the_books_lost_is_destroyed_and_its_claim_given_back() -> None:
    with world() as around:
        cloud = Cloud(around)
        prepare(cloud, hosts=1)
        for name in ("lost", "kept"):
            cloud.create("vm", "shop", name, image="tiny", size="small")
            reaches(cloud, "vm", "shop", name, "running")
        lost, kept = cloud.find("vm", "shop", "lost").id, cloud.find("vm", "shop", "kept").id
        around.run(60)
        assert audit(cloud) == ()
        forget(cloud, lost)
        around.run(60)
        before = audit(cloud)
        repairs = repair(cloud)
        after = audit(cloud)
        machine = around.nodes["h0"].machine
        used = cloud.seen.used(HostId(cloud.find("host", "", "h0").id))

        assert {(one.problem, one.what) for one in before} >= {
            ("orphan", "domain"),
            ("orphan", "disk"),
            ("claim", "placement"),
        }
        assert {one.action for one in repairs} <= {"destroy", "give back", "send again"}
        assert after == ()
        assert lost not in machine.guests.runs
        assert kept in machine.guests.runs
        assert {body(one) for one in machine.destroyed} == {body(lost)}
        assert used.vcpus == 1
        cloud.deleted.add(lost)


def test_what_is_missing_is_made_at_once() -> None:
    with world() as around:
        cloud = Cloud(around)
        prepare(cloud, hosts=1)
        cloud.create("vm", "shop", "web", image="tiny", size="small")
        reaches(cloud, "vm", "shop", "web", "running")
        around.run(60)
        vm = cloud.find("vm", "shop", "web").id
        machine = around.nodes["h0"].machine
        machine.kernel.networks.clear()
        before = audit(cloud)
        repairs = repair(cloud)

        assert {one.problem for one in before} == {"missing"}
        assert {one.action for one in repairs} == {"send again"}
        assert audit(cloud) == ()
        assert vm in machine.guests.runs


def test_a_host_with_orphans_pending_can_be_deleted(tmp_path: Path) -> None:
    with world() as around:
        cloud = Cloud(around)
        prepare(cloud, hosts=1)
        cloud.create("vm", "shop", "lost", image="tiny", size="small")
        reaches(cloud, "vm", "shop", "lost", "running")
        lost = cloud.find("vm", "shop", "lost").id
        forget(cloud, lost)
        around.run(60)
        plan = plan_repairs(cloud.seen, around.nodes["h0"].host, audit(cloud), OPERATOR.request)
        around.kill_agent("h0")

        async def commit(controller: Controller) -> None:
            context = Context(seen=controller.store.seen, caller=OPERATOR, now=around.now)
            await controller.store.admit(admission.repair(context, cloud.find("host", "", "h0"), plan.writes, "repair"))

        around.within_controller(commit)
        cloud.delete("host", "", "h0")
        around.run(30)
        with around.engine.connect() as rows:
            waiting = rows.execute(tables.queue.select()).mappings().all()

        assert cloud.seen.named("host", "", "h0") is None
        assert not [row for row in waiting if body(lost) in row["resource"]]
        cloud.deleted.add(lost)
