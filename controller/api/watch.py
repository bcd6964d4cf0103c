"""`/v1/watch`: things and operations as they change, resumable from any revision that is still covered.

A reader is told the newest state of what changed behind its revision, in the order of revisions, then every change as
it is committed. What it reads is level-triggered: where it was away or slow it gets the state, not each step to it.
Deletions are told from graves; where those do not reach back far enough the reader is told to start again (`resync`).
"""

import math
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import groupby

import msgspec
from aiohttp import web

from common.kinds import KINDS, kind_named
from common.kinds.kind import AnyResource, Resource
from controller.api.call import Call, Door
from controller.api.operations import sees_operation
from controller.api.ports import Store, Watch
from controller.api.query import bad, integer, label_filters, refuse_unknown
from controller.api.render import names_of, operation_view, resource_view
from controller.api.stream import HEARTBEAT_S, frame, send_events
from controller.api.waiting import Waiting
from controller.auth.caller import OF_THE_CLOUD, Caller, Past, require_project, sees, sees_past
from controller.auth.rights import collection_of
from controller.store.rows import Change, Grave, Operation, Put
from controller.store.working import WorkingSet

AT_ONCE = 200
"""Things that are rendered before they are sent."""

BEHIND_S = 2.0
"""A reader may have seen a revision a moment before this controller has: so long it is waited for."""

OPERATION = "operation"

PARAMETERS = {
    "from": "the revision behind which to go on, as a list or a bookmark gave it; none: begin with all there is",
    "kind": f"only this kind, or `{OPERATION}`; may be repeated; none: everything",
    "project": "only what is in this project",
    "label": "only things with this label, `key=value`; may be repeated, all must hold; no operations then",
}

Row = AnyResource | Operation | Grave


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a watcher asked for."""

    kinds: frozenset[str]
    project: str | None
    labels: tuple[tuple[str, str], ...]


class Watching:
    """The handler of the watch."""

    def __init__(self, store: Store, door: Door, waiting: Waiting, heartbeat_s: float = HEARTBEAT_S) -> None:
        self._store = store
        self._door = door
        self._waiting = waiting
        self._heartbeat_s = heartbeat_s

    async def watch(self, call: Call) -> web.StreamResponse:
        """Send what is there, or what changed since, and then what changes."""
        query = call.request.query
        refuse_unknown(query, PARAMETERS)
        wanted = _wanted(call, self._store.seen)
        after = _begin(call.request)
        return await send_events(call.request, call.caller.request, self._chunks(call, wanted, after))

    async def _chunks(self, call: Call, wanted: Wanted, after: int) -> AsyncIterator[bytes]:
        """Give what to send. The watch begins before the state is read, so that nothing falls between the two."""
        seen = self._store.seen
        yield b": from here on\n\n"
        with self._store.watch() as watch:
            if after > seen.revision and not await self._reached(watch, after):
                yield _resync(seen, f"revision {after} was never given here: the database may be an older copy")
                return
            caught_up = False
            while not self._waiting.stopping:
                caller = self._door.caller(call.request)
                if not caught_up:
                    if 0 < after < seen.horizon:
                        yield _resync(seen, f"what went between {after} and {seen.horizon} is not known any more")
                        return
                    rows, reached = _behind(seen, after), seen.revision
                    for chunk in _in_chunks(_frames(rows, wanted, caller, seen)):
                        yield chunk
                    after, caught_up = reached, True
                    yield _bookmark(after)
                    continue
                changes = await self._next(watch, caller)
                if changes is None:
                    caught_up = False
                    continue
                rows = _rows(changes, after)
                after = max(after, *(row.revision for row in rows)) if rows else after
                sent = b"".join(_frames(rows, wanted, caller, seen))
                if sent or not changes:
                    yield sent or _bookmark(after)

    async def _next(self, watch: Watch, caller: Caller) -> tuple[Change, ...] | None:
        """Wait for changes: empty where none came for a heartbeat's time, None where some were lost."""
        try:
            async with self._waiting.at_most(self._door.left_s(caller, self._heartbeat_s)):
                return await watch.next()
        except TimeoutError:
            return ()

    async def _reached(self, watch: Watch, revision: int) -> bool:
        """Wait a moment for a revision that another controller has given already; say whether it came."""
        try:
            async with self._waiting.at_most(BEHIND_S):
                while self._store.seen.revision < revision:
                    await watch.next()
        except TimeoutError:
            return False
        return True


def _behind(seen: WorkingSet, after: int) -> list[Row]:
    """Return all that changed behind a revision, in order; from the beginning on nothing of what is gone."""
    rows: list[Row] = [row for row in seen if row.revision > after]
    rows += [operation for operation in seen.operations() if operation.revision > after]
    if after:
        rows += [grave for grave in seen.graves() if grave.revision > after]
    return sorted(rows, key=lambda row: (row.revision, row.id))


def _rows(changes: Iterable[Change], after: int) -> list[Row]:
    """Return what a batch of commits changed, as far as it was not told before, in order; of a row the last state."""
    rows: dict[tuple[int, str], Row] = {}
    for change in changes:
        row = change.row
        if isinstance(change, Put) and isinstance(row, Resource | Operation | Grave) and row.revision > after:
            rows[row.revision, row.id] = row
    return sorted(rows.values(), key=lambda row: row.revision)


def _frames(rows: Iterable[Row], wanted: Wanted, caller: Caller, seen: WorkingSet) -> Iterator[bytes]:
    """Render what the caller may see. Only the last one of a revision carries it as its id: whoever is cut off within
    a revision gets all of it again."""
    for revision, group in groupby(rows, key=lambda row: row.revision):
        shown = [one for row in group if (one := _shown(row, wanted, caller, seen))]
        for number, (event, body) in enumerate(shown, 1):
            yield frame(event, {"revision": revision} | body, revision if number == len(shown) else None)


def _shown(row: Row, wanted: Wanted, caller: Caller, seen: WorkingSet) -> tuple[str, dict[str, object]] | None:
    if wanted.project not in (None, row.project):
        return None
    match row:
        case Operation():
            if OPERATION not in wanted.kinds or wanted.labels or not sees_operation(caller, seen, row):
                return None
            return "operation", {"operation": operation_view(row)}
        case Grave():
            live = seen.get(row.id)
            if row.kind not in wanted.kinds or (live and sees(caller, seen, live)):
                return None
            return ("gone", _gone(row)) if _saw(caller, seen, row) else None
        case _:
            return _resource(row, wanted, caller, seen)


def _resource(
    row: AnyResource, wanted: Wanted, caller: Caller, seen: WorkingSet
) -> tuple[str, dict[str, object]] | None:
    """A thing without the labels may have had them, and been shown: it is told as gone."""
    if row.kind not in wanted.kinds or not sees(caller, seen, row):
        return None
    if any(row.labels.get(key) != value for key, value in wanted.labels):
        return "gone", _gone(row)
    return "put", {"resource": resource_view(row, seen, caller), "names": names_of([row], seen, caller)}


def _saw(caller: Caller, seen: WorkingSet, row: Grave) -> bool:
    """Say whether a caller may have been shown what is gone. Nobody minds being told of the end of what they never saw
    in their own project: labels are not known any more, so who may read only some things is told of none."""
    if row.kind in OF_THE_CLOUD:
        return caller.may(f"{row.kind}.read", collection_of(kind_named(row.kind), "", seen))
    past = Past(
        kind=row.kind, project=row.project, domain=row.domain, name=row.name, id=row.id, at=math.inf, public=row.public
    )
    return sees_past(caller, seen, past)


def _gone(row: AnyResource | Grave) -> dict[str, object]:
    return {"id": row.id, "kind": row.kind, "project": row.project, "name": row.name}


def _in_chunks(frames: Iterator[bytes]) -> Iterator[bytes]:
    gathered: list[bytes] = []
    for one in frames:
        gathered.append(one)
        if len(gathered) == AT_ONCE:
            yield b"".join(gathered)
            gathered.clear()
    if gathered:
        yield b"".join(gathered)


def _bookmark(revision: int) -> bytes:
    return frame("bookmark", {"revision": revision}, revision)


def _resync(seen: WorkingSet, why: str) -> bytes:
    return frame("resync", {"revision": seen.revision, "why": f"{why}; list again, or watch without `from`"})


def _begin(request: web.Request) -> int:
    last = request.headers.get("Last-Event-ID")
    most = 2**63 - 1
    if last is not None:
        return integer({"Last-Event-ID": last}, "Last-Event-ID", 0, 0, most)
    return integer(request.query, "from", 0, 0, most)


def _wanted(call: Call, seen: WorkingSet) -> Wanted:
    query = call.request.query
    there = (*(kind.name for kind in KINDS), OPERATION)
    kinds = query.getall("kind", [])
    for kind in kinds:
        if kind not in there:
            raise bad("kind", f"there is no kind {kind[:40]!r}", f"there is {', '.join(there)}")
    project = query.get("project")
    if project is not None:
        require_project(call.caller, seen, project)
    return Wanted(kinds=frozenset(kinds or there), project=project, labels=label_filters(query))
