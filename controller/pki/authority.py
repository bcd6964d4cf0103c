"""The controller's own certificate authority on its disk: made once, loaded ever after, until another one follows it.

Files in the PKI directory: `ca.key` (0600), `ca.pem`, `server.key` (0600), `server.pem`, and while one authority
follows another `next.key` and `next.pem`. A certificate is written after its key: where it is, the pair is finished.
"""

import ssl
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common import tls
from common.errors import Invalid
from common.faults import Faults
from common.ids import HostId
from common.secret import Secret, write_private
from controller.pki import certificates
from controller.pki.certificates import Issuer, Key, Machine
from controller.pki.succession import Succession


class Signed(msgspec.Struct, frozen=True, kw_only=True):
    """A host's new certificate. `serial` is what a revocation list names (as in `tls.Peer.serial`)."""

    pem: str
    serial: str
    expires_at: float
    authority: str = ""
    """The CA that signed it, by its fingerprint."""
    trusts: tuple[str, ...] = ()
    """The CAs that the host is to trust from now on."""


class Authority:
    """Signs certificates, and knows whom to trust. Its methods that touch files are quick and blocking.

    Where one authority follows another (`succession`), `follow` brings files and TLS contexts to what the phase asks.
    """

    def __init__(self, directory: Path, issuer: Issuer, faults: Faults) -> None:
        self._directory = directory
        self._current = issuer
        self._next: Issuer | None = None
        self._faults = faults
        self._succession = Succession(current=_name_of(issuer))
        self._names: tuple[str, ...] = ()
        self._vouchers: tuple[str, ...] = ()
        self._inner: ssl.SSLContext | None = None
        self._peer: ssl.SSLContext | None = None

    @classmethod
    def ensure(cls, directory: Path, now: float, faults: Faults | None = None) -> "Authority":
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
            certificate = _finish_promotion(directory, key)
        made = cls(directory, Issuer(certificate, key), faults or Faults())
        made._next = _load_next(directory)
        return made

    # --- what hosts and people see --------------------------------------------------------------------------------

    @property
    def succession(self) -> Succession:
        """Which phase this authority is in."""
        return self._succession

    @property
    def ca_pem(self) -> str:
        """The certificates of the authorities that a host is to trust: public."""
        return "".join(_pem(issuer) for issuer in self._issuers(self._succession.given))

    @property
    def trusted_pem(self) -> str:
        """The certificates of the authorities that are good: for who verifies what machines say."""
        return "".join(_pem(issuer) for issuer in self._issuers(self._succession.trusted))

    @property
    def shown_pem(self) -> str:
        """What `GET /ca` answers: whom hosts are to trust, and how they vouch for each other."""
        return "".join((*(_pem(issuer) for issuer in self._issuers(self._succession.trusted)), *self._vouchers))

    def fingerprint(self) -> str:
        """Return the SHA-256 of the signing CA's certificate in hex, as join tokens carry it."""
        return self._succession.signs

    def own_fingerprint(self) -> str:
        """Return that of the CA in `ca.pem`."""
        return _name_of(self._current)

    # --- certificates ---------------------------------------------------------------------------------------------

    def ensure_server(self, names: Sequence[str], now: float) -> bool:
        """Have a server certificate for exactly these names with a third of its life left; say whether it is new."""
        self._names = tuple(names)
        issuer = self._issuer(self._succession.serves)
        path = self._directory / "server.pem"
        key = _ensure_key(self._directory / "server.key")
        if path.exists() and self._fits(_load_certificate(path), issuer, key, names, now):
            return False
        fresh = certificates.server_certificate(issuer, key, names, now)
        write_private(path, certificates.certificate_pem(fresh) + _pem(issuer).encode())
        self._faults.reached("authority.server")
        return True

    def _fits(self, certificate: x509.Certificate, issuer: Issuer, key: Key, names: Sequence[str], now: float) -> bool:
        return (
            certificate.public_key() == key.public_key()
            and certificates.names_of(certificate) == frozenset(names)
            and certificates.is_controllers(certificate)
            and certificates.issued_by(certificate, issuer)
            and not certificates.wears_out(certificate, now)
        )

    def server_context(self) -> ssl.SSLContext:
        """Return the link server's TLS context, after `ensure_server`. What changes later holds for new connections."""
        return tls.front_context(lambda: self._inner or self._load_contexts())

    def peer_context(self) -> ssl.SSLContext:
        """Return the TLS context for asking other controllers, as of now, after `ensure_server`."""
        if self._peer is None:
            self._load_contexts()
        assert self._peer is not None
        return self._peer

    def _load_contexts(self) -> ssl.SSLContext:
        trusted = "".join(_pem(issuer) for issuer in self._issuers(self._succession.trusted))
        certificate, key = self._directory / "server.pem", self._directory / "server.key"
        self._inner = tls.server_context(certificate=certificate, key=key, ca_pem=trusted)
        self._peer = tls.client_context(ca_pem=trusted)
        self._peer.load_cert_chain(certificate, key)
        return self._inner

    def renew_server(self, names: Sequence[str], now: float) -> bool:
        """Renew the server certificate if it wears out, for the connections from now on; say whether it did."""
        fresh = self.ensure_server(names, now)
        if fresh:
            self._load_contexts()
        return fresh

    def sign_host(self, csr_pem: str, host: HostId, now: float) -> Signed:
        """Return a certificate for this host with the key of the request. Raises Invalid for a bad request."""
        certificate = certificates.host_certificate(self._issuer(self._succession.signs), csr_pem, host, now)
        return Signed(
            pem=certificates.certificate_pem(certificate).decode(),
            serial=tls.serial_text(certificate.serial_number),
            expires_at=certificate.not_valid_after_utc.timestamp(),
            authority=self._succession.signs,
            trusts=self._succession.given,
        )

    def sign_machine(self, csr_pem: str, machine: Machine, now: float) -> str:
        """Return the certificate (PEM) by which a host's key speaks for one machine. Raises Invalid."""
        found = certificates.machine_certificate(self._issuer(self._succession.signs), csr_pem, machine, now)
        return certificates.certificate_pem(found).decode()

    # --- succession -----------------------------------------------------------------------------------------------

    def make_next(self, now: float) -> str:
        """Have a next authority, and return its fingerprint. One that was made and never used is taken."""
        self._next = self._next or _load_next(self._directory)
        if self._next is None:
            key = _ensure_key(self._directory / "next.key")
            self._faults.reached("authority.next-key")
            pem = certificates.certificate_pem(certificates.ca_certificate(key, now))
            write_private(self._directory / "next.pem", pem)
            self._faults.reached("authority.next")
            self._next = _load_next(self._directory)
        assert self._next is not None
        return _name_of(self._next)

    def next_pair(self) -> tuple[str, Secret] | None:
        """Return certificate and key of the next authority, for another controller; None: it is not here."""
        if self._next is None:
            return None
        return _pem(self._next), Secret(certificates.key_pem(self._next.key).decode())

    def take_next(self, certificate_pem: str, key_pem: Secret) -> None:
        """Keep the next authority, as another controller gave it. Raises Invalid where the two don't fit."""
        try:
            certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
            key = serialization.load_pem_private_key(key_pem.reveal().encode(), password=None)
        except (ValueError, TypeError) as err:
            raise Invalid(f"another controller gave what is no authority: {err}") from err
        if certificate.public_key() != key.public_key():
            raise Invalid("another controller gave an authority with another one's key")
        for name in ("next.pem", "next.key"):
            (self._directory / name).unlink(missing_ok=True)
        write_private(self._directory / "next.key", key_pem.reveal().encode())
        self._faults.reached("authority.next-key")
        write_private(self._directory / "next.pem", certificate_pem.encode())
        self._faults.reached("authority.next")
        self._next = _load_next(self._directory)

    def lacks(self, succession: Succession) -> bool:
        """Say whether a succession needs an authority's key that is not here."""
        return not set(succession.trusted) <= {_name_of(issuer) for issuer in self._all()}

    def follow(self, succession: Succession, now: float) -> None:
        """Sign, serve and trust as the phase says. Raises Invalid where an authority that it needs is not here."""
        if succession == self._succession and self._inner is not None:
            return
        if self.lacks(succession):
            raise Invalid(
                f"the controllers' certificate authority is {succession.current[:16]}…, this one has "
                f"{_name_of(self._current)[:16]}…",
                fix="copy pki/ca.key and pki/ca.pem from the state_dir of one of them into this one's, and start it",
            )
        if succession.phase == "settled" and _name_of(self._current) != succession.current:
            self._promote()
        issuers = self._issuers(succession.trusted)
        known = (set(self._succession.trusted), len(self._vouchers) > 0)
        if known != (set(succession.trusted), len(issuers) > 1):
            self._vouchers = tuple(
                certificates.certificate_pem(certificates.voucher(one, other.certificate, now)).decode()
                for one in issuers
                for other in issuers
                if one is not other
            )
        self._succession = succession
        if self._names:
            self.ensure_server(self._names, now)
            self._load_contexts()

    def _promote(self) -> None:
        """Have the next authority take the place of the current one, whose key is gone from then on."""
        assert self._next is not None
        (self._directory / "next.key").replace(self._directory / "ca.key")
        self._faults.reached("authority.promoted-key")
        (self._directory / "next.pem").replace(self._directory / "ca.pem")
        self._faults.reached("authority.promoted")
        self._current, self._next = self._next, None

    def _all(self) -> tuple[Issuer, ...]:
        return (self._current, self._next) if self._next else (self._current,)

    def _issuers(self, names: Iterable[str]) -> list[Issuer]:
        return [issuer for name in names for issuer in self._all() if _name_of(issuer) == name]

    def _issuer(self, name: str) -> Issuer:
        return self._issuers((name,))[0]


def _pem(issuer: Issuer) -> str:
    return certificates.certificate_pem(issuer.certificate).decode()


def _name_of(issuer: Issuer) -> str:
    return tls.fingerprint(_pem(issuer))


def _load_next(directory: Path) -> Issuer | None:
    path, key_path = directory / "next.pem", directory / "next.key"
    if not path.exists() or not key_path.exists():
        return None
    issuer = Issuer(_load_certificate(path), _ensure_key(key_path))
    if issuer.certificate.public_key() != issuer.key.public_key():
        raise Invalid(f"{key_path} is not the key of {path}", fix="remove both: another controller has them")
    return issuer


def _finish_promotion(directory: Path, key: Key) -> x509.Certificate:
    """The process died between the two renames of a promotion: the certificate's is still to be done."""
    path = directory / "next.pem"
    if not path.exists() or _load_certificate(path).public_key() != key.public_key():
        raise Invalid(
            f"{directory / 'ca.key'} is not the key of {directory / 'ca.pem'}", fix="restore the pair from one backup"
        )
    path.replace(directory / "ca.pem")
    return _load_certificate(directory / "ca.pem")


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
