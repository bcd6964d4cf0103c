"""Flags made from spec fields: one declaration is flag, parser, bounds, help and completion."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
import msgspec
from click.shell_completion import CompletionItem

from common.codec import to_json
from common.kinds.kind import AnyKind, Field, Verb, fields
from controller.cli.complete import NameType

FROM_FILE_LENGTH = 1024
"""A text field that may be longer than this also takes `@FILE`."""

CLEAR = ""
"""The value that empties a field that may be empty: `--keypair ''`."""


class KeyValue(click.ParamType[tuple[str, str | None]]):
    """`key=value`; `key-` takes a label away, where that is allowed."""

    name = "key=value"

    def __init__(self, *, removable: bool) -> None:
        self.removable = removable

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str | None]:
        """Split a label."""
        if isinstance(value, tuple):
            return value
        key, equals, rest = str(value).partition("=")
        if equals and key:
            return key, rest
        if not (self.removable and key.endswith("-") and len(key) > 1):
            or_else = " (or key- to take it away)" if self.removable else ""
            self.fail(f"{value!r} is not key=value{or_else}", param, ctx)
        return key[:-1], None


class LongText(click.ParamType[str]):
    """Text, or `@FILE` for a file's content, or `@-` for standard input.

    `one_line`: the newline that every text file ends with is no part of it.
    """

    name = "text|@file"

    def __init__(self, *, one_line: bool) -> None:
        self.one_line = one_line

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Read the file where one is named."""
        text = str(value)
        if not text.startswith("@"):
            return text
        try:
            found = sys.stdin.read() if text == "@-" else Path(text[1:]).read_text()
        except (OSError, UnicodeDecodeError) as err:
            self.fail(f"{text[1:]} can't be read: {err}", param, ctx)
        return found.removesuffix("\n").removesuffix("\r") if self.one_line else found


class JsonText(click.ParamType[Any]):
    """Any JSON, for fields that have no simpler form."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Decode it."""
        if not isinstance(value, str):
            return value
        try:
            return msgspec.json.decode(value)
        except msgspec.DecodeError as err:
            self.fail(f"this is not JSON: {err}", param, ctx)


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """How a field is given on the command line."""

    type: click.ParamType[Any]
    many: bool = False
    switch: bool = False
    clears: Any = None
    """What `''` stands for."""
    clearable: bool = False


def shape_of(field: Field) -> Shape:
    """Return how a field is given on the command line."""
    return _shape(msgspec.inspect.type_info(field.type), field.ref)


def _shape(info: msgspec.inspect.Type, ref: str | None) -> Shape:
    match info:
        case msgspec.inspect.Metadata():
            return _shape(info.type, ref)
        case msgspec.inspect.BoolType():
            return Shape(type=click.BOOL, switch=True)
        case msgspec.inspect.IntType():
            return Shape(type=click.IntRange(info.ge, info.le))
        case msgspec.inspect.FloatType():
            return Shape(type=click.FloatRange(info.ge, info.le))
        case msgspec.inspect.LiteralType():
            return Shape(type=click.Choice([str(value) for value in info.values]))
        case msgspec.inspect.StrType():
            if ref:
                return Shape(type=NameType(ref))
            if (info.max_length or 0) > FROM_FILE_LENGTH:
                return Shape(type=LongText(one_line=info.pattern is not None))
            return Shape(type=click.STRING)
        case msgspec.inspect.UnionType():
            inner = [kind for kind in info.types if not isinstance(kind, msgspec.inspect.NoneType)]
            if len(inner) == 1 and len(inner) < len(info.types):
                one = _shape(inner[0], ref)
                return msgspec.structs.replace(one, clearable=True) if not one.many else one
        case msgspec.inspect.VarTupleType() | msgspec.inspect.ListType():
            inner_shape = _shape(info.item_type, ref)
            return Shape(type=inner_shape.type, many=True, clearable=True, clears=())
        case _:
            pass
    return Shape(type=JsonText())


class Clearable(click.ParamType[Any]):
    """A type that also takes `''`, which empties the field."""

    def __init__(self, inner: click.ParamType[Any]) -> None:
        self.inner = inner
        self.name = inner.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Let the empty text pass."""
        return CLEAR if value == CLEAR else self.inner.convert(value, param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete as the inner type does."""
        return self.inner.shell_complete(ctx, param, incomplete)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        """Show what the inner type shows."""
        return self.inner.get_metavar(param, ctx)


def taken(verb: Verb) -> tuple[Field, ...]:
    """Return the fields that a verb's command has a flag for."""
    return fields(verb.takes)


def offered(kind: AnyKind, *, change: bool) -> tuple[Field, ...]:
    """Return the fields that `create` (or `set`) has a flag for: not Skerry's own, and on `set` not the fixed ones."""
    return tuple(
        field for field in fields(kind.spec) if not field.server_set and not (change and field.name in kind.fixed)
    )


def words(field: Field) -> tuple[str, ...]:
    """Return a field's flags: `--networks` is given as `--network` too, since each takes one."""
    plain = "--" + field.name.replace("_", "-")
    shape = shape_of(field)
    if shape.switch:
        return (f"{plain}/--no-{plain[2:]}",)
    if shape.many and plain.endswith("s"):
        return (plain[:-1], plain)
    return (plain,)


def usage(field: Field) -> str:
    """Return a flag as an example shows it."""
    word = words(field)[0].split("/")[0]
    return word if shape_of(field).switch else f"{word} …"


def option(field: Field, *, change: bool) -> click.Option:
    """Return the option of a field."""
    shape = shape_of(field)
    required = field.required and not change
    unset: dict[str, Any] = {} if required or shape.many else {"default": None}
    return click.Option(
        [*words(field), field.name],
        type=Clearable(shape.type) if shape.clearable and not shape.switch else shape.type,
        multiple=shape.many,
        required=required,
        **unset,
        help=_help(field, shape, change=change),
        metavar=_metavar(shape),
    )


def _help(field: Field, shape: Shape, *, change: bool) -> str:
    notes = []
    if shape.many:
        notes.append("repeatable" + ("; replaces what is there" if change else ""))
    if isinstance(shape.type, LongText):
        notes.append("@FILE reads a file")
    if not change and not field.required and field.default not in (None, "", ()):
        notes.append(f"default: {_said(field.default)}")
    first = field.description.split(" ", maxsplit=1)[0]
    text = field.description[:1].upper() + field.description[1:] if first.islower() else field.description
    return text + (f" ({'; '.join(notes)})" if notes else "")


def _said(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, tuple | list):
        return ", ".join(str(one) for one in default)
    return str(default)


def _metavar(shape: Shape) -> str | None:
    match shape.type:
        case NameType():
            return shape.type.kind.upper()
        case LongText():
            return "TEXT|@FILE"
        case JsonText():
            return "JSON"
        case click.IntRange():
            return "N"
        case click.FloatRange():
            return "X"
        case _:
            return None


def spec_of(offered: Iterable[Field], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the spec of a body from the flags that were given; what was not given is left to the API."""
    spec: dict[str, Any] = {}
    for field in offered:
        value = values.get(field.name)
        if value is None or value == ():
            continue
        shape = shape_of(field)
        if shape.many:
            spec[field.name] = [one for one in value if one != CLEAR]
        elif shape.clearable and value == CLEAR:
            spec[field.name] = shape.clears
        else:
            spec[field.name] = value
    return spec


def labels_of(given: tuple[tuple[str, str | None], ...], before: Mapping[str, str]) -> dict[str, str]:
    """Return the labels after `--label k=v` and `--label k-`."""
    after = dict(before)
    for key, value in given:
        if value is None:
            after.pop(key, None)
        else:
            after[key] = value
    return after


def default_text(field: Field) -> str:
    """Return a field's default as JSON, for the reference pages."""
    return "" if field.required else to_json(field.default).decode()
