"""The OpenAPI document turned on the API itself: whatever a client makes of it, the answer is one that it describes.

Requests are made from the document, good ones and bad ones, against a whole controller process. Streams without an end
are left out; addresses name things that exist as often as not.
"""

import subprocess
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import requests
import schemathesis
from cli_world import World, configure, controller_command, wait_ready
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from controller.api.openapi import openapi

SCHEMA = schemathesis.openapi.from_dict(msgspec.json.decode(msgspec.json.encode(openapi("test"))))
OPERATIONS = {operation.ok().definition.raw["operationId"]: operation.ok() for operation in SCHEMA.get_all_operations()}
ENDLESS = {"watch", "vm.console", "image.content"}
"""Not asked here: streams, and a body that is no JSON (see test_upload)."""

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 16
BUDGET_S = 50.0
"""For all together: operations that come after it have one example each."""

THERE = {"project": "shop", "id": "op-000000000000"}
NAMES = st.sampled_from(["default", "small", "tiny", "web", "shop", "h1", "key"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A controller with a few things of each kind; no host."""
    home = tmp_path_factory.mktemp("schemathesis")
    config, url = configure(home)
    config.write_text(config.read_text().replace("[api]\n", "[api]\nrate_per_s = 0\n"))
    subprocess.run(controller_command(config, "init"), check=True, capture_output=True, timeout=60)
    words = controller_command(config, "token", "--name", "root")
    token = subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout.strip()
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(controller_command(config, "run"), stdout=log, stderr=log)
    try:
        wait_ready(url, process)
        yield World(url=url, token=token, home=home)
        assert "by a bug" not in (home / "log").read_text()
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture(scope="module")
def deadline() -> float:
    """The moment by which all examples shall be through."""
    return time.monotonic() + BUDGET_S


@pytest.fixture(scope="module")
def session(world: World) -> Iterator[requests.Session]:
    """A connection of the operators', which keeps having the things there that addresses name."""
    with requests.Session() as made:
        made.headers["Authorization"] = f"Bearer {world.token}"
        made.trust_env = False
        yield made


def furnish(session: requests.Session, url: str) -> None:
    """Have the things there that requests may name, whatever was deleted since."""
    for path, name, spec in (
        ("projects", "shop", {}),
        ("projects/shop/networks", "default", {}),
        ("sizes", "small", {"vcpus": 1, "memory_mib": 256, "disk_gib": 2}),
        ("projects/shop/images", "tiny", {"format": "raw"}),
        ("projects/shop/keypairs", "key", {"public_key": "ssh-ed25519 AAAA"}),
        ("projects/shop/vms", "web", {"image": "tiny", "size": "small"}),
        ("hosts", "h1", {}),
    ):
        session.post(f"{url}/v1/{path}", json={"name": name, "spec": spec}, timeout=10)


def asked() -> list[Any]:
    """Return every operation with good requests, and with bad ones where there is something to get wrong."""
    return [
        pytest.param(name, mode, id=f"{name}-{mode.value}")
        for name in sorted(set(OPERATIONS) - ENDLESS)
        for mode in GenerationMode
        if mode is GenerationMode.POSITIVE or OPERATIONS[name].definition.raw.get("parameters")
    ]


@pytest.mark.parametrize(("name", "mode"), asked())
def test_the_answer_is_one_that_the_document_describes(
    world: World, session: requests.Session, deadline: float, name: str, mode: GenerationMode
) -> None:
    operation = OPERATIONS[name]
    furnish(session, world.url)

    @settings(
        max_examples=EXAMPLES if time.monotonic() < deadline else 1,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), named=st.booleans(), thing=NAMES)
    def ask(case: Any, named: bool, thing: str) -> None:
        tame(case, thing if named else None)
        response = case.call(base_url=world.url, session=session, timeout=15)
        absent = response.status_code == 503 and "retry-after" in response.headers  # its host is not connected
        case.validate_response(response, checks=CHECKS[1:] if absent else CHECKS)

    ask()


def tame(case: Any, thing: str | None) -> None:
    """Have a request end soon, and (where a thing is named) meet something that is there."""
    case.query = {key: value for key, value in (case.query or {}).items() if key != "follow"}
    if "wait_s" in case.query:
        case.query["wait_s"] = 0
    if thing is not None:
        there = {**THERE, "name": thing}
        case.path_parameters = {key: there.get(key, value) for key, value in (case.path_parameters or {}).items()}
