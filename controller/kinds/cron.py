"""Cron lines in a time zone. Where the clock is put forward, what fell into the gap runs right behind it; where it is
put back, what runs at a given hour runs once (cronsim does as Debian's cron does)."""

from datetime import datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from common.errors import FieldError, Invalid

FIELDS = 5


def check(cron: str, time_zone: str) -> None:
    """Raise Invalid for a line or a zone that can't be followed."""
    zone = _zone(time_zone)
    if len(cron.split()) != FIELDS:
        raise _refusal(cron, f"it has {len(cron.split())} fields, not {FIELDS}")
    try:
        next(CronSim(cron, datetime(2000, 1, 1, tzinfo=zone)))
    except (CronSimError, StopIteration) as err:
        raise _refusal(cron, str(err) or "there is no such day") from err


def next_after(cron: str, time_zone: str, at: float) -> float:
    """Return the first moment behind `at` (epoch seconds) at which a line is due. 0: there is none."""
    found = next(CronSim(cron, datetime.fromtimestamp(at, _zone(time_zone))), None)
    return found.timestamp() if found else 0.0


def _refusal(cron: str, said: str) -> Invalid:
    return Invalid(
        f"{cron!r} is no cron line: {said}",
        fix="say minute, hour, day of month, month and day of week: '0 8 * * mon-fri'",
        errors=(FieldError(field="spec.cron", message=said),),
    )


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as err:
        raise Invalid(
            f"there is no time zone {name!r}",
            fix="name one of the tz database: UTC, Europe/Berlin",
            errors=(FieldError(field="spec.time_zone", message="is not known"),),
        ) from err
