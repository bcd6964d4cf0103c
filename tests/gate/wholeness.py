"""What a kind must have, and which of it is missing: one function for each part, each returning what lacks."""

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import click

from common.kinds import COUNTERS
from common.kinds.kind import AnyKind, fields
from controller.api.extras import extras
from controller.api.openapi import openapi
from controller.api.routes import ROUTES, collection_path
from controller.cli.extras import EXTRAS
from controller.cli.main import root

TOP = Path(__file__).parents[2]


def lacks(kind: AnyKind) -> list[str]:
    """Return what a kind lacks, each in words."""
    parts = (_pages, _routes, _handlers, _openapi, _commands, _words, _counters, _docs)
    return [f"kind {kind.name} lacks {missing}" for part in parts for missing in part(kind)]


def _pages(kind: AnyKind) -> Iterator[str]:
    page = f"controller/kinds/{kind.name}.py"
    if find_spec(f"controller.kinds.{kind.name}") is None:
        yield page
    elif not callable(getattr(import_module(f"controller.kinds.{kind.name}"), "plan", None)):
        yield f"a function plan in {page}"
    test = TOP / "tests" / "kinds" / f"test_{kind.name}.py"
    if not test.exists():
        yield f"tests/kinds/{test.name}"
    elif "def test_" not in test.read_text():
        yield f"a test in tests/kinds/{test.name}"


def _routes(kind: AnyKind) -> Iterator[str]:
    many, one = collection_path(kind), f"{collection_path(kind)}/{{name}}"
    there = {(route.method, route.path) for route in ROUTES}
    wanted = [("GET", many), ("POST", many), ("GET", one), ("PATCH", one), ("DELETE", one)]
    wanted += [("POST", f"{one}/{verb.name}") for verb in kind.verbs]
    wanted += [(extra.method, f"{one}/{extra.name}") for extra in kind.extras]
    yield from (f"the route {method} {path}" for method, path in wanted if (method, path) not in there)


def _handlers(kind: AnyKind) -> Iterator[str]:
    bound = extras(*(MagicMock() for _ in range(5)), reasons=MagicMock(), quotas=MagicMock(), sessions=MagicMock())
    for extra in kind.extras:
        if (kind.name, extra.name) not in bound:
            yield f"a handler of {extra.name} in controller/api/extras.py"
        if (kind.name, extra.name) not in EXTRAS:
            yield f"a command of {extra.name} in controller/cli/extras.py"


def _openapi(kind: AnyKind) -> Iterator[str]:
    document: dict[str, Any] = openapi("0")
    paths = document["paths"]
    for route in ROUTES:
        own = route.kind is not None and route.kind.name == kind.name and route.need is not None
        if own and route.method.lower() not in paths.get(route.path, {}):
            yield f"{route.method} {route.path} in OpenAPI"
    schema = document["components"]["schemas"].get(kind.spec.__name__, {}).get("properties", {})
    yield from (f"the field {field.name} in OpenAPI" for field in fields(kind.spec) if field.name not in schema)


def _commands(kind: AnyKind) -> Iterator[str]:
    command = root()
    ctx = click.Context(command, info_name="skerry")
    found = command.get_command(ctx, kind.name)
    if not isinstance(found, click.Group) or kind.name not in command.list_commands(ctx):
        yield f"the command skerry {kind.name}"
        return
    wanted = ["list", "show"]
    wanted += [
        word
        for word, role in (("create", kind.create), ("set", kind.change), ("delete", kind.delete))
        if role is not None
    ]
    wanted += [verb.name for verb in kind.verbs]
    yield from (f"the command skerry {kind.name} {word}" for word in wanted if word not in found.commands)
    if fault := command_fault(kind.example.split("&&", maxsplit=1)[0]):
        yield f"an example that can be typed ({fault})"


def _words(kind: AnyKind) -> Iterator[str]:
    for field in fields(kind.spec):
        if not field.description:
            yield f"a description of spec.{field.name}"
    for verb in kind.verbs:
        yield from (f"a description of {verb.name}'s {one.name}" for one in fields(verb.takes) if not one.description)
    for column in kind.columns:
        place, _, name = column.path.partition(".")
        there = {"spec": kind.spec, "status": kind.status}.get(place)
        known = there.__struct_fields__ if there else ("name", "created_at", "owner", "project", "labels")
        if (name or place) not in known:
            yield f"what its column {column.title} shows ({column.path})"


def _counters(kind: AnyKind) -> Iterator[str]:
    page = f"controller/kinds/{kind.name}.py"
    if kind.counters is None:
        yield "what a quota counts of it (counters=(), where that is nothing)"
        return
    there = find_spec(f"controller.kinds.{kind.name}") is not None
    if len(kind.counters) > 1 and there and not hasattr(import_module(f"controller.kinds.{kind.name}"), "counts"):
        yield f"a function counts in {page}, which says how much of each counter"
    for counter in kind.counters:
        if [one for one in COUNTERS if one.name == counter.name] != [counter]:
            yield f"a counter of its own: {counter.name} is another one's"


def _docs(kind: AnyKind) -> Iterator[str]:
    for page, words in (
        ("kinds.md", f"## {kind.name}\n"),
        ("cli.md", f"### `skerry {kind.name}`"),
        ("api.md", kind.plural),
    ):
        if words not in (TOP / "docs" / "reference" / page).read_text():
            yield f"its part of docs/reference/{page}: run make docs"


def command_fault(line: str) -> str:
    """Return what is wrong with a `skerry …` line, without running it; empty: it can be typed."""
    words = shlex.split(line, comments=True)
    if words[:1] != ["skerry"]:
        return f"{line!r} does not begin with skerry"
    command: click.Command = root()
    ctx = click.Context(command, info_name="skerry")
    rest = words[1:]
    try:
        while True:
            command.parse_args(ctx, rest)
            if not isinstance(command, click.Group):
                return ""
            left = [*ctx._protected_args, *ctx.args]
            if not left:
                return ""
            name, found, rest = command.resolve_command(ctx, left)
            assert found
            command, ctx = found, click.Context(found, info_name=name, parent=ctx)
    except click.exceptions.Exit:
        return ""
    except click.ClickException as err:
        said = err.format_message()
        absent = re.search("(File|Directory|Path) '.*' does not exist|No such file or directory", said)
        return "" if absent else f"{line}: {said}"
