"""Whose turn it is, where several controllers share a database: pure.

What is on a host is planned by the controller that the host is connected to, since only that one hears its reports.
Everything else is planned from rows, which all have: whoever changed it goes on with it, and the others are there in
case that one dies. A lease on the queue row keeps two from doing the same; nothing breaks where they do.
"""

from enum import Enum, auto

from common.ids import HostId
from common.kinds.kind import AnyResource
from controller.store.working import WorkingSet


class Turn(Enum):
    """Who plans a resource."""

    MINE = auto()
    """Its host is connected here."""
    ANYONES = auto()
    """It is on no host, or on one that is connected to none of several controllers; or there is only one."""
    THEIRS = auto()
    """Its host is connected to another controller."""


def host_of(row: AnyResource, seen: WorkingSet) -> HostId | None:
    """Return the host whose reports a resource's plan reads; None: it reads none.

    Such a thing is a host, has a placement, or belongs to something that has one.
    """
    if row.kind == "host":
        return HostId(row.id)
    if placement := seen.placement(row.id):
        return placement.host
    owner = seen.get(row.owner) if row.owner else None
    return host_of(owner, seen) if owner else None


def turn_of(row: AnyResource, seen: WorkingSet, controller: str) -> Turn:
    """Return whose turn a resource is, as this controller sees it."""
    if not seen.is_linked:
        return Turn.ANYONES
    host = host_of(row, seen)
    link = seen.link(host) if host else None
    if link is None:
        return Turn.ANYONES
    return Turn.MINE if link.controller == controller else Turn.THEIRS
