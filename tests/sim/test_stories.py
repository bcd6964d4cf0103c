"""Single stories of the whole world: what happens when just this goes wrong."""

import pytest

from common import names
from common.errors import OutOfSpace
from common.kinds.kind import AnyResource
from common.refusal import Refusal
from controller.fleet.audit import compare
from sim.cloud import Cloud
from sim.process import Agent
from sim.world import BOOT_S, Node
from tests.sim.lives import clear, gone, prepare, quiet, reaches


def boot(cloud: Cloud, name: str = "web", **spec: object) -> Node:
    """Have a VM that runs, and return the node it runs on."""
    cloud.create("vm", "shop", name, **{"image": "tiny", "size": "small"} | spec)
    reaches(cloud, "vm", "shop", name, "running")
    return node_of(cloud, name)


def node_of(cloud: Cloud, name: str) -> Node:
    placement = cloud.seen.placement(row(cloud, "vm", name).id)
    assert placement is not None
    return next(node for node in cloud.world.nodes.values() if node.host == placement.host)


def row(cloud: Cloud, kind: str, name: str) -> AnyResource:
    return cloud.find(kind, "" if kind in ("host", "size", "project") else "shop", name)


def refusal_of(cloud: Cloud, name: str) -> Refusal:
    why = row(cloud, "vm", name).status.why
    assert isinstance(why, Refusal)
    return why


# --- capacity -----------------------------------------------------------------------------------------------------


def test_a_vm_without_a_host_says_why_and_starts_when_one_is_opened(cloud: Cloud) -> None:
    prepare(cloud, hosts=1)
    cloud.change("host", "", "h0", schedulable=False)
    cloud.world.run(1)
    done = cloud.create("vm", "shop", "web", image="tiny", size="small")
    cloud.world.run(1)
    assert row(cloud, "vm", "web").status.state == "blocked"
    assert refusal_of(cloud, "web").smallest_change == "open host h0 (skerry host set h0 --schedulable)"
    operation = cloud.seen.operation(done.operation.id)
    assert operation is not None
    assert (operation.state, operation.why) == ("blocked", refusal_of(cloud, "web"))
    cloud.change("host", "", "h0", schedulable=True)
    cloud.world.run(2)
    assert row(cloud, "vm", "web").status.state == "running"
    clear(cloud)


@pytest.mark.parametrize("way", ["a host joins", "a machine goes", "its ratio is raised", "it comes back"])
def test_a_blocked_vm_starts_as_soon_as_there_is_room(cloud: Cloud, way: str) -> None:
    prepare(cloud, hosts=1)
    cloud.create("size", "", "whole", vcpus=16, memory_mib=4096, disk_gib=40)
    boot(cloud, "first", size="whole")
    if way == "it comes back":
        cloud.delete("vm", "shop", "first")
        gone(cloud, "vm")
        cloud.world.nodes["h0"].cut_off = True
        wire = cloud.world.nodes["h0"].wire
        assert wire is not None
        wire.pull()
        cloud.world.run(10)
    cloud.create("vm", "shop", "second", image="tiny", size="whole")
    cloud.world.run(1)
    assert row(cloud, "vm", "second").status.state == "blocked"
    match way:
        case "a host joins":
            cloud.create("host", "", "h1")
            cloud.join("h1")
        case "a machine goes":
            cloud.delete("vm", "shop", "first")
        case "its ratio is raised":
            cloud.change("host", "", "h0", cpu_overcommit=16.0)
        case _:
            cloud.world.nodes["h0"].cut_off = False
    cloud.world.run(5)
    assert row(cloud, "vm", "second").status.state == "running"
    clear(cloud)


def test_a_full_subnet_blocks_with_its_own_words_until_an_address_is_free(cloud: Cloud) -> None:
    prepare(cloud)
    cloud.create("network", "shop", "narrow", cidr="10.30.0.0/29")
    for number in range(5):
        boot(cloud, f"vm{number}", networks=["narrow"])
    cloud.create("vm", "shop", "late", image="tiny", size="small", networks=["narrow"])
    cloud.world.run(1)
    assert refusal_of(cloud, "late").summary == "subnet 10.30.0.0/29 has no free address: all 5 are taken"
    assert cloud.seen.placement(row(cloud, "vm", "late").id) is None
    cloud.delete("vm", "shop", "vm3")
    cloud.world.run(5)
    assert row(cloud, "vm", "late").status.state == "running"
    clear(cloud)


# --- power ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["stop", "reboot"])
def test_a_verb_that_is_taken_back_while_the_guest_obeys_leaves_it_running(cloud: Cloud, verb: str) -> None:
    prepare(cloud, hosts=1)
    boot(cloud)
    asked = cloud.verb("shop", "web", verb)
    cloud.world.run(1)
    assert node_of(cloud, "web").machine.guests.runs[row(cloud, "vm", "web").id].off_at is not None
    cloud.cancel(asked.operation.id)
    cloud.world.run(60)
    assert row(cloud, "vm", "web").status.state == "running"
    clear(cloud)


def test_an_operation_is_done_at_the_moment_its_wish_has_come_true_and_not_before(cloud: Cloud) -> None:
    prepare(cloud, hosts=1)
    node = boot(cloud)
    vm = row(cloud, "vm", "web").id
    for verb, boots in (("stop", None), ("start", 1), ("reboot", 2), ("stop", None), ("start", 2)):
        asked = cloud.verb("shop", "web", verb).operation.id
        cloud.world.run_until(
            lambda asked=asked: cloud.seen.operation(asked).finished_at is not None,  # type: ignore[misc, union-attr]
            limit_s=60,
            what=f"{verb} is done",
        )
        run = node.machine.guests.runs.get(vm)
        assert (run.stamp.boot_generation if run else None) == boots, f"after {verb}"
    gone_at = cloud.delete("vm", "shop", "web").operation.id
    cloud.world.run_until(
        lambda: cloud.seen.operation(gone_at).finished_at is not None,  # type: ignore[union-attr]
        limit_s=60,
        what="the delete is done",
    )
    assert not node.machine.guests.definitions
    assert not node.machine.disks


def test_a_reboot_that_was_taken_back_too_late_does_not_swallow_the_next_one(cloud: Cloud) -> None:
    prepare(cloud, hosts=1)
    node = boot(cloud)
    runs, vm = node.machine.guests.runs, row(cloud, "vm", "web").id
    asked = cloud.verb("shop", "web", "reboot")
    cloud.world.run_until(
        lambda: vm in runs and runs[vm].stamp.boot_generation == 2, limit_s=30, what="the guest has rebooted"
    )
    cloud.cancel(asked.operation.id)
    cloud.world.run(5)
    first = runs[vm].started_at
    cloud.verb("shop", "web", "reboot")
    cloud.world.run(10)
    assert runs[vm].started_at > first
    clear(cloud)


def cut_off_once(cloud: Cloud, node: Node, boots: int) -> None:
    """Let the host carry out a boot that was asked for, and lose its link before it can tell."""
    runs = node.machine.guests.runs
    cloud.world.run(0.1)  # it is asked; its guest powers off in seconds
    node.cut_off = True
    assert node.wire is not None
    node.wire.pull()
    (vm,) = node.machine.guests.definitions
    cloud.world.run_until(lambda: vm in runs and runs[vm].stamp.boot_generation == boots, limit_s=30, what="it booted")


def test_a_rescue_that_was_taken_back_too_late_is_undone(cloud: Cloud) -> None:
    prepare(cloud, hosts=1)
    node = boot(cloud)
    (before,) = [run.disks for run in node.machine.guests.runs.values()]
    asked = cloud.verb("shop", "web", "rescue")
    cut_off_once(cloud, node, boots=2)
    cloud.cancel(asked.operation.id)
    node.cut_off = False
    cloud.world.run(60)
    assert [run.disks for run in node.machine.guests.runs.values()] == [before]
    assert row(cloud, "vm", "web").status.state == "running"
    quiet(cloud)
    clear(cloud)


def test_a_host_that_never_heard_of_the_cancel_takes_the_next_reboot_for_a_new_one(cloud: Cloud) -> None:
    prepare(cloud, hosts=1)
    node = boot(cloud)
    asked = cloud.verb("shop", "web", "reboot")
    cut_off_once(cloud, node, boots=2)
    (first,) = [run.started_at for run in node.machine.guests.runs.values()]
    cloud.cancel(asked.operation.id)
    cloud.verb("shop", "web", "reboot")
    node.cut_off = False
    cloud.world.run(60)
    (last,) = [run.started_at for run in node.machine.guests.runs.values()]
    assert last > first
    clear(cloud)


@pytest.mark.parametrize("verb", ["stop", "reboot"])
def test_a_slow_guest_that_obeys_after_it_is_wanted_again_is_started(cloud: Cloud, verb: str) -> None:
    prepare(cloud, hosts=1)
    node = boot(cloud, stop_grace_s=2)
    vm = row(cloud, "vm", "web").id
    asked = cloud.verb("shop", "web", verb)
    cloud.world.run(1)
    cloud.cancel(asked.operation.id)
    node.machine.guests.runs[vm].off_at = cloud.world.now + 100
    cloud.world.run(130)
    assert row(cloud, "vm", "web").status.state == "running"
    assert cloud.world.now - node.machine.guests.runs[vm].started_at < 40
    clear(cloud)


def test_a_start_while_the_guest_still_stops_ends_running(cloud: Cloud) -> None:
    prepare(cloud, hosts=1)
    boot(cloud)
    cloud.verb("shop", "web", "stop")
    cloud.world.run(1)
    cloud.verb("shop", "web", "start")
    cloud.world.run(60)
    assert row(cloud, "vm", "web").status.state == "running"
    clear(cloud)


def test_a_guest_that_powers_itself_off_stays_off_until_started(cloud: Cloud) -> None:
    prepare(cloud, hosts=1)
    node = boot(cloud)
    node.machine.guests.guest_ends(row(cloud, "vm", "web").id, "guest")
    cloud.world.run(120)
    vm = row(cloud, "vm", "web")
    assert (vm.status.state, vm.status.message) == ("stopped", "the guest powered itself off: skerry vm start web")
    cloud.world.cut_power("h0")
    cloud.world.run(BOOT_S + 60)
    assert row(cloud, "vm", "web").status.state == "stopped"
    cloud.verb("shop", "web", "start")
    cloud.world.run(5)
    assert row(cloud, "vm", "web").status.state == "running"
    clear(cloud)


def test_a_guest_that_crashes_is_started_again_and_that_is_told(cloud: Cloud) -> None:
    prepare(cloud, hosts=1)
    node = boot(cloud)
    node.machine.guests.guest_ends(row(cloud, "vm", "web").id, "crashed")
    cloud.world.run(10)
    assert row(cloud, "vm", "web").status.state == "running"
    clear(cloud)


def test_a_deaf_guest_is_cut_off_after_its_grace(cloud: Cloud) -> None:
    prepare(cloud, hosts=1)
    node = boot(cloud, stop_grace_s=10)
    run = node.machine.guests.runs[row(cloud, "vm", "web").id]
    run.deaf = True
    cloud.verb("shop", "web", "stop")
    cloud.world.run(9)
    assert row(cloud, "vm", "web").status.state == "stopping"
    cloud.world.run(3)
    assert row(cloud, "vm", "web").status.state == "stopped"
    clear(cloud)


# --- hosts ---------------------------------------------------------------------------------------------------------


def test_a_host_whose_plug_was_pulled_boots_its_vms_with_the_controller_gone(cloud: Cloud) -> None:
    prepare(cloud, hosts=1)
    node = boot(cloud)
    vm = row(cloud, "vm", "web").id
    cloud.world.kill_controller()
    cloud.world._controller_starts_at = cloud.world.now + 3600
    cloud.world.cut_power("h0")
    assert not node.machine.guests.runs
    cloud.world.run(BOOT_S + 10)
    assert cloud.world.controller is None
    assert vm in node.machine.guests.runs
    served = node.machine.kernel.networks
    assert all(own.served and own.leases for own in served.values())
    cloud.world.run(3600)
    clear(cloud)


def test_a_host_shows_what_its_agent_said(cloud: Cloud) -> None:
    prepare(cloud, hosts=1)
    status = row(cloud, "host", "h0").status
    assert (status.state, status.agent_version, status.cpu_threads, status.address) == ("ready", "sim", 4, "10.77.0.10")


def test_a_vm_on_a_lost_host_is_deleted_with_the_host(cloud: Cloud) -> None:
    prepare(cloud)
    boot(cloud, host="h0")
    boot(cloud, "db", host="h1")
    cloud.world.remove_machine("h0")
    cloud.delete("vm", "shop", "web")
    cloud.world.run(60)
    assert "host h0 has not been connected since" in row(cloud, "vm", "web").status.message
    cloud.delete("host", "", "h0")
    cloud.world.run(30)
    assert cloud.seen.named("vm", "shop", "web") is None
    assert cloud.seen.named("host", "", "h0") is None
    quiet(cloud)
    clear(cloud)


def test_a_machine_that_joins_anew_with_an_empty_disk_is_filled_again(cloud: Cloud) -> None:
    prepare(cloud, hosts=1)
    boot(cloud)
    cloud.world.remove_machine("h0")
    node = cloud.join("h0")
    cloud.world.run(30)
    assert row(cloud, "vm", "web").id in node.machine.guests.runs
    clear(cloud)


def test_a_host_with_an_old_certificate_is_turned_away(cloud: Cloud) -> None:
    prepare(cloud, hosts=1)
    node = cloud.world.nodes["h0"]
    old = node.serial
    cloud.join("h0")
    node.serial = old
    cloud.world.run(30)
    assert node.session is None
    assert row(cloud, "host", "h0").status.state == "unreachable"


def test_an_unchanged_host_says_nothing_again_after_a_cut(cloud: Cloud) -> None:
    prepare(cloud, hosts=1)
    node = boot(cloud)
    cloud.world.run(60)
    assert node.wire is not None
    node.wire.pull()
    cloud.world.run_until(lambda: node.wire is not None and not node.wire.cut, limit_s=30, what="the link is back")
    assert node.wire is not None
    assert not node.wire._frames, "wish and reports were compared by digest alone"


# --- drift ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["bridge", "vxlan", "outer", "namespace", "fdb", "domain", "disk"])
def test_the_audit_names_what_somebody_removed(cloud: Cloud, what: str) -> None:
    prepare(cloud)
    node = boot(cloud, host="h0")
    boot(cloud, "db", host="h1")
    cloud.world.run(10)
    vm, network = row(cloud, "vm", "web").id, row(cloud, "network", "default").id
    kernel = node.machine.kernel
    match what:
        case "bridge" | "vxlan":
            kernel.remove_device((names.bridge if what == "bridge" else names.vxlan)(network))
        case "outer":
            kernel.remove_device(names.gateway_outer(network))
        case "namespace":
            kernel.remove_namespace(network)
        case "fdb":
            kernel.networks[network].tunnels.clear()
            kernel.networks[network].forwards.clear()
        case "domain":
            node.machine.guests.destroy(vm)
            node.machine.guests.undefine(vm)
        case _:
            node.machine.disks.clear()
    found = cloud.world.within_agent(node, Agent.survey)
    assert found is not None
    differences = compare(cloud.seen, node.host, found)
    assert differences
    assert {one.problem for one in differences} <= {"missing", "orphan"}
    if what == "disk":
        return  # what was on it is lost: a blank one is made in its place
    cloud.world.run(120)
    quiet(cloud)
    clear(cloud)


def test_a_lost_message_is_made_up_for(cloud: Cloud) -> None:
    prepare(cloud, hosts=1)
    boot(cloud)
    for verb, state in (("stop", "stopped"), ("start", "running")) * 3:
        wire = cloud.world.nodes["h0"].wire
        assert wire is not None
        wire.accidents.append("lose")
        cloud.verb("shop", "web", verb)
        reaches(cloud, "vm", "shop", "web", state)
    clear(cloud)


def test_a_host_whose_hello_could_not_be_noted_is_not_shown_as_connected(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(cloud, hosts=1)
    node = cloud.world.nodes["h0"]
    controller = cloud.world.controller
    assert controller is not None
    assert node.wire is not None

    async def full(_event: object) -> None:
        raise OutOfSpace("the disk is full")

    node.wire.pull()
    node.cut_off = True
    cloud.world.run(10)
    with monkeypatch.context() as patch:
        patch.setattr(controller.store, "append", full)
        node.cut_off = False
        cloud.world.run(20)
        assert node.session is None
        assert not cloud.seen.host(node.host).connected
    cloud.world.run(20)
    assert cloud.seen.host(node.host).connected


# --- firmware ------------------------------------------------------------------------------------------------------


def test_a_tpm_keeps_what_it_holds_over_stops_rescues_and_power_cuts_until_a_rebuild(cloud: Cloud) -> None:
    prepare(cloud, hosts=3)
    boot(cloud, firmware="uefi-secure", tpm=True)
    vm = row(cloud, "vm", "web")
    node = next(node for node in cloud.world.nodes.values() if vm.id in node.machine.guests.runs)
    guests = node.machine.guests
    assert guests.runs[vm.id].started == ("uefi-secure", True)
    first = guests.tpms[vm.id]
    for verb in ("stop", "start", "rescue", "unrescue"):
        cloud.verb("shop", "web", verb)
        cloud.world.run(60)
        assert (guests.tpms[vm.id], guests.forgotten) == (first, [])
    cloud.world.cut_power(node.machine.name)
    cloud.world.run(60)
    assert vm.id in guests.runs
    assert (guests.tpms[vm.id], guests.forgotten) == (first, [])
    cloud.verb("shop", "web", "rebuild")
    cloud.world.run(60)
    assert vm.id in guests.runs
    assert (guests.tpms[vm.id] != first, guests.forgotten) == (True, [first])
    cloud.change("vm", "shop", "web", firmware="uefi", tpm=False)
    cloud.verb("shop", "web", "reboot")
    cloud.world.run(60)
    assert guests.runs[vm.id].started == ("uefi", False)
    clear(cloud)
