"""The OpenAPI 3.1 document, made from the route table and the kinds' own types: nothing of it is written by hand."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec

from common.codec import plain
from common.errors import ERRORS, Problem
from common.kinds import KINDS
from common.kinds.kind import AnyKind, Resource, fields
from controller.api import audit, authority, events, extras, history, operations, resources, watch
from controller.api.audit import Overview
from controller.api.authority import AuthorityView
from controller.api.capacity import CAPACITY_PARAMETERS, Capacity
from controller.api.commit import KEY_HEADER, KEYED, MUTATION_PARAMETERS
from controller.api.cpus import Cpus
from controller.api.history import History, Tops
from controller.api.login import LoggedIn, LoginBody, PasswordBody
from controller.api.preview import Preview
from controller.api.query import LIST_PARAMETERS
from controller.api.quotas import QuotaAudit, QuotaView
from controller.api.render import EventView, OperationOne, OperationView, WhoAmI
from controller.api.routes import ROUTES, Route
from controller.api.why import Why
from controller.kinds.admission import NewResource, Patch
from controller.metrics.catalogue import METRICS, Of
from controller.store.rows import Verified

Json = dict[str, Any]

QUERIES: Mapping[str, Mapping[str, str]] = {
    "operations.list": operations.LIST_PARAMETERS,
    "operations.show": operations.SHOW_PARAMETERS,
    "events": events.PARAMETERS,
    "watch": watch.PARAMETERS,
    "audit.verify": audit.VERIFY_PARAMETERS,
    "ca.rotate": authority.ROTATE_PARAMETERS,
    "capacity": CAPACITY_PARAMETERS,
    "host.repair": extras.REPAIR_PARAMETERS,
    "host.metrics": history.METRICS_PARAMETERS,
    "vm.log": extras.LOG_PARAMETERS,
    "vm.metrics": history.METRICS_PARAMETERS,
    "top": history.TOP_PARAMETERS,
}
"""The query parameters of routes other than lists, by route name."""

_INTEGERS = frozenset({"limit", "wait_s", "from", "seen", "seq", "tail_bytes"})
_CHANGES = frozenset({"create", "change", "delete", "verb", "operations.cancel"})
_ACCEPTED_EXTRAS = frozenset({"image.content", "host.token", "host.repair", "user.password"})


def openapi(version: str) -> Json:
    """Return the document, for this version of Skerry."""
    paths: dict[str, Json] = {}
    for route in ROUTES:
        if route.public or route.kind is None or route.need is not None:
            paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Skerry",
            "version": version,
            "summary": "A cloud of one's own: virtual machines, disks and networks on a set of Linux hosts.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "this controller"}],
        "security": [{"token": []}],
        "tags": [
            *({"name": kind.name, "description": kind.summary} for kind in KINDS),
            {"name": "general", "description": "Operations, events, and the controller itself."},
        ],
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "responses": {_response_name(error.status): _problem_response(error.status) for error in ERRORS},
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "skt_ and 64 hex digits",
                    "description": "A token of a project, with a role. `skerry token create NAME` makes one.",
                }
            },
        },
    }


def _operation(route: Route) -> Json:
    found: Json = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [route.kind.name if route.kind else "general"],
        "responses": _responses(route),
    }
    if route.public:
        found["security"] = [{}, {"token": []}] if route.action == "metrics" else []
    elif route.need is not None:
        least = route.need.name.lower()
        found["description"] = f"Needs the action `{route.permission}`; of the built-in roles {least} has it."
    if parameters := _parameters(route):
        found["parameters"] = parameters
    if body := _body(route):
        optional = route.verb is not None and not any(field.required for field in fields(route.verb.takes))
        found["requestBody"] = {"required": not optional, "content": body}
    return found


def _parameters(route: Route) -> list[Json]:
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}, "description": said}
        for name, said in (("project", "the project's name"), ("name", "name or id"), ("id", "the operation's id"))
        if f"{{{name}}}" in route.path
    ]
    known = LIST_PARAMETERS if route.action == "list" else QUERIES.get(route.name, {})
    if route.kind and route.kind.keeps and route.action == "delete":
        known = {**known, **resources.DELETE_PARAMETERS}
    if _is_mutation(route):
        known = {**known, **MUTATION_PARAMETERS}
    in_query = [
        {"name": name, "in": "query", "description": said, "schema": _parameter_schema(route, name)}
        for name, said in known.items()
    ]
    in_header: list[Json] = []
    if route.kind and route.action in ("change", "delete", "verb"):
        said = "the ETag of what was read; `*`: whatever is there"
        schema = {"type": "string", "examples": ['"1"']}
        needed = route.action == "change"
        in_header.append(
            {"name": "If-Match", "in": "header", "required": needed, "schema": schema, "description": said}
        )
    if route.method in KEYED and route.action not in ("ca.rotate", "login", "logout"):
        said = "names this request for 24 hours: repeated with the same key it is carried out once, and answered again"
        form: Json = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"}
        in_header.append({"name": KEY_HEADER, "in": "header", "required": False, "schema": form, "description": said})
    return [*in_path, *in_query, *in_header]


def _is_mutation(route: Route) -> bool:
    return route.action in _CHANGES or route.name in _ACCEPTED_EXTRAS


def _history_schema(route: Route, name: str) -> Json:
    of: Of = "host" if route.name == "host.metrics" else "vm"
    metrics = [one.name for one in METRICS[of]]
    schemas: Json = {
        "metric": {"type": "array", "items": {"enum": metrics}},
        "step": {"type": "integer", "minimum": history.LEAST_STEP_S, "maximum": history.MOST_SPAN_S},
        "agg": {"enum": list(history.AGGREGATES)},
        "of": {"enum": ["vms", "hosts"]},
        "limit": {"type": "integer", "minimum": 1, "maximum": history.TOP_MOST},
    }
    return schemas.get(name) or {"type": "string"}


def _parameter_schema(route: Route, name: str) -> Json:
    if route.action == "top" or (route.extra and route.extra.name == "metrics"):
        return _history_schema(route, name)
    if name == "kind" and route.action == "watch":
        return {"type": "array", "items": {"enum": [*(kind.name for kind in KINDS), watch.OPERATION]}}
    if name == "label":
        return {"type": "array", "items": {"type": "string", "pattern": "^[^=]+=.*$"}}
    if name in _INTEGERS or (name == "after" and route.action == "events"):
        return {"type": "integer", "minimum": 0}
    if name in ("follow", "dry_run", "go_on", "now"):
        return {"type": "boolean"}
    if name == "result":
        return {"type": "string", "enum": list(events.RESULTS)}
    if name == "hash":
        return {"type": "string", "pattern": "^[0-9a-f]{64}$"}
    if name == "state" and route.action == "operations.list":
        return {"type": "string", "enum": list(operations.STATES)}
    return {"type": "string"}


def _body(route: Route) -> Json | None:
    if route.action == "login":
        return {"application/json": {"schema": _ref("LoginBody"), "example": {"user": "bob", "password": "…"}}}
    if route.kind is None:
        return None
    if route.name == "user.password":
        return {"application/json": {"schema": _ref("PasswordBody"), "example": {"password": "…", "current": "…"}}}
    title = _title(route.kind)
    if route.action == "create":
        example = {"name": "web", "labels": {"env": "test"}, "spec": _example(route.kind)}
        return {"application/json": {"schema": _ref(f"{title}New"), "example": example}}
    if route.action == "change":
        return {"application/json": {"schema": _ref(f"{title}Patch"), "example": {"labels": {"env": "live"}}}}
    if route.verb and route.verb.takes.__struct_fields__:
        return {"application/json": {"schema": _ref(route.verb.takes.__name__)}}
    if route.extra and route.extra.accepts:
        return {route.extra.accepts: {"schema": {"type": "string", "format": "binary"}}}
    return None


def _example(kind: AnyKind) -> Json:
    """Return the fields that a create must have, and those whose types have examples, as these show them."""
    example: Json = {}
    for field in (field for field in fields(kind.spec) if not field.server_set):
        schema = msgspec.json.schema(field.type)
        if examples := schema.get("examples"):
            example[field.name] = examples[0]
        elif field.required:
            example[field.name] = schema.get("minimum", "x")
    return example


def _refers(kind: AnyKind | None) -> bool:
    return kind is not None and any(field.ref for field in fields(kind.spec))


def _responses(route: Route) -> Json:
    codes = {500} if route.public else {400, 401, 403, 429, 500}
    if "{" in route.path or route.action == "capacity" or (route.action == "create" and _refers(route.kind)):
        codes.add(404)
    if _is_mutation(route):
        codes |= {409, 413, 503}
    if route.kind and route.action in ("change", "delete", "verb"):
        codes |= {412}
    if route.action == "change":
        codes |= {415, 428}
    if route.action == "create" or (route.verb and route.verb.takes.__struct_fields__):
        codes |= {415}
    if route.name == "image.content":
        codes |= {413, 415, 507}
    if route.name in ("vm.console", "vm.log", "host.audit"):
        codes |= {409, 503}
    if route.action == "login":
        codes |= {400, 401, 413, 415, 429, 503}
    if route.action == "logout":
        codes |= {409, 503}
    if route.name == "user.password":
        codes |= {413, 415}
    if route.action == "metrics":
        codes |= {401, 403}
    if route.action in ("ca.show", "ca.rotate"):
        codes |= {404, 409, 503}
    problems = {str(code): {"$ref": f"#/components/responses/{_response_name(code)}"} for code in sorted(codes)}
    return _success(route) | problems


def _success(route: Route) -> Json:
    kind = route.kind
    if _is_mutation(route):
        schema = f"{_title(kind)}Accepted" if kind else "Accepted"
        said = (
            "Accepted; the operation says how it goes." if kind else "The wish is taken back; this operation says how."
        )
        tried = _json("DryRun", "With dry_run: what would come of it. Nothing was kept.")
        return {"200": tried, "202": _json(schema, said, changed=True)}
    if kind and route.action == "list":
        return {"200": _json(f"{_title(kind)}List", "One page, in the order of names.")}
    if kind and route.action == "show":
        return {"200": _json(f"{_title(kind)}One", "The thing, and the names behind its ids.", changed=True)}
    if route.extra:
        return _extra_success(route.name, route.extra.returns)
    return _general_success(route)


_PLAIN: Mapping[str, tuple[str, str]] = {
    "operations.list": ("OperationList", "One page, newest first."),
    "operations.show": ("OperationOne", "The operation, with its timeline."),
    "top": ("Tops", "The newest figures, the busiest first."),
    "audit": ("Overview", "What the audits found, host by host."),
    "audit.quotas": ("QuotaAudit", "Every counter whose books differ from a recount."),
    "audit.verify": ("Verified", "What was found, and the chain's head."),
    "capacity": ("Capacity", "How many more of each size fit."),
    "cpus": ("Cpus", "What they share, make by make."),
    "whoami": ("WhoAmI", "Who one is."),
    "login": ("LoggedIn", "A session, whose token is shown once."),
}
"""What routes of no kind answer with: a schema, and what it is."""


def _general_success(route: Route) -> Json:
    if plain_one := _PLAIN.get(route.action):
        return {"200": _json(*plain_one)}
    match route.action:
        case "events":
            page = _json("EventList", "One page, or a stream of events without end.")
            stream = {"text/event-stream": {"schema": {"type": "string"}}}
            return {"200": page | {"content": page["content"] | stream}}
        case "watch":
            said = "put, gone, operation, bookmark and resync events without end."
            return {"200": {"description": said, "content": {"text/event-stream": {"schema": {"type": "string"}}}}}
        case "ca.show" | "ca.rotate":
            found = {"200": _json("AuthorityView", "How it stands.")}
            return found | ({"202": _json("AuthorityView", "How it stands from now on.")} if route.mutates else {})
        case "logout":
            schema = _object({"user": {"type": "string"}})
            return {"200": {"description": "It has ended.", "content": {"application/json": {"schema": schema}}}}
        case "metrics":
            return {"200": {"description": "Figures.", "content": {"text/plain": {"schema": {"type": "string"}}}}}
        case "ready":
            return {"200": _json("Ready", "It is ready."), "503": _json("Ready", "It is not, for these reasons.")}
        case _:
            return {"200": {"description": "Yes.", "content": {"application/json": {"schema": {"type": "object"}}}}}


def _extra_success(name: str, returns: str) -> Json:
    if returns == "websocket":
        return {"101": {"description": "A websocket: binary frames both ways, problems as text frames."}}
    if returns != "application/json":
        return {"200": {"description": "The text.", "content": {returns: {"schema": {"type": "string"}}}}}
    if name.endswith(".metrics"):
        return {"200": _json("History", "The figures, one value a step.")}
    if name.endswith(".quota"):
        return {"200": _json("QuotaView", "Every counter.")}
    if name.endswith(".why"):
        return {"200": _json("Why", "How it stands and what it waits for.")}
    return {"200": _json("Audit", "Every difference between wish and reality.")}


def _json(schema: str, description: str, *, changed: bool = False) -> Json:
    found: Json = {"description": description, "content": {"application/json": {"schema": _ref(schema)}}}
    if changed:
        said = "the generation: send it as If-Match with a change"
        found["headers"] = {"ETag": {"schema": {"type": "string"}, "description": said}}
    return found


def _response_name(status: int) -> str:
    return HTTPStatus(status).phrase.replace(" ", "").replace("-", "")


def _problem_response(status: int) -> Json:
    errors = [error for error in ERRORS if error.status == status]
    content: Json = {"schema": _ref("Problem")}
    example = errors[0]("what is wrong, with the thing's name and the limit", fix="the way out").problem()
    content["example"] = plain(example)
    return {
        "description": " ".join(f"`{error.code}`: {(error.__doc__ or '').strip()}" for error in errors),
        "content": {"application/problem+json": content},
    }


# --- schemas ------------------------------------------------------------------------------------------------------


def _schemas() -> Json:
    views = (
        AuthorityView,
        Capacity,
        Cpus,
        History,
        LoggedIn,
        Overview,
        OperationOne,
        OperationView,
        EventView,
        Preview,
        QuotaAudit,
        QuotaView,
        Tops,
        Verified,
        WhoAmI,
        Why,
    )
    types: list[Any] = [Problem, *views, NewResource, Patch, LoginBody, PasswordBody]
    for kind in KINDS:
        types += [kind.spec, kind.status, *(verb.takes for verb in kind.verbs if verb.takes.__struct_fields__)]
    _, found = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    labels = found["NewResource"]["properties"]["labels"]
    schemas: Json = {name: _tidy(schema) for name, schema in found.items() if name not in ("NewResource", "Patch")}
    for kind in KINDS:
        schemas |= _schemas_of(kind, schemas, labels, found["NewResource"]["properties"]["name"])
    names = {"type": "object", "additionalProperties": {"type": "string"}, "description": "the name behind every id"}
    accepted = {"resource": {"type": "object"}, "operation": _ref("OperationView"), "names": names}
    return schemas | {
        "Accepted": _object(accepted, required=list(accepted)),
        "DryRun": _dry_run(schemas["Preview"]),
        "OperationList": _page(_ref("OperationView"), {"type": ["string", "null"]}),
        "EventList": _page(_ref("EventView"), {"type": "integer"}),
        "Ready": _object({"ready": {"type": "boolean"}, "reasons": {"type": "array", "items": {"type": "string"}}}),
        "Audit": _object(
            {
                "host": {"type": "string"},
                "clean": {"type": "boolean"},
                "items": {"type": "array", "items": {"type": "object"}},
            }
        ),
    }


def _dry_run(preview: Json) -> Json:
    names = {"type": "object", "additionalProperties": {"type": "string"}, "description": "the name behind every id"}
    resource = {"type": "object", "description": "the thing as it would be"}
    own = {"dry_run": {"const": True}, "resource": resource, "names": names}
    return _object(own | preview["properties"], required=[*own, *preview["required"]])


def _schemas_of(kind: AnyKind, schemas: Json, labels: Json, name: Json) -> Json:
    title, spec = _title(kind), schemas[kind.spec.__name__]
    mine = [field for field in fields(kind.spec) if not field.server_set]
    wanted = {field.name: spec["properties"][field.name] for field in mine}
    changed = {field: schema for field, schema in wanted.items() if field not in kind.fixed}
    required = [field.name for field in mine if field.required]
    names = {"type": "object", "additionalProperties": {"type": "string"}, "description": "the name behind every id"}
    own = {"resource": _ref(title), "names": names}
    found: Json = {
        title: _resource(kind),
        f"{title}List": _page(_ref(title), {"type": ["string", "null"]}, names=names, revision={"type": "integer"}),
        f"{title}One": _object(own, required=list(own)),
        f"{title}Accepted": _object(
            own
            | {"operation": _ref("OperationView")}
            | (
                {
                    "revealed": {"type": "string", "description": f"the {kind.reveals}, shown once"},
                    "revealed_before": {
                        "type": "string",
                        "description": "in a repeated answer, in place of `revealed`: how to get another one",
                    },
                }
                if kind.reveals
                else {}
            ),
            required=[*own, "operation"],
        ),
    }
    if kind.create is not None:
        body = {"name": name, "labels": labels, "spec": _object(wanted, required=required, closed=True)}
        found[f"{title}New"] = _object(body, required=["name", *(["spec"] if required else [])], closed=True)
    if kind.change is not None:
        found[f"{title}Patch"] = _object({"labels": labels, "spec": _object(changed, closed=True)}, closed=True)
    return found


def _resource(kind: AnyKind) -> Json:
    _, found = msgspec.json.schema_components([Resource[kind.spec, kind.status]])  # type: ignore[name-defined]
    schema: Json = next(schema for name, schema in found.items() if name.startswith("Resource"))
    properties: Json = schema["properties"] | {
        "kind": {"const": kind.name},
        "spec": _ref(kind.spec.__name__),
        "status": _ref(kind.status.__name__),
    }
    return schema | {"title": _title(kind), "description": kind.summary, "properties": properties}


def _page(item: Json, following: Json, **more: Json) -> Json:
    said = {"description": "the cursor to give as `after`; none: that was all"}
    page = {"items": {"type": "array", "items": item}, "next": following | said, **more}
    return _object(page, required=list(page))


def _object(properties: Json, *, required: list[str] | None = None, closed: bool = False) -> Json:
    found: Json = {"type": "object", "properties": properties}
    if required:
        found["required"] = required
    if closed:
        found["additionalProperties"] = False
    return found


def _tidy(schema: Json) -> Json:
    """Give a docstring's lines back their flow."""
    if "description" in schema:
        return schema | {"description": " ".join(schema["description"].split())}
    return schema


def _title(kind: AnyKind) -> str:
    return kind.name.title().replace("-", "").replace("_", "")


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}
