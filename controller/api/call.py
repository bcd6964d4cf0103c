"""One request that passed the door: who calls, for which project, under which id."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from common.clock import Clock
from common.ids import Entropy, RequestId
from common.kinds.kind import Scope
from controller.api.limits import Limits
from controller.api.ports import Store
from controller.api.routes import Route
from controller.auth.caller import Caller, authorise
from controller.auth.tokens import authenticate
from controller.kinds.admission import Context
from controller.kinds.quotas import Standard

REQUEST_ID: web.RequestKey[RequestId] = web.RequestKey("request_id", str)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Call:
    """A request with its caller."""

    request: web.Request
    caller: Caller
    project: str
    """Of the address; empty for things of the cloud."""

    @property
    def name(self) -> str:
        """The name or id in the address."""
        return self.request.match_info["name"]


Handler = Callable[[Call], Awaitable[web.StreamResponse]]


class Door:
    """Lets requests in: one place that authenticates and authorises, for every route with a token."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self._store = store
        self._limits = limits

    def admit(self, request: web.Request, route: Route) -> Call:
        """Return the call. Raises Unauthenticated, RateLimited or Denied."""
        project = request.match_info.get("project", "")
        caller = self.caller(request)
        self._limits.spend(caller.actor)
        if route.kind is not None:
            authorise(caller, route.kind, route.need, project, route.doing)
            if route.kind.scope is Scope.PROJECT:
                self._store.seen.find("project", "", project)
        return Call(request=request, caller=caller, project=project)

    def caller(self, request: web.Request) -> Caller:
        """Return who sends a request. Raises Unauthenticated, also later on, when the token was revoked meanwhile."""
        return authenticate(request.headers.get("Authorization"), self._store.seen, request[REQUEST_ID])


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
