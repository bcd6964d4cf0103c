"""The history: read page by page, or followed as server-sent events that resume where the reader left off."""

from collections.abc import AsyncIterator, Iterable
from typing import get_args

from aiohttp import web

from controller.api.call import Call, Door
from controller.api.ports import Store, Watch
from controller.api.query import LIST_DEFAULT, LIST_MOST, bad, integer, moment, refuse_unknown
from controller.api.render import EventView, answer, event_view, past_of
from controller.api.stream import HEARTBEAT_S, frame, send_events
from controller.api.waiting import Waiting
from controller.auth.caller import Caller, projects_of, require_project, sees_past
from controller.store.rows import Change, Event, EventQuery, EventResult, Put
from controller.store.working import WorkingSet

PAGE = 500

ROUNDS = 50
"""How often a page is filled up where much of what was read is not the caller's to see."""

RESULTS = tuple(one for one in get_args(EventResult) if one)

PARAMETERS = {
    "after": "only events with a greater seq",
    "limit": f"how many at most, 1 to {LIST_MOST}",
    "project": "only those of this project; a project's token sees its own in any case",
    "actor": "only what this one did: `project/token`, `skerry`, a host's id",
    "action": "only those of this action, such as `vm.create`; `vm.*`: all that begin so",
    "kind": "only those about things of this kind",
    "name": "only those about things of this name",
    "request": "only those of the request with this id",
    "result": f"only those with this result: {', '.join(RESULTS)}",
    "since": "only those from this moment on: epoch seconds, or ISO 8601 such as 2026-11-22T08:00:00Z",
    "follow": "true: go on as server-sent events (as with Accept: text/event-stream); Last-Event-ID resumes",
}


class Events:
    """The handler of the history."""

    def __init__(self, store: Store, door: Door, waiting: Waiting, heartbeat_s: float = HEARTBEAT_S) -> None:
        self._store = store
        self._door = door
        self._waiting = waiting
        self._heartbeat_s = heartbeat_s

    async def read(self, call: Call) -> web.StreamResponse:
        """Answer a page of events, or follow them."""
        query = call.request.query
        refuse_unknown(query, PARAMETERS)
        wanted = _wanted(call, self._store.seen)
        after = integer(query, "after", 0, 0, 2**63 - 1)
        limit = integer(query, "limit", LIST_DEFAULT, 1, LIST_MOST)
        if _follows(call.request):
            return await self._follow(call, _resumed(call.request, after), wanted)
        shown: list[EventView] = []
        for _ in range(ROUNDS):
            events = await self._store.events(after, limit - len(shown), wanted)
            shown += [event_view(event) for event in _visible(events, call.caller, self._store.seen)]
            after = events[-1].seq if events else after
            if not events or len(shown) == limit:
                break
        return answer({"items": shown, "next": after})

    async def _follow(self, call: Call, after: int, wanted: EventQuery) -> web.StreamResponse:
        return await send_events(call.request, call.caller.request, self._chunks(call, after, wanted))

    async def _chunks(self, call: Call, after: int, wanted: EventQuery) -> AsyncIterator[bytes]:
        """Give what to send. The watch begins before the table is read, so that nothing falls between the two."""
        yield b": from here on\n\n"
        with self._store.watch() as watch:
            caught_up, seen = False, self._store.seen
            while not self._waiting.stopping:
                caller = self._door.caller(call.request)
                if not caught_up:
                    events = await self._store.events(after, PAGE, wanted)
                    caught_up = len(events) < PAGE
                else:
                    changes = await self._next(watch, caller)
                    if changes is None:
                        caught_up = False
                        continue
                    events = _events(changes, after, wanted)
                    if not changes:
                        yield b": still here\n\n"
                if events:
                    after = events[-1].seq
                    yield b"".join(
                        frame(one.action, event_view(one), one.seq) for one in _visible(events, caller, seen)
                    )

    async def _next(self, watch: Watch, caller: Caller) -> tuple[Change, ...] | None:
        """Wait for changes: empty where none came for a heartbeat's time, None where some were lost."""
        try:
            async with self._waiting.at_most(self._door.left_s(caller, self._heartbeat_s)):
                return await watch.next()
        except TimeoutError:
            return ()


def _events(changes: Iterable[Change], after: int, wanted: EventQuery) -> tuple[Event, ...]:
    rows = (change.row for change in changes if isinstance(change, Put))
    events = (row for row in rows if isinstance(row, Event))
    found = (event for event in events if event.seq > after and wanted.matches(event))
    return tuple(sorted(found, key=lambda event: event.seq))


def _visible(events: Iterable[Event], caller: Caller, seen: WorkingSet) -> Iterable[Event]:
    return (event for event in events if sees_past(caller, seen, past_of(event)))


def _wanted(call: Call, seen: WorkingSet) -> EventQuery:
    query = call.request.query
    if project := query.get("project"):
        require_project(call.caller, seen, project)
    result = query.get("result", "")
    if result and result not in RESULTS:
        raise bad("result", f"there is no result {result[:40]!r}", f"there is {', '.join(RESULTS)}")
    return EventQuery(
        project=project,
        within=projects_of(call.caller, seen) if project is None else None,
        actor=query.get("actor", ""),
        action=query.get("action", ""),
        kind=query.get("kind", ""),
        name=query.get("name", ""),
        request=query.get("request", ""),
        result=result,
        since=moment(query, "since"),
    )


def _follows(request: web.Request) -> bool:
    follow = request.query.get("follow", "")
    if follow not in ("", "true", "false"):
        raise bad("follow", f"{follow[:40]!r} is neither true nor false", "say follow=true")
    return follow == "true" or (not follow and "text/event-stream" in request.headers.get("Accept", ""))


def _resumed(request: web.Request, after: int) -> int:
    last = request.headers.get("Last-Event-ID")
    return after if last is None else integer({"Last-Event-ID": last}, "Last-Event-ID", 0, 0, 2**63 - 1)
