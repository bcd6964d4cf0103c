"""A schedule does what is due, once, and only to the machines it is for."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import Invalid
from common.kinds.kind import AnyResource
from controller.kinds import admission, cron
from controller.kinds.outcome import Do, Done
from controller.store.rows import EventQuery
from tests.kinds.bench import Bench

MONDAY = datetime(2026, 11, 23, 7, 0, tzinfo=UTC).timestamp()
HOUR = 3600.0


async def scheduled(bench: Bench, action: str = "stop", line: str = "0 8 * * mon-fri", **spec: object) -> AnyResource:
    """Return a schedule for machines with tier=dev that is armed on a Monday at seven; web has the label, db not."""
    bench.clock.now = MONDAY
    await bench.furniture()
    for name, labels in (("web", {"tier": "dev"}), ("db", {})):
        body = admission.NewResource(name=name, labels=labels, spec={"image": "tiny", "size": "small"})
        await bench.store.admit(admission.create(bench.context, kind("vm"), "shop", body))
    made = await bench.create(
        "schedule", "shop", "mornings", **{"action": action, "cron": line, "vms": ["tier=dev"]} | spec
    )
    await bench.rest(made)
    return made


def kind(name: str) -> admission.AnyKind:
    return admission.kind_named(name)


def power(bench: Bench, name: str) -> str:
    return str(bench.named("vm", name).spec.power)


async def test_it_waits_for_its_time_and_then_acts_on_its_machines_only(bench: Bench) -> None:
    schedule = await scheduled(bench)
    bench.clock.now += HOUR - 10
    waiting = bench.plan(schedule)
    assert isinstance(waiting, Done)
    assert (waiting.status.message, waiting.seconds) == ("stops 1 machine at 2026-11-23T08:00:00Z", 10)
    assert power(bench, "web") == "running"

    bench.clock.now += 10
    await bench.rest(schedule)

    assert (power(bench, "web"), power(bench, "db")) == ("stopped", "running")
    again = bench.plan(schedule)
    assert isinstance(again, Done)
    assert again.status.next_at == MONDAY + 25 * HOUR  # type: ignore[attr-defined]


async def test_the_events_say_what_did_it(bench: Bench) -> None:
    schedule = await scheduled(bench)
    bench.clock.now += HOUR
    await bench.rest(schedule)
    stopped = await bench.store.events(0, 100, EventQuery(action="vm.stop"))
    fired = await bench.store.events(0, 100, EventQuery(action="schedule.fired"))
    assert [(one.actor, one.name, one.message) for one in stopped] == [("skerry", "web", "by schedule mornings")]
    assert [one.message for one in fired] == ["stop as due at 2026-11-23T08:00:00Z: web"]


async def test_it_goes_by_the_clock_of_its_zone(bench: Bench) -> None:
    schedule = await scheduled(bench, time_zone="America/New_York")
    waiting = bench.plan(schedule)
    assert isinstance(waiting, Done)
    assert waiting.status.next_at == MONDAY + 6 * HOUR  # type: ignore[attr-defined]


async def test_what_was_missed_for_long_is_passed_over_and_what_is_a_little_late_is_done(bench: Bench) -> None:
    schedule = await scheduled(bench)
    bench.clock.now += 3 * HOUR
    missed = await bench.step(schedule)
    assert isinstance(missed, Do)
    assert missed.say.startswith("passed over")
    assert power(bench, "web") == "running"
    bench.clock.now = MONDAY + 25 * HOUR + 600
    await bench.rest(schedule)
    assert power(bench, "web") == "stopped"


async def test_of_several_that_are_due_only_the_newest_is_done(bench: Bench) -> None:
    schedule = await scheduled(bench, action="reboot", line="* * * * *")
    before = bench.named("vm", "web").spec.boot_generation
    bench.clock.now += 300
    await bench.rest(schedule)
    assert bench.named("vm", "web").spec.boot_generation == before + 1


async def test_a_new_line_counts_from_when_it_was_set(bench: Bench) -> None:
    schedule = await scheduled(bench, line="0 20 * * *")
    bench.clock.now += HOUR + 60
    await bench.change(schedule, cron="0 8 * * *")
    await bench.rest(schedule)
    assert power(bench, "web") == "running", "eight was a minute ago, when nobody had asked for it"


async def test_one_that_is_off_does_nothing_and_makes_up_for_nothing(bench: Bench) -> None:
    schedule = await scheduled(bench, enabled=False)
    bench.clock.now += HOUR
    off = await bench.rest(schedule)
    assert isinstance(off, Done)
    assert off.status.state == "off"
    await bench.change(schedule, enabled=True)
    bench.clock.now += 60
    await bench.rest(schedule)
    assert power(bench, "web") == "running"


async def test_a_start_revives_what_was_stopped_and_leaves_alone_what_runs(bench: Bench) -> None:
    schedule = await scheduled(bench, action="start", vms=["web", "db", "nobody"])
    stop = next(verb for verb in kind("vm").verbs if verb.name == "stop")
    await bench.store.admit(admission.verb(bench.context, bench.named("vm", "db"), stop))
    before = bench.named("vm", "web")
    bench.clock.now += HOUR
    await bench.rest(schedule)
    assert power(bench, "db") == "running"
    assert bench.named("vm", "web") == before


async def test_what_is_deleted_and_kept_is_left_alone(bench: Bench) -> None:
    schedule = await scheduled(bench)
    await bench.store.admit(admission.delete(bench.context, bench.named("vm", "web"), keep=True))
    bench.clock.now += HOUR
    before = bench.named("vm", "web")
    await bench.rest(schedule)
    assert bench.named("vm", "web") == before


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"cron": "0 8 * * mon-fry"}, "is no cron line"),
        ({"cron": "* * * * * *"}, "it has 6 fields, not 5"),
        ({"cron": "0 0 31 2 *"}, "is no cron line"),
        ({"time_zone": "Mars/Olympus"}, "there is no time zone 'Mars/Olympus'"),
        ({"time_zone": "../../etc/passwd"}, "there is no time zone"),
    ],
)
async def test_what_can_not_be_followed_is_refused(bench: Bench, spec: dict[str, object], said: str) -> None:
    with pytest.raises(Invalid, match=said):
        await scheduled(bench, **spec)  # type: ignore[arg-type]


async def test_it_is_deleted_like_any_row(bench: Bench) -> None:
    schedule = await scheduled(bench)
    await bench.delete(schedule)
    await bench.buried([schedule], [])


@given(at=st.floats(1.6e9, 2.2e9), line=st.sampled_from(["*/5 * * * *", "30 2 * * *", "0 8 * * mon-fri", "0 0 1 * *"]))
def test_the_next_moment_is_always_later(at: float, line: str) -> None:
    for zone in ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"):
        first = cron.next_after(line, zone, at)
        assert first > at
        assert cron.next_after(line, zone, first) > first
