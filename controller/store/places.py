"""Where a host stands, and what fails together with it: read alike from the working set and within a transaction."""

from collections.abc import Callable

from common.ids import HostId, Id
from common.kinds.kind import AnyResource

Get = Callable[[Id], AnyResource | None]
"""Reads a resource by id: `seen.get`, or `tx.resource`."""


def rack_of(get: Get, host: AnyResource) -> AnyResource | None:
    """Return the rack that a host stands in."""
    return get(Id(host.spec.rack)) if host.spec.rack else None


def zone_of(get: Get, host: AnyResource) -> AnyResource | None:
    """Return the zone that a host is in: its rack's, or its own where it stands in no rack."""
    rack = rack_of(get, host)
    zone = rack.spec.zone if rack else host.spec.zone
    return get(Id(zone)) if zone else None


def domain_of(get: Get, host: AnyResource, over: str) -> str:
    """Return the id of what fails together with a host: itself, its rack or its zone. Empty: it is in none."""
    if over == "host":
        return HostId(host.id)
    place = rack_of(get, host) if over == "rack" else zone_of(get, host)
    return place.id if place else ""
