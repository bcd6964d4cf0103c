"""The API's application: the route table bound to its handlers, behind one door and one mapper of errors."""

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

from aiohttp import web
from aiohttp.typedefs import Middleware

from common.attestation import public_keys
from common.clock import Clock, system_clock
from common.codec import to_json
from common.errors import SkerryError
from common.ids import Entropy
from common.kinds.kind import AnyKind
from controller.api.audit import Refusals, Trail
from controller.api.authority import AuthorityExtras, Successor
from controller.api.body import MAX_BODY_BYTES
from controller.api.call import Call, Contexts, Door, Handler
from controller.api.capacity import Capacities, TakeStock
from controller.api.commit import Committer
from controller.api.cpus import CpusShown
from controller.api.events import Events
from controller.api.extras import OF_A_HOST, HostExtras, Reasons, VmExtras, extras
from controller.api.health import Health
from controller.api.history import Histories
from controller.api.limits import Limits
from controller.api.login import Sessions
from controller.api.metrics import Metrics
from controller.api.middleware import explain_errors, identify, sign
from controller.api.openapi import openapi
from controller.api.operations import Callers, Operations
from controller.api.ports import Choose, Fleet, Measured, Readiness, Store
from controller.api.quotas import Quotas
from controller.api.relay import Relay
from controller.api.resources import Resources
from controller.api.routes import ROUTES, Route
from controller.api.stream import HEARTBEAT_S
from controller.api.upload import Upload, hold_back
from controller.api.waiting import Waiting
from controller.api.watch import Watching
from controller.config import Config
from controller.store.blobs import Blobs

Endpoint = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the API is made of besides its own handlers."""

    store: Store
    fleet: Fleet
    blobs: Blobs
    measured: Measured
    choose: Choose
    take_stock: TakeStock
    readiness: Readiness
    config: Config
    authority_fingerprint: Callable[[], str]
    """SHA-256 of the authority's certificate, in hex: the second half of every join token."""
    version: str = version("skerry")
    clock: Clock = system_clock
    entropy: Entropy = os.urandom
    authorities_pem: Callable[[], str] = str
    """The certificates of the authorities that are good: public."""
    successor: Successor | None = None
    """Has one authority follow another; None: certificates are none of this application's business."""
    relay: Relay | None = None
    """To the other controllers, where there are several."""
    heartbeat_s: float = HEARTBEAT_S
    """Of an event stream in which nothing happens."""


def make_app(parts: Parts, *doors: Middleware) -> web.Application:
    """Return the application. Every route of the table is bound; a handler that is missing stops the start.

    `doors`: what a request passes before anything else is looked at.
    """
    metrics = Metrics(parts.store.seen, parts.readiness, parts.clock, parts.config.quota.default)
    waiting = Waiting()
    app = web.Application(
        middlewares=[identify(parts.entropy, metrics), explain_errors, *doors], client_max_size=MAX_BODY_BYTES
    )
    app.on_response_prepare.append(sign)
    app.on_shutdown.append(waiting.stop)
    api = parts.config.api
    door = Door(parts.store, Limits(rate_per_s=api.rate_per_s, burst=api.burst, clock=parts.clock), parts.clock)
    bound = _Bound(parts, door, waiting)
    refusals = Refusals(parts.store, door, parts.clock)
    health = Health(parts.readiness, metrics, door, metrics_open=parts.config.api.metrics_open)
    open_to_all: Mapping[str, Endpoint] = {
        "health": health.health,
        "ready": health.ready,
        "metrics": health.metrics,
        "openapi": _openapi(parts.version),
        "identity.keys": _keys(parts.authorities_pem),
        "login": bound.sessions.login,
    }
    for route in ROUTES:
        endpoint = open_to_all[route.action] if route.public else _behind(door, route, bound.handler(route), refusals)
        expect = hold_back if route.extra and route.extra.method == "PUT" else None
        app.router.add_route(route.method, route.path, endpoint, expect_handler=expect)
    return app


def _behind(door: Door, route: Route, handler: Handler, refusals: Refusals) -> Endpoint:
    async def endpoint(request: web.Request) -> web.StreamResponse:
        return await handler(door.admit(request, route))

    async def audited(request: web.Request) -> web.StreamResponse:
        try:
            return await endpoint(request)
        except SkerryError as err:
            await refusals.note(request, route, err)
            raise

    return audited if route.mutates else endpoint


def _openapi(version: str) -> Endpoint:
    body = to_json(openapi(version))

    async def endpoint(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type="application/json")

    return endpoint


def _keys(authorities_pem: Callable[[], str]) -> Endpoint:
    async def endpoint(_request: web.Request) -> web.StreamResponse:
        pem = authorities_pem()
        body = to_json({"keys": list(public_keys(pem)) if pem else []})
        return web.Response(body=body, content_type="application/json", headers={"Cache-Control": "max-age=300"})

    return endpoint


class _Bound:
    """The handlers, made once, found by a route's action."""

    def __init__(self, parts: Parts, door: Door, waiting: Waiting) -> None:
        store, fleet = parts.store, parts.fleet
        standard = parts.config.quota.default
        contexts = Contexts(store, parts.clock, parts.entropy, standard)
        limit_bytes = parts.config.api.max_image_gib << 30
        self._relay, self._waiting = parts.relay, waiting
        committer = Committer(store, parts.choose, parts.clock, parts.authority_fingerprint, standard)
        quotas = Quotas(store, standard)
        self._resources = Resources(store, contexts, committer)
        authority = AuthorityExtras(store, parts.successor, parts.clock)
        operations = Operations(store, contexts, waiting, committer)
        histories = Histories(store, parts.measured, parts.clock, parts.relay)
        self.sessions = Sessions(
            store,
            contexts,
            committer,
            clock=parts.clock,
            entropy=parts.entropy,
            lasts_s=parts.config.api.session_hours * 3600.0,
        )
        self._general: Mapping[str, Handler] = {
            "whoami": Callers(store, parts.config.link_url).whoami,
            "logout": self.sessions.logout,
            "operations.list": operations.list,
            "operations.show": operations.show,
            "operations.cancel": operations.cancel,
            "events": Events(store, door, waiting, parts.heartbeat_s).read,
            "watch": Watching(store, door, waiting, parts.heartbeat_s).watch,
            "top": histories.top,
            "ca.show": authority.show,
            "ca.rotate": authority.rotate,
            "capacity": Capacities(store, parts.take_stock).show,
            "cpus": CpusShown(store).show,
            "audit": Trail(store, parts.relay).overview,
            "audit.verify": Trail(store, parts.relay).verify,
            "audit.quotas": quotas.audit,
        }
        self._extras = extras(
            self._resources,
            HostExtras(store, fleet, contexts, committer),
            Upload(store, contexts, committer, blobs=parts.blobs, limit_bytes=limit_bytes, entropy=parts.entropy),
            VmExtras(store, fleet, door, waiting),
            histories,
            reasons=Reasons(store),
            quotas=quotas,
            sessions=self.sessions,
        )

    def handler(self, route: Route) -> Handler:
        """Return the handler of a route. Raises KeyError where there is none."""
        kind = route.kind
        if kind is None:
            return self._general[route.action]
        if route.extra:
            handler = self._extras[kind.name, route.extra.name]
            if self._relay and (kind.name, route.extra.name) in OF_A_HOST:
                return self._relay.wrap(handler, kind.name, self._waiting)
            return handler
        if route.verb:
            return partial(self._resources.verb, kind, route.verb)
        return partial(self._crud(route), kind)

    def _crud(self, route: Route) -> Callable[[AnyKind, Call], Awaitable[web.StreamResponse]]:
        match route.action:
            case "list":
                return self._resources.list
            case "create":
                return self._resources.create
            case "show":
                return self._resources.show
            case "change":
                return self._resources.change
            case "delete":
                return self._resources.delete
            case _:
                raise KeyError(route.name)
