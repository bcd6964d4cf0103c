"""An operation's timeline and the request's id, as the API and the command show them."""

import asyncio
import re
from typing import Any

import click
import msgspec
from api_world import P, World
from click.testing import CliRunner

from common.documents import StepTaken
from controller.cli.operations import print_operation
from tests.patience import PATIENCE_S


async def making(cloud: World) -> tuple[Any, Any]:
    """Have a machine made whose host tells a step that failed twice; return host and operation."""
    host = await cloud.host("h1")
    await cloud.needs("a")
    body = {"name": "web", "spec": {"image": "disk", "size": "small"}}
    made = (await cloud.call("POST", f"{P}/a/vms", body, headers={"X-Request-Id": "req-mine"})).json
    vm = made["resource"]["id"]
    await cloud.until(lambda: cloud.store.seen.owned_documents(vm))
    (document,) = cloud.store.seen.owned_documents(vm)
    steps = (
        StepTaken(at=cloud.clock(), what="defining the machine", seconds=0.25),
        StepTaken(at=cloud.clock(), what="starting it", failures=2, problem="no memory"),
    )
    cloud.store.seen.took(vm, host.id, document.key, steps)
    return host, made["operation"]["id"]


async def test_the_timeline_is_told_step_by_step_with_host_retries_and_cause(cloud: World) -> None:
    host, operation = await making(cloud)
    cloud.loop.host_changed(host.id)
    found: Any = {"steps": []}
    async with asyncio.timeout(PATIENCE_S):
        while "starting it" not in [step["what"] for step in found["steps"]]:
            found = (
                await cloud.call("GET", f"/v1/operations/{operation}?wait_s=1&seen={found.get('revision', 0)}")
            ).json
    steps = {step["what"]: step for step in found["steps"]}

    assert steps["placed on host h1"]["host"] == "h1"
    assert steps["defining the machine"]["seconds"] == 0.25
    assert steps["starting it"] | {"at": 0} == {
        "at": 0,
        "what": "starting it",
        "host": "h1",
        "seconds": None,
        "retries": 2,
        "cause": "no memory",
        "phase": False,
    }
    assert [step["at"] for step in found["steps"]] == sorted(step["at"] for step in found["steps"])
    assert "steps" not in (await cloud.call("GET", "/v1/operations")).json["items"][0]


async def test_it_is_printed_as_a_table(cloud: World) -> None:
    host, operation = await making(cloud)
    cloud.loop.host_changed(host.id)
    raw = b""
    async with asyncio.timeout(PATIENCE_S):
        while b"starting it" not in raw:
            raw = (await cloud.call("GET", f"/v1/operations/{operation}")).raw

    result = CliRunner().invoke(click.Command("show", callback=lambda: print_operation(raw)))

    assert re.search(r"^AT +STEP +HOST +TOOK +RETRIES +CAUSE$", result.output, re.MULTILINE)
    assert re.search(r"^\+[0-9.]+ s +defining the machine +h1 +0\.25 s +- +-$", result.output, re.MULTILINE)
    assert re.search(r"^\+[0-9.]+ s +starting it +h1 .* so far +2 +no memory$", result.output, re.MULTILINE)


async def test_a_long_timeline_says_what_was_dropped() -> None:
    steps = [{"at": number, "what": f"step {number}", "seconds": 1.0} for number in range(64)]
    operation = {
        "id": "op-1", "verb": "create", "kind": "vm", "resource": "vm-1", "name": "web", "state": "done",
        "steps": steps, "steps_dropped": 9, "finished_at": 70.0,
    }  # fmt: skip
    raw = msgspec.json.encode(operation)
    lines = CliRunner().invoke(click.Command("show", callback=lambda: print_operation(raw))).output.splitlines()

    dropped = next(number for number, line in enumerate(lines) if "9 steps that are not kept" in line)
    assert "step 23" in lines[dropped - 1]
    assert "step 24" in lines[dropped + 1]


async def test_one_request_leads_through_operations_events_and_documents(cloud: World) -> None:
    host, operation = await making(cloud)
    while (await cloud.call("GET", f"/v1/operations/{operation}")).json["state"] != "done":
        host.settle()
        await asyncio.sleep(0.01)
    operations = (await cloud.call("GET", "/v1/operations?request=req-mine")).json["items"]
    events = (await cloud.call("GET", "/v1/events?request=req-mine")).json["items"]
    documents = {one.key.partition("/")[0]: one.request for one in cloud.store.seen.documents(host.id)}

    assert [one["id"] for one in operations] == [operation]
    assert next(one["action"] for one in events) == "vm.create"
    assert {"vm.running", "operation.done"} <= {one["action"] for one in events}
    assert documents == {"domain": "req-mine", "volume": "req-mine", "port": "req-mine", "network": ""}
