"""Debian's side of an upgrade: what dpkg has installed, packages made again from it, and the controller's unit."""

import asyncio
import fcntl
import os
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from common.errors import Invalid, Temporary
from common.run import CommandFailed, run

UNIT = "skerry-controller.service"
KEPT = Path("/var/lib/skerry-upgrade")
"""What an upgrade keeps for the way back. Anybody may ask for the names `hold` and `pending` in it."""
_MINUTE_S = 60.0
_INSTALL_S = 1800.0
_LOCKED_S = 600.0
"""How long another apt or dpkg is waited for."""
_MOST_LINES = "1000"
_ENDED = f"{UNIT}: Main process exited"
_LOCK = Path("/var/lib/dpkg/lock-frontend")
_MIGRATION = "/controller/store/migrations/versions/"
_QUIET = ("env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8")


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """A package file."""

    file: Path
    name: str
    version: str


class State(msgspec.Struct, frozen=True, kw_only=True):
    """How systemd sees the controller's unit."""

    active: str
    """ActiveState: `active` once it said that it is ready."""
    ended: int
    """How often it ended by itself since somebody asked for it."""


class Debian:
    """The machine that this runs on. Needs root."""

    # --- packages ---------------------------------------------------------------------------------------------------

    async def read(self, file: Path) -> Package:
        """Read what a package file is. Raises Invalid for a file that is none."""
        try:
            said = await run(["dpkg-deb", "--field", str(file), "Package", "Version"], timeout_s=_MINUTE_S)
        except CommandFailed as err:
            raise Invalid(f"{file} is no Debian package", fix="name the .deb files of the newer release") from err
        fields = dict(line.split(": ", 1) for line in said.splitlines())
        return Package(file=file, name=fields["Package"], version=fields["Version"])

    async def schema_in(self, file: Path) -> str:
        """Return the newest revision of the database's schema in a package; empty: it has none."""
        listed = await run(["dpkg-deb", "--contents", str(file)], timeout_s=_MINUTE_S)
        names = [line.rpartition(_MIGRATION)[2] for line in listed.splitlines() if _MIGRATION in line]
        return max((name.partition("_")[0] for name in names if name[:1].isdecimal()), default="")

    async def is_newer(self, version: str, than: str) -> bool:
        """Compare two versions as dpkg does."""
        try:
            await run(["dpkg", "--compare-versions", version, "gt", than])
        except CommandFailed as err:
            if err.returncode != 1:
                raise
            return False
        return True

    async def installed(self) -> dict[str, str]:
        """Return the versions of Skerry's packages; of one that is only half installed it is empty."""
        said = await run(["dpkg-query", "-W", "-f", "${Package} ${Version} ${db:Status-Abbrev}\n", "skerry-*"])
        rows = [line.split() for line in said.splitlines()]
        return {row[0]: row[1] if row[2] == "ii" else "" for row in rows if len(row) == 3 and row[2][1:2] not in "nc"}

    async def repack(self, name: str, into: Path) -> None:
        """Make a package again from what is installed of it, its configuration and owners as they are now."""
        tree = into / f".{name}"
        paths = [Path(line) for line in (await run(["dpkg-query", "-L", name])).splitlines() if line != "/."]
        await asyncio.to_thread(_copy, paths, tree)
        await _write_control(name, tree)
        line = ["dpkg-deb", "-Znone", "--build", str(tree), str(into / f"{name}.deb")]
        await run(line, timeout_s=_INSTALL_S)
        await asyncio.to_thread(shutil.rmtree, tree)

    async def install(self, files: Sequence[Path]) -> None:
        """Install packages with what they need. Removes nothing; the operator's configuration stays as it is."""
        options = ["-o", f"DPkg::Lock::Timeout={_LOCKED_S:.0f}", "-o", "Dpkg::Options::=--force-confold"]
        line = [*_QUIET, "apt-get", "install", "-qy", "--no-remove", *options, *map(str, files)]
        await run(line, timeout_s=_INSTALL_S + _LOCKED_S)

    async def put_back(self, files: Sequence[Path]) -> None:
        """Install older packages over newer ones, whatever state those are in."""
        async with _alone_with_dpkg():
            options = ["--force-confold", "--force-downgrade"]
            line = [*_QUIET, "DPKG_FRONTEND_LOCKED=1", "dpkg", *options, "--install", *map(str, files)]
            await run(line, timeout_s=_INSTALL_S)

    async def restored(self) -> None:
        """Have the installed release say that its database is an older one."""
        await run(["/usr/bin/skerry-controller", "restored"], timeout_s=_INSTALL_S)

    # --- the unit ---------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Stop it, and wait for that."""
        await run(["systemctl", "stop", UNIT], timeout_s=3 * _MINUTE_S)

    async def start(self) -> None:
        """Have it started; `state` tells what came of it."""
        await run(["systemctl", "start", "--no-block", UNIT])

    async def state(self) -> State:
        """Look how it is."""
        said = await run(["systemctl", "show", "-p", "ActiveState,SubState,NRestarts", UNIT])
        found = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
        # Between an end and the next start the one is told and the other is not counted yet.
        ended = int(found["NRestarts"]) + (found["SubState"] == "auto-restart")
        return State(active=found["ActiveState"], ended=ended)

    async def journal(self, since: float, lines: int) -> tuple[str, ...]:
        """Return the last lines that the controller and systemd wrote of it."""
        await run(["journalctl", "--sync"])
        line = ["journalctl", "-u", UNIT, "-o", "cat", "--no-pager", "--since", f"@{since:.0f}", "-n", _MOST_LINES]
        return last_words((await run(line)).splitlines(), lines)


def last_words(journal: Sequence[str], lines: int) -> tuple[str, ...]:
    """Return the last lines of the process that ended last; of one that never ended, its last.

    systemd may have started the next by now, and what that says yet tells nothing.
    """
    ends = [number for number, line in enumerate(journal) if _ENDED in line]
    told = journal[: ends[-1] + 1] if ends else journal
    return tuple(told[-lines:])


def _copy(paths: Sequence[Path], tree: Path) -> None:
    """Lay out a package's files below `tree`, linked where the file system can."""
    above = {parent for path in paths for parent in path.parents}
    for path in paths:
        target = tree / path.relative_to("/")
        if path in above or (path.is_dir() and not path.is_symlink()):  # /lib may be a link on this machine
            target.mkdir(parents=True, exist_ok=True)
        elif path.is_symlink():
            target.symlink_to(path.readlink())
        elif path.exists():
            try:
                os.link(path, target)
            except OSError:
                copy_owned(path, target)


def copy_owned(source: Path, target: Path) -> None:
    """Copy a file with its owner, mode and times."""
    shutil.copy2(source, target)
    seen = source.stat()
    os.chown(target, seen.st_uid, seen.st_gid)


async def _write_control(name: str, tree: Path) -> None:
    folder = tree / "DEBIAN"
    folder.mkdir(parents=True)
    (folder / "control").write_text(control_of(await run(["dpkg-query", "--status", name])))
    for part in (await run(["dpkg-query", "--control-list", name])).split():
        text = await run(["dpkg-query", "--control-show", name, part])
        if part == "conffiles":
            text = "".join(f"{line}\n" for line in text.splitlines() if (tree / line.lstrip("/")).exists())
        (folder / part).write_text(text)
        (folder / part).chmod(0o755 if part in {"preinst", "postinst", "prerm", "postrm"} else 0o644)


def control_of(status: str) -> str:
    """Return a package's control file, from what dpkg's status says of it."""
    kept: list[str] = []
    passing = False
    for line in status.splitlines():
        if not line.startswith(" "):
            passing = line.partition(":")[0] in {"Status", "Conffiles", "Config-Version"}
        if line and not passing:
            kept.append(line)
    return "\n".join(kept) + "\n"


@asynccontextmanager
async def _alone_with_dpkg() -> AsyncIterator[None]:
    """Hold the lock that apt and dpkg take first: what runs meanwhile has DPKG_FRONTEND_LOCKED set."""
    deadline = time.monotonic() + _LOCKED_S
    lock = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        while not _locked(lock):
            if time.monotonic() > deadline:
                raise Temporary(
                    f"another apt or dpkg has held {_LOCK} for {_LOCKED_S:.0f} s",
                    fix="see what it waits for (ps -C apt,apt-get,dpkg), then type skerry-controller upgrade",
                )
            await asyncio.sleep(1)
        yield
    finally:
        os.close(lock)


def _locked(lock: int) -> bool:
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
