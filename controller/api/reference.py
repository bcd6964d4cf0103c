"""The reference pages of config keys, routes, errors and metrics, rendered from what the code itself uses: pure."""

import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from common.codec import plain
from common.errors import ERRORS, SkerryError
from common.kinds import KINDS
from common.kinds.actions import actions_of
from common.kinds.kind import AnyKind, Role, Scope
from common.settings import Section
from controller import config
from controller.api.metrics import HTTP, METRICS, Shown
from controller.api.openapi import QUERIES
from controller.api.query import LIST_PARAMETERS
from controller.api.routes import ROUTES, Route
from controller.metrics.catalogue import METRICS as METRICS_OF
from controller.metrics.catalogue import Of

_MADE = "<!-- made from the code: change it there -->"

_EXAMPLE = """[controller]
state_dir = "/var/lib/skerry-controller"

[api]
listen = "127.0.0.1:8080"

[link]
listen = "0.0.0.0:8443"
names = ["203.0.113.10", "skerry.example.org"]
"""

_CONFIG_WORDS = """`skerry-controller --config FILE` reads one TOML file. Every key has a default; an unknown key or
section stops the start, with the allowed ones named. A small file for a controller that other machines join:"""

_ERROR_WORDS = """Every error answer is an RFC 9457 problem document (`application/problem+json`). `code` is stable and
what a program should look at; `detail` says what is wrong, with the thing's name and the limit; `fix` is the way out;
`errors` names the fields of a body; `refusal` counts, where no host fits, the hosts that each constraint cost, and
names the smallest change that would fit; `shortfalls` has the numbers of each quota that is used up; `request` is the
id to look for in the log."""

_METRIC_WORDS = """`GET /metrics` gives Prometheus' text format. It needs no token, since the API listens on loopback by
default; with `api.metrics_open = false` it takes a token of project `system` (a reader will do). Besides these there
are Python's own `process_…` and `python_…`."""

_HISTORY_WORDS = """`GET /v1/projects/{project}/vms/{name}/metrics` and `GET /v1/hosts/{name}/metrics` give these
over any span (`skerry vm metrics`, `skerry host metrics`), `GET /v1/top` the newest of all (`skerry top`). A value is
of a step of time: its mean, its highest or its last. Figures are kept to 1 part in 512; of a counter, whose growth is
shown, the moment in which it began anew is left out."""

_API_WORDS = """Everything is JSON under `/v1`. The whole of it, with every field, is in `/openapi.json` (OpenAPI 3.1).

- **Who calls**: `Authorization: Bearer skt_…`. A token belongs to a project and has a role: reader, member or admin,
  each of which may do what those before it may. An admin of project `system` is an operator of the cloud, and may do
  everything everywhere. The roles below are what a token of the thing's own project needs.
- **Reading**: a list gives `items`, `names` (the name behind every id in it), `next` (give it as `after`; null: that
  was all) and `revision`. One thing comes as `resource` and `names`, with its generation as `ETag`. Where an address
  has `{name}`, an id will do.
- **Changing**: every change answers 202 with the `resource` as it is now and the `operation` that says how it goes;
  its address is in `Location`. PATCH needs `If-Match` with the ETag that was read (`*`: whatever is there); DELETE and
  verbs take it. What is shown once only (a token) is in `revealed`.
- **Repeating**: POST, PATCH and DELETE take an `Idempotency-Key` (1 to 255 visible ASCII characters, such as a UUID).
  For 24 hours the same key with the same method, address and body, from the same token, is carried out once and
  answered as it was the first time (`Idempotency-Replayed: true`): after a lost answer, repeat the request as it was.
  With another body it is a 409, `idempotency-key-reused`. A secret is shown by the first answer only; a repeated one
  has `revealed_before` instead.
- **Trying**: every change takes `?dry_run=true`. It runs as the real one does, up to the books and the first step that
  would follow, and all of it is taken back: the answer (200) has the `resource` as it would be, the `checks` that held,
  what `changes`, what comes `next` (for a machine the host that would be chosen, or the refusal with its costs) and the
  `effects` (what a deletion takes along). What the real request would be refused for, it is refused for.
- **Waiting**: `GET /v1/operations/{id}?wait_s=30` answers when the operation ends or is blocked; with `seen=REVISION`
  also as soon as its message or progress changes.
- **Watching**: `GET /v1/watch?from=REVISION` (server-sent events) tells what changed behind a revision, as a list or a
  bookmark gave it, and then what changes: `put` (a thing as it is now, with `names`), `gone`, `operation`, and
  `bookmark` (up to here you know everything). Events carry the revision as `id`; `Last-Event-ID` resumes without loss,
  also after a restart of the controller. A reader that is slow gets the newest state of each thing, not every step; one
  that was away for longer than deletions are remembered is told `resync`: list again. Without `from` it begins with all
  there is.
- **Limits**: a token may send so many requests a second (`api.rate_per_s`, `api.burst`); one too many is answered with
  429 and `Retry-After`, and was not carried out.
- **Errors** are problem documents (RFC 9457); see [errors](errors.md).
- **History**: every change is an event, with who asked for it, the spec before and after, and as `result` how it was
  answered (accepted, denied, conflict) and how it ended (done, failed, cancelled). Events are chained by hashes;
  `GET /v1/audit/verify` says whether any was changed, removed, inserted or moved since.
- **Figures**: what a machine used, over any span and at any resolution, is at `…/vms/{name}/metrics`; see
  [metrics](metrics.md#history).
- **Auditing**: all the time each host is asked what is on it, and that is held against what should be
  (`audit.every_s`); `GET /v1/audit` says what was found and since when. `POST /v1/hosts/{name}/repair` repairs what an
  audit finds now; with `dry_run=true` it shows the plan, whose name `plan` it takes back.
- **Request ids**: every answer has `X-Request-Id`, which is also in the log and on the event; a caller may send its
  own."""


# --- configuration ------------------------------------------------------------------------------------------------


def config_page() -> str:
    """Return the reference of the controller's configuration, as Markdown."""
    config.parse(_EXAMPLE, "the example")
    parts = [
        "# The controller's configuration",
        _MADE,
        _CONFIG_WORDS,
        f"```toml\n{_EXAMPLE}```",
    ]
    for name, section in config.sections():
        parts += [f"## [{name}]", _flow(section.__doc__), _section_table(section)]
    return _page(parts)


def _section_table(section: type[Section]) -> str:
    hints = get_type_hints(section, include_extras=True)
    rows = [
        (
            f"`{field.name}`",
            _type_words(hints[field.name]),
            f"`{_toml(field.default_factory() if field.default is msgspec.NODEFAULT else field.default)}`",
            _description(hints[field.name]),
        )
        for field in msgspec.structs.fields(section)
    ]
    return _table(("key", "type", "default", "what it does"), rows)


def _description(hint: Any) -> str:
    metas = [mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, msgspec.Meta)]
    return next((meta.description for meta in reversed(metas) if meta.description), "")


def _type_words(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        base, *marks = get_args(hint)
        bounds = [words for mark in marks if isinstance(mark, msgspec.Meta) for words in _bounds(mark)]
        return ", ".join([_type_words(base), *bounds])
    if get_origin(hint) is Literal:
        return " or ".join(f"`{one}`" for one in get_args(hint))
    if get_origin(hint) is dict:
        return "table of " + _type_words(get_args(hint)[1])
    if get_origin(hint) is tuple:
        return "list of " + _type_words(get_args(hint)[0])
    if isinstance(hint, types.UnionType):
        return " or ".join(_type_words(one) for one in get_args(hint))
    return {str: "text", int: "whole number", bool: "true or false", float: "number"}[hint]


def _bounds(meta: msgspec.Meta) -> Iterable[str]:
    if meta.ge is not None:
        yield f"from {meta.ge}"
    if meta.le is not None:
        yield f"to {meta.le}"


def _toml(value: object) -> str:
    return msgspec.json.encode(plain(value)).decode()


# --- addresses ----------------------------------------------------------------------------------------------------


def api_page() -> str:
    """Return the reference of the HTTP API's addresses, as Markdown."""
    parts = [
        "# The HTTP API",
        _MADE,
        _API_WORDS,
        *(part for kind in KINDS for part in _kind_part(kind)),
        "## The rest",
        _routes_table([route for route in ROUTES if route.kind is None]),
        "## Query parameters",
        "A parameter that is not known is refused.",
        "### Lists of things",
        _parameters_table(LIST_PARAMETERS),
    ]
    for name, parameters in QUERIES.items():
        route = next(route for route in ROUTES if route.name == name)
        parts += [f"### {route.method} {route.path}", _parameters_table(parameters)]
    return _page(parts)


def _kind_part(kind: AnyKind) -> list[str]:
    scope = "of the cloud" if kind.scope is Scope.CLOUD else "of a project"
    shared = ", and public ones are seen from every project" if kind.shared else ""
    return [
        f"## {kind.name}",
        f"{kind.summary} Things {scope}{shared}.",
        _routes_table([route for route in ROUTES if route.kind is kind and route.need is not None]),
    ]


def _routes_table(routes: Iterable[Route]) -> str:
    return _table(
        ("method", "address", "who", "what it does"),
        [(route.method, f"`{route.path}`", _who(route), route.summary) for route in routes],
    )


def _who(route: Route) -> str:
    if route.public:
        return "anybody"
    if route.kind is None or route.need is None:
        return "any token"
    return f"`{route.permission}`"


def _parameters_table(parameters: Mapping[str, str]) -> str:
    return _table(("parameter", "what it does"), [(f"`{name}`", said) for name, said in parameters.items()])


def actions_page() -> str:
    """Return the reference of every action, as Markdown."""
    return _page(
        [
            "# Actions",
            _MADE,
            _ACTION_WORDS,
            *(
                part
                for kind in KINDS
                for part in (
                    f"## {kind.name}",
                    _table(
                        ("action", "built-in roles", "what it allows"),
                        [
                            (
                                f"`{one.name}`",
                                ", ".join(role.name.lower() for role in Role if role >= one.role),
                                one.summary,
                            )
                            for one in actions_of(kind)
                        ],
                    ),
                )
            ),
        ]
    )


_ACTION_WORDS = """\
What a role of your own can grant, and what a refusal says is missing. In a role an action is written as it stands here,
or as a pattern: `vm.*`, `*.read`, `*`. A role is held in a project, in a domain (all its projects, and its users, roles
and projects themselves) or, in project `system`, in the whole cloud. Things of the cloud (domains, hosts, sizes) are
changed only by who holds the action there; every reader of anything reads sizes and hosts."""


# --- errors and metrics -------------------------------------------------------------------------------------------


def errors_page() -> str:
    """Return the reference of every error code, as Markdown."""
    example = msgspec.json.format(msgspec.json.encode(_example_problem()), indent=2).decode()
    return _page(
        [
            "# Errors",
            _MADE,
            _ERROR_WORDS,
            f"```json\n{example}\n```",
            _table(
                ("code", "status", "when"),
                [(f"`{error.code}`", str(error.status), _flow(error.__doc__)) for error in ERRORS],
            ),
        ]
    )


def _example_problem() -> object:
    error = next(one for one in ERRORS if one.code == "invalid")
    problem: SkerryError = error(
        "vm web has a disk of 10 GiB (size small); image debian-12 needs 24",
        fix="use a size with a disk of 24 GiB or more",
    )
    return problem.problem()


def metrics_page() -> str:
    """Return the reference of every metric, as Markdown."""
    return _page(
        [
            "# Metrics",
            _MADE,
            _METRIC_WORDS,
            _table(
                ("metric", "type", "labels", "what it says"),
                [
                    (
                        f"`{_sample(shown)}`",
                        shown.type,
                        ", ".join(f"`{label}`" for label in shown.labels),
                        shown.summary,
                    )
                    for shown in (*METRICS, HTTP)
                ],
            ),
            "# History",
            _HISTORY_WORDS,
            "## Of a machine",
            _history_table("vm"),
            "## Of a host",
            _history_table("host"),
        ]
    )


def _history_table(of: Of) -> str:
    return _table(
        ("metric", "unit", "what it says", "from"),
        [
            (
                f"`{one.name}`",
                one.unit,
                one.summary,
                f"`{one.field}`" + (", its growth a second" if one.counter else ""),
            )
            for one in METRICS_OF[of]
        ],
    )


def _sample(shown: Shown) -> str:
    return f"{shown.name}_total" if shown.type == "counter" else shown.name


# --- Markdown -----------------------------------------------------------------------------------------------------


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [_row(heads), _row(tuple("---" for _ in heads)), *(_row(row) for row in rows)]
    return "\n".join(lines)


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _flow(text: str | None) -> str:
    return " ".join((text or "").split())


def _page(parts: Iterable[str]) -> str:
    return "\n\n".join(parts) + "\n"
