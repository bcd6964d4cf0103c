"""A secret that can't be printed by accident, and the tokens made from one."""

import hashlib
import hmac
import os
from pathlib import Path

from common.ids import Entropy


class Secret:
    """Text whose repr is `***`. `reveal()` is the only way to it, and easy to grep for."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text."""
        return self._text

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._text, other._text)

    def __hash__(self) -> int:
        return hash(self._text)


def new_token(prefix: str, entropy: Entropy = os.urandom) -> Secret:
    """Return a bearer token: `<prefix>_` and 256 random bits in hex."""
    return Secret(f"{prefix}_{entropy(32).hex()}")


def digest_of(token: str) -> str:
    """Return what is stored of a token: SHA-256 in hex. Enough, since a token has 256 random bits."""
    return hashlib.sha256(token.encode()).hexdigest()


def write_private(path: Path, content: bytes) -> None:
    """Write a file that was never readable by others, whole or not at all."""
    part = path.with_name(path.name + "-part")
    part.unlink(missing_ok=True)
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
