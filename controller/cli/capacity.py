"""`skerry capacity`: how many more machines of each size fit, zone by zone, and what limits that."""

import click

from controller.cli.answers import Answer
from controller.cli.client import Client
from controller.cli.complete import NameType
from controller.cli.parts import connection_options, examples, form_option
from controller.cli.render import NOTHING, print_data, print_table
from controller.cli.session import form, talk

TITLES = ("SIZE", "ZONE", "FITS", "ONE HOST LOST", "LIMITED BY")


class LimitShown(Answer, frozen=True):
    """What keeps hosts from taking more."""

    what: str
    hosts: int
    named: tuple[str, ...] = ()


class ZoneShown(Answer, frozen=True):
    """One zone's share."""

    zone: str
    fits: int
    with_one_host_lost: int
    worst: str = ""
    at_least: bool = False


class FitsShown(Answer, frozen=True):
    """How many more fit."""

    fits: int
    with_one_host_lost: int
    zones: tuple[ZoneShown, ...] = ()
    limits: tuple[LimitShown, ...] = ()
    at_least: bool = False


class SizeShown(Answer, frozen=True):
    """Of one size."""

    size: str
    fits: FitsShown


class CapacityShown(Answer, frozen=True):
    """Of all sizes that were asked for."""

    items: tuple[SizeShown, ...]


def command() -> click.Command:
    """Return `skerry capacity`."""

    def run(size: str | None, zone: str | None) -> None:
        given = (("size", size), ("zone", zone))
        query = tuple((name, value) for name, value in given if value)

        async def work(client: Client) -> tuple[bytes, CapacityShown]:
            raw = await client.raw("GET", "/v1/capacity", query=query)
            return raw, client.decode(raw, CapacityShown)

        raw, found = talk(work)
        if form() in ("json", "yaml"):
            print_data(raw)
        elif form() == "name":
            click.echo("\n".join(one.size for one in found.items))
        else:
            print_table(list(TITLES), _rows(found), empty="there are no sizes")

    return click.Command(
        "capacity",
        callback=run,
        short_help="How many more machines of each size fit, and what limits that.",
        help="Count how many more machines of each size would get a host if they were asked for one by one, in each "
        "zone and in all; how many of them if one host were lost and its machines ran elsewhere (the loss that costs "
        "most); and what runs out first on how many hosts. Counting a zone that has to survive a loss ends at 5000+. A "
        "project's quota may be less.\n\n" + examples("skerry capacity", "skerry capacity --size small --zone z1"),
        params=[
            click.Option(["--size"], type=NameType("size"), metavar="SIZE", help="Of this size only"),
            click.Option(["--zone"], type=NameType("zone"), metavar="ZONE", help="In this zone only"),
            *connection_options(),
            form_option(),
        ],
    )


def _rows(found: CapacityShown) -> list[list[str]]:
    rows = []
    for one in found.items:
        fits = one.fits
        rows.append([one.size, "all", *_counts(fits), _limits(fits)])
        if len(fits.zones) > 1 or any(zone.zone for zone in fits.zones):
            rows += [[one.size, zone.zone or "(in none)", *_counts(zone), NOTHING] for zone in fits.zones]
    return rows


def _counts(found: FitsShown | ZoneShown) -> tuple[str, str]:
    more = "+" if found.at_least else ""
    return f"{found.fits}{more}", f"{found.with_one_host_lost}{more}"


def _limits(fits: FitsShown) -> str:
    return "; ".join(f"{limit.what} on {_hosts(limit)}" for limit in fits.limits) or NOTHING


def _hosts(limit: LimitShown) -> str:
    more = limit.hosts - len(limit.named)
    return ", ".join(limit.named) + (f" and {more} more" if more else "")
