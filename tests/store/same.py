"""Comparing two working sets, revisions aside where two stores wrote in different steps."""

from collections import defaultdict
from typing import Any

import msgspec

from controller.store.rows import EPOCH
from controller.store.working import WorkingSet


def plain(seen: WorkingSet, *, revisions: bool) -> dict[str, Any]:
    """Return all that a working set holds of the store, without what is empty."""
    held: dict[str, Any] = {}
    for name, value in vars(seen).items():
        if name not in ("_hosts", "revision"):
            held[name] = _plain(value, revisions=revisions)
    held["processors"] = seen.processors.makes()
    held["_facts"] = {name: value for name, value in held["_facts"].items() if name != EPOCH}
    return {name: value for name, value in held.items() if value}


def _plain(value: Any, *, revisions: bool) -> Any:
    if isinstance(value, dict | defaultdict):
        inner = {key: _plain(one, revisions=revisions) for key, one in value.items()}
        return {key: one for key, one in inner.items() if one not in ({}, set(), None)}
    if isinstance(value, msgspec.Struct):
        fields = {name: getattr(value, name) for name in value.__struct_fields__}
        if not revisions:
            fields.pop("revision", None)
        return _used(fields)
    return value


def _used(fields: dict[str, Any]) -> dict[str, Any] | None:
    """A host that has sold nothing is as one that was never heard of."""
    return None if set(fields) == {"vcpus", "memory_mib", "disk_gib"} and not any(fields.values()) else fields


def same(one: WorkingSet, other: WorkingSet, *, revisions: bool = False) -> None:
    """Fail with the first difference."""
    left, right = plain(one, revisions=revisions), plain(other, revisions=revisions)
    for name in sorted({*left, *right}):
        assert left.get(name) == right.get(name), name
