"""Every kind has all of its parts, and the check finds what is missing."""

from typing import Annotated

import msgspec
import pytest
from wholeness import command_fault, lacks

from common.kinds import KINDS
from common.kinds.kind import AnyKind, Column, Extra, Kind, Role, Scope, Spec, Status


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kind_is_whole(kind: AnyKind) -> None:
    assert not lacks(kind), "\n".join(lacks(kind))


def test_names_and_prefixes_are_unique() -> None:
    for words in ([kind.name for kind in KINDS], [kind.plural for kind in KINDS], [kind.prefix for kind in KINDS]):
        assert len(words) == len(set(words))


class BareSpec(Spec, frozen=True):
    """One field that nobody describes."""

    colour: Annotated[str, msgspec.Meta(max_length=10)]


def test_the_check_finds_every_missing_part() -> None:
    bare = Kind(
        name="bare",
        plural="bares",
        prefix="bare",
        scope=Scope.PROJECT,
        spec=BareSpec,
        status=Status,
        summary="Nothing.",
        example="skerry bare create x",
        columns=(Column(title="WEIGHT", path="spec.weight"),),
        extras=(Extra(name="smell", method="GET", summary="Smell it.", role=Role.READER),),
    )
    said = "\n".join(lacks(bare))
    for part in (
        "controller/kinds/bare.py",
        "tests/kinds/test_bare.py",
        "the route POST /v1/projects/{project}/bares",
        "a handler of smell in controller/api/extras.py",
        "a command of smell in controller/cli/extras.py",
        "the field colour in OpenAPI",
        "the command skerry bare",
        "a description of spec.colour",
        "what its column WEIGHT shows",
        "what a quota counts of it",
        "its part of docs/reference/kinds.md",
    ):
        assert f"kind bare lacks {part}" in said


def test_a_line_that_can_not_be_typed_is_found() -> None:
    assert command_fault("skerry vm create web --image tiny --size small --wait") == ""
    assert command_fault("skerry why vm web   # a comment") == ""
    assert "Missing option '--size'" in command_fault("skerry vm create web --image tiny")
    assert "No such option" in command_fault("skerry vm list --colour")
    assert "there is no command cow" in command_fault("skerry cow list")
