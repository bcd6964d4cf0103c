"""The TLS of the link: TLS 1.3 only, the cloud's own CA, and the host's identity from the URI in its certificate."""

import hashlib
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from common.errors import Denied, Invalid
from common.ids import HostId, Id, is_id

_HOST_URI = "urn:skerry:host:"

CONTROLLER_URI = "urn:skerry:controller"
"""The SAN URI of a controller's certificate, shown to hosts as a server's and to other controllers as a client's."""


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """Who is at the other end, as the verified certificate says."""

    host: HostId
    serial: str
    """The certificate's serial number, lower-case hex without leading zeros."""
    expires_at: float


def host_uri(host: HostId) -> str:
    """Return the SAN URI that makes a certificate a host's."""
    return _HOST_URI + host


def serial_text(serial: int) -> str:
    """Return a serial number the way `Peer.serial` has it."""
    return f"{serial:x}"


def host_of(certificate: Mapping[str, Any] | None) -> Peer:
    """Return the host that a verified peer certificate (`SSLObject.getpeercert()`) belongs to.

    Raises Denied without a certificate, and for one that names no host, or more than one.
    """
    if not certificate:
        raise Denied(
            "this needs a host's certificate, and none was shown",
            fix="join the machine first: skerry-agent join URL TOKEN",
        )
    uris = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
    hosts = [uri.removeprefix(_HOST_URI) for uri in uris if uri.startswith(_HOST_URI)]
    if len(hosts) != 1 or not is_id(hosts[0], "host"):
        raise Denied(f"the certificate names no host: its URIs are {uris or 'none'}, one {_HOST_URI}… is needed")
    return Peer(
        host=HostId(Id(hosts[0])),
        serial=serial_text(int(certificate["serialNumber"], 16)),
        expires_at=ssl.cert_time_to_seconds(certificate["notAfter"]),
    )


def is_controller(certificate: Mapping[str, Any] | None, now: float) -> bool:
    """Say whether a verified peer certificate is a controller's, and has not run out."""
    if not certificate or ssl.cert_time_to_seconds(certificate["notAfter"]) < now:
        return False
    return ("URI", CONTROLLER_URI) in certificate.get("subjectAltName", ())


def fingerprint(ca_pem: str) -> str:
    """Return the SHA-256 of a certificate's DER, in hex. Raises Invalid where the PEM holds no certificate."""
    start = ca_pem.find(ssl.PEM_HEADER)
    end = ca_pem.find(ssl.PEM_FOOTER, start)
    try:
        der = ssl.PEM_cert_to_DER_cert(ca_pem[max(start, 0) : end + len(ssl.PEM_FOOTER)])
    except ValueError as err:
        raise Invalid(f"this is no PEM certificate: {err}") from err
    return hashlib.sha256(der).hexdigest()


def server_context(*, certificate: Path, key: Path, ca_pem: str) -> ssl.SSLContext:
    """Return the link server's side: a client certificate is verified where one is shown, and not demanded.

    `GET /ca` and `POST /join` come before there is one; every other route asks `host_of`. No session tickets: each
    connection shows its certificate anew, so that a revoked one has no way around the check.
    """
    context = _listening()
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(cadata=ca_pem)
    return context


def front_context(choose: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    """Return a server's context that leaves certificate and trust to another one, chosen for each connection anew."""

    def chosen(connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _front: ssl.SSLContext) -> None:
        connection.context = choose()

    front = _listening()
    front.sni_callback = chosen  # called whether or not the client names a server
    return front


_NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL, for which Python has no name."""


def _listening() -> ssl.SSLContext:
    """A certificate that ran out passes the handshake, so that its host can be told in words: `Peer.expires_at`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= _NO_CHECK_TIME
    return context


def client_context(*, ca_pem: str, identity: Path | None = None) -> ssl.SSLContext:
    """Return the agent's side: the server must be of this CA. `identity` is a PEM file with key and certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=ca_pem)
    if identity is not None:
        context.load_cert_chain(identity)
    return context


def unverified_context() -> ssl.SSLContext:
    """Return a context that believes anybody. Its one use: to fetch the CA, which is then held against the token."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
