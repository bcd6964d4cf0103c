"""Looking at the files of a PKI directory without touching them: for `skerry-controller doctor`."""

from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from controller.pki import certificates

PAIRS = (("ca.key", "ca.pem"), ("server.key", "server.pem"))


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """A key and its certificate as they lie there."""

    key: str
    certificate: str
    problem: str = ""
    """Why they are of no use; empty: they fit each other."""
    open_to_others: bool = False
    """Others than the owner may read the key."""
    ends_at: float = 0
    names: frozenset[str] = frozenset()
    """What a server's certificate is good for."""


def look(directory: Path) -> tuple[Pair, ...]:
    """Return the authority's pair and the server's; nothing where neither was made yet."""
    there = [name for pair in PAIRS for name in pair if (directory / name).exists()]
    return tuple(_pair(directory / key, directory / certificate) for key, certificate in PAIRS) if there else ()


def _pair(key: Path, path: Path) -> Pair:
    seen = Pair(key=str(key), certificate=str(path))
    try:
        seen = msgspec.structs.replace(seen, open_to_others=bool(key.stat().st_mode & 0o077))
        private = serialization.load_pem_private_key(key.read_bytes(), password=None)
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as err:
        return msgspec.structs.replace(seen, problem=f"{err.filename}: {err.strerror}")
    except (ValueError, TypeError) as err:
        return msgspec.structs.replace(seen, problem=f"{key} or {path} can't be read: {err}")
    if certificate.public_key() != private.public_key():
        return msgspec.structs.replace(seen, problem=f"{key} is not the key of {path}")
    server = path.name == "server.pem"
    return msgspec.structs.replace(
        seen,
        ends_at=certificate.not_valid_after_utc.timestamp(),
        names=certificates.names_of(certificate) if server else frozenset(),
    )
