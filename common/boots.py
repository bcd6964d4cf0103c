"""What came of a machine's first boot: its legs in order, how long after the start each was reached, or what failed."""

from typing import Annotated, Literal

import msgspec

LegName = Literal["address", "metadata", "key", "ssh"]

LEGS: dict[LegName, str] = {
    "address": "an address by DHCP",
    "metadata": "its metadata fetched",
    "key": "its key fetched",
    "ssh": "SSH",
}
"""The legs, in order, in words."""


class Leg(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that a machine does on its way up."""

    name: LegName
    state: Literal["waiting", "reached", "failed", "not-asked"] = "waiting"
    seconds: Annotated[float, msgspec.Meta(ge=0, le=1e9)] | None = None
    """After the start; None: it was not reached."""
    why: Annotated[str, msgspec.Meta(max_length=300)] = ""
    """Why it failed, or was not asked."""


class FirstBoot(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a machine came up for the first time, as its host saw it."""

    verdict: Literal["pending", "passed", "failed"]
    legs: Annotated[tuple[Leg, ...], msgspec.Meta(max_length=8)]
    log: Annotated[str, msgspec.Meta(max_length=4000)] = ""
    """Where it failed: the last lines of the serial log at that time."""


def words(boot: FirstBoot) -> str:
    """Return a first boot in one line."""
    failed = next((leg for leg in boot.legs if leg.state == "failed"), None)
    reached = [f"{LEGS[leg.name]} after {leg.seconds or 0:.1f} s" for leg in boot.legs if leg.state == "reached"]
    if failed:
        return f"failed at {failed.name}: {failed.why}" + (f"; before that {', '.join(reached)}" if reached else "")
    waiting = [leg.name for leg in boot.legs if leg.state == "waiting"]
    return ", ".join(reached + ([f"waiting for {' and '.join(waiting)}"] if waiting else []))
