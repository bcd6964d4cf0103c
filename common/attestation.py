"""What a machine can prove of itself: documents signed by its host, under a certificate of the cloud's authority.

The controller certifies, machine by machine and only to the host that it runs on, that a key of the host's may speak
for the machine (`urn:skerry:vm:…` in the certificate, the project as its organisation). With that key the host signs
JSON Web Tokens (RFC 7519, ES256, the certificate as `x5c`) for an audience. Who verifies needs the authorities'
certificates and nothing else: neither controller nor host is asked. A host that was broken into can speak for the
machines that are on it, and for no others.
"""

import base64
from collections.abc import Iterable

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.x509.oid import NameOID, ObjectIdentifier

from common.errors import Denied, Invalid

VM_URI = "urn:skerry:vm:"
ISSUER = "urn:skerry"
DOCUMENT_SIGNING = ObjectIdentifier("1.3.6.1.5.5.7.3.36")
"""id-kp-documentSigning (RFC 9336): such a certificate opens no TLS connection."""

LEEWAY_S = 60.0
"""Clocks differ."""

_COORDINATE_BYTES = 32

Key = ec.EllipticCurvePrivateKey


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """What a token says. `sub`, `project` and `exp` are certified; `host`, `name` and `image` are the host's word."""

    iss: str
    sub: str
    """The machine's id."""
    project: str
    aud: str
    iat: int
    exp: int
    host: str
    name: str
    image: str


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    alg: str
    typ: str
    x5c: tuple[str, ...]


class _PublicKey(msgspec.Struct, frozen=True):
    x5c: tuple[str, ...]


class _Keys(msgspec.Struct, frozen=True):
    keys: tuple[_PublicKey, ...]


class Voucher:
    """A host's key, and the certificate by which it may speak for one machine."""

    def __init__(self, certificate_pem: str, key: Key) -> None:
        self._certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
        self._key = key
        self.pem = certificate_pem

    @property
    def project(self) -> str:
        """The project that the certificate names."""
        return _project(self._certificate)

    @property
    def ends_at(self) -> float:
        """When it is good for nothing any more."""
        return self._certificate.not_valid_after_utc.timestamp()

    def is_fresh(self, authorities_pem: str, now: float) -> bool:
        """Say whether it is of an authority that is trusted, with half of its life left."""
        start = self._certificate.not_valid_before_utc.timestamp()
        if now > (start + self.ends_at) / 2 or self._certificate.public_key() != self._key.public_key():
            return False
        return any(_issued(self._certificate, one) for one in x509.load_pem_x509_certificates(authorities_pem.encode()))

    def sign(self, claims: Claims) -> str:
        """Return a token."""
        der = self._certificate.public_bytes(serialization.Encoding.DER)
        head = _Head(alg="ES256", typ="JWT", x5c=(base64.b64encode(der).decode(),))
        signed = f"{_encode(msgspec.json.encode(head))}.{_encode(msgspec.json.encode(claims))}"
        r, s = utils.decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        raw = r.to_bytes(_COORDINATE_BYTES, "big") + s.to_bytes(_COORDINATE_BYTES, "big")
        return f"{signed}.{_encode(raw)}"

    def sign_bytes(self, document: bytes) -> str:
        """Return an ECDSA signature (SHA-256, DER) over a document, in base64."""
        return base64.b64encode(self._key.sign(document, ec.ECDSA(hashes.SHA256()))).decode()


def verify(token: str, authorities_pem: str, audience: str, now: float) -> Claims:
    """Return what a token says, once all of it holds.

    Raises Invalid for what is no token, Denied for one that is of no machine of the cloud that these authorities
    belong to, that is for somebody else, or that has run out.
    """
    head, claims, signed, signature = _parsed(token)
    certificate = _certificate(head)
    authorities = x509.load_pem_x509_certificates(authorities_pem.encode())
    if not any(_issued(certificate, one) and _covers(one, now) for one in authorities):
        raise Denied(
            "the token's certificate is of none of the authorities that were given",
            fix="fetch them anew (GET /v1/identity/keys): another one may have followed",
        )
    if not _covers(certificate, now):
        raise Denied(f"the token's certificate is not good now: it is until {certificate.not_valid_after_utc}")
    _check_signature(certificate, signed, signature)
    _check_certified(certificate, claims)
    if claims.aud != audience:
        raise Denied(f"the token is for {claims.aud!r}, not for {audience!r}")
    if not claims.iat - LEEWAY_S <= now <= claims.exp + LEEWAY_S:
        raise Denied(f"the token is good from {claims.iat} to {claims.exp}, and it is {now:.0f}")
    return claims


def verify_document(document: bytes, signature: str, certificate_pem: str, authorities_pem: str, now: float) -> str:
    """Return the id of the machine that an identity document is of, once its signature holds. Raises like `verify`."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
        raw = base64.b64decode(signature, validate=True)
    except ValueError as err:
        raise Invalid(f"this is no certificate, or no signature: {err}") from err
    if not any(_issued(certificate, one) for one in x509.load_pem_x509_certificates(authorities_pem.encode())):
        raise Denied("the certificate is of none of the authorities that were given")
    if not _covers(certificate, now):
        raise Denied(f"the certificate is not good now: it is until {certificate.not_valid_after_utc}")
    try:
        _public(certificate).verify(raw, document, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as err:
        raise Denied("the document is not as it was signed") from err
    return _machine(certificate)


def new_key() -> Key:
    """Return a fresh key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: Key) -> bytes:
    """Return a key as PEM (PKCS#8, not encrypted: the file is 0600)."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_key(pem: bytes) -> Key:
    """Read a key. Raises Invalid."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as err:
        raise Invalid(f"this is no private key: {err}") from err
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Invalid("this is another sort of key than EC P-256")
    return key


def request_for(key: Key) -> str:
    """Return a certificate signing request, as PEM."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "skerry host")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def _parsed(token: str) -> tuple[_Head, Claims, bytes, bytes]:
    try:
        head, claims, signature = token.strip().split(".")
        found = msgspec.json.decode(_decode(head), type=_Head), msgspec.json.decode(_decode(claims), type=Claims)
        return *found, f"{head}.{claims}".encode(), _decode(signature)
    except (ValueError, msgspec.DecodeError) as err:
        raise Invalid(f"this is no identity token: {err}") from err


def _certificate(head: _Head) -> x509.Certificate:
    if head.alg != "ES256" or not head.x5c:
        raise Invalid(f"this is no identity token: it is signed by {head.alg}, with {len(head.x5c)} certificates")
    try:
        return x509.load_der_x509_certificate(base64.b64decode(head.x5c[0], validate=True))
    except ValueError as err:
        raise Invalid(f"the token's certificate can't be read: {err}") from err


def _check_signature(certificate: x509.Certificate, signed: bytes, raw: bytes) -> None:
    if len(raw) != 2 * _COORDINATE_BYTES:
        raise Invalid(f"the token's signature has {len(raw)} bytes, not {2 * _COORDINATE_BYTES}")
    r, s = (int.from_bytes(part, "big") for part in (raw[:_COORDINATE_BYTES], raw[_COORDINATE_BYTES:]))
    try:
        _public(certificate).verify(utils.encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as err:
        raise Denied("the token is not as it was signed") from err


def _check_certified(certificate: x509.Certificate, claims: Claims) -> None:
    if (claims.sub, claims.project) != (_machine(certificate), _project(certificate)):
        raise Denied(
            f"the token says machine {claims.sub} of project {claims.project}, its certificate "
            f"{_machine(certificate)} of {_project(certificate)}"
        )


def _public(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise Denied("the certificate has another sort of key than EC P-256")
    return key


def _machine(certificate: x509.Certificate) -> str:
    """Return the machine that a certificate speaks for. Raises Denied where it is for anything else."""
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound as err:
        raise Denied("the certificate is no machine's") from err
    names = san.get_values_for_type(x509.UniformResourceIdentifier)
    if len(names) != 1 or not names[0].startswith(VM_URI) or DOCUMENT_SIGNING not in usage:
        raise Denied("the certificate is no machine's")
    return names[0].removeprefix(VM_URI)


def _project(certificate: x509.Certificate) -> str:
    found = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(found[0].value) if found else ""


def _covers(certificate: x509.Certificate, now: float) -> bool:
    start, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    return start - LEEWAY_S <= now <= end


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def authorities_of(keys: bytes) -> str:
    """Return the authorities' certificates (PEM) of a JSON Web Key Set. Raises Invalid where it is none."""
    try:
        ders = [base64.b64decode(one.x5c[0], validate=True) for one in msgspec.json.decode(keys, type=_Keys).keys]
        found = [x509.load_der_x509_certificate(der) for der in ders]
    except (ValueError, IndexError, msgspec.DecodeError) as err:
        raise Invalid(f"this is no set of the authorities' keys: {err}") from err
    return "".join(one.public_bytes(serialization.Encoding.PEM).decode() for one in found)


def public_keys(authorities_pem: str) -> Iterable[dict[str, object]]:
    """Give the authorities as JSON Web Keys (RFC 7517), each with its certificate."""
    for one in x509.load_pem_x509_certificates(authorities_pem.encode()):
        numbers = _public(one).public_numbers()
        der = one.public_bytes(serialization.Encoding.DER)
        yield {
            "kty": "EC",
            "crv": "P-256",
            "use": "sig",
            "kid": one.fingerprint(hashes.SHA256()).hex(),
            "x": _encode(numbers.x.to_bytes(_COORDINATE_BYTES, "big")),
            "y": _encode(numbers.y.to_bytes(_COORDINATE_BYTES, "big")),
            "x5c": [base64.b64encode(der).decode()],
        }
