"""Configuration files: TOML into a struct of sections, where an unknown key stops the start.

A misspelt key that is passed over would be a setting that silently does not hold.
"""

import difflib
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from common.codec import convert
from common.errors import FieldError, Invalid

C = TypeVar("C", bound=msgspec.Struct)


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[section]` of a file. Every key has a description in `msgspec.Meta`."""


def load_settings(path: Path, of: type[C]) -> C:
    """Read a file. Raises Invalid, naming the file, the section, the key and the way out."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as err:
        raise Invalid(
            f"the configuration {path} can't be read: {err.strerror}", fix="make it, or name another with --config"
        ) from err
    except UnicodeDecodeError as err:
        raise Invalid(f"the configuration {path} is not UTF-8 (byte {err.start})", fix="save it as UTF-8") from err
    return parse_settings(text, of, str(path))


def parse_settings(text: str, of: type[C], where: str) -> C:
    """Decode a file's text; `where` names it in errors. Raises Invalid like `load_settings`."""
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise Invalid(
            f"{where} is not TOML: {err}", fix="see docs/reference/config.md and docs/operators.md for examples"
        ) from err
    sections = {field.name: field.type for field in msgspec.structs.fields(of)}
    for name, body in given.items():
        if name not in sections:
            raise _unknown(f"{where} has no section [{name}]", name, list(sections), name)
        _check_section(where, name, body, sections[name])
    return convert(given, of, where)


def _check_section(where: str, name: str, body: Any, of: type[msgspec.Struct]) -> None:
    if not isinstance(body, dict):
        raise Invalid(f"{where}: {name} is a section, not a value", fix=f"write [{name}] and its keys below it")
    keys = [field.name for field in msgspec.structs.fields(of)]
    for key in body:
        if key not in keys:
            raise _unknown(f"{where}, section [{name}]: there is no key {key}", key, keys, f"{name}.{key}")


def _unknown(what: str, name: str, allowed: list[str], field: str) -> Invalid:
    close = difflib.get_close_matches(name, allowed, n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    return Invalid(
        f"{what}; there is {', '.join(allowed)}",
        fix=f"{meant}correct it or take it out",
        errors=(FieldError(field=field, message="unknown"),),
    )
