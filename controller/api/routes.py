"""The table of every address the API answers, made from KINDS: read by the app, OpenAPI and the reference page."""

from dataclasses import dataclass
from typing import Literal

from common.kinds import KINDS
from common.kinds.kind import AnyKind, Extra, Role, Scope, Verb

Action = Literal[
    "list", "create", "show", "change", "delete", "verb", "extra",
    "operations.list", "operations.show", "operations.cancel",
    "events", "watch", "audit", "audit.verify", "audit.quotas", "ca.show", "ca.rotate", "capacity", "cpus", "top",
    "identity.keys", "whoami", "login", "logout", "openapi", "health", "ready", "metrics",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Route:
    """One method of one address, and who may use it.

    Of a kind: who has its `permission`, which `need` is the least built-in role for; None: nobody has it.
    Of none: a valid token will do, and the handler shows what it may see; `public`: no token is needed.
    """

    method: str
    path: str
    action: Action
    summary: str
    kind: AnyKind | None = None
    need: Role | None = None
    verb: Verb | None = None
    extra: Extra | None = None
    public: bool = False

    @property
    def mutates(self) -> bool:
        """Say whether it changes something: then a refusal is an event too."""
        return self.method in ("POST", "PUT", "PATCH", "DELETE")

    @property
    def permission(self) -> str:
        """The action that a caller needs on the thing: `vm.read`, `vm.create`, `vm.stop`. Empty: none."""
        if self.kind is None:
            return ""
        part = self.verb or self.extra
        word = part.name if part else _WORDS.get(self.action, self.action)
        return f"{self.kind.name}.{word}"

    @property
    def name(self) -> str:
        """The OpenAPI operation id: `vm.create`, `vm.stop`, `operations.list`."""
        if self.kind is None:
            return self.action
        part = self.verb or self.extra
        return f"{self.kind.name}.{part.name if part else self.action}"


_WORDS: dict[str, str] = {"list": "read", "show": "read"}


def collection_path(kind: AnyKind) -> str:
    """Return the address of a kind's collection."""
    return f"/v1/{kind.plural}" if kind.scope is Scope.CLOUD else f"/v1/projects/{{project}}/{kind.plural}"


def _routes_of(kind: AnyKind) -> tuple[Route, ...]:
    many = collection_path(kind)
    one = f"{many}/{{name}}"
    noun = kind.name
    return (
        Route(
            method="GET", path=many, action="list", kind=kind, need=kind.read,
            summary=f"List {kind.plural}.",
        ),
        Route(
            method="POST", path=many, action="create", kind=kind, need=kind.create,
            summary=f"Make a new {noun}.",
        ),
        Route(
            method="GET", path=one, action="show", kind=kind, need=kind.read,
            summary=f"Show a {noun}.",
        ),
        Route(
            method="PATCH", path=one, action="change", kind=kind, need=kind.change,
            summary=f"Change a {noun}: fields that are absent stay as they are.",
        ),
        Route(
            method="DELETE", path=one, action="delete", kind=kind, need=kind.delete,
            summary=f"Delete a {noun}, whatever state it is in.",
        ),
        *(
            Route(
                method="POST", path=f"{one}/{verb.name}", action="verb", kind=kind, need=verb.role,
                summary=verb.summary, verb=verb,
            )
            for verb in kind.verbs
        ),
        *(
            Route(
                method=extra.method, path=f"{one}/{extra.name}", action="extra", kind=kind, need=extra.role,
                summary=extra.summary, extra=extra,
            )
            for extra in kind.extras
        ),
    )  # fmt: skip


GENERAL = (
    Route(method="GET", path="/v1/me", action="whoami", summary="Show who one is, with which roles, and until when."),
    Route(
        method="POST", path="/v1/login", action="login", public=True,
        summary="Give a user's password for a session: a token that expires.",
    ),
    Route(method="POST", path="/v1/logout", action="logout", summary="End the session that this request is of."),
    Route(method="GET", path="/v1/operations", action="operations.list", summary="List operations, newest first."),
    Route(
        method="GET", path="/v1/operations/{id}", action="operations.show",
        summary="Show an operation; with wait_s, wait until it has something new to say.",
    ),
    Route(
        method="POST", path="/v1/operations/{id}/cancel", action="operations.cancel",
        summary="Take a wish back: a create is deleted again, a change set back.",
    ),
    Route(
        method="GET", path="/v1/events", action="events",
        summary="Read what happened, or (text/event-stream, or follow=true) follow it.",
    ),
    Route(
        method="GET", path="/v1/watch", action="watch",
        summary="Follow things and operations as they change (text/event-stream), from any revision on.",
    ),
    Route(method="GET", path="/v1/top", action="top", summary="Show the newest figures of machines or hosts."),
    Route(
        method="GET", path="/v1/audit", action="audit",
        summary="Show what the last audit of each host found (for who may so in the whole cloud).",
    ),
    Route(
        method="GET", path="/v1/audit/verify", action="audit.verify",
        summary="Verify that no event was changed, removed, inserted or moved (for who may so in the whole cloud).",
    ),
    Route(
        method="GET", path="/v1/ca", action="ca.show",
        summary="Show how the certificate authority stands, and which hosts are behind (project system).",
    ),
    Route(
        method="POST", path="/v1/ca/rotate", action="ca.rotate",
        summary="Have a new certificate authority follow, or (go_on) wait no longer for hosts (project system).",
    ),
    Route(
        method="GET", path="/v1/capacity", action="capacity",
        summary="Count how many more machines of each size fit, and what limits that.",
    ),
    Route(
        method="GET", path="/v1/cpus", action="cpus",
        summary="Show the CPU that hosts share, which is what machines get, and which hosts have less.",
    ),
    Route(
        method="GET", path="/v1/audit/quotas", action="audit.quotas",
        summary="Count anew what every project and domain uses, beside the books (project system).",
    ),
    Route(method="GET", path="/openapi.json", action="openapi", summary="This document.", public=True),
    Route(
        method="GET", path="/v1/identity/keys", action="identity.keys", public=True,
        summary="The authorities' public keys (JWKS), by which anybody verifies what machines say of themselves.",
    ),
    Route(method="GET", path="/healthz", action="health", summary="Say that the process runs.", public=True),
    Route(
        method="GET", path="/readyz", action="ready", public=True,
        summary="Say whether it is ready to serve, and if not, why.",
    ),
    Route(
        method="GET", path="/metrics", action="metrics", public=True,
        summary="Prometheus metrics (with api.metrics_open = false: to who reads all projects).",
    ),
)  # fmt: skip

ROUTES: tuple[Route, ...] = (*(route for kind in KINDS for route in _routes_of(kind)), *GENERAL)
