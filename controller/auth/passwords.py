"""Passwords: hashed by argon2id, checked in the same time whether there is such a user or not."""

import hmac

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from common.secret import Secret, digest_of

# RFC 9106, section 4, the second recommended option: 64 MiB, three passes, four lanes.
_HASHER = PasswordHasher(time_cost=3, memory_cost=64 * 1024, parallelism=4)

FIRST = "sha256$"
"""How the hash of a password begins that Skerry itself made of 256 random bits: nothing is gained by a slow one."""

_NOBODYS = "$argon2id$v=19$m=65536,t=3,p=4$c2tlcnJ5LW5vYm9keQ$WkKF/oQUTn+aJcHJvCsKpVyrNkPJQZZgtfVx3wkFpXQ"
"""The hash of no password: what is checked where there is nothing to check, so that it takes as long."""


def hashed(password: Secret) -> str:
    """Return what is stored of a password. It takes some 100 ms and 64 MiB: call it in a thread."""
    return _HASHER.hash(password.reveal())


def first_hash(password: Secret) -> str:
    """Return what is stored of a first password."""
    return FIRST + digest_of(password.reveal())


def verify(stored: str | None, given: Secret) -> bool:
    """Say whether a password is the one that was stored; None: there is none. As long to say no as yes."""
    first = stored is not None and stored.startswith(FIRST)
    right = first and hmac.compare_digest(stored or "", first_hash(given))
    try:
        _HASHER.verify(_NOBODYS if stored is None or first else stored, given.reveal())
    except (VerificationError, InvalidHashError):
        return right
    return stored is not None and not first
