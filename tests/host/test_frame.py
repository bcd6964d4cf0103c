"""The main job on a real host: from a wish to a machine that answers, through every accident that is cheap to have."""

import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.request import urlopen

import pytest

from common.run import CommandFailed
from lab.cloud import IMAGE, SIZE
from lab.processes import alive
from tests.lab.calls import Cloud, boots_in, qemu_of, until
from tests.lab.killing import Plan, run_cycles
from tests.lab.look import of_vm, strangers
from tests.lab.shell import console

pytestmark = [pytest.mark.host, pytest.mark.timeout(180)]


@pytest.fixture(autouse=True)
def _tidy(cloud: Cloud) -> Iterator[None]:
    """Leave no VM of a test, be it a failed one, to the next."""
    yield
    cloud.tidy()


@pytest.fixture
def guest(cloud: Cloud, request: pytest.FixtureRequest) -> Iterator[str]:
    """Give a VM that is up; it is gone afterwards, and nothing of it is left."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:50].strip("-")
    cloud.create(name)
    cloud.until_up(name)
    cloud.until_state(name, "running")
    yield name
    vm = cloud.id(name)
    cloud.delete_vms(name)
    assert of_vm(cloud.lab.host("h1"), vm) == []


def test_a_machine_s_whole_life(cloud: Cloud) -> None:
    lab, host = cloud.lab, cloud.lab.host("h1")
    lab.cli("vm", "create", "web", "--image", IMAGE, "--size", SIZE, "--keypairs", "lab", "--wait")
    vm = cloud.id("web")
    log = cloud.until_up("web")
    key = (lab.layout.folder / "ssh_key.pub").read_text().split()
    assert f"metadata instance-id {vm}" in log
    assert f"key {key[0]} {key[1][:24]}" in log
    assert f"address {cloud.address('web')}/24" in log
    assert lab.cli("vm", "log", "web").split() == log.split()
    row = next(line for line in lab.cli("vm", "list").splitlines() if line.startswith("web "))
    assert "running" in row
    assert cloud.address("web") in row

    with console(lab, "web") as shell:
        assert shell.must("hostname").strip() == "web"
        assert shell.must("cat /run/instance-id").strip() == vm

    lab.cli("vm", "stop", "web", "--wait")
    assert host.run(["virsh", "-q", "domstate", vm]).strip() == "shut off"
    lab.cli("vm", "start", "web", "--wait")
    cloud.until_up("web", boots=2)
    first = qemu_of(host, vm)
    lab.cli("vm", "reboot", "web", "--wait")
    cloud.until_up("web", boots=3)
    assert qemu_of(host, vm) != first

    with console(lab, "web") as shell:
        shell.type("poweroff\n")
        cloud.until_state("web", "stopped")
    assert "the guest powered itself off" in lab.cli("why", "vm", "web")
    lab.cli("vm", "start", "web", "--wait")
    assert host.run(["virsh", "-q", "domstate", vm]).strip() == "running"

    lab.cli("vm", "delete", "web", "--wait")
    assert cloud.vm("web") is None
    assert "differences: 0" in lab.cli("audit", "host", "h1")
    assert of_vm(host, vm) == []
    assert strangers(host, cloud.ids()) == []


@pytest.mark.timeout(480)  # five boots
def test_a_machine_is_resized_rebuilt_and_rescued(cloud: Cloud) -> None:
    lab = cloud.lab
    bounds = {"vcpus_max": 4, "memory_mib_max": 1024, "memory_mib_step": 64, "disk_gib_max": 4}
    cloud.make("/v1/sizes", "flexible", {"vcpus": 1, "memory_mib": 256, "disk_gib": 1, **bounds})
    with pytest.raises(CommandFailed, match="size flexible has 1 to 4 vCPUs"):
        lab.cli("vm", "create", "shape", "--image", IMAGE, "--size", "flexible", "--vcpus", "5")
    lab.cli("vm", "create", "shape", "--image", IMAGE, "--size", SIZE, "--wait")
    cloud.until_up("shape")
    address = cloud.address("shape")

    lab.cli(
        "vm",
        "resize",
        "shape",
        "--size",
        "flexible",
        "--vcpus",
        "2",
        "--memory-mib",
        "320",
        "--disk-gib",
        "2",
        "--wait",
    )
    row = next(line for line in lab.cli("vm", "list").splitlines() if line.startswith("shape "))
    waits = "waits for a restart (it was started with room for 256 MiB of memory): skerry vm reboot shape"
    assert f"its resize to 2 vCPUs and 320 MiB of memory {waits}" in row
    with console(lab, "shape") as shell:
        # The guest takes what was plugged in into use when it next looks.
        shell.must("for _ in $(seq 60); do [ $(nproc) = 2 ] && break; sleep 1; done; [ $(nproc) = 2 ]", timeout_s=90)
    lab.cli("vm", "reboot", "shape", "--wait")
    cloud.until_up("shape", boots=2)
    with console(lab, "shape") as shell:
        assert shell.must("nproc").strip() == "2"
        assert int(shell.must("cat /sys/block/vda/size")) == 2 << 21
        shell.must("echo mine >/dev/vda; sync")

    lab.cli("vm", "rescue", "shape", "--image", IMAGE, "--wait")
    cloud.until_up("shape", boots=3)
    with console(lab, "shape") as shell:
        assert shell.must("head -c4 /dev/vdb").strip() == "mine"
    assert "in rescue: it boots from image" in lab.cli("vm", "list")
    lab.cli("vm", "unrescue", "shape", "--wait")
    cloud.until_up("shape", boots=4)
    with console(lab, "shape") as shell:
        assert shell.must("head -c4 /dev/vda").strip() == "mine"

    lab.cli("vm", "rebuild", "shape", "--wait")
    cloud.until_up("shape", boots=5)
    with console(lab, "shape") as shell:
        assert "mine" not in shell.must("head -c4 /dev/vda")
    assert cloud.address("shape") == address
    assert len(cloud.must("GET", f"{cloud.vms.rpartition('/')[0]}/volumes")["items"]) == 1
    assert "differences: 0" in lab.cli("audit", "host", "h1")
    cloud.delete_vms("shape")


def test_a_machine_that_fits_nowhere_is_told_what_each_constraint_cost(cloud: Cloud) -> None:
    lab = cloud.lab
    cloud.make("/v1/sizes", "giant", {"vcpus": 200, "memory_mib": 1 << 20, "disk_gib": 1})
    operation = cloud.create("goliath", size="giant")["operation"]["id"]
    until(lambda: cloud.must("GET", f"/v1/operations/{operation}")["state"] == "blocked", lambda: cloud.said("goliath"))

    why = cloud.must("GET", f"{cloud.vms}/goliath/why")["why"]

    assert why["hosts"] == 1
    assert {cost["constraint"]: cost["hosts"] for cost in why["costs"]} == {"vcpus": 1, "memory": 1}
    assert re.search(r"ask for \d+ vCPUs less .* and ask for \d+ MiB of memory less", why["smallest_change"])
    assert cloud.must("GET", f"/v1/operations/{operation}")["why"] == why
    told = lab.cli("why", "vm", "goliath")
    assert why["smallest_change"] in told
    assert re.search(r"memory +1/1 +needs 1048576 MiB", told)
    with pytest.raises(CommandFailed, match="smallest change that would fit"):
        lab.cli("vm", "create", "david", "--image", IMAGE, "--size", "giant", "--wait", "--timeout", "30")
    cloud.delete_vms("goliath", "david")


def test_an_operation_can_be_listed_shown_and_cancelled(cloud: Cloud) -> None:
    lab = cloud.lab
    cloud.make("/v1/sizes", "giant", {"vcpus": 200, "memory_mib": 1 << 20, "disk_gib": 1})
    operation = cloud.create("regretted", size="giant")["operation"]["id"]
    until(
        lambda: cloud.must("GET", f"/v1/operations/{operation}")["state"] == "blocked", lambda: cloud.said("regretted")
    )
    assert operation in lab.cli("operation", "list", "--state", "blocked")
    shown = json.loads(lab.cli("operation", "show", operation, "-o", "json"))
    assert (shown["verb"], shown["name"], shown["state"]) == ("create", "regretted", "blocked")

    lab.cli("operation", "cancel", operation)

    assert cloud.until_done(operation)["state"] == "cancelled"
    cloud.gone(f"{cloud.vms}/regretted")


def test_a_guest_that_dies_is_started_again_by_itself(cloud: Cloud, guest: str) -> None:
    host, vm = cloud.lab.host("h1"), cloud.id(guest)
    dead = qemu_of(host, vm)
    host.run(["kill", "-9", str(dead)])
    cloud.until_up(guest, boots=2)
    assert qemu_of(host, vm) != dead
    cloud.until_state(guest, "running")


def test_guests_outlive_their_agent(cloud: Cloud, guest: str) -> None:
    host, vm = cloud.lab.host("h1"), cloud.id(guest)
    qemu = qemu_of(host, vm)
    with console(cloud.lab, guest) as shell:
        before = float(shell.must("cut -d' ' -f1 /proc/uptime"))
    dead = host.kill_agent()
    until(lambda: (now := host.agent()) is not None and now != dead, lambda: "the agent to be started again")
    cloud.lab.wait_for_hosts()
    assert qemu_of(host, vm) == qemu
    with console(cloud.lab, guest) as shell:
        assert float(shell.must("cut -d' ' -f1 /proc/uptime")) > before
    assert boots_in(cloud.serial_log(guest)) == 1


def test_a_guest_that_no_metadata_service_answers_reads_its_nocloud_disk(cloud: Cloud) -> None:
    host = cloud.lab.host("h1")
    cloud.create("diskette", nocloud=True)
    cloud.until_state("diskette", "running")
    vm = cloud.id("diskette")
    host.hold_agent()  # it is the one who serves metadata
    log = host.inside(f"/srv/skerry-agent/consoles/{vm}.log")
    try:
        until(lambda: " login:" in log.read_text(), lambda: f"the login prompt: {log.read_text()}", 90)
    finally:
        host.release_agent()
    said = log.read_text()
    assert f"nocloud instance-id {vm}" in said
    assert "diskette login:" in said
    assert "key ssh-ed25519" in said
    cloud.lab.wait_for_hosts()


def test_a_create_is_completed_though_the_controller_is_killed_in_the_middle(cloud: Cloud) -> None:
    operation = cloud.create("halfway")["operation"]["id"]
    dead = cloud.lab.controller.kill()
    assert not alive(dead)
    assert cloud.until_done(operation)["state"] == "done"
    cloud.until_up("halfway")
    vm = cloud.id("halfway")
    assert cloud.lab.host("h1").run(["virsh", "-q", "list", "--name"]).split().count(vm) == 1
    cloud.delete_vms("halfway")


def test_metrics_cover_host_machine_and_control_plane(cloud: Cloud, guest: str) -> None:
    vm = cloud.id(guest)

    def scraped() -> str:
        with urlopen(f"{cloud.lab.url}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    def value(line: str) -> float:
        found = re.search(rf"^{line} (\S+)$", scraped(), re.MULTILINE)
        return float(found[1]) if found else -1.0

    machine = rf'skerry_vm_cpu_seconds_total\{{host="h1",project="demo",vm="{guest}",vm_id="{vm}"\}}'
    until(lambda: value(machine) > 0.5, lambda: f"{machine} in {scraped()}", 30)
    assert value(r'skerry_host_connected\{host="h1"\}') == 1
    assert value(r'skerry_host_guests_running\{host="h1"\}') >= 1
    assert value(r'skerry_host_memory_bytes\{host="h1"\}') > 1 << 30
    assert value("skerry_ready") == 1
    assert "skerry_http_request_seconds_bucket" in scraped()


def test_parallel_creates_never_sell_the_same_memory_twice(cloud: Cloud) -> None:
    host = cloud.must("GET", "/v1/hosts/h1")["resource"]
    sellable = host["status"]["memory_mib"] - host["spec"]["reserved_memory_mib"]
    fit, asked = 3, 20
    cloud.make("/v1/sizes", "third", {"vcpus": 1, "memory_mib": sellable // fit, "disk_gib": 1})
    names = [f"greedy-{number}" for number in range(asked)]

    with ThreadPoolExecutor(asked) as pool:
        list(pool.map(lambda name: cloud.create(name, size="third"), names))

    def states() -> dict[str, int]:
        page = cloud.must("GET", f"{cloud.vms}?name=greedy-&limit=100")
        seen = [one["status"]["state"] for one in page["items"]]
        return {state: seen.count(state) for state in set(seen)}

    until(lambda: states() == {"running": fit, "blocked": asked - fit}, lambda: f"{fit} of {asked}: {states()}", 60)
    domains = cloud.lab.host("h1").run(["virsh", "-q", "list", "--all", "--name"]).split()
    greedy = {cloud.id(name) for name in names}
    assert len(greedy & set(domains)) == fit

    lucky = next(name for name in names if (cloud.vm(name) or {})["status"]["state"] == "running")
    cloud.delete_vms(lucky)
    until(lambda: states() == {"running": fit, "blocked": asked - fit - 1}, lambda: f"the next to run: {states()}", 60)
    cloud.delete_vms(*(name for name in names if name != lucky))


def test_nothing_is_stuck_or_left_after_cycles_under_kill_9(cloud: Cloud) -> None:
    deaths = run_cycles(cloud, Plan(cycles=10, seed=int.from_bytes(os.urandom(4), "big"), prefix="short"))
    assert sum(deaths.values()) > 0
