"""`skerry identity`: whether what a machine says of itself is so. What a service does, for people and scripts."""

import sys
import time
from pathlib import Path

import click
import msgspec

from common.attestation import authorities_of, verify
from common.errors import SkerryError
from controller.cli.failures import Failure
from controller.cli.parts import connection_options, examples, form_option
from controller.cli.render import print_data, print_pairs
from controller.cli.session import form, talk


def group() -> click.Group:
    """Return the `identity` group."""
    found = click.Group(
        "identity",
        help="Verify what a machine says of itself.\n\n" + examples("skerry identity verify --audience vault TOKEN"),
        short_help="Verify what a machine says of itself.",
    )
    found.add_command(_verify())
    return found


def _verify() -> click.Command:
    def run(token: str, audience: str, keys: Path | None) -> None:
        text = sys.stdin.read() if token == "-" else token  # noqa: S105 - a dash
        raw = keys.read_bytes() if keys else talk(lambda client: client.raw("GET", "/v1/identity/keys"))
        try:
            claims = verify(text, authorities_of(raw), audience, time.time())
        except SkerryError as err:
            raise Failure(f"not believed: {err.detail}", fix=err.fix) from err
        if form() in ("json", "yaml"):
            print_data(msgspec.json.encode(claims))
            return
        print_pairs(
            [
                ("machine", f"{claims.sub} ({claims.name})"),
                ("project", claims.project),
                ("host", claims.host),
                ("image", claims.image),
                ("good for", f"{claims.exp - time.time():.0f} s"),
            ]
        )

    return click.Command(
        "verify",
        callback=run,
        short_help="Verify a machine's identity token.",
        help="Verify a token that a machine got from its metadata service "
        "(/latest/dynamic/instance-identity/token?audience=NAME), and show what it says. `-`: read it from standard "
        "input. With --keys nobody is asked: it holds what GET /v1/identity/keys answered.\n\n"
        + examples("skerry identity verify --audience vault TOKEN", "skerry identity verify --audience vault -"),
        params=[
            click.Argument(["token"]),
            click.Option(["--audience"], required=True, metavar="NAME", help="Whom the token must be for"),
            click.Option(
                ["--keys"],
                type=click.Path(path_type=Path, exists=True, dir_okay=False),
                help="A file with the authorities' keys, fetched earlier",
            ),
            *connection_options(),
            form_option(),
        ],
    )
