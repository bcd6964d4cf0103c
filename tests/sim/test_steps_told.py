"""What is done for a wish is told with it: on the controller and on hosts, under one request, through failures."""

import structlog
from structlog.testing import capture_logs

from common.ids import body
from controller.store.rows import Operation
from sim.cloud import Cloud
from tests.sim.lives import prepare, reaches, vanishes
from tests.sim.test_crash_points import world


def the_operation(cloud: Cloud, verb: str) -> Operation:
    return next(op for op in cloud.seen.operations() if op.name == "web" and op.verb == verb)


def test_a_machine_s_timeline_names_every_step_its_host_its_retries_and_the_cause() -> None:
    with world() as around:
        cloud = Cloud(around)
        prepare(cloud, hosts=1)
        around.nodes["h0"].machine.hiccups = 2
        with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
            cloud.create("vm", "shop", "web", image="tiny", size="small")
            reaches(cloud, "vm", "shop", "web", "running")
        made = the_operation(cloud, "create")
        vm = cloud.find("vm", "shop", "web")
        documents = [one for one in cloud.seen.documents(cloud.find("host", "", "h0").id) if not one.gone]  # type: ignore[arg-type]
        vanishes(cloud, "vm", "shop", "web")
        gone = the_operation(cloud, "delete")

    told = {step.what: step for step in made.steps}
    assert "placed on host h0" in told
    assert told["placed on host h0"].host == "h0"
    assert "asking host h0" in told
    on_host = [step for step in made.steps if step.host == "h0" and not step.what.startswith(("placed", "asking"))]
    assert {word for step in on_host for word in ("disk", "domain") if word in step.what}, [
        step.what for step in on_host
    ]
    assert sum(step.retries for step in on_host) >= 1
    assert {step.cause for step in on_host if step.retries} == {"a foreign call failed for now"}
    assert all(step.seconds is not None for step in made.steps)
    assert any("giving back what it had" in step.what for step in gone.steps)
    assert {"removing the machine", "removing the disk"} <= {step.what for step in gone.steps if step.host == "h0"}
    assert made.steps_dropped == gone.steps_dropped == 0

    own = [one for one in documents if body(vm.id) in one.key]
    assert {one.key.partition("/")[0] for one in own} == {"domain", "volume", "port"}
    assert {one.request for one in own} == {"req-sim"}
    mine = [line for line in lines if body(vm.id) in str(line.get("unit") or line.get("resource"))]
    assert {"step committed", "step applied"} <= {line["event"] for line in mine}
    assert [line for line in mine if line.get("request") != "req-sim"] == []


def test_waiting_and_being_blocked_are_in_the_timeline_with_how_long_and_why() -> None:
    with world() as around:
        cloud = Cloud(around)
        prepare(cloud, hosts=1)
        cloud.change("host", "", "h0", schedulable=False)
        around.run(2)
        cloud.create("vm", "shop", "web", image="tiny", size="small")
        around.run(30)
        cloud.change("host", "", "h0", schedulable=True)
        reaches(cloud, "vm", "shop", "web", "running")
        made = the_operation(cloud, "create")

    (blocked,) = [step for step in made.steps if step.what == "blocked"]
    assert blocked.cause == "none of 1 host fits"
    assert blocked.seconds is not None
    assert 29 < blocked.seconds < 32
