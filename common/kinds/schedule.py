"""schedule: when machines are started, stopped or rebooted, by the clock."""

from typing import Annotated, Literal

import msgspec

from common.counters import SCHEDULES
from common.kinds.kind import Column, Kind, Scope, ServerSet, Spec, Status


class ScheduleSpec(Spec, frozen=True):
    """What is done when, to which machines."""

    action: Annotated[
        Literal["start", "stop", "reboot"], msgspec.Meta(description="what is done to them", examples=["stop"])
    ]
    vms: Annotated[
        tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=320)], ...],
        msgspec.Meta(
            min_length=1,
            max_length=256,
            description="machines of the project: names, or key=value for all with that label; what is not there is "
            "passed over",
            examples=[["tier=dev"]],
        ),
    ]
    cron: Annotated[
        str,
        msgspec.Meta(
            min_length=9,
            max_length=255,
            description="minute, hour, day of month, month and day of week, as in crontab(5)",
            examples=["0 8 * * mon-fri"],
        ),
    ]
    time_zone: Annotated[
        str, msgspec.Meta(max_length=64, description="whose clock it goes by", examples=["Europe/Berlin"])
    ] = "UTC"
    enabled: Annotated[bool, msgspec.Meta(description="whether it is followed")] = True
    armed: Annotated[
        str, ServerSet(), msgspec.Meta(description="the cron line and time zone since whose setting it counts")
    ] = ""
    fired_at: Annotated[
        float, ServerSet(), msgspec.Meta(description="everything up to this moment is done, epoch seconds")
    ] = 0


class ScheduleStatus(Status, frozen=True):
    """When it is due."""

    next_at: float = 0
    """Epoch seconds; 0: never."""


SCHEDULE = Kind(
    name="schedule",
    plural="schedules",
    prefix="sched",
    scope=Scope.PROJECT,
    spec=ScheduleSpec,
    status=ScheduleStatus,
    summary="When machines are started, stopped or rebooted, by the clock.",
    example="skerry schedule create nights --action stop --cron '0 20 * * mon-fri' --vms tier=dev",
    counters=(SCHEDULES,),
    columns=(
        Column(title="NAME", path="name"),
        Column(title="STATE", path="status.state"),
        Column(title="ACTION", path="spec.action"),
        Column(title="CRON", path="spec.cron"),
        Column(title="ZONE", path="spec.time_zone"),
        Column(title="NEXT", path="status.next_at"),
        Column(title="MESSAGE", path="status.message"),
    ),
)
