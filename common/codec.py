"""Bytes to typed structs and back, with errors that name the field. Nothing past this module is untyped."""

from collections.abc import Iterator
from functools import cache
from typing import Any, TypeVar

import msgspec

from common.errors import FieldError, Invalid

T = TypeVar("T")

_json_encoder = msgspec.json.Encoder(order="deterministic")
_pack_encoder = msgspec.msgpack.Encoder(order="deterministic")


def to_json(value: object) -> bytes:
    """Encode as JSON, keys sorted: equal values give equal bytes."""
    return _json_encoder.encode(value)


def to_pack(value: object) -> bytes:
    """Encode as msgpack, keys sorted: equal values give equal bytes."""
    return _pack_encoder.encode(value)


def from_json(raw: bytes | str, of: type[T], what: str) -> T:
    """Decode JSON into `of`.

    Raises Invalid, naming `what` and the field, where it does not fit.
    """
    try:
        return msgspec.json.decode(raw, type=of)
    except msgspec.DecodeError as err:
        raise _invalid(err, what, of) from err
    except (RecursionError, UnicodeError) as err:
        raise _unreadable(err, what) from err


def from_pack(raw: bytes, of: type[T], what: str) -> T:
    """Decode msgpack into `of`. Raises Invalid like `from_json`."""
    try:
        return msgspec.msgpack.decode(raw, type=of)
    except msgspec.DecodeError as err:
        raise _invalid(err, what, of) from err
    except (RecursionError, UnicodeError) as err:
        raise _unreadable(err, what) from err


def convert(value: Any, of: type[T], what: str) -> T:
    """Turn builtin values (from TOML, or a merged patch) into `of`. Raises Invalid like `from_json`."""
    try:
        return msgspec.convert(value, type=of, strict=True)
    except msgspec.ValidationError as err:
        raise _invalid(err, what, of) from err


def plain(value: object) -> Any:
    """Turn a struct into builtin values, as JSON would show it."""
    return msgspec.to_builtins(value)


def _unreadable(err: RecursionError | UnicodeError, what: str) -> Invalid:
    if isinstance(err, RecursionError):
        return Invalid(f"{what} is nested too deeply to be read", fix="send what the reference page shows for it")
    return Invalid(f"{what} is not UTF-8", fix="send it as UTF-8")


def _invalid(err: msgspec.DecodeError, what: str, of: Any) -> Invalid:
    text = str(err)
    message, _, where = text.partition(" - at `")
    part, _, inside = where.rstrip("`").rpartition("` in `")  # "key` in `$.labels": of a mapping
    field = inside.removeprefix("$").removeprefix(".")
    if not isinstance(err, msgspec.ValidationError):
        return Invalid(f"{what} can't be read: {text}", fix="send what the reference page shows for it")
    if "matching regex" in message:
        message = next((said for pattern, said in _patterns(of) if repr(pattern) in message), message)
    at = ", ".join(filter(None, (what, f"field {field}" if field else "", part)))
    return Invalid(f"{at}: {message}", errors=(FieldError(field=field, message=message),))


@cache
def _patterns(of: Any) -> tuple[tuple[str, str], ...]:
    """Return every pattern that strings of a type have to match, with what its description says of it."""
    return tuple(_described(msgspec.inspect.type_info(of), set()))


def _described(part: Any, met: set[int]) -> Iterator[tuple[str, str]]:
    if isinstance(part, msgspec.inspect.Metadata):
        pattern = getattr(part.type, "pattern", None)
        said = (part.extra_json_schema or {}).get("description")
        if pattern and said:
            yield pattern, f"expected {said}"
    if isinstance(part, list | tuple):
        for one in part:
            yield from _described(one, met)
    elif isinstance(part, msgspec.Struct) and id(part) not in met:
        met.add(id(part))  # types may hold themselves
        for name in part.__struct_fields__:
            yield from _described(getattr(part, name), met)
