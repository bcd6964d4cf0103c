"""How a host joins: the one-time token, and the request and the answer of `POST /join`."""

import re
from typing import Annotated

import msgspec

from common.errors import Invalid
from common.ids import HostId, Id
from common.secret import Secret

_TOKEN = re.compile(r"^(?P<secret>skj_[0-9a-f]{64})\.(?P<fingerprint>[0-9a-f]{64})$")


class JoinToken(msgspec.Struct, frozen=True, kw_only=True):
    """A one-time token: the secret that is redeemed, and the CA it may be shown to."""

    secret: Secret
    """`skj_` and 64 hex digits: what the controller keeps a digest of."""
    fingerprint: str
    """SHA-256 of the CA certificate's DER, in hex."""

    def text(self) -> Secret:
        """Return the token as it is handed to a person: `<secret>.<fingerprint>`."""
        return Secret(f"{self.secret.reveal()}.{self.fingerprint}")


def parse_join_token(text: str) -> JoinToken:
    """Take a token apart. Raises Invalid for anything that is none, without repeating it."""
    found = _TOKEN.match(text.strip())
    if found is None:
        raise Invalid(
            f"this is no join token: it has {len(text.strip())} characters, a token is skj_<64 hex>.<64 hex>",
            fix="copy the whole line that `skerry host create` or `skerry host token` printed",
        )
    return JoinToken(secret=Secret(found["secret"]), fingerprint=found["fingerprint"])


class JoinRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /join`: the whole token text, and a certificate signing request (PEM)."""

    token: str
    csr: str


class RenewRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /renew`, sent with the certificate that is to be followed by a new one."""

    csr: str


class VouchRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /vouch`: a signing request, and the machines that its key is to speak for."""

    csr: str
    machines: Annotated[tuple[Id, ...], msgspec.Meta(max_length=1024)]


class Vouched(msgspec.Struct, frozen=True, kw_only=True):
    """The answer: a certificate (PEM) for each machine that is on the host."""

    certificates: dict[Id, str]


class NextAuthority(msgspec.Struct, frozen=True, kw_only=True):
    """The authority that is to follow, as one controller gives it to another: certificate and key, in PEM."""

    certificate: str
    key: str


class Enrolled(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to both: who the host is from now on. PEM: `certificate`, and `ca`: everyone it is to trust."""

    host_id: HostId
    host_name: str
    certificate: str
    ca: str
