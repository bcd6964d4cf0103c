"""What `skerry-controller doctor` makes of what was seen: one pure function a check, each with its way out."""

from collections.abc import Callable

import msgspec

from common.checkup import Finding, Room, check_clock, check_files, check_room, fail, ok, warn
from controller.config import Config, is_loopback
from controller.pki.look import Pair

UNIT = "skerry-controller"
CA_WARN_DAYS = 365
DAY_S = 86400.0


class Files(msgspec.Struct, frozen=True, kw_only=True):
    """The state directory."""

    path: str
    there: bool
    writable: bool
    open_to_others: bool
    strangers: tuple[str, ...]
    """What lies in it and belongs to somebody else than the directory does."""


class Database(msgspec.Struct, frozen=True, kw_only=True):
    """The database, asked."""

    shown: str
    """How people call it; without a password."""
    problem: str = ""
    made: bool = True
    revision: str = ""
    newest: str = ""
    known: bool = True
    """This release knows the revision that the database has."""


class Port(msgspec.Struct, frozen=True, kw_only=True):
    """One of the addresses to listen on."""

    key: str
    """The configuration's key, such as `api.listen`."""
    listen: str
    problem: str = ""
    """Not running: why it can't be had. Running: why nobody answers there."""


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """How the controller itself is kept running."""

    systemd: bool
    enabled: bool
    running: bool
    unready: str = ""
    """What `/readyz` complains of."""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What an upgrade left."""

    pending: bool = False
    """A newer release was let in, and nobody judged it."""
    held: bool = False
    """No controller may be started."""


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """All that is looked at."""

    now: float
    config: Config
    files: Files
    database: Database
    pairs: tuple[Pair, ...]
    ports: tuple[Port, ...]
    unresolved: tuple[str, ...]
    """Of `link.names`, what no resolver knows here."""
    service: Service
    upgrade: Standing
    qemu_img: bool
    clock_kept: bool
    rooms: tuple[Room, ...]
    open_files: int


def examine(sight: Sight) -> tuple[Finding, ...]:
    """Return what every check finds, in the order in which one would look."""
    found = [check(sight) for check in CHECKS]
    return (*found, *(_port(port, sight) for port in sight.ports), *(check_room(room) for room in sight.rooms))


def unreadable(problem: str, fix: str) -> tuple[Finding, ...]:
    """Return the one finding where the configuration can't be used."""
    return (fail("configuration", problem, fix or "correct it: docs/reference/config.md has every key"),)


def configuration(_sight: Sight) -> Finding:
    """That it can be used was seen when it was read."""
    return ok("configuration", "every key is known, every value fits")


def files(sight: Sight) -> Finding:
    """The state directory is the controller's own, and nobody else's."""
    there = sight.files
    if not there.there:
        return warn(
            "state", f"{there.path} is not there", "it is made at the first start, or by skerry-controller init"
        )
    if not there.writable:
        return fail("state", f"{there.path} can't be written", f"chown -R skerry:skerry {there.path}")
    if there.strangers:
        return fail(
            "state",
            f"in {there.path} there is what the controller does not own: {', '.join(there.strangers[:3])}",
            f"chown -R skerry:skerry {there.path}",
        )
    if there.open_to_others:
        return fail("state", f"others may look into {there.path}", f"chmod 700 {there.path}")
    return ok("state", there.path)


def database(sight: Sight) -> Finding:
    """It answers, and has the schema of this release."""
    there = sight.database
    if there.problem:
        return fail(
            "database",
            f"{there.shown}: {there.problem}",
            "see that it runs and lets this machine in, and [controller] database; a file: restore it from a backup",
        )
    if not there.made:
        return warn("database", f"{there.shown} is empty", "its tables are made at the first start")
    if not there.known:
        return fail(
            "database",
            f"{there.shown} has schema {there.revision}, which this release does not know (its newest: {there.newest})",
            "a newer release ran on it: install that one, or restore the backup from before it (docs/operators.md)",
        )
    if there.revision != there.newest:
        return warn(
            "database",
            f"{there.shown} has schema {there.revision}; this release's is {there.newest}",
            f"take a backup, then systemctl restart {UNIT}: a start migrates it",
        )
    return ok("database", f"{there.shown}, schema {there.revision}")


def keys(sight: Sight) -> Finding:
    """The keys are there, fit, and are nobody else's business."""
    if not sight.pairs:
        return warn(
            "certificates",
            "there is no certificate authority yet",
            "it is made at the first start; for a further controller copy ca.key and ca.pem before that",
        )
    if broken := [pair.problem for pair in sight.pairs if pair.problem]:
        return fail("certificates", "; ".join(broken), "restore the pair from one backup of state_dir/pki")
    if exposed := [pair.key for pair in sight.pairs if pair.open_to_others]:
        return fail(
            "certificates",
            f"others may read {', '.join(exposed)}",
            f"chmod 600 {' '.join(exposed)}; if somebody may have: skerry ca rotate",
        )
    return ok("certificates", "keys and certificates fit, and are the controller's alone")


def ends(sight: Sight) -> Finding:
    """How long they are good for."""
    if not sight.pairs:
        return ok("certificates' end", "none was made yet")
    left = [(pair.certificate, (pair.ends_at - sight.now) / DAY_S) for pair in sight.pairs if not pair.problem]
    if over := [path for path, days in left if days <= 0]:
        return fail(
            "certificates' end",
            f"{', '.join(over)} ran out",
            f"the server's: systemctl restart {UNIT} makes a new one; the authority's: hosts have to join anew",
        )
    if soon := [f"{path} in {days:.0f} days" for path, days in left if path.endswith("ca.pem") and days < CA_WARN_DAYS]:
        return warn("certificates' end", f"the authority ends: {soon[0]}", "skerry ca rotate has another one follow")
    return ok("certificates' end", ", ".join(f"{path.rpartition('/')[2]} in {days:.0f} days" for path, days in left))


def names(sight: Sight) -> Finding:
    """By these hosts dial the controller."""
    wanted = sight.config.link.names
    if all(is_loopback(name) for name in wanted):
        return warn(
            "link names",
            f"hosts on other machines can't join: the certificate is only for {', '.join(wanted)}",
            f"set [link] names to this machine's address and name, then systemctl restart {UNIT}",
        )
    if sight.unresolved:
        return warn(
            "link names",
            f"no resolver here knows {', '.join(sight.unresolved)}",
            "correct [link] names, or the DNS; hosts have to find the name that they dial",
        )
    has = next((pair.names for pair in sight.pairs if pair.names), None)
    if has is not None and not set(wanted) <= has:
        lacks = ", ".join(sorted(set(wanted) - has))
        return warn("link names", f"the server's certificate is not for {lacks} yet", f"systemctl restart {UNIT}")
    return ok("link names", ", ".join(wanted))


def service(sight: Sight) -> Finding:
    """That it runs, works, and will after the next boot."""
    there = sight.service
    if there.systemd and not there.enabled:
        return fail("service", f"{UNIT} is not enabled: it is gone after a reboot", f"systemctl enable --now {UNIT}")
    if not there.running:
        return fail(
            "service", "the controller does not run", f"systemctl start {UNIT}; journalctl -u {UNIT} -n 20 says why"
        )
    if there.unready:
        return fail("service", f"it runs and is not ready: {there.unready}", f"journalctl -u {UNIT} -n 20 says why")
    return ok("service", "runs and is ready")


def upgrade(sight: Sight) -> Finding:
    """One that was cut short, by a power cut say, is finished by its unit at the next boot, or by hand."""
    if sight.upgrade.pending or sight.upgrade.held:
        stands = "and the controller may not be started" if sight.upgrade.held else "and nobody looked what came of it"
        return fail("upgrade", f"one was cut short, {stands}", "skerry-controller upgrade finishes it, or goes back")
    return ok("upgrade", "none was cut short")


def checker(sight: Sight) -> Finding:
    """Uploads are looked at by qemu-img."""
    if sight.qemu_img:
        return ok("qemu-img", "checks uploads")
    return fail("qemu-img", "it is missing: no image can be uploaded", "apt-get install qemu-utils")


def clock(sight: Sight) -> Finding:
    """Whether something keeps the clock right."""
    return check_clock(sight.clock_kept)


def descriptors(sight: Sight) -> Finding:
    """Whether enough connections may be open."""
    return check_files(sight.open_files, UNIT)


def _port(port: Port, sight: Sight) -> Finding:
    name = port.key
    if not port.problem:
        return ok(name, f"{port.listen} {'answers' if sight.service.running else 'is free'}")
    if sight.service.running:
        return fail(
            name,
            f"the controller runs, and nobody answers on {port.listen}: {port.problem}",
            f"systemctl restart {UNIT} after a change of the configuration; see the firewall (nft list ruleset)",
        )
    return fail(
        name,
        f"{port.listen} can't be had: {port.problem}",
        f"ss -tlnp says who has it: stop that, or set another {port.key}",
    )


CHECKS: tuple[Callable[[Sight], Finding], ...] = (
    configuration,
    files,
    database,
    keys,
    ends,
    names,
    service,
    upgrade,
    checker,
    clock,
    descriptors,
)
