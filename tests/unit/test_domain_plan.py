"""What a domain needs next, and that a death between any two steps is made good by the next turn."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.drivers.hypervisor import LiveDomain, Sharing
from agent.drivers.place import BootFiles, Place
from agent.kinds.balloon import AGAIN_S, HostMemory
from agent.kinds.domain_plan import (
    BuildSeed,
    Define,
    Destroy,
    DomainView,
    PressPowerButton,
    RemoveFiles,
    Resume,
    SetMemory,
    Share,
    Stamp,
    Start,
    Undefine,
    plan,
)
from agent.kinds.domain_xml import domain_xml
from agent.kinds.unit import Do, Mark, Settled, UnitKey, Wait, Wish
from common.documents import Desired, DomainDoc, DomainSeen, GuestMetadata, ImageRef, Nic, key_of
from common.ids import Id, Revision

VM = Id("vm-0123456789ab")
PLACE = Place(
    volumes=Path("/pool"),
    images=Path("/images"),
    logs=Path("/logs"),
    seeds=Path("/seeds"),
    variables=Path("/variables"),
    vouchers=Path("/vouchers"),
    virtualisation="tcg",
    direct_io=False,
)
BOOT = BootFiles(kernel="/k", initrd="/i", cmdline="")
NOW = 1000.0


def doc(**changes: Any) -> DomainDoc:
    base = DomainDoc(
        id=VM,
        name="web",
        project="p",
        vcpus=1,
        memory_mib=256,
        kernel=ImageRef(digest="sha256:" + "a" * 64, format="kernel", size_bytes=1),
        volumes=(Id("vol-0123456789ab"),),
        nics=(Nic(index=0, network=Id("net-0123456789ab"), mac="02:00:00:00:00:01", mtu=1400),),
        power="running",
        start_generation=1,
        boot_generation=1,
        restart="on-crash",
        stop_grace_s=20,
        nocloud=False,
        metadata=GuestMetadata(
            instance_id=VM, hostname="web", project="p", public_keys=(), user_data="", host="host-a"
        ),
    )
    return msgspec.structs.replace(base, **changes)


def wish(of: DomainDoc, *, gone: bool = False, marks: Mapping[str, str] | None = None) -> Wish:
    item = Desired(key=key_of(of), revision=Revision(7), doc=of, gone=gone)
    return Wish(unit=UnitKey(item.key), items={item.key: item}, marks=marks or {})


def live(of: DomainDoc, activity: str = "running", cause: str = "", **changes: Any) -> LiveDomain:
    found = LiveDomain(
        vm=of.id,
        activity=activity,  # type: ignore[arg-type]
        cause=cause,  # type: ignore[arg-type]
        start_generation=of.start_generation,
        boot_generation=of.boot_generation,
        shape=domain_xml(of, PLACE, BOOT).shape,
        started_at=0 if activity == "off" else 900,
    )
    return msgspec.structs.replace(found, **changes)


def view(domain: LiveDomain | None, **changes: Any) -> DomainView:
    return msgspec.structs.replace(DomainView(place=PLACE, domain=domain, boot=BOOT, files=True), **changes)


def step_of(outcome: object) -> object:
    assert isinstance(outcome, Do), outcome
    return outcome.step


def settled(outcome: object) -> DomainSeen:
    assert isinstance(outcome, Settled), outcome
    (report,) = outcome.reports
    assert report.done
    assert isinstance(report.seen, DomainSeen)
    return report.seen


def test_a_new_machine_is_defined_then_started_then_settled() -> None:
    wanted = doc()
    assert isinstance(step_of(plan(wish(wanted), view(None), NOW)), Define)
    assert step_of(plan(wish(wanted), view(live(wanted, "off", "unknown")), NOW)) == Start(vm=VM, revives="")
    assert settled(plan(wish(wanted), view(live(wanted)), NOW)) == DomainSeen(
        state="running", start_generation=1, boot_generation=1, started_at=900
    )


def test_start_waits_for_what_is_missing_and_names_it() -> None:
    seen = view(None, missing_volumes=(Id("vol-0123456789ab"),), missing_networks=(Id("net-0123456789ab"),), boot=None)
    outcome = plan(wish(doc()), seen, NOW)
    assert isinstance(outcome, Wait)
    for word in ("vol-0123456789ab", "net-0123456789ab", "kernel image"):
        assert word in outcome.message
    assert not outcome.reports[0].done


def test_a_machine_without_a_kernel_image_boots_from_its_disk() -> None:
    wanted = doc(kernel=None)
    outcome = step_of(plan(wish(wanted), view(None, boot=None), NOW))
    assert isinstance(outcome, Define)
    assert "<kernel>" not in outcome.xml


@pytest.mark.parametrize("cause", ["crashed", "destroyed", "host"])
def test_a_machine_that_ended_unasked_is_started_again(cause: str) -> None:
    assert step_of(plan(wish(doc()), view(live(doc(), "off", cause)), NOW)) == Start(vm=VM, revives=cause)  # type: ignore[arg-type]


def test_after_a_host_restart_the_machine_is_started() -> None:
    assert step_of(plan(wish(doc()), view(live(doc(), "off", "unknown")), NOW)) == Start(vm=VM, revives="")


def test_a_crash_loop_is_slowed_down() -> None:
    seen = view(live(doc(), "off", "crashed"), starts=(NOW - 9, NOW - 6, NOW - 1))
    outcome = plan(wish(doc()), seen, NOW)
    assert isinstance(outcome, Wait)
    assert outcome.seconds == pytest.approx(3)
    assert isinstance(step_of(plan(wish(doc()), seen, NOW + 3.1)), Start)


def test_old_starts_do_not_slow_down_a_restart() -> None:
    seen = view(live(doc(), "off", "crashed"), starts=(NOW - 5000, NOW - 4000, NOW - 3000))
    assert isinstance(step_of(plan(wish(doc()), seen, NOW)), Start)


def test_a_guest_that_powered_itself_off_is_noted_and_stays_off() -> None:
    off = view(live(doc(), "off", "guest"))
    assert plan(wish(doc()), off, NOW) == Mark(name="stopped-by-guest", value="1.1")
    assert settled(plan(wish(doc(), marks={"stopped-by-guest": "1.1"}), off, NOW)).state == "stopped-by-guest"
    restarted = view(live(doc(), "off", "unknown"))
    assert settled(plan(wish(doc(), marks={"stopped-by-guest": "1.1"}), restarted, NOW)).state == "stopped-by-guest"


@pytest.mark.parametrize("change", [{"start_generation": 2}, {"boot_generation": 2}])
def test_a_higher_generation_revives_a_guest_that_powered_itself_off(change: dict[str, int]) -> None:
    wanted = doc(**change)
    marks = {"stopped-by-guest": "1.1"}
    assert isinstance(step_of(plan(wish(wanted, marks=marks), view(live(doc(), "off", "guest")), NOW)), Define)
    fresh = view(live(wanted, "off", "unknown"))
    assert step_of(plan(wish(wanted, marks=marks), fresh, NOW)) == Start(vm=VM, revives="")


def test_restart_never_leaves_a_crashed_machine_off() -> None:
    wanted = doc(restart="never")
    assert settled(plan(wish(wanted), view(live(wanted, "off", "crashed")), NOW)).state == "crashed"


def test_restart_never_survives_libvirt_forgetting_why_it_is_off() -> None:
    wanted = doc(restart="never")
    assert plan(wish(wanted), view(live(wanted)), NOW) == Mark(name="started", value="1.1")
    seen = view(live(wanted, "off", "unknown"))
    assert settled(plan(wish(wanted, marks={"started": "1.1"}), seen, NOW)).state == "crashed"
    assert isinstance(step_of(plan(wish(wanted), seen, NOW)), Start)


def test_restart_never_starts_again_on_a_new_wish() -> None:
    wanted = doc(restart="never", start_generation=2)
    seen = view(live(doc(restart="never"), "off", "crashed"))
    assert isinstance(step_of(plan(wish(wanted, marks={"started": "1.1"}), seen, NOW)), Define)


def test_stop_asks_first_and_cuts_the_power_after_the_grace() -> None:
    wanted = doc(power="stopped")
    running = live(doc())
    assert plan(wish(wanted), view(running), NOW) == Mark(name="stop-asked-at", value="1000.000 900.000")
    marks = {"stop-asked-at": "1000.000 900.000"}
    assert step_of(plan(wish(wanted, marks=marks), view(running), NOW)) == PressPowerButton(vm=VM)
    waiting = plan(wish(wanted, marks=marks), view(running, pressed_at=NOW), NOW + 1)
    assert isinstance(waiting, Wait)
    assert waiting.seconds == pytest.approx(4)
    assert step_of(plan(wish(wanted, marks=marks), view(running, pressed_at=NOW), NOW + 5)) == PressPowerButton(vm=VM)
    assert step_of(plan(wish(wanted, marks=marks), view(running, pressed_at=NOW), NOW + 20)) == Destroy(vm=VM)


def test_a_stop_without_grace_cuts_the_power_at_once() -> None:
    assert step_of(plan(wish(doc(power="stopped", stop_grace_s=0)), view(live(doc())), NOW)) == Destroy(vm=VM)


def test_the_grace_of_an_earlier_run_does_not_count() -> None:
    marks = {"stop-asked-at": "990.000 700.000"}
    outcome = plan(wish(doc(power="stopped"), marks=marks), view(live(doc())), NOW)
    assert outcome == Mark(name="stop-asked-at", value="1000.000 900.000")


@pytest.mark.parametrize("wanted", [doc(power="stopped"), doc(start_generation=2)], ids=["stop", "taken back"])
def test_a_clock_that_was_set_back_begins_the_grace_anew(wanted: DomainDoc) -> None:
    asked = {"stop-asked-at": "1000.000 900.000"}
    outcome = plan(wish(wanted, marks=asked), view(live(doc()), pressed_at=NOW), NOW - 500)
    assert outcome == Mark(name="stop-asked-at", value="500.000 900.000")
    asked = {"stop-asked-at": "500.000 900.000"}
    seen = view(live(doc()), pressed_at=NOW)
    after = plan(wish(wanted, marks=asked), seen, NOW - 499)
    assert isinstance(after, Wait) or step_of(after) == PressPowerButton(vm=VM)


def test_a_clock_that_was_set_back_delays_no_machine_that_crashed() -> None:
    crashed = view(live(doc(), "off", "crashed"), starts=(NOW + 3600, NOW + 3601, NOW + 3602))
    assert isinstance(step_of(plan(wish(doc()), crashed, NOW)), Start)


ASKED = {"stop-asked-at": "1000.000 900.000"}
ASKED_LONG_AGO = {"stop-asked-at": "taken-back 900.000"}


def test_a_stopped_machine_is_settled_and_remembers_that_it_was_asked_while_its_end_is_known() -> None:
    wanted = doc(power="stopped")
    assert settled(plan(wish(wanted, marks=ASKED), view(live(wanted, "off", "guest")), NOW)).state == "stopped"
    forgotten = view(live(wanted, "off", "unknown"))
    assert plan(wish(wanted, marks=ASKED), forgotten, NOW) == Mark(name="stop-asked-at", value=None)


def test_start_after_stop_while_it_is_still_powering_off_waits_then_starts() -> None:
    wanted = doc(start_generation=2)
    marks = {"stop-asked-at": "1000.000 900.000"}
    waiting = plan(wish(wanted, marks=marks), view(live(doc()), pressed_at=NOW), NOW + 2)
    assert isinstance(waiting, Wait)
    assert not waiting.reports[0].done
    off = view(live(doc(), "off", "guest"))
    assert isinstance(step_of(plan(wish(wanted, marks=marks), off, NOW + 3)), Define)
    defined = view(live(wanted, "off", "unknown"))
    assert step_of(plan(wish(wanted, marks=marks), defined, NOW + 3)) == Start(vm=VM, revives="")


def test_a_guest_that_ignored_the_button_is_kept_when_it_is_wanted_again() -> None:
    wanted = doc(start_generation=2)
    running = view(live(doc()), pressed_at=NOW)
    taken_back = Mark(name="stop-asked-at", value="taken-back 900.000")
    assert plan(wish(wanted, marks=ASKED), running, NOW + 21) == taken_back
    assert isinstance(step_of(plan(wish(wanted, marks=ASKED_LONG_AGO), running, NOW + 21)), Stamp)
    assert settled(plan(wish(wanted, marks=ASKED_LONG_AGO), view(live(wanted)), NOW + 22)).state == "running"


@pytest.mark.parametrize("marks", [ASKED, ASKED_LONG_AGO], ids=["in its grace", "after it"])
def test_a_guest_that_powers_off_as_asked_after_it_is_wanted_again_is_started_however_late(
    marks: dict[str, str],
) -> None:
    off = view(live(doc(), "off", "guest"))
    assert step_of(plan(wish(doc(), marks=marks), off, NOW + 9999)) == Start(vm=VM, revives="")


def test_a_guest_that_was_asked_once_and_crashes_later_is_revived() -> None:
    crashed = view(live(doc(), "off", "crashed"))
    assert step_of(plan(wish(doc(), marks=ASKED_LONG_AGO), crashed, NOW)) == Start(vm=VM, revives="crashed")
    never = doc(restart="never")
    crashed = view(live(never, "off", "crashed"))
    assert settled(plan(wish(never, marks=ASKED_LONG_AGO), crashed, NOW)).state == "crashed"


@pytest.mark.parametrize("marks", [ASKED, ASKED_LONG_AGO])
def test_the_next_run_forgets_what_was_asked_of_the_last(marks: dict[str, str]) -> None:
    next_run = view(live(doc(), started_at=2000))
    assert plan(wish(doc(), marks=marks), next_run, NOW) == Mark(name="stop-asked-at", value=None)


def test_a_guest_that_ignored_a_stop_is_asked_again_by_the_next_one() -> None:
    outcome = plan(wish(doc(power="stopped"), marks=ASKED_LONG_AGO), view(live(doc())), NOW)
    assert outcome == Mark(name="stop-asked-at", value="1000.000 900.000")


def test_a_boot_that_is_taken_back_before_it_came_leaves_the_machine_as_it_is() -> None:
    assert settled(plan(wish(doc()), view(live(doc())), NOW)).boot_generation == 1


def test_a_plain_reboot_that_is_taken_back_too_late_is_not_done_again() -> None:
    assert isinstance(step_of(plan(wish(doc()), view(live(doc(boot_generation=2))), NOW)), Stamp)


def test_a_boot_into_other_hardware_that_is_taken_back_too_late_is_undone() -> None:
    rescued = live(doc(boot_generation=2, volumes=(Id("vol-rescue000000"), Id("vol-0123456789ab"))))
    outcome = plan(wish(doc()), view(rescued), NOW)
    assert outcome == Mark(name="stop-asked-at", value="1000.000 900.000")
    off = msgspec.structs.replace(rescued, activity="off", cause="guest", started_at=0)
    assert isinstance(step_of(plan(wish(doc(), marks=ASKED), view(off), NOW)), Define)


def test_starting_a_running_machine_only_stamps_it() -> None:
    step = step_of(plan(wish(doc(start_generation=2)), view(live(doc())), NOW))
    assert isinstance(step, Stamp)
    assert 'start_generation="2"' in step.metadata


def test_a_running_machine_without_our_metadata_is_stamped_and_not_rebooted() -> None:
    bare = live(doc(), start_generation=None, boot_generation=None, shape="")
    assert isinstance(step_of(plan(wish(doc()), view(bare), NOW)), Stamp)


def test_reboot_powers_off_gracefully_and_starts_with_the_new_generation() -> None:
    wanted = doc(boot_generation=2)
    running = live(doc())
    assert plan(wish(wanted), view(running), NOW) == Mark(name="stop-asked-at", value="1000.000 900.000")
    marks = {"stop-asked-at": "1000.000 900.000"}
    assert step_of(plan(wish(wanted, marks=marks), view(running), NOW)) == PressPowerButton(vm=VM)
    off = view(live(doc(), "off", "guest"))
    assert isinstance(step_of(plan(wish(wanted), off, NOW)), Define)
    assert step_of(plan(wish(wanted), view(live(wanted, "off", "unknown")), NOW)) == Start(vm=VM, revives="")
    assert settled(plan(wish(wanted), view(live(wanted)), NOW)).boot_generation == 2


def test_a_stopped_machine_is_redefined_when_its_shape_changed() -> None:
    wanted = doc(power="stopped", memory_mib=512)
    assert isinstance(step_of(plan(wish(wanted), view(live(doc(), "off", "guest")), NOW)), Define)


def test_a_running_machine_is_not_touched_when_its_shape_changed() -> None:
    assert settled(plan(wish(doc(memory_mib=512)), view(live(doc())), NOW)).state == "running"


def test_the_nocloud_disk_is_made_before_the_start_and_again_when_it_should_hold_something_else() -> None:
    wanted = doc(nocloud=True)
    for found in ("", "B"):
        seen = view(None, seed_wanted="A", seed_found=found)
        assert isinstance(step_of(plan(wish(wanted), seen, NOW)), BuildSeed)
    assert isinstance(step_of(plan(wish(wanted), view(None, seed_wanted="A", seed_found="A"), NOW)), Define)


def test_a_machine_paused_by_somebody_runs_on() -> None:
    assert step_of(plan(wish(doc()), view(live(doc(), "paused", "user")), NOW)) == Resume(vm=VM)


def test_a_machine_paused_by_a_full_pool_waits_for_room_and_says_so() -> None:
    paused = live(doc(), "paused", "io-error")
    outcome = plan(wish(doc()), view(paused, pool_free_bytes=5 << 20), NOW)
    assert isinstance(outcome, Wait)
    assert "5 MiB" in outcome.reports[0].problem
    assert step_of(plan(wish(doc()), view(paused, pool_free_bytes=5 << 30), NOW)) == Resume(vm=VM)


def test_a_tombstone_destroys_undefines_and_removes_files_in_this_order() -> None:
    gone = wish(doc(), gone=True)
    assert step_of(plan(gone, view(live(doc())), NOW)) == Destroy(vm=VM)
    assert step_of(plan(gone, view(live(doc(), "off", "destroyed")), NOW)) == Undefine(vm=VM)
    assert step_of(plan(gone, view(None), NOW)) == RemoveFiles(vm=VM)
    outcome = plan(gone, view(None, files=False), NOW)
    assert isinstance(outcome, Settled)
    assert outcome.reports[0].done


def test_a_tombstone_does_not_wait_for_anything() -> None:
    missing = {"missing_volumes": (Id("vol-0123456789ab"),), "boot": None}
    marks = {"stop-asked-at": "999.000", "stopped-by-guest": "1.1", "started": "1.1"}
    assert step_of(plan(wish(doc(), gone=True, marks=marks), view(live(doc()), **missing), NOW)) == Destroy(vm=VM)


def test_nothing_is_undefined_or_removed_without_a_tombstone() -> None:
    """Every state against every wish: steps that destroy come from tombstones only, and all lead on."""
    domains = [None, live(doc())] + [
        live(doc(), "off", c) for c in ("guest", "host", "crashed", "destroyed", "unknown")
    ]
    domains += [live(doc(), "paused", c) for c in ("user", "busy", "io-error")]
    changes: list[dict[str, Any]] = [{}, {"power": "stopped"}, {"boot_generation": 2}, {"start_generation": 2}]
    for domain in domains:
        for change in changes:
            for restart in ("on-crash", "never"):
                for marks in ({}, {"stop-asked-at": "990.000"}, {"stopped-by-guest": "1.1"}, {"started": "1.1"}):
                    outcome = plan(wish(doc(restart=restart, **change), marks=marks), view(domain), NOW)
                    if isinstance(outcome, Do):
                        assert not getattr(outcome.step, "destroys", False)
                        assert not isinstance(outcome.step, Destroy)


# --- changed while it is there ------------------------------------------------------------------------------------


def test_another_shape_leaves_a_running_machine_alone_and_says_what_it_runs_with() -> None:
    before, wanted = doc(), doc(vcpus=4, memory_mib=1024)
    seen = settled(plan(wish(wanted), view(live(before, vcpus=1, memory_mib=256)), NOW))
    assert (seen.state, seen.vcpus, seen.memory_mib) == ("running", 1, 256)
    assert isinstance(step_of(plan(wish(wanted), view(live(before, "off", "crashed")), NOW)), Define)


def test_a_machine_without_disks_is_cut_off_and_defined_without_them() -> None:
    before = doc()
    wanted = doc(volumes=(), kernel=None, power="stopped", stop_grace_s=0, boot_generation=2)
    assert step_of(plan(wish(wanted), view(live(before)), NOW)) == Destroy(vm=VM)
    step = step_of(plan(wish(wanted), view(live(before, "off", "destroyed"), boot=None), NOW))
    assert isinstance(step, Define)
    assert "<disk" not in step.xml


def test_a_machine_that_waits_for_a_disk_lets_go_of_those_it_is_to_lose() -> None:
    before, missing = doc(), Id("vol-zzzzzzzzzzzz")
    wanted = doc(volumes=(missing,), boot_generation=2)
    step = step_of(plan(wish(wanted), view(live(before, "off", "guest"), missing_volumes=(missing,)), NOW))
    assert isinstance(step, Define)
    waits = plan(wish(wanted), view(live(wanted, "off", "unknown"), missing_volumes=(missing,)), NOW)
    assert isinstance(waits, Wait)
    assert waits.message == f"waiting for volume {missing} on this host"


PLAIN = Sharing(weight=100, cap_percent=None)


def test_weight_and_cap_are_set_while_it_runs() -> None:
    wanted = doc(cpu_weight=50, cpu_cap_percent=150)
    sharing = Sharing(weight=50, cap_percent=150)
    assert step_of(plan(wish(wanted), view(live(wanted, sharing=PLAIN)), NOW)) == Share(vm=VM, sharing=sharing)
    assert settled(plan(wish(wanted), view(live(wanted, sharing=sharing)), NOW)).note == ""


def test_a_host_that_can_not_share_out_cpus_says_so_where_it_matters() -> None:
    lacking = {"sharing": None, "sharing_lacks": "no cgroup"}
    note = settled(plan(wish(doc(cpu_weight=50)), view(live(doc(), **lacking)), NOW)).note
    assert note == "its CPU weight and cap have no effect, since its host can't share out CPUs: no cgroup"
    assert settled(plan(wish(doc()), view(live(doc(), **lacking)), NOW)).note == ""
    tried = plan(wish(doc(cpu_weight=50)), view(live(doc(), sharing=PLAIN), unshared="not permitted"), NOW)
    assert settled(tried).note.endswith(": not permitted")


def test_its_balloon_is_moved_now_and_then_while_the_host_is_short() -> None:
    wanted = doc(memory_mib=1024, memory_min_mib=512)
    short = HostMemory(total_mib=1000, available_mib=50)
    runs = live(wanted, memory_mib=1024, balloon_mib=1024)
    seen = view(runs, host_memory=short, unused_mib=600)
    assert step_of(plan(wish(wanted), seen, NOW)) == SetMemory(vm=VM, memory_mib=526)
    moved = msgspec.structs.replace(seen, ballooned_at=NOW)
    assert settled(plan(wish(wanted), moved, NOW + 1)).balloon_mib == 0
    assert isinstance(step_of(plan(wish(wanted), moved, NOW + AGAIN_S)), SetMemory)
    lent = settled(plan(wish(wanted), view(live(wanted, memory_mib=1024, balloon_mib=526)), NOW))
    assert lent.balloon_mib == 526
