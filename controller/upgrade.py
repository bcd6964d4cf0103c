"""`skerry-controller upgrade`: newer packages, and a way back from a release that does not become ready.

Everything that the way back needs is kept before anything is changed: the packages as they are installed, and, with the
controller stopped, SQLite's files. A folder `pending` says that a release was let in and not judged yet. Whoever finds
it (this command typed again, or its unit after a power cut) looks at what is installed, and judges it or goes back.
While a file `hold` is there, systemd does not start the controller: no release writes to the database unless it is
being judged, and once one is ready, it stays.
"""

import asyncio
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import msgspec

from common.codec import from_json, to_json
from common.errors import Conflict, Invalid, Temporary
from common.run import CommandFailed
from controller.packages import KEPT, Package, State, copy_owned

CONTROLLER = "skerry-controller"
CARRIES_SCHEMA = "skerry-common"
STARTS = 3
"""So many starts that end before they are ready are no accident."""
_LOOK_S = 0.5
_JOURNAL_LINES = 30
_SPARE_BYTES = 256 << 20


class Machine(Protocol):
    """What an upgrade does to a machine: see `controller.packages.Debian`."""

    async def read(self, file: Path) -> Package: ...
    async def schema_in(self, file: Path) -> str: ...
    async def is_newer(self, version: str, than: str) -> bool: ...
    async def installed(self) -> dict[str, str]: ...
    async def repack(self, name: str, into: Path) -> None: ...
    async def install(self, files: Sequence[Path]) -> None: ...
    async def put_back(self, files: Sequence[Path]) -> None: ...
    async def restored(self) -> None: ...
    async def stop(self) -> None: ...
    async def start(self) -> None: ...
    async def state(self) -> State: ...
    async def journal(self, since: float, lines: int) -> tuple[str, ...]: ...


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What an upgrade leads from and to."""

    before: str
    after: str
    packages: tuple[str, ...]
    schema: str
    """Of the database before it; empty: none."""


class Database(msgspec.Struct, frozen=True, kw_only=True):
    """Where it is, and which schema it has."""

    file: Path | None
    """SQLite's; None: a PostgreSQL, which is not ours to copy."""
    schema: Callable[[], str]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator says."""

    wait_s: float = 300.0
    """How long a release may take to become ready."""
    dumped: bool = False
    """A dump of a PostgreSQL database was taken."""


class Upgrade:
    """One upgrade of one machine. `say` shows a line to the operator."""

    def __init__(
        self,
        machine: Machine,
        database: Database,
        settings: Settings,
        say: Callable[[str], None],
        folder: Path = KEPT,
    ) -> None:
        self._machine, self._database, self._settings, self._say = machine, database, settings, say
        self._kept = Kept(folder)

    async def run(self, files: Sequence[Path]) -> bool:
        """Install newer packages, or finish an upgrade that was cut short; say whether the newer release runs.

        Raises Invalid and Conflict where nothing was changed. False: the release from before runs again.
        """
        with self._kept.alone():
            note = self._kept.pending()
            if note is not None:
                self._say(f"an upgrade from {note.before} to {note.after} was cut short")
                return await self._settle(note)
            if self._kept.held():
                return await self._nothing_changed("an upgrade was cut short")
            if not files:
                raise Invalid(
                    "no upgrade was cut short", fix="name the newer packages: skerry-controller upgrade *.deb"
                )
            packages = await self._chosen([await self._machine.read(file) for file in files])
            note = await self._allowed(packages)
            return await self._upgrade(note, packages)

    # --- before anything is changed ---------------------------------------------------------------------------------

    async def _chosen(self, given: Sequence[Package]) -> list[Package]:
        """Return those of the given packages whose like is installed."""
        there = await self._machine.installed()
        for package in given:
            if package.name not in there:
                self._say(f"{package.name} is not installed here, and is left out")
        chosen = [package for package in given if package.name in there]
        refuse_misfits(there, chosen)
        after, before = chosen[0].version, there[CONTROLLER]
        if not await self._machine.is_newer(after, before):
            raise Conflict(
                f"{after} is not newer than {before}, which is installed", fix="name a newer release's packages"
            )
        return chosen

    async def _allowed(self, packages: Sequence[Package]) -> Note:
        there = await self._machine.installed()
        if (await self._machine.state()).active != "active":
            raise Conflict(
                "the controller is not ready now, so nobody could tell whether the newer release is to blame",
                fix="skerry-controller doctor; apt-get install takes the packages all the same, with no way back",
            )
        schema = self._database.schema()
        carried = [await self._machine.schema_in(one.file) for one in packages if one.name == CARRIES_SCHEMA]
        if self._database.file is None and carried != [schema] and not self._settings.dumped:
            raise Conflict(
                f"the newer release changes the database from schema {schema} to {carried[0]}, and the only way back "
                "on PostgreSQL is a dump",
                fix="stop all other controllers, take a dump (docs/operators.md, Backup), then give --dumped",
            )
        self._kept.has_room(self._database.file)
        names = tuple(package.name for package in packages)
        return Note(before=there[CONTROLLER], after=packages[0].version, packages=names, schema=schema)

    # --- from here on there is a way back ---------------------------------------------------------------------------

    async def _upgrade(self, note: Note, packages: Sequence[Package]) -> bool:
        self._say(f"keeping {note.before}: {', '.join(note.packages)}")
        with self._kept.building() as part:
            for name in note.packages:
                await self._machine.repack(name, part)
        await self._hold()
        self._say(f"installing {note.after}; the controller is stopped meanwhile, guests run on")
        try:
            self._kept.keep(note, self._database.file)
        except OSError as err:
            return await self._nothing_changed(f"the database can't be copied ({err}): make room")
        try:
            await self._machine.install([package.file for package in packages])
        except CommandFailed as err:
            return await self._go_back(note, f"its packages can't be installed: {err.detail}")
        return await self._settle(note)

    async def _nothing_changed(self, why: str) -> bool:
        """Have the controller run again that was only stopped."""
        self._say(f"{why}; nothing was changed, and the controller is started again")
        if problem := await self._comes_up():
            raise Temporary(f"the controller does not come up: {problem}", fix="skerry-controller doctor says why")
        return False

    async def _settle(self, note: Note) -> bool:
        """Judge the newer release if it is installed; go back if it is not, or is not what it should be."""
        if refused := self._kept.refused():
            return await self._go_back(note, refused)
        there = await self._machine.installed()
        missing = [name for name in note.packages if there.get(name) != note.after]
        if missing:
            return await self._go_back(note, f"not all of it is installed: {', '.join(missing)}")
        self._say(f"starting {note.after}: it has {self._settings.wait_s:.0f} s to become ready")
        problem = await self._comes_up()
        if problem:
            return await self._go_back(note, problem)
        self._kept.conclude()
        self._say(f"{note.after} runs and is ready. What it came from is kept in {self._kept.former}")
        return True

    async def _comes_up(self) -> str:
        """Start the controller and wait until it is ready. Return what is wrong and its journal; empty: nothing."""
        since, began = time.time(), time.monotonic()
        self._kept.release()
        await self._machine.start()
        found: str | None = None
        while found is None:
            await asyncio.sleep(_LOOK_S)
            found = judge(await self._machine.state(), time.monotonic() - began, self._settings.wait_s)
        if not found:
            return ""
        lines = await self._machine.journal(since - 1, _JOURNAL_LINES)
        return "\n".join([found, *(f"  | {line}" for line in lines)])

    async def _go_back(self, note: Note, problem: str) -> bool:
        self._say(f"{note.after} did not come up: {problem}\ngoing back to {note.before}")
        await self._hold()
        self._kept.refuse(problem)
        older = self._kept.give_back(self._database.file)
        try:
            await self._machine.put_back(self._kept.packages(note))
            if older:
                await self._machine.restored()
        except CommandFailed as err:
            raise Temporary(
                f"{note.before} can't be put back: {err.detail}",
                fix="mend what that says, then type skerry-controller upgrade: it goes on where this ended",
            ) from err
        if self._database.file is None and (schema := self._database.schema()) != note.schema:
            self._kept.release()
            self._kept.conclude()
            raise Conflict(
                f"{note.before} is installed again and stopped: the database has schema {schema}, which it can't read",
                fix="restore the dump (docs/operators.md, Backup), skerry-controller restored, systemctl start "
                "skerry-controller",
            )
        again = await self._comes_up()
        if again:
            raise Temporary(
                f"{note.before} is installed again, and does not come up either: {again}",
                fix="skerry-controller doctor says what is wrong; then skerry-controller upgrade tries this again",
            )
        self._kept.forget()
        self._say(f"rolled back: {note.before} runs and is ready; {note.after} did not become ready (see above)")
        return False

    async def _hold(self) -> None:
        """Stop the controller, and have nobody start it: packages do that when they are installed."""
        self._kept.hold()
        await self._machine.stop()


def refuse_misfits(there: Mapping[str, str], given: Sequence[Package]) -> None:
    """Raise Invalid or Conflict unless the packages make one release, of all that is installed."""
    if CONTROLLER not in there:
        raise Conflict(f"{CONTROLLER} is not installed here", fix="on a host: apt-get install ./skerry-*.deb")
    if cut := [name for name, version in there.items() if not version]:
        raise Conflict(
            f"{', '.join(cut)} is only half installed", fix="dpkg --configure -a, then see dpkg -l 'skerry-*'"
        )
    if lacking := there.keys() - {package.name for package in given}:
        raise Invalid(
            f"{', '.join(sorted(lacking))} is installed here, and no newer package of it was named",
            fix="name the packages of all that is installed: they have one version",
        )
    if len(given) != len(there) or len({package.version for package in given}) != 1:
        named = ", ".join(f"{package.name} {package.version}" for package in given)
        raise Invalid(f"these packages are not one release: {named}", fix="name each package once, all of one version")


def judge(state: State, waited_s: float, wait_s: float) -> str | None:
    """Say what is wrong with a controller that was started; empty: it is ready. None: that is not known yet."""
    if state.active == "active":
        return ""
    if state.ended >= STARTS:
        return f"it ended {state.ended} times before it was ready; its journal:"
    if waited_s >= wait_s:
        return f"it was not ready after {wait_s:.0f} s; its journal:"
    return None


class Kept:
    """What the way back needs, in a directory of root's own.

    `part` is being made, `pending` belongs to a release that is not judged yet, `former` to the one that runs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._hold = folder, folder / "hold"
        self._part, self._pending = folder / "part", folder / "pending"
        self.former = folder / "former"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep a second upgrade out. Raises Conflict."""
        if os.geteuid() != 0:
            raise Conflict("only root may install packages", fix="type it as root")
        self._folder.mkdir(mode=0o711, exist_ok=True)
        with (self._folder / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as err:
                raise Conflict("an upgrade is under way", fix="wait for it: journalctl -ft skerry-upgrade") from err
            yield

    def hold(self) -> None:
        """Have systemd start no controller: its unit looks for this file."""
        self._hold.touch()

    def held(self) -> bool:
        """Say whether none may be started."""
        return self._hold.exists()

    def release(self) -> None:
        """Let it be started again."""
        self._hold.unlink(missing_ok=True)

    def has_room(self, database: Path | None) -> None:
        """Raise Conflict where the packages and the database would not fit."""
        need = _SPARE_BYTES + sum(file.stat().st_size for file in _files(database))
        free = shutil.disk_usage(self._folder).free
        if free < need:
            raise Conflict(
                f"{self._folder} has {free >> 20} MiB free; keeping the way back takes {need >> 20}",
                fix="make room there, or mount a file system",
            )

    @contextmanager
    def building(self) -> Iterator[Path]:
        """Give an empty folder for packages, which becomes a part of what is kept."""
        shutil.rmtree(self._part, ignore_errors=True)
        (self._part / "packages").mkdir(parents=True, mode=0o700)
        try:
            yield self._part / "packages"
        except OSError as err:
            raise Conflict(
                f"the packages from before can't be kept: {err}", fix=f"make room in {self._folder}"
            ) from err

    def keep(self, note: Note, database: Path | None) -> None:
        """Copy the database of a controller that is stopped, and have all of it count. From here on it is pending."""
        for file in _files(database):
            (self._part / "database").mkdir(mode=0o700, exist_ok=True)
            copy_owned(file, self._part / "database" / file.name)
        (self._part / "note.json").write_bytes(to_json(note))
        os.sync()
        self._part.rename(self._pending)

    def pending(self) -> Note | None:
        """Return what a release that is not judged yet leads from and to."""
        try:
            return from_json((self._pending / "note.json").read_bytes(), Note, "note.json")
        except FileNotFoundError:
            return None

    def refuse(self, problem: str) -> None:
        """Have it written that the newer release is never started again."""
        (self._pending / "refused").write_text(problem)

    def refused(self) -> str:
        """Return why the newer release must not be started; empty: it may be."""
        file = self._pending / "refused"
        return (file.read_text() or "it did not become ready") if file.exists() else ""

    def packages(self, note: Note) -> list[Path]:
        """Return the package files from before."""
        return [self._pending / "packages" / f"{name}.deb" for name in note.packages]

    def give_back(self, database: Path | None) -> bool:
        """Put the database back, unless nobody wrote to it; say whether. Done once, however often it is tried."""
        copies, done = self._pending / "database", self._pending / "given-back"
        if database is None or not copies.exists():
            return done.exists()
        if _stamps(copies / file.name for file in _all_of(database)) == _stamps(_all_of(database)):
            shutil.rmtree(copies)
            return False
        for file in _all_of(database)[1:]:
            file.unlink(missing_ok=True)
        for file in _all_of(database):
            if (copies / file.name).exists():
                part = file.with_name(f"{file.name}-part")
                copy_owned(copies / file.name, part)
                part.replace(file)
        os.sync()
        copies.rename(done)
        return True

    def conclude(self) -> None:
        """Keep what there was before the release that runs now."""
        shutil.rmtree(self.former, ignore_errors=True)
        self._pending.rename(self.former)

    def forget(self) -> None:
        """The release from before runs again: nothing has to be kept of it."""
        self._pending.rename(self._part)
        shutil.rmtree(self._part)


def _all_of(database: Path) -> tuple[Path, ...]:
    """Name SQLite's files: the database, its log, the log's index."""
    return database, Path(f"{database}-wal"), Path(f"{database}-shm")


def _files(database: Path | None) -> list[Path]:
    return [file for file in _all_of(database)[:2] if file.exists()] if database else []


def _stamps(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    there = [(file.name, file.stat()) for file in files if not file.name.endswith("-shm") and file.exists()]
    return [(name, seen.st_size, seen.st_mtime_ns) for name, seen in there]
