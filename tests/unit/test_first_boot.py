"""The verdict on a machine's first boot: what was reached when, what failed, and that it is settled once."""

from typing import Any

import msgspec
import pytest
from test_domain_plan import doc, live, view, wish

from agent.kinds import first_boot
from agent.kinds.domain_plan import DomainView, plan
from agent.kinds.first_boot import LIMIT_S, MARK, Sight, is_watched, judge
from agent.kinds.unit import Mark, Settled, Wait
from common.boots import FirstBoot, words
from common.documents import DomainDoc, DomainSeen

KEY = ("me", "ssh-ed25519 AAAA me")
STARTED = 900.0
ALL = Sight(leased_at=903.0, metadata_at=903.5, key_at=903.6, ssh_at=907.25)


def keyed(**changes: Any) -> DomainDoc:
    """Return a machine with a key."""
    return msgspec.structs.replace(
        doc(), metadata=msgspec.structs.replace(doc().metadata, public_keys=(KEY,)), **changes
    )


def states(boot: FirstBoot) -> dict[str, str]:
    return {leg.name: leg.state for leg in boot.legs}


def seen_of(outcome: object) -> DomainSeen:
    assert isinstance(outcome, Wait | Settled), outcome
    (report,) = outcome.reports
    assert report.done, "it runs as wished all the while"
    assert isinstance(report.seen, DomainSeen)
    return report.seen


def test_each_leg_is_told_with_the_seconds_after_the_start() -> None:
    boot = judge(None, keyed(), STARTED, ALL, 910.0)
    assert boot.verdict == "passed"
    assert [leg.seconds for leg in boot.legs] == [3.0, 3.5, 3.6, 7.2]
    assert words(boot) == (
        "an address by DHCP after 3.0 s, its metadata fetched after 3.5 s, its key fetched after 3.6 s, SSH after 7.2 s"
    )


def test_what_is_not_reached_yet_is_waited_for_and_what_was_reached_stays() -> None:
    early = judge(None, keyed(), STARTED, Sight(leased_at=903.0), 904.0)
    assert early.verdict == "pending"
    assert states(early) == {"address": "reached", "metadata": "waiting", "key": "waiting", "ssh": "waiting"}
    later = judge(early, keyed(), STARTED, msgspec.structs.replace(ALL, leased_at=950.0), 951.0)
    assert later.legs[0].seconds == 3.0


@pytest.mark.parametrize(
    ("sight", "failed", "why"),
    [
        (Sight(), "address", "it took no address by DHCP in 300 s"),
        (Sight(leased_at=903.0), "metadata", "it asked the metadata service for nothing in 300 s"),
        (Sight(leased_at=903.0, metadata_at=903.0), "key", "it fetched no key"),
        (msgspec.structs.replace(ALL, ssh_at=None, ssh="nothing listened on port 22"), "ssh", "nothing listened"),
    ],
)
def test_when_the_time_is_over_the_leg_that_failed_is_named_with_the_log(sight: Sight, failed: str, why: str) -> None:
    late = msgspec.structs.replace(sight, log="Kernel panic")
    boot = judge(None, keyed(), STARTED, late, STARTED + LIMIT_S)
    assert (boot.verdict, boot.log) == ("failed", "Kernel panic")
    first = next(leg for leg in boot.legs if leg.state == "failed")
    assert first.name == failed
    assert why in first.why
    assert words(boot).startswith(f"failed at {failed}: {first.why}")


def test_what_means_nothing_for_a_machine_is_not_asked() -> None:
    bare = judge(None, doc(), STARTED, Sight(leased_at=903.0, metadata_at=904.0), 905.0)
    assert (bare.verdict, states(bare)["key"], states(bare)["ssh"]) == ("passed", "not-asked", "not-asked")
    disk = judge(None, keyed(nocloud=True), STARTED, Sight(leased_at=903.0, ssh_at=906.0), 907.0)
    assert (disk.verdict, states(disk)["metadata"], states(disk)["ssh"]) == ("passed", "not-asked", "reached")


def test_a_lease_that_seems_older_than_the_start_is_at_the_start() -> None:
    assert judge(None, doc(), STARTED, Sight(leased_at=899.2), 905.0).legs[0].seconds == 0.0


def running(of: DomainDoc, sight: Sight | None) -> DomainView:
    return view(live(of), first_boot=sight)


def test_a_machine_that_comes_up_is_reported_as_running_and_looked_at_again() -> None:
    outcome = plan(wish(keyed()), running(keyed(), Sight()), 901.0)
    assert isinstance(outcome, Wait)
    assert outcome.seconds <= 1.0
    boot = seen_of(outcome).first_boot
    assert boot is not None
    assert boot.verdict == "pending"


def test_a_reached_leg_is_written_down_and_survives_the_agent() -> None:
    of = keyed()
    marked = plan(wish(of), running(of, Sight(leased_at=903.0, metadata_at=903.5, key_at=903.6)), 904.0)
    assert isinstance(marked, Mark)
    assert (marked.name, bool(marked.value)) == (MARK, True)
    again = {MARK: marked.value or ""}
    done = plan(wish(of, marks=again), running(of, Sight(ssh_at=907.0)), 908.0)  # the agent forgot what was asked
    assert isinstance(done, Mark)
    settled = plan(wish(of, marks={MARK: done.value or ""}), running(of, None), 909.0)
    assert isinstance(settled, Settled)
    boot = seen_of(settled).first_boot
    assert boot is not None
    assert boot.verdict == "passed"


def test_a_verdict_stays_when_the_machine_is_stopped_and_is_not_asked_for_again() -> None:
    of = keyed(power="stopped")
    marks = {MARK: first_boot.mark_of(judge(None, keyed(), STARTED, ALL, 910.0))}
    boot = seen_of(plan(wish(of, marks=marks), view(live(of, "off", "guest")), 2000.0)).first_boot
    assert boot is not None
    assert boot.verdict == "passed"
    assert not is_watched(keyed(), live(keyed()), marks, 910.0)


def test_a_machine_that_was_started_anew_before_it_had_come_up_has_no_verdict() -> None:
    of = keyed(boot_generation=2)
    marks = {MARK: first_boot.mark_of(judge(None, keyed(), STARTED, Sight(leased_at=903.0), 904.0))}
    wiped = plan(wish(of, marks=marks), running(of, None), 950.0)
    assert wiped == Mark(name=MARK, value=None)
    assert seen_of(plan(wish(of), running(of, None), 951.0)).first_boot is None


def test_only_a_first_run_that_is_young_or_begun_is_watched() -> None:
    of = keyed()
    assert is_watched(of, live(of), {}, STARTED + 1)
    assert is_watched(of, live(of), {}, STARTED + LIMIT_S + 1)
    assert not is_watched(of, live(of), {}, STARTED + 2 * LIMIT_S)
    assert not is_watched(of, live(of, "off"), {}, STARTED + 1)
    assert not is_watched(of, None, {}, STARTED + 1)
    assert not is_watched(keyed(start_generation=2), live(of), {}, STARTED + 1)
    begun = {MARK: first_boot.mark_of(judge(None, of, STARTED, Sight(leased_at=903.0), 904.0))}
    assert is_watched(of, live(of), begun, STARTED + 10 * LIMIT_S), "what was begun is settled, however late"


def test_a_mark_that_can_t_be_read_is_none() -> None:
    assert first_boot.known({MARK: "{"}) is None
