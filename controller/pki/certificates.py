"""What goes into each certificate. Pure: keys, requests, names and the time in, certificates out.

EC P-256 throughout. Lifetimes: CA ten years, server a year, host thirty days, a host's word for a machine seven.
"""

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.attestation import DOCUMENT_SIGNING, VM_URI
from common.errors import Invalid
from common.ids import HostId, Id
from common.tls import CONTROLLER_URI, host_uri

CA_DAYS = 3650
SERVER_DAYS = 365
HOST_DAYS = 30
MACHINE_DAYS = 7
_SKEW = timedelta(hours=1)
"""Certificates are valid from an hour ago: a host's clock may run behind before it has found its time server."""

Key = ec.EllipticCurvePrivateKey


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """A machine that a host may speak for."""

    id: Id
    project: str


class Issuer(msgspec.Struct, frozen=True):
    """The CA's certificate and key."""

    certificate: x509.Certificate
    key: Key


def new_key() -> Key:
    """Return a fresh private key on P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: Key) -> bytes:
    """Return a private key as PEM (PKCS#8, not encrypted: the file is 0600)."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def ca_certificate(key: Key, now: float) -> x509.Certificate:
    """Return the self-signed certificate of the CA."""
    name = _name("Skerry CA")
    return (
        _builder(name, name, key.public_key(), now, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def voucher(issuer: Issuer, other: x509.Certificate, now: float) -> x509.Certificate:
    """Return a certificate by which one authority vouches for the key of another: for hosts that know only the one."""
    key = other.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return (
        _builder(other.subject, issuer.certificate.subject, key, now, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(issuer.key, hashes.SHA256())
    )


def server_certificate(issuer: Issuer, key: Key, names: Sequence[str], now: float) -> x509.Certificate:
    """Return a controller's certificate for these DNS names and IP addresses. Raises Invalid without any.

    It serves the link with it, and shows it to other controllers of the same cloud.
    """
    if not names:
        raise Invalid(
            "the link's server certificate needs at least one name",
            fix='set names = ["ADDRESS OR NAME THAT HOSTS DIAL"] under [link]',
        )
    leaf = _Leaf(
        common_name="Skerry controller",
        san=(*(_general(name) for name in names), x509.UniformResourceIdentifier(CONTROLLER_URI)),
        usage=(ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH),
        days=SERVER_DAYS,
    )
    return _leaf(issuer, key.public_key(), leaf, now)


def host_certificate(issuer: Issuer, csr_pem: str, host: HostId, now: float) -> x509.Certificate:
    """Return the certificate of a host. Of the request only the key is used, after its signature was checked.

    Raises Invalid for a request that can't be read, is not signed by its own key, or has another sort of key.
    """
    leaf = _Leaf(
        common_name=host,
        san=(x509.UniformResourceIdentifier(host_uri(host)),),
        usage=(ExtendedKeyUsageOID.CLIENT_AUTH,),
        days=HOST_DAYS,
    )
    return _leaf(issuer, _requested_key(csr_pem), leaf, now)


def _requested_key(csr_pem: str) -> ec.EllipticCurvePublicKey:
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        key = request.public_key()
        signed = request.is_signature_valid
    except (ValueError, TypeError, InvalidSignature) as err:
        raise Invalid(f"the certificate signing request can't be read: {err}") from err
    if not signed:
        raise Invalid("the certificate signing request is not signed by the key in it")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Invalid("the certificate signing request has another sort of key", fix="use an EC key on P-256")
    return key


def machine_certificate(issuer: Issuer, csr_pem: str, machine: Machine, now: float) -> x509.Certificate:
    """Return the certificate by which a host's key speaks for one machine. Raises Invalid for a bad request."""
    leaf = _Leaf(
        common_name=machine.id,
        organisation=machine.project,
        san=(x509.UniformResourceIdentifier(VM_URI + machine.id),),
        usage=(DOCUMENT_SIGNING,),
        days=MACHINE_DAYS,
    )
    return _leaf(issuer, _requested_key(csr_pem), leaf, now)


def issued_by(certificate: x509.Certificate, issuer: Issuer) -> bool:
    """Say whether this CA, and not another of the same name, signed a certificate."""
    try:
        certificate.verify_directly_issued_by(issuer.certificate)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def names_of(certificate: x509.Certificate) -> frozenset[str]:
    """Return the DNS names and IP addresses that a certificate is for."""
    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = {str(address) for address in san.get_values_for_type(x509.IPAddress)}
    return frozenset(san.get_values_for_type(x509.DNSName)) | addresses


def is_controllers(certificate: x509.Certificate) -> bool:
    """Say whether a certificate may be shown to other controllers."""
    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return CONTROLLER_URI in san.get_values_for_type(x509.UniformResourceIdentifier)


def wears_out(certificate: x509.Certificate, now: float) -> bool:
    """Say whether less than a third of a certificate's life is left: time for the next one."""
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return _moment(now) > end - (end - start) / 3


class _Leaf(msgspec.Struct, frozen=True, kw_only=True):
    """What tells one sort of end certificate from another."""

    common_name: str
    san: tuple[x509.GeneralName, ...]
    usage: tuple[x509.ObjectIdentifier, ...]
    days: int
    organisation: str = ""


def _leaf(issuer: Issuer, key: ec.EllipticCurvePublicKey, leaf: _Leaf, now: float) -> x509.Certificate:
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
    return (
        _builder(_name(leaf.common_name, leaf.organisation), issuer.certificate.subject, key, now, leaf.days)
        .add_extension(x509.SubjectAlternativeName(leaf.san), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(leaf.usage), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(issuer_key, critical=False)
        .sign(issuer.key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: float, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_moment(now) - _SKEW)
        .not_valid_after(_moment(now) + timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str, organisation: str = "") -> x509.Name:
    own = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation)] if organisation else []
    return x509.Name([*own, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)
