"""The audit trail's own part of the API: what was refused is an event too, and the chain of events can be verified."""

import re
from collections.abc import Iterable

import msgspec
import structlog
from aiohttp import web

from common.clock import Clock
from common.errors import Conflict, Denied, PreconditionFailed, QuotaExceeded, SkerryError, Temporary
from common.ids import HostId, Id
from common.kinds.kind import SYSTEM_PROJECT, AnyResource, Scope
from controller.api.call import Call, Door
from controller.api.ports import Store
from controller.api.query import bad, integer, refuse_unknown
from controller.api.relay import Relay, from_others
from controller.api.render import answer
from controller.api.routes import Route
from controller.auth.caller import Caller, projects_of, require_everywhere, sees
from controller.store.rows import Event, EventResult, Head
from controller.store.working import HostView, WorkingSet, spec_told

log = structlog.get_logger(__name__)

VERIFY_PARAMETERS = {
    "seq": "a head that was noted outside earlier: its number …",
    "hash": "… and its hash: the chain must still have it",
}
_HASH = re.compile(r"[0-9a-f]{64}")


class Refusals:
    """Notes mutations that were understood and refused: denied, or in conflict. Dry runs are none."""

    def __init__(self, store: Store, door: Door, clock: Clock) -> None:
        self._store = store
        self._door = door
        self._clock = clock

    async def note(self, request: web.Request, route: Route, err: SkerryError) -> None:
        """Append the event of a refused mutation. A store that can't be written keeps nobody from the refusal."""
        result = _result(err)
        if not result or request.query.get("dry_run") == "true":
            return
        event = self._event(request, route, self._door.caller(request), err, result)
        try:
            await self._store.append(event)
        except Temporary as full:
            log.warning("refusal not noted", action=event.action, actor=event.actor, error=full.detail)

    def _event(
        self, request: web.Request, route: Route, caller: Caller, err: SkerryError, result: EventResult
    ) -> Event:
        asked = request.match_info.get("project", "")
        row = self._subject(request, route, asked)
        row = row if row and sees(caller, self._store.seen, row) else None
        name = row.name if row else request.match_info.get("name", request.match_info.get("id", ""))
        return Event(
            seq=0,
            at=self._clock(),
            actor=caller.actor,
            request=caller.request,
            action=_action(route),
            kind=route.kind.name if route.kind else route.action.partition(".")[0].removesuffix("s"),
            resource=row.id if row else Id(""),
            project=_project(caller, self._store.seen, route, asked),
            name=name[:63],
            message=err.detail[:500],
            before=spec_told(row) if row else b"",
            after=b"",
            result=result,
        )

    def _subject(self, request: web.Request, route: Route, project: str) -> AnyResource | None:
        kind, name = route.kind, request.match_info.get("name", "")
        if kind is None or not name:
            return None
        own = "" if kind.scope is Scope.CLOUD else project
        return self._store.seen.named(kind.name, own, name) or self._by_id(kind.name, own, name)

    def _by_id(self, kind: str, project: str, name: str) -> AnyResource | None:
        row = self._store.seen.get(Id(name))
        return row if row and (row.kind, row.project) == (kind, project) else None


def _result(err: SkerryError) -> EventResult:
    match err:
        case Denied() | QuotaExceeded():
            return "denied"
        case Conflict() | PreconditionFailed():
            return "conflict"
        case _ if err.refusal:
            return "conflict"
        case _:
            return ""


def _action(route: Route) -> str:
    if route.kind is None:
        known = {"operations.cancel": "operation.cancel", "logout": "user.logout"}
        return known.get(route.action, route.action)
    part = route.verb or route.extra
    word = part.name if part else {"create": "create", "change": "set", "delete": "delete"}[route.action]
    return f"{route.kind.name}.{word}"


def _project(caller: Caller, seen: WorkingSet, route: Route, asked: str) -> str:
    """Return whose history a refusal belongs to: the project that was asked for, or else the caller's own. What a
    tenant tries on another one is its own history and the operators', and tells the other nothing."""
    known = projects_of(caller, seen)
    if route.kind and route.kind.scope is Scope.PROJECT and (known is None or asked in known):
        return asked[:63]
    return "" if caller.project == SYSTEM_PROJECT else caller.project


class Audited(msgspec.Struct, frozen=True, kw_only=True):
    """What the last audit of one host found."""

    host: str
    connected: bool
    at: float | None
    """When it was; None: there was none since this controller started."""
    differences: int
    since: float | None
    """Since when there are differences, or (0) none."""


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """What the audits of all hosts found, which go on all the time."""

    differences: int
    since: float | None
    """Since when there are some, or (0) none on any host; None: no host was audited yet."""
    hosts: tuple[Audited, ...]


class Trail:
    """The handlers that say whether wish, reality and history agree."""

    def __init__(self, store: Store, relay: Relay | None) -> None:
        self._store = store
        self._relay = relay

    async def overview(self, call: Call) -> web.Response:
        """Answer what the last audit of each host found. Of several controllers each audits its own hosts."""
        refuse_unknown(call.request.query, ())
        require_everywhere(call.caller, "host.audit", "what audits find")
        seen = self._store.seen
        here = [_audited(row.name, seen.host(HostId(row.id))) for row in _by_name(seen.of_kind("host"))]
        others, _ = await from_others(self._relay, call, Overview)
        found = (*here, *(one for other in others for one in other.hosts))
        newest = {one.host: one for one in sorted(found, key=lambda one: one.at or 0.0)}
        hosts = tuple(newest[one.host] for one in here)
        bad_ones = [one.since for one in hosts if one.differences and one.since is not None]
        good_ones = [one.since for one in hosts if one.since is not None]
        since = min(bad_ones) if bad_ones else max(good_ones, default=None)
        return answer(Overview(differences=sum(one.differences for one in hosts), since=since, hosts=hosts))

    async def verify(self, call: Call) -> web.Response:
        """Answer whether history is as it was written, and the chain's head. It covers all projects."""
        query = call.request.query
        refuse_unknown(query, VERIFY_PARAMETERS)
        require_everywhere(call.caller, "project.read", "a verification of the events")
        if ("seq" in query) != ("hash" in query):
            raise bad("seq", "a noted head is a seq and a hash", "give both, or neither")
        noted = None
        if "hash" in query:
            if not _HASH.fullmatch(query["hash"]):
                raise bad("hash", "is not 64 hex digits", "give the hash as it was shown")
            noted = Head(seq=integer(query, "seq", 0, 1, 2**63 - 1), hash=query["hash"])
        return answer(await self._store.verify(noted))


def _by_name(rows: Iterable[AnyResource]) -> list[AnyResource]:
    return sorted(rows, key=lambda row: row.name)


def _audited(name: str, view: HostView) -> Audited:
    last = view.audited
    return Audited(
        host=name,
        connected=view.connected,
        at=last.at if last else None,
        differences=last.differences if last else 0,
        since=last.since if last else None,
    )
