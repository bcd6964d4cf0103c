"""Cutting many things into messages: at most so many in one, and at most so many bytes."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from common.codec import to_pack
from common.protocol import BATCH, MAX_MESSAGE_BYTES

T = TypeVar("T")

_BATCH_BYTES = MAX_MESSAGE_BYTES // 4
"""Room is left for the envelope, and a slow link gets to other messages in between."""


def cut(items: Iterable[T], *, count: int = BATCH, size_bytes: int = _BATCH_BYTES) -> Iterator[tuple[T, ...]]:
    """Yield the items in order, in tuples of at most `count` and about `size_bytes` of msgpack (but one at least)."""
    group: list[T] = []
    weight = 0
    for item in items:
        own = len(to_pack(item))
        if group and (len(group) >= count or weight + own > size_bytes):
            yield tuple(group)
            group, weight = [], 0
        group.append(item)
        weight += own
    if group:
        yield tuple(group)
