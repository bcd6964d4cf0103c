"""The OpenAPI document: valid, whole, and true to what the API takes and gives."""

from typing import Any

import msgspec
import pytest
from aiohttp import web
from api_world import P, World
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from common.errors import ERRORS
from common.kinds import KINDS
from common.kinds.kind import Scope, fields
from controller.api.openapi import openapi
from controller.api.routes import ROUTES

DOCUMENT: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(openapi("test")))


def schema(name: str) -> Draft202012Validator:
    registry: Registry[Any] = Registry().with_resource(
        "urn:doc", Resource(contents=DOCUMENT, specification=DRAFT202012)
    )
    return Draft202012Validator({"$ref": f"urn:doc#/components/schemas/{name}"}, registry=registry)


def test_the_document_is_valid_openapi() -> None:
    validate(DOCUMENT)

    assert DOCUMENT["openapi"] == "3.1.0"


async def test_it_is_served_without_a_token(cloud: World) -> None:
    reply = await cloud.call("GET", "/openapi.json", as_=None)

    assert reply.status == 200
    assert reply.json["paths"] == DOCUMENT["paths"]


async def test_every_route_that_is_served_is_described_and_the_other_way_round(cloud: World) -> None:
    app: web.Application = cloud.client.app  # type: ignore[assignment]
    served = {(route.method.lower(), route.resource.canonical) for route in app.router.routes() if route.resource}
    closed = {(route.method.lower(), route.path) for route in ROUTES if route.kind and route.need is None}
    described = {(method, path) for path, methods in DOCUMENT["paths"].items() for method in methods}

    assert served - closed == described


def test_every_kind_has_its_schemas_with_descriptions_and_no_forged_fields() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    for kind in KINDS:
        title = kind.name.title()
        assert {title, f"{title}List", f"{title}One", f"{title}Accepted"} <= set(schemas)
        assert (f"{title}New" in schemas) == (kind.create is not None)
        assert (f"{title}Patch" in schemas) == (kind.change is not None)
        for field in fields(kind.spec):
            assert schemas[kind.spec.__name__]["properties"][field.name]["description"], (kind.name, field.name)
            if kind.create is not None:
                wanted = schemas[f"{title}New"]["properties"]["spec"]["properties"]
                assert (field.name in wanted) == (not field.server_set)


def test_every_error_has_its_response_and_every_reference_leads_somewhere() -> None:
    text = msgspec.json.encode(DOCUMENT).decode()
    responses = DOCUMENT["components"]["responses"]

    for error in ERRORS:
        assert any(f"`{error.code}`" in response["description"] for response in responses.values()), error.code
    for part in text.split('"#/components/')[1:]:
        section, name = part.split('"', 1)[0].split("/")
        assert name in DOCUMENT["components"][section]


def test_every_operation_has_a_summary_and_an_id_of_its_own() -> None:
    operations = [operation for methods in DOCUMENT["paths"].values() for operation in methods.values()]
    ids = [operation["operationId"] for operation in operations]

    assert len(ids) == len(set(ids))
    assert all(operation["summary"].endswith(".") for operation in operations)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.create is not None], ids=lambda kind: kind.name)
async def test_the_examples_are_taken_by_the_schema_and_by_the_api(cloud: World, kind: Any) -> None:
    await cloud.make("/v1/sizes", "small", {"vcpus": 1, "memory_mib": 512, "disk_gib": 1})
    await cloud.make(f"{P}/a/images", "tiny", {"format": "kernel"})
    await cloud.make(f"{P}/a/networks", "default")
    if kind.name == "snapshot":
        await cloud.vm("a", "web", await cloud.host("h1"))
        await cloud.make(f"{P}/a/volumes", "data", {"size_gib": 1, "vm": "web"})
    if kind.name == "binding":
        await cloud.make("/v1/users", "bob")
    await cloud.make("/v1/regions", "north")
    await cloud.make("/v1/zones", "z1", {"region": "north"})
    base = f"/v1/{kind.plural}" if kind.scope is Scope.CLOUD else f"{P}/a/{kind.plural}"
    path = base.replace("/a/", "/{project}/")
    example = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]

    schema(f"{kind.name.title()}New").validate(example)
    made = await cloud.call("POST", base, example)
    listed = await cloud.call("GET", base)
    shown = await cloud.call("GET", f"{base}/{example['name']}")

    assert made.status == 202, made.raw
    schema(f"{kind.name.title()}Accepted").validate(made.json)
    schema(f"{kind.name.title()}List").validate(listed.json)
    schema(f"{kind.name.title()}One").validate(shown.json)


async def test_general_answers_fit_their_schemas(cloud: World) -> None:
    made = await cloud.make(f"{P}/a/networks", "n")
    for path, name in (
        ("/v1/operations", "OperationList"),
        (f"/v1/operations/{made['operation']['id']}", "OperationOne"),
        ("/v1/events?limit=1000", "EventList"),
        ("/v1/me", "WhoAmI"),
        ("/readyz", "Ready"),
        ("/v1/nothing", "Problem"),
    ):
        schema(name).validate((await cloud.call("GET", path)).json)
