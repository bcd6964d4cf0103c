"""A client that a public generator makes from the OpenAPI document, used as its users would, on a real cloud."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.request import urlopen

import pytest

from lab.cloud import IMAGE, PROJECT, SIZE
from tests.lab.calls import Cloud
from tests.lab.look import of_vm

pytestmark = [pytest.mark.host, pytest.mark.timeout(180)]

PACKAGE = "skerry_generated"


@pytest.fixture(scope="module")
def generated(cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Generate the client from the document that the controller serves; return where it can be imported from."""
    folder = tmp_path_factory.mktemp("generated")
    document, config = folder / "openapi.json", folder / "config.yaml"
    with urlopen(f"{cloud.lab.url}/openapi.json", timeout=10) as answer:
        document.write_bytes(answer.read())
    config.write_text(json.dumps({"post_hooks": []}))  # JSON is YAML; its formatter is not what is tried
    words = ["generate", "--path", document, "--meta", "none", "--output-path", folder / PACKAGE, "--config", config]
    command = [sys.executable, "-P", "-m", "openapi_python_client", *map(str, words), "--fail-on-warning"]
    made = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def client(cloud: Cloud, generated: Path) -> Iterator[Any]:
    """Give the generated client with a token."""
    made = module("").AuthenticatedClient(
        base_url=cloud.lab.url, token=cloud.lab.token, timeout=60.0, httpx_args={"trust_env": False}
    )
    with made:
        yield made


def module(path: str) -> ModuleType:
    """Return a module of the generated package."""
    return importlib.import_module(f"{PACKAGE}{path}")


def ended(client: Any, accepted: Any) -> Any:
    """Wait for the operation of an accepted change and return it."""
    return module(".api.general.operations_show").sync(accepted.operation.id, client=client, wait_s=60)


def test_it_creates_lists_and_deletes_a_vm(cloud: Cloud, client: Any) -> None:
    models = module(".models")
    vm = {"name": "generated", "spec": {"image": IMAGE, "size": SIZE}}

    accepted = module(".api.vm.vm_create").sync(PROJECT, client=client, body=models.VmNew.from_dict(vm))
    assert isinstance(accepted, models.VmAccepted)
    assert ended(client, accepted).state == "done"
    try:
        shown = module(".api.vm.vm_list").sync(PROJECT, client=client, name="generated")
        assert [(one.name, one.status.state) for one in shown.items] == [("generated", "running")]
    finally:
        gone = module(".api.vm.vm_delete").sync(PROJECT, "generated", client=client)
    assert ended(client, gone).state == "done"
    assert of_vm(cloud.lab.host("h1"), accepted.resource.id) == []


def test_a_refusal_is_the_problem_of_the_document(client: Any) -> None:
    refused = module(".api.vm.vm_show").sync(PROJECT, "nothing", client=client)
    assert isinstance(refused, module(".models").Problem)
    assert (refused.code, refused.status) == ("not-found", 404)
