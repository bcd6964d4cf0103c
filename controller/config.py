"""The controller's configuration: one TOML file, a frozen struct a section, every key described here and nowhere else.

An unknown key stops the start, since a misspelt one that is passed over is a setting that silently does not hold.
"""

import ipaddress
from pathlib import Path
from typing import Annotated, Literal, NamedTuple
from urllib.parse import urlsplit

import msgspec

from common.errors import FieldError, Invalid
from common.kinds import COUNTERS
from common.settings import Section, load_settings, parse_settings

LISTEN_PATTERN = r"^(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]*):\d{1,5}$(?!\n)"

Listen = Annotated[str, msgspec.Meta(pattern=LISTEN_PATTERN)]


class ControllerSection(Section, frozen=True):
    """Where the controller keeps what it must not lose."""

    state_dir: Annotated[
        str,
        msgspec.Meta(
            min_length=1, description="directory of the database, the certificate authority and the images; made 0700"
        ),
    ] = "/var/lib/skerry-controller"
    database: Annotated[
        str,
        msgspec.Meta(
            description="URL of the database: `postgresql://user@host/name`, which several controllers may share; "
            "empty: SQLite in `state_dir`, for one"
        ),
    ] = ""


class ApiSection(Section, frozen=True):
    """The HTTP API that people and programs use."""

    listen: Annotated[
        Listen,
        msgspec.Meta(description="address:port to listen on; an address other than loopback needs `tls = true`"),
    ] = "127.0.0.1:8080"
    tls: Annotated[
        bool,
        msgspec.Meta(description="serve HTTPS with a certificate of the controller's own authority"),
    ] = False
    max_image_gib: Annotated[
        int, msgspec.Meta(ge=1, le=65536, description="largest image file that may be uploaded, GiB")
    ] = 64
    rate_per_s: Annotated[
        float, msgspec.Meta(ge=0, le=1_000_000, description="requests a second that one token may send; 0: no limit")
    ] = 500.0
    burst: Annotated[
        int, msgspec.Meta(ge=1, le=1_000_000, description="requests that a token which was quiet may send at once")
    ] = 5000
    session_hours: Annotated[
        float, msgspec.Meta(ge=0.1, le=720, description="how long a user who logged in stays so, hours")
    ] = 12.0
    metrics_open: Annotated[
        bool,
        msgspec.Meta(
            description="serve `/metrics` without a token; false: only to a token of project `system`, which a "
            "scraper sends as a bearer token"
        ),
    ] = True


class LinkSection(Section, frozen=True):
    """The mutual-TLS websocket that the hosts' agents dial."""

    listen: Annotated[Listen, msgspec.Meta(description="address:port to listen on for agents")] = "0.0.0.0:8443"
    url: Annotated[
        str,
        msgspec.Meta(
            pattern=r"^(?:https://[^/\s]+)?$(?!\n)",
            description="the address as hosts and other controllers reach it, shown with join tokens; empty: made from "
            "`names` and the port",
        ),
    ] = ""
    names: Annotated[
        tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=253)], ...],
        msgspec.Meta(
            min_length=1,
            max_length=32,
            description="addresses and DNS names that the server's certificate is good for, the best known first",
        ),
    ] = ("127.0.0.1", "localhost")


class AuditSection(Section, frozen=True):
    """The audit that goes on all the time: what hosts should have, beside what they find on themselves."""

    every_s: Annotated[
        float,
        msgspec.Meta(ge=0, le=86400, description="seconds in which each host is audited once; 0: never"),
    ] = 300.0


class QuotaSection(Section, frozen=True):
    """What projects may use. A project's own limits (`skerry quota set`) hold in place of these."""

    default: Annotated[
        dict[str, Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]],
        msgspec.Meta(
            description="limits, by counter, of every project but `system` that has none of its own, such as "
            "`{ vms = 20, vcpus = 80 }`; what is not named has no limit. The same on all controllers"
        ),
    ] = msgspec.field(default_factory=dict)


class MetricsSection(Section, frozen=True):
    """The history of machines and hosts, in `state_dir`/metrics: thinned with age, and never larger than a limit."""

    raw_hours: Annotated[float, msgspec.Meta(ge=1, le=720, description="hours for which every point (5 s) is kept")] = (
        6.0
    )
    minute_days: Annotated[
        float,
        msgspec.Meta(ge=1, le=400, description="days for which a point a minute is kept: its mean and its highest"),
    ] = 7.0
    hour_days: Annotated[
        float,
        msgspec.Meta(ge=1, le=4000, description="days for which a point an hour is kept: its mean and its highest"),
    ] = 366.0
    max_gib: Annotated[
        float,
        msgspec.Meta(ge=0.01, le=65536, description="most that all of it may take on disk, GiB; the oldest goes first"),
    ] = 8.0


class LogSection(Section, frozen=True):
    """What is written to standard error: JSON lines, or colours on a terminal."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], msgspec.Meta(description="the least important line to write")
    ] = "info"


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    controller: ControllerSection = ControllerSection()
    api: ApiSection = ApiSection()
    link: LinkSection = LinkSection()
    audit: AuditSection = AuditSection()
    quota: QuotaSection = QuotaSection()
    metrics: MetricsSection = MetricsSection()
    log: LogSection = LogSection()

    @property
    def state_dir(self) -> Path:
        """The directory that holds all the controller must not lose."""
        return Path(self.controller.state_dir)

    @property
    def images_dir(self) -> Path:
        """Where image bytes lie, by digest."""
        return self.state_dir / "images"

    @property
    def metrics_dir(self) -> Path:
        """Where the history of machines and hosts lies."""
        return self.state_dir / "metrics"

    @property
    def database_url(self) -> str:
        """The database's SQLAlchemy URL."""
        return self.controller.database or f"sqlite:///{self.state_dir / 'skerry.db'}"

    @property
    def link_url(self) -> str:
        """The link's address as hosts dial it."""
        if self.link.url:
            return self.link.url
        name = self.link.names[0]
        return f"https://{f'[{name}]' if ':' in name else name}:{split_listen(self.link.listen).port}"


class Listening(NamedTuple):
    """A host and a port to listen on."""

    host: str
    port: int


def split_listen(listen: str) -> Listening:
    """Return the two halves of `address:port`. An empty address means every one the machine has."""
    host, _, port = listen.rpartition(":")
    return Listening(host.removeprefix("[").removesuffix("]") or "0.0.0.0", int(port))  # noqa: S104 - as written


def load(path: Path) -> Config:
    """Read the file. Raises Invalid, naming the file, the section, the key and the way out."""
    return _checked(load_settings(path, Config), str(path))


def parse(text: str, where: str) -> Config:
    """Decode a configuration's text; `where` names it in errors. Raises Invalid like `load`."""
    return _checked(parse_settings(text, Config, where), where)


def _checked(config: Config, where: str) -> Config:
    _check_listen(where, "api", config.api.listen)
    _check_listen(where, "link", config.link.listen)
    _refuse_open_api(config, where)
    _check_link_url(config, where)
    _check_quota(config, where)
    return config


def sections() -> tuple[tuple[str, type[Section]], ...]:
    """Return every section's name and struct, in the order of the reference page."""
    return tuple((field.name, field.type) for field in msgspec.structs.fields(Config))


def _check_listen(where: str, section: str, listen: str) -> None:
    if not 0 <= split_listen(listen).port <= 65535:
        raise Invalid(
            f"{where}: {section}.listen is {listen}; a port is 0 to 65535",
            fix="write address:port, such as 127.0.0.1:8080",
            errors=(FieldError(field=f"{section}.listen", message="port out of range"),),
        )


def _refuse_open_api(config: Config, where: str) -> None:
    if config.api.tls or is_loopback(split_listen(config.api.listen).host):
        return
    raise Invalid(
        f"{where}: api.listen is {config.api.listen}, which other machines reach, and api.tls is false: "
        "tokens would cross the network readable",
        fix="set api.tls = true, or listen on 127.0.0.1 and put a TLS proxy before it",
        errors=(FieldError(field="api.listen", message="is not loopback, and api.tls is false"),),
    )


def _check_link_url(config: Config, where: str) -> None:
    try:
        parts = urlsplit(config.link_url)
        usable = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise Invalid(
            f"{where}: link.url {config.link.url} is no address",
            fix="write https://ADDRESS:PORT",
            errors=(FieldError(field="link.url", message="is no address"),),
        )


def _check_quota(config: Config, where: str) -> None:
    known = [counter.name for counter in COUNTERS]
    for name in config.quota.default:
        if name not in known:
            raise Invalid(
                f"{where}: quota.default limits {name}, which nothing counts",
                fix=f"limit one of {', '.join(known)}",
                errors=(FieldError(field=f"quota.default.{name}", message="is no counter"),),
            )


def is_loopback(host: str) -> bool:
    """Say whether an address to listen on is reached from this machine only. A name other than localhost is not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
