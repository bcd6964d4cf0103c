"""Identifiers: what they look like, and how one is made. Names in the outside world are derived in `common.names`."""

import hashlib
import os
from collections.abc import Callable
from typing import NewType

Id = NewType("Id", str)
"""`<prefix>-<body>`; the body is 12 characters of Crockford's base32, 60 random bits."""

HostId = NewType("HostId", Id)
RequestId = NewType("RequestId", str)
Revision = NewType("Revision", int)
"""Counts every change the store makes, over all tables. Higher is later."""

BODY_LENGTH = 12
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"

Entropy = Callable[[int], bytes]
"""Gives that many random bytes: `os.urandom`, or a seeded source in the simulator."""


def new_id(prefix: str, entropy: Entropy = os.urandom) -> Id:
    """Return a fresh id of the kind with this prefix."""
    number = int.from_bytes(entropy(8), "big")
    return Id(f"{prefix}-" + "".join(_ALPHABET[(number >> shift) & 31] for shift in range(0, 60, 5)))


def new_request_id(entropy: Entropy = os.urandom) -> RequestId:
    """Return a fresh request id (`req-…`), carried from the API through every log line and host call."""
    return RequestId(new_id("req", entropy))


def body(of: str) -> str:
    """Return the part of an id behind its prefix.

    Raises ValueError where `of` is no id.
    """
    prefix, dash, rest = of.partition("-")
    if not (prefix and dash and len(rest) == BODY_LENGTH and all(c in _ALPHABET for c in rest)):
        raise ValueError(f"{of!r} is not an id (prefix-, then {BODY_LENGTH} characters of 0-9a-z without i, l, o, u)")
    return rest


def is_id(text: str, prefix: str) -> bool:
    """Say whether `text` is an id of the kind with this prefix."""
    try:
        return text.startswith(prefix + "-") and bool(body(text))
    except ValueError:
        return False


def child_id(parent: Id, prefix: str, which: str = "") -> Id:
    """Return the id of a child that `parent` makes: making it twice makes it once. Of several of that prefix each but
    the first has a word of its own, `which`."""
    if not which:
        return Id(f"{prefix}-{body(parent)}")
    digest = hashlib.sha256(f"{parent} {which}".encode()).digest()
    return new_id(prefix, lambda count: digest[:count])
