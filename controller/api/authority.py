"""The cloud's certificate authority as operators see it: how it stands, and having another one follow it."""

from typing import Protocol

import msgspec
from aiohttp import web

from common.clock import Clock
from common.errors import NotFound
from common.ids import Id
from controller.api.body import refuse_body
from controller.api.call import Call
from controller.api.ports import Store
from controller.api.query import flag, refuse_unknown
from controller.api.render import answer
from controller.auth.caller import require_everywhere, require_operator
from controller.pki.succession import Standing, Succession
from controller.store.rows import Event

ROTATE_PARAMETERS = {
    "go_on": "true: wait no longer for the hosts that are behind; they need a new join token then",
    "dry_run": "true: only say how it stands",
}


class Successor(Protocol):
    """What has one authority follow another."""

    def standing(self) -> Standing:
        """Say how it stands."""
        ...

    async def rotate(self, *, go_on: bool = False) -> Standing:
        """Begin, or (go_on) wait no longer. Raises Conflict where there is nothing of the sort to do."""
        ...


class HostBehind(msgspec.Struct, frozen=True, kw_only=True):
    """A host that the next phase waits for."""

    host: str
    why: str


class AuthorityView(msgspec.Struct, frozen=True, kw_only=True):
    """How the cloud's certificate authority stands."""

    phase: str
    """`settled`; while another one follows: `sharing`, `overlap`, `switching`."""
    current: str
    """SHA-256 of the certificate, in hex."""
    next: str
    since: float
    hosts: int
    """That have a certificate."""
    behind: tuple[HostBehind, ...]
    controllers_behind: tuple[str, ...]


class AuthorityExtras:
    """The handlers."""

    def __init__(self, store: Store, successor: Successor | None, clock: Clock) -> None:
        self._store = store
        self._successor = successor
        self._clock = clock

    async def show(self, call: Call) -> web.Response:
        """Answer how it stands."""
        refuse_unknown(call.request.query, ())
        return answer(self._view(self._of(call, "seeing how its authority stands").standing()))

    async def rotate(self, call: Call) -> web.Response:
        """Have a new authority follow, or wait no longer for those that are behind."""
        query = call.request.query
        refuse_unknown(query, ROTATE_PARAMETERS)
        await refuse_body(call.request)
        successor = self._of(call, "rotating its authority")
        require_operator(call.caller, "rotating the authority")
        if flag(query, "dry_run"):
            return answer(self._view(successor.standing()))
        standing = await successor.rotate(go_on=flag(query, "go_on"))
        await self._store.append(self._event(call, standing.succession))
        return answer(self._view(standing), status=202)

    def _of(self, call: Call, what: str) -> Successor:
        require_everywhere(call.caller, "host.audit", what)
        if self._successor is None:
            raise NotFound("this controller has no authority")
        return self._successor

    def _view(self, standing: Standing) -> AuthorityView:
        now = standing.succession
        return AuthorityView(
            phase=now.phase,
            current=now.current,
            next=now.next,
            since=now.since,
            hosts=standing.hosts,
            behind=tuple(HostBehind(host=self._store.seen.name_of(one.host), why=one.why) for one in standing.behind),
            controllers_behind=standing.unready,
        )

    def _event(self, call: Call, now: Succession) -> Event:
        return Event(
            seq=0,
            at=self._clock(),
            actor=call.caller.actor,
            request=call.caller.request,
            action="ca.rotate",
            kind="ca",
            resource=Id(""),
            project="",
            name=now.next[:16] or now.current[:16],
            message=f"the authority is {now.phase} from now on",
            before=b"",
            after=b"",
            result="accepted",
        )
