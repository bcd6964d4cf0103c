"""`skerry ca`: how the cloud's certificate authority stands, and having another one follow it."""

from datetime import datetime

import click
import msgspec

from controller.cli.answers import Answer
from controller.cli.parts import connection_options, examples, form_option
from controller.cli.render import print_data, print_pairs, print_table
from controller.cli.session import form, talk

PHASES = {
    "settled": "nothing is under way",
    "sharing": "the controllers hand the new one to each other",
    "overlap": "hosts fetch certificates of the new one, and trust both",
    "switching": "the controllers show certificates of the new one",
}


class Behind(Answer, frozen=True):
    """A host that is waited for."""

    host: str
    why: str


class Authority(Answer, frozen=True):
    """How the authority stands."""

    phase: str
    current: str
    next: str
    since: float
    hosts: int
    behind: tuple[Behind, ...]
    controllers_behind: tuple[str, ...] = ()


def group() -> click.Group:
    """Return the `ca` group."""
    found = click.Group(
        "ca",
        help="The cloud's certificate authority.\n\n" + examples("skerry ca status", "skerry ca rotate"),
        short_help="The cloud's certificate authority.",
    )
    found.add_command(_status())
    found.add_command(_rotate())
    return found


def _status() -> click.Command:
    def run() -> None:
        _print(talk(lambda client: client.raw("GET", "/v1/ca")))

    return click.Command(
        "status",
        callback=run,
        short_help="How it stands, and which hosts are behind.",
        help="Show how the authority stands; while another one follows it, which hosts are waited for, and why.\n\n"
        + examples("skerry ca status"),
        params=[*connection_options(), form_option()],
    )


def _rotate() -> click.Command:
    def run(*, go_on: bool) -> None:
        query = (("go_on", "true"),) if go_on else ()
        _print(talk(lambda client: client.raw("POST", "/v1/ca/rotate", query=query)))

    return click.Command(
        "rotate",
        callback=run,
        short_help="Have a new authority follow.",
        help="Have a new authority follow. Every host fetches a certificate of the new one, while both hold; then the "
        "old one is destroyed. Nothing stops meanwhile. A host that is away is waited for until it comes, or its "
        "certificate runs out: --go-on waits no longer, and such a host needs a new join token.\n\n"
        + examples("skerry ca rotate", "skerry ca status", "skerry ca rotate --go-on"),
        params=[
            click.Option(["--go-on"], is_flag=True, help="Wait no longer for the hosts that are behind"),
            *connection_options(),
            form_option(),
        ],
    )


def _print(raw: bytes) -> None:
    if form() in ("json", "yaml"):
        print_data(raw)
        return
    found = msgspec.json.decode(raw, type=Authority)
    since = datetime.fromtimestamp(found.since).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    print_pairs(
        [
            ("phase", f"{found.phase}, since {since}: {PHASES.get(found.phase, '')}"),
            ("authority", found.current),
            *((("followed by", found.next),) if found.next else ()),
            ("hosts", str(found.hosts)),
            ("behind", str(len(found.behind)) if found.behind else "none"),
            *((("controllers behind", ", ".join(found.controllers_behind)),) if found.controllers_behind else ()),
        ]
    )
    if found.behind:
        click.echo()
        print_table(["HOST", "WHY"], [[one.host, one.why] for one in found.behind])
