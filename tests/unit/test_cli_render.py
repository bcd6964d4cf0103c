"""Values in words for people."""

import pytest

from controller.cli.render import said


@pytest.mark.parametrize(
    ("value", "path", "words"),
    [
        ({"tier": "web", "row": "7"}, "labels", "tier=web, row=7"),
        ({}, "labels", "-"),
        ([], "spec.keypairs", "-"),
        (["net-1", "net-2"], "spec.networks", "default, net-2"),
        (True, "spec.public", "yes"),
        (3 << 20, "spec.size_bytes", "3.0 MiB"),
        (940.0, "created_at", "1m"),
    ],
)
def test_values_are_said_for_people(value: object, path: str, words: str) -> None:
    assert said(value, path, {"net-1": "default"}, now=1000.0) == words
