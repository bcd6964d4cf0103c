"""What the agent knows when it wakes up: the desired documents, its own marks and a few facts, in one SQLite file.

Everything is read from memory and written in one thread, one commit (fsync) per call; the view in memory changes after
the commit and all at once, so a reader never sees what is not on disk.

Absence is not an order. A tombstone replaces its document, and is forgotten once its `done` report went out. If that
report was lost the controller still has the tombstone, the digests differ at the next hello, it comes again, nothing is
left to destroy, and it is reported again. The revision of a forgotten tombstone is kept (a *grave*), so that a late
repetition of the document it replaced does not bring the thing back.
"""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
import structlog

from agent.kinds.unit import UnitKey, Wish, unit_of
from common.codec import from_pack, to_pack
from common.documents import Desired, DocKey
from common.errors import Invalid, Temporary
from common.faults import Faults
from common.ids import Revision
from common.protocol import DesiredBatch, digest

log = structlog.get_logger(__name__)

T = TypeVar("T")

_VERSION = 1
EPOCH = "epoch"
"""The fact that names which past of the controller's database the documents are of."""

_GRAVES = 10_000
"""As many forgotten tombstones are remembered by revision; older ones can't be repeated by any live message."""

_SCHEMA = """
CREATE TABLE document (key TEXT PRIMARY KEY, revision INTEGER NOT NULL, item BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE mark (unit TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (unit, name)) WITHOUT ROWID;
CREATE TABLE grave (key TEXT PRIMARY KEY, revision INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE fact (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


class Lane(Protocol):
    """Runs blocking functions one after another, away from the event loop (or on the spot, in the simulator)."""

    def __call__(self, work: Callable[[], T]) -> Awaitable[T]:
        """Run it and return its result."""
        ...

    def close(self) -> None:
        """Let what was begun end."""
        ...


class ThreadLane:
    """One thread."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="memory")

    async def __call__(self, work: Callable[[], T]) -> T:
        """Run it in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """Wait for what was begun."""
        self._threads.shutdown(wait=True)


class DirectLane:
    """The caller's own thread: for a simulator, where nothing may happen outside its clock."""

    async def __call__(self, work: Callable[[], T]) -> T:
        """Run it now."""
        return work()

    def close(self) -> None:
        """Nothing was begun."""


class _View(msgspec.Struct, frozen=True):
    """All that is on disk, replaced as a whole after each commit."""

    items: Mapping[DocKey, Desired]
    units: Mapping[UnitKey, Mapping[DocKey, Desired]]
    marks: Mapping[UnitKey, Mapping[str, str]]
    graves: Mapping[DocKey, Revision]
    facts: Mapping[str, str]


class Memory:
    """The agent's memory. Use `open_memory`; close it with `close`."""

    def __init__(self, database: sqlite3.Connection, lane: Lane, view: _View, faults: Faults) -> None:
        self._database = database
        self._lane = lane
        self._view = view
        self._faults = faults
        self._full: set[DocKey] | None = None

    # --- reading ------------------------------------------------------------------------------------------------

    @property
    def items(self) -> Mapping[DocKey, Desired]:
        """Every document, tombstones included."""
        return self._view.items

    def units(self) -> tuple[UnitKey, ...]:
        """Return the units that have a document, in a fixed order."""
        return tuple(sorted(self._view.units))

    def wish(self, unit: UnitKey) -> Wish:
        """Return what is wanted of one unit. No items: nothing is."""
        view = self._view
        return Wish(unit=unit, items=view.units.get(unit, {}), marks=view.marks.get(unit, {}))

    def digest(self) -> str:
        """Return the name of the set of documents, to compare with the controller's."""
        return digest((key, item.revision) for key, item in self._view.items.items())

    def newest(self) -> Revision:
        """Return the highest revision that is known, of what is there or is gone."""
        known = (*(item.revision for item in self._view.items.values()), *self._view.graves.values())
        return max(known, default=Revision(0))

    def fact(self, name: str) -> str:
        """Return a fact by name, "" where it was never written."""
        return self._view.facts.get(name, "")

    # --- writing (raises Temporary where nothing could be saved: a full disk) -------------------------------------

    async def apply(self, batch: DesiredBatch) -> frozenset[UnitKey]:
        """Save what is newer than what is known, in one commit, and return the units it changed."""
        changed = await self._save(lambda: self._apply(batch.items))
        self._note_strangers(batch)
        return changed

    async def mark(self, unit: UnitKey, name: str, value: str | None) -> None:
        """Write down a fact about a unit; None wipes it."""
        await self._save(lambda: self._mark(unit, name, value))

    async def forget(self, done: Iterable[tuple[DocKey, Revision]]) -> None:
        """Drop these tombstones, which are done and reported. One that has changed since then stays."""
        wanted = tuple(done)
        await self._save(lambda: self._forget(wanted))

    async def write_fact(self, name: str, value: str) -> None:
        """Write a fact of the host (its name)."""
        if self.fact(name) != value:
            await self._save(lambda: self._write_fact(name, value))

    async def begin_anew(self, epoch: str) -> None:
        """Keep everything, and take it for older than whatever comes: the controller has another past, of this name."""
        await self._save(lambda: self._begin_anew(epoch))

    async def close(self) -> None:
        """Let what is being written end, and close the file."""
        await self._lane(self._database.close)
        self._lane.close()

    async def _save(self, work: Callable[[], T]) -> T:
        try:
            return await self._lane(work)
        except sqlite3.Error as err:
            raise Temporary(
                f"the agent's memory can't be written: {err}", fix="see to the disk that holds [agent] state_dir"
            ) from err

    # --- in the lane --------------------------------------------------------------------------------------------

    def _apply(self, items: Iterable[Desired]) -> frozenset[UnitKey]:
        view = self._view
        newer: dict[DocKey, Desired] = {}
        for item in items:
            known = newer.get(item.key) or view.items.get(item.key)
            if known is not None and known.revision >= item.revision:
                continue
            grave = view.graves.get(item.key, -1)
            if item.revision > grave or (item.gone and item.revision == grave):
                newer[item.key] = item
        if not newer:
            return frozenset()
        with self._database:
            self._database.executemany(
                "INSERT OR REPLACE INTO document VALUES (?, ?, ?)",
                [(key, item.revision, to_pack(item)) for key, item in newer.items()],
            )
        self._faults.reached("memory.documents")
        before = [view.items[key] for key in newer if key in view.items]
        changed = {unit_of(item.key, item) for item in (*newer.values(), *before)}
        self._replace_items(view, {**view.items, **newer}, changed)
        return frozenset(changed)

    def _replace_items(self, view: _View, items: Mapping[DocKey, Desired], changed: set[UnitKey]) -> None:
        units = dict(view.units)
        for unit in changed:
            units.pop(unit, None)
        for key, item in items.items():
            if (unit := unit_of(key, item)) in changed:
                units[unit] = {**units.get(unit, {}), key: item}
        self._view = msgspec.structs.replace(view, items=items, units=units)

    def _mark(self, unit: UnitKey, name: str, value: str | None) -> None:
        if unit not in self._view.units:
            return  # forgotten meanwhile: a mark would outlive its unit
        with self._database:
            if value is None:
                self._database.execute("DELETE FROM mark WHERE unit = ? AND name = ?", (unit, name))
            else:
                self._database.execute("INSERT OR REPLACE INTO mark VALUES (?, ?, ?)", (unit, name, value))
        self._faults.reached("memory.mark")
        own = {key: text for key, text in self._view.marks.get(unit, {}).items() if key != name}
        if value is not None:
            own[name] = value
        self._view = msgspec.structs.replace(self._view, marks={**self._view.marks, unit: own})

    def _forget(self, done: tuple[tuple[DocKey, Revision], ...]) -> None:
        view = self._view
        dead = [view.items[k] for k, rev in done if k in view.items and view.items[k].revision == rev]
        dead = [item for item in dead if item.gone]
        if not dead:
            return
        items = {key: item for key, item in view.items.items() if key not in {d.key for d in dead}}
        changed = {unit_of(item.key, item) for item in dead}
        alive = {unit_of(key, item) for key, item in items.items()}
        with self._database:
            self._database.executemany("DELETE FROM document WHERE key = ?", [(item.key,) for item in dead])
            self._database.executemany("DELETE FROM mark WHERE unit = ?", [(unit,) for unit in changed - alive])
            self._database.executemany(
                "INSERT OR REPLACE INTO grave VALUES (?, ?)", [(item.key, item.revision) for item in dead]
            )
            self._database.execute(
                "DELETE FROM grave WHERE revision < "
                "(SELECT revision FROM grave ORDER BY revision DESC LIMIT 1 OFFSET ?)",
                (_GRAVES,),
            )
        self._faults.reached("memory.forgotten")
        graves = {**view.graves, **{item.key: item.revision for item in dead}}
        marks = {unit: own for unit, own in view.marks.items() if unit not in changed - alive}
        self._replace_items(msgspec.structs.replace(view, graves=graves, marks=marks), items, changed)

    def _begin_anew(self, epoch: str) -> None:
        view = self._view
        items = {key: msgspec.structs.replace(item, revision=Revision(0)) for key, item in sorted(view.items.items())}
        with self._database:
            self._database.executemany(
                "UPDATE document SET revision = 0, item = ? WHERE key = ?",
                [(to_pack(item), key) for key, item in items.items()],
            )
            self._database.execute("DELETE FROM grave")
            self._database.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (EPOCH, epoch))
        self._faults.reached("memory.anew")
        fresh = msgspec.structs.replace(view, graves={}, facts={**view.facts, EPOCH: epoch})
        self._replace_items(fresh, items, set(view.units))

    def _write_fact(self, name: str, value: str) -> None:
        with self._database:
            self._database.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (name, value))
        self._view = msgspec.structs.replace(self._view, facts={**self._view.facts, name: value})

    def _note_strangers(self, batch: DesiredBatch) -> None:
        """Name, once a full list is in, the live documents that the controller does not know. They are kept."""
        keys = {item.key for item in batch.items}
        if batch.full:
            self._full = (self._full or set()) | keys
        elif self._full is not None:
            self._full |= keys
        if self._full is None or not (batch.full and batch.last):
            return
        strangers = sorted(key for key, item in self._view.items.items() if not item.gone and key not in self._full)
        self._full = None
        if strangers:
            log.warning("documents kept that the controller does not know", count=len(strangers), first=strangers[:8])


async def open_memory(path: Path, *, lane: Lane | None = None, faults: Faults | None = None) -> Memory:
    """Open the file, or make it. Raises Invalid, with the way out, for a file that can't be used."""
    runner = lane or ThreadLane()
    try:
        database, view = await runner(lambda: _open(path))
    except sqlite3.Error as err:
        runner.close()
        raise Invalid(
            f"the agent's memory {path} can't be read: {err}",
            fix="move the file away and start again: the controller sends every document anew",
        ) from err
    return Memory(database, runner, view, faults or Faults())


def _open(path: Path) -> tuple[sqlite3.Connection, _View]:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
    path.touch(mode=0o600)
    database = sqlite3.connect(path, check_same_thread=False)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version == 0:
        database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
    elif version != _VERSION:
        raise sqlite3.DatabaseError(f"it has layout {version}, this agent knows layout {_VERSION}")
    return database, _load(database)


def _load(database: sqlite3.Connection) -> _View:
    items: dict[DocKey, Desired] = {}
    units: dict[UnitKey, dict[DocKey, Desired]] = {}
    for key, raw in database.execute("SELECT key, item FROM document ORDER BY key"):
        try:
            item = from_pack(raw, Desired, f"document {key}")
        except Invalid as err:
            # The digest differs without it, so the controller sends it again, in the form this version reads.
            log.warning("document on disk passed over", key=key, problem=err.detail)
            continue
        items[item.key] = item
        units.setdefault(unit_of(item.key, item), {})[item.key] = item
    marks: dict[UnitKey, dict[str, str]] = {}
    for unit, name, value in database.execute("SELECT unit, name, value FROM mark"):
        marks.setdefault(UnitKey(unit), {})[name] = value
    graves = {DocKey(key): Revision(revision) for key, revision in database.execute("SELECT key, revision FROM grave")}
    facts = dict(database.execute("SELECT name, value FROM fact").fetchall())
    return _View(items, units, marks, graves, facts)
