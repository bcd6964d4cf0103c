"""One request that passed the door: who calls, for which project, under which id."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from common.clock import Clock
from common.ids import Entropy, RequestId
from common.kinds.kind import AnyResource, Scope
from common.kinds.project import PROJECT
from controller.api.limits import Limits
from controller.api.ports import Store
from controller.api.routes import Route
from controller.auth.caller import Caller, authorise, find
from controller.auth.rights import collection_of, subject_of
from controller.auth.tokens import authenticate
from controller.kinds.admission import Context
from controller.kinds.quotas import Standard

AGAIN_S = 60.0
"""How often at least an open console's rights are looked at."""

REQUEST_ID: web.RequestKey[RequestId] = web.RequestKey("request_id", str)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Call:
    """A request with its caller."""

    request: web.Request
    caller: Caller
    project: str
    """Of the address; empty for things of the cloud."""
    action: str
    """What the caller wants to do: authorised for some things of the kind there, see `Door.may`."""

    @property
    def name(self) -> str:
        """The name or id in the address."""
        return self.request.match_info["name"]


Handler = Callable[[Call], Awaitable[web.StreamResponse]]


class Door:
    """Lets requests in: one place that authenticates and authorises, for every route with a token."""

    def __init__(self, store: Store, limits: Limits, clock: Clock) -> None:
        self._store = store
        self._limits = limits
        self._clock = clock

    def admit(self, request: web.Request, route: Route) -> Call:
        """Return the call. Raises Unauthenticated, RateLimited or Denied."""
        project = request.match_info.get("project", "")
        caller = self.caller(request)
        self._limits.spend(caller.actor)
        if route.kind is not None:
            authorise(caller, route.permission, collection_of(route.kind, project, self._store.seen))
            if route.kind.scope is Scope.PROJECT and self._store.seen.named("project", "", project) is None:
                find(caller, self._store.seen, PROJECT, "", project)
        return Call(request=request, caller=caller, project=project, action=route.permission)

    def caller(self, request: web.Request) -> Caller:
        """Return who sends a request. Raises Unauthenticated, also later on, when the token was revoked meanwhile."""
        header = request.headers.get("Authorization")
        return authenticate(header, self._store.seen, request[REQUEST_ID], self._clock())

    def left_s(self, caller: Caller, most_s: float) -> float:
        """Return how long a caller may be left alone: until its token expires, or that long."""
        if not caller.expires_at:
            return most_s
        return max(0.01, min(most_s, caller.expires_at - self._clock()))

    async def stand_by(self, call: Call, row: AnyResource) -> None:
        """Wait until a call is not allowed any more: its token was revoked or expired, or its rights on a thing went.
        Raises what it would be refused with. For what goes on by itself, such as a console in which nothing happens."""
        with self._store.watch() as watch:
            while True:
                caller = self.caller(call.request)
                authorise(caller, call.action, subject_of(self._store.seen.get(row.id) or row, self._store.seen))
                try:
                    async with asyncio.timeout(self.left_s(caller, AGAIN_S)):
                        await watch.next()
                except TimeoutError:
                    continue


class Contexts:
    """Makes what every admission needs."""

    def __init__(self, store: Store, clock: Clock, entropy: Entropy, standard: Standard) -> None:
        self._store = store
        self._clock = clock
        self._entropy = entropy
        self._standard = standard

    def of(self, caller: Caller) -> Context:
        """Return the context of an admission that happens now."""
        return Context(
            seen=self._store.seen,
            caller=caller,
            now=self._clock(),
            entropy=self._entropy,
            standard=self._standard,
        )
