"""The controller's own certificate authority on its disk: made once, loaded ever after.

Files in the PKI directory: `ca.key` (0600), `ca.pem`, `server.key` (0600), `server.pem`. A certificate is written
after its key, so an existing certificate means a finished pair.
"""

import ssl
from collections.abc import Sequence
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common import tls
from common.errors import Invalid
from common.ids import HostId
from common.secret import write_private
from controller.pki import certificates
from controller.pki.certificates import Issuer, Key


class Signed(msgspec.Struct, frozen=True, kw_only=True):
    """A host's new certificate. `serial` is what a revocation list names (as in `tls.Peer.serial`)."""

    pem: str
    serial: str
    expires_at: float


class Authority:
    """Signs certificates. Its methods that touch files are quick and blocking: used at start and in `init`."""

    def __init__(self, directory: Path, issuer: Issuer) -> None:
        self._directory = directory
        self._issuer = issuer

    @classmethod
    def ensure(cls, directory: Path, now: float) -> "Authority":
        """Load the CA of this directory; make it where there is none yet.

        Raises Invalid for a certificate without its key, or with another's: a CA is never replaced silently,
        since every joined host holds to it.
        """
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        key_path, path = directory / "ca.key", directory / "ca.pem"
        if path.exists() and not key_path.exists():
            raise Invalid(
                f"{path} is there but its key {key_path} is not",
                fix="restore the key from a backup; or remove ca.pem, and join every host anew",
            )
        key = _ensure_key(key_path)
        if not path.exists():
            write_private(path, certificates.certificate_pem(certificates.ca_certificate(key, now)))
        certificate = _load_certificate(path)
        if certificate.public_key() != key.public_key():
            raise Invalid(f"{key_path} is not the key of {path}", fix="restore the pair from one backup")
        return cls(directory, Issuer(certificate, key))

    @property
    def ca_pem(self) -> str:
        """The CA's certificate, which is public."""
        return certificates.certificate_pem(self._issuer.certificate).decode()

    def fingerprint(self) -> str:
        """Return the SHA-256 of the CA certificate's DER in hex, as join tokens carry it."""
        return tls.fingerprint(self.ca_pem)

    def ensure_server(self, names: Sequence[str], now: float) -> bool:
        """Have a server certificate for exactly these names with a third of its life left; say whether it is new."""
        path = self._directory / "server.pem"
        key = _ensure_key(self._directory / "server.key")
        if path.exists() and self._fits(_load_certificate(path), key, names, now):
            return False
        fresh = certificates.server_certificate(self._issuer, key, names, now)
        write_private(path, certificates.certificate_pem(fresh) + self.ca_pem.encode())
        return True

    def _fits(self, certificate: x509.Certificate, key: Key, names: Sequence[str], now: float) -> bool:
        return (
            certificate.public_key() == key.public_key()
            and certificates.names_of(certificate) == frozenset(names)
            and certificates.is_controllers(certificate)
            and certificates.issued_by(certificate, self._issuer)
            and not certificates.wears_out(certificate, now)
        )

    def server_context(self) -> ssl.SSLContext:
        """Return the link server's TLS context, after `ensure_server`."""
        return tls.server_context(
            certificate=self._directory / "server.pem",
            key=self._directory / "server.key",
            ca=self._directory / "ca.pem",
        )

    def peer_context(self) -> ssl.SSLContext:
        """Return the TLS context for asking other controllers, after `ensure_server`."""
        context = tls.client_context(ca_pem=self.ca_pem)
        context.load_cert_chain(self._directory / "server.pem", self._directory / "server.key")
        return context

    def renew_server(self, context: ssl.SSLContext, names: Sequence[str], now: float) -> bool:
        """Renew the server certificate if it wears out, and let a running context use it; say whether it did."""
        fresh = self.ensure_server(names, now)
        if fresh:
            context.load_cert_chain(self._directory / "server.pem", self._directory / "server.key")
        return fresh

    def sign_host(self, csr_pem: str, host: HostId, now: float) -> Signed:
        """Return a certificate for this host with the key of the request. Raises Invalid for a bad request."""
        certificate = certificates.host_certificate(self._issuer, csr_pem, host, now)
        return Signed(
            pem=certificates.certificate_pem(certificate).decode(),
            serial=tls.serial_text(certificate.serial_number),
            expires_at=certificate.not_valid_after_utc.timestamp(),
        )


def _ensure_key(path: Path) -> Key:
    if not path.exists():
        write_private(path, certificates.key_pem(certificates.new_key()))
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as err:
        raise Invalid(f"{path} holds no private key: {err}", fix="restore it from a backup") from err
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Invalid(f"{path} holds another sort of key than EC P-256", fix="restore it from a backup")
    return key


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as err:
        raise Invalid(f"{path} holds no certificate: {err}", fix="restore it from a backup") from err
