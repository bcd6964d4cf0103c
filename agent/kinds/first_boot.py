"""The verdict on a machine's first boot: which legs it reached, and when that is settled. Pure.

A leg that was reached is written down as a mark, since it can't be looked at again; the rest is looked at anew until
all legs are reached or the time is over. The agent that dies meanwhile goes on with what is marked.
"""

from collections.abc import Mapping

import msgspec

from agent.drivers.hypervisor import LiveDomain
from common.boots import FirstBoot, Leg, LegName
from common.codec import from_json, to_json
from common.documents import DomainDoc
from common.errors import Invalid

MARK = "first-boot"
"""The legs that were reached so far, then the verdict, as JSON."""

LIMIT_S = 300.0
"""After its start a machine has so long; emulated ones with a large system take more than a minute."""

LATE_S = 60.0
"""A look so long after the end still settles it."""

LOOK_AGAIN_S = 1.0
LOOK_RARELY_S = 5.0
_SOON_S = 60.0


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """What is seen of a machine on its way up. Moments are epoch seconds; None: not yet."""

    leased_at: float | None = None
    metadata_at: float | None = None
    key_at: float | None = None
    ssh_at: float | None = None
    ssh: str = ""
    """Why its SSH port can't be reached; empty: it was, or was not tried."""
    log: str = ""
    """The end of its serial log, where the time is over."""


def known(marks: Mapping[str, str]) -> FirstBoot | None:
    """Return what is marked; None: nothing."""
    try:
        return from_json(marks[MARK], FirstBoot, "the mark of a first boot") if MARK in marks else None
    except Invalid:
        return None


def is_watched(doc: DomainDoc, domain: LiveDomain | None, marks: Mapping[str, str], now: float) -> bool:
    """Say whether a machine runs for the first time, and nothing is settled yet."""
    if domain is None or domain.activity != "running" or (doc.start_generation, doc.boot_generation) != (1, 1):
        return False
    before = known(marks)
    if before is None:
        return now < domain.started_at + LIMIT_S + LATE_S  # else nobody looked while it came up
    return before.verdict == "pending"


def judge(before: FirstBoot | None, doc: DomainDoc, started_at: float, sight: Sight, now: float) -> FirstBoot:
    """Return how far it is. What was reached stays so."""
    over = now >= started_at + LIMIT_S
    reached = {leg.name: leg for leg in before.legs if leg.state == "reached"} if before else {}
    seen: dict[LegName, float | None] = {
        "address": sight.leased_at,
        "metadata": sight.metadata_at,
        "key": sight.key_at,
        "ssh": sight.ssh_at,
    }
    unasked, failures = not_asked(doc), _failures(sight)
    legs = []
    for name, at in seen.items():
        if name in reached:
            legs.append(reached[name])
        elif name in unasked:
            legs.append(Leg(name=name, state="not-asked", why=unasked[name]))
        elif at is not None:
            legs.append(Leg(name=name, state="reached", seconds=round(max(0.0, at - started_at), 1)))
        elif over:
            legs.append(Leg(name=name, state="failed", why=failures[name]))
        else:
            legs.append(Leg(name=name))
    states = {leg.state for leg in legs}
    if "failed" in states:
        return FirstBoot(verdict="failed", legs=tuple(legs), log=sight.log)
    return FirstBoot(verdict="pending" if "waiting" in states else "passed", legs=tuple(legs))


def not_asked(doc: DomainDoc) -> dict[LegName, str]:
    """Return the legs that mean nothing for a machine, and why."""
    found: dict[LegName, str] = {}
    if doc.nocloud:
        found["metadata"] = found["key"] = "it has a NoCloud disk to read them from"
    if not doc.metadata.public_keys:
        found["key"] = found["ssh"] = "it was given no keypair"
    return found


def _failures(sight: Sight) -> dict[LegName, str]:
    span = f"in {LIMIT_S:.0f} s"
    return {
        "address": f"it took no address by DHCP {span}",
        "metadata": f"it asked the metadata service for nothing {span}",
        "key": f"it fetched no key from the metadata service {span}",
        "ssh": f"{sight.ssh or 'its SSH port was not reached'} {span}",
    }


def mark_of(boot: FirstBoot) -> str:
    """Return the value of the mark."""
    return to_json(boot).decode()


def is_news(boot: FirstBoot, before: FirstBoot | None) -> bool:
    """Say whether there is something to write down."""
    return boot != before and any(leg.state in ("reached", "failed") for leg in boot.legs)


def pause_s(started_at: float, now: float) -> float:
    """Return when to look again."""
    return LOOK_AGAIN_S if now < started_at + _SOON_S else LOOK_RARELY_S
