"""Who this host is: joining, the identity file, and its renewal.

Joining trusts nobody it has not checked: the CA is fetched over an unverified connection, held against the fingerprint
in the token, and only then, over a connection verified by that CA, is the token shown. The private key never leaves
the host.

The identity is one file, 0600: header lines (`url:`, `host:`, `name:`), then key, host certificate and CA certificate
in PEM (which TLS libraries read past the headers). One file is replaced in one rename, so there is never half of one.
"""

import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from common import tls
from common.codec import from_json, to_json
from common.errors import ERRORS, Conflict, Denied, Invalid, Problem, Temporary
from common.ids import HostId, Id
from common.joining import (
    Enrolled,
    JoinRequest,
    JoinToken,
    RenewRequest,
    Vouched,
    VouchRequest,
    parse_join_token,
)
from common.secret import write_private

T = TypeVar("T")

LIMIT_S = 20.0
_BODY_BYTES = 64 * 1024
_BEGIN = "-----BEGIN "


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who this host is, and whom it dials."""

    url: str
    host: HostId
    name: str
    ca_pem: str
    serial: str
    renew_at: float
    """Half of the certificate's life: time for the next one."""
    expires_at: float
    path: Path

    def context(self) -> ssl.SSLContext:
        """Return the TLS context for the link."""
        return tls.client_context(ca_pem=self.ca_pem, identity=self.path)


async def join(url: str, token_text: str, path: Path, *, force: bool = False) -> Identity:
    """Join this machine to the controller at `url`, and write its identity.

    Raises Conflict where it has joined already (unless `force`), Invalid for a bad URL or token, Denied where the
    controller at that URL is not the token's or does not take it, Temporary where it can't be reached.
    """
    token = parse_join_token(token_text)
    base = checked_url(url)
    if not force:
        _refuse_twice(path)
    ca_pem = await _fetch_ca(base, token)
    key = ec.generate_private_key(ec.SECP256R1())
    body = JoinRequest(token=token.text().reveal(), csr=_csr(key))
    async with _http(tls.client_context(ca_pem=ca_pem)) as http:
        enrolled = await _post(http, f"{base}/join", body)
    return _write(path, base, key, enrolled)


async def renew(identity: Identity, url: str) -> Identity:
    """Fetch the next certificate, with a new key, from the controller at `url`. Raises Temporary or what it said."""
    key = ec.generate_private_key(ec.SECP256R1())
    async with _http(identity.context()) as http:
        enrolled = await _post(http, f"{url}/renew", RenewRequest(csr=_csr(key)))
    return _write(identity.path, identity.url, key, enrolled)


async def vouch(identity: Identity, url: str, request: VouchRequest) -> Vouched:
    """Have the controller at `url` certify a key for machines on this host. Raises Temporary or what it said."""
    async with _http(identity.context()) as http:
        return await _posted(http, f"{url}/vouch", request, Vouched)


async def leave(identity: Identity) -> None:
    """Have the controller let this host go: its certificate is good no more.

    Raises Conflict where something should be on it, Denied where it was let go before, Temporary.
    """
    async with _http(identity.context()) as http, _answer(http.post(f"{identity.url}/leave"), identity.url) as response:
        if response.status != 204:
            raise _told(await response.read(), response.status, identity.url)


def load(path: Path) -> Identity:
    """Read the identity. Raises Invalid, with the way out, where there is none or it can't be used."""
    try:
        text = path.read_text()
    except FileNotFoundError as err:
        raise Invalid(
            f"this machine has not joined a controller yet: there is no {path}",
            fix="make the host (skerry host create NAME), then: skerry-agent join URL TOKEN",
        ) from err
    try:
        return _parse(text, path)
    except (ValueError, KeyError) as err:
        raise Invalid(f"{path} can't be used: {err}", fix="join anew, with --force and a new token") from err


def _refuse_twice(path: Path) -> None:
    if path.exists():
        known = load(path)
        raise Conflict(
            f"this machine has joined {known.url} already, as {known.name} ({known.host})",
            fix="to join it anew, take a new token and add --force",
        )


def _parse(text: str, path: Path) -> Identity:
    head, _, _ = text.partition(_BEGIN)
    fields = dict(line.split(": ", 1) for line in head.splitlines() if line)
    own, *trusted = x509.load_pem_x509_certificates(text.encode())
    if not trusted:
        raise ValueError("it names no certificate authority")
    start, end = own.not_valid_before_utc.timestamp(), own.not_valid_after_utc.timestamp()
    return Identity(
        url=fields["url"],
        host=HostId(Id(fields["host"])),
        name=fields["name"],
        ca_pem=_pem(trusted),
        serial=tls.serial_text(own.serial_number),
        renew_at=(start + end) / 2,
        expires_at=end,
        path=path,
    )


def _write(path: Path, url: str, key: ec.EllipticCurvePrivateKey, enrolled: Enrolled) -> Identity:
    own_key = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    parts = (own_key, enrolled.certificate, enrolled.ca)
    head = f"url: {url}\nhost: {enrolled.host_id}\nname: {enrolled.host_name}\n\n"
    text = head + "".join(part.strip() + "\n" for part in parts)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
    try:
        identity = _parse(text, path)
        certificate = x509.load_pem_x509_certificate(enrolled.certificate.encode())
        trusted = x509.load_pem_x509_certificates(enrolled.ca.encode())
    except (ValueError, KeyError) as err:
        raise Invalid(f"the controller answered with a certificate that is of no use: {err}") from err
    if certificate.public_key() != key.public_key():
        raise Invalid("the controller answered with a certificate for another key")
    if not any(_issued(certificate, one) for one in trusted):
        raise Invalid("the controller answered with a certificate of none of the authorities that came with it")
    write_private(path, text.encode())
    return identity


def _csr(key: ec.EllipticCurvePrivateKey) -> str:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "skerry host")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def checked_url(url: str) -> str:
    """Return a controller's URL without what is after its port. Raises Invalid for what is none."""
    parts = urlsplit(url)
    try:
        good = parts.scheme == "https" and parts.hostname and parts.port != 0 and parts.path in {"", "/"}
    except ValueError:
        good = False
    if not good:
        raise Invalid(f"{url!r} is no controller URL", fix="write it as https://ADDRESS:8443")
    return f"https://{parts.netloc}"


async def _fetch_ca(base: str, token: JoinToken) -> str:
    async with _http(tls.unverified_context()) as http, _answer(http.get(f"{base}/ca"), base) as response:
        text = (await response.content.read(_BODY_BYTES)).decode(errors="replace")
    try:
        shown = x509.load_pem_x509_certificates(text.encode())
    except ValueError as err:
        raise Denied(f"{base} is no Skerry controller: it shows no CA certificate", fix="check the URL") from err
    meant = [one for one in shown if one.fingerprint(hashes.SHA256()).hex() == token.fingerprint]
    if not meant:
        found = shown[0].fingerprint(hashes.SHA256()).hex()
        raise Denied(
            f"{base} is not the controller this token is for: its CA is {found}, the token's {token.fingerprint}",
            fix="check the URL; if it is right, someone is in between, or the authority is a new one: take a new token",
        )
    return _pem(_vouched_for(meant[0], shown))


def _vouched_for(meant: x509.Certificate, shown: list[x509.Certificate]) -> list[x509.Certificate]:
    """Return the authority that a token means, and those for whose keys it vouches: the one before it, or after."""
    vouched = [one.public_key() for one in shown if one != meant and _issued(one, meant)]
    return [meant, *(one for one in shown if one.public_key() in vouched and _issued(one, one) and one != meant)]


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _pem(found: list[x509.Certificate]) -> str:
    return "".join(one.public_bytes(serialization.Encoding.PEM).decode() for one in found)


async def _post(http: aiohttp.ClientSession, url: str, body: JoinRequest | RenewRequest) -> Enrolled:
    return await _posted(http, url, body, Enrolled)


async def _posted(http: aiohttp.ClientSession, url: str, body: msgspec.Struct, answer: type[T]) -> T:
    headers = {"Content-Type": "application/json"}
    async with _answer(http.post(url, data=to_json(body), headers=headers), url) as response:
        raw = await response.read()
        if response.status != 200:
            raise _told(raw, response.status, url)
    return from_json(raw, answer, "the controller's answer")


def _told(raw: bytes, status: int, url: str) -> Exception:
    """Return the error that a problem document stands for."""
    try:
        problem = msgspec.json.decode(raw, type=Problem)
    except msgspec.DecodeError:
        return Temporary(f"{url} answered with status {status}", fix="see the controller's log")
    kind = next((kind for kind in ERRORS if kind.code == problem.code), Temporary)
    return kind(problem.detail, fix=problem.fix)


def network_words(err: Exception) -> str:
    """Return what a network error means, without the library's own way of putting it."""
    cause = err.os_error if isinstance(err, aiohttp.ClientConnectorError) else err
    if isinstance(cause, OSError) and cause.errno is not None and cause.errno > 0:
        return os.strerror(cause.errno)
    return str(cause) or type(cause).__name__


@asynccontextmanager
async def _http(context: ssl.SSLContext) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(ssl=context, force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=LIMIT_S)) as http:
        yield http


@asynccontextmanager
async def _answer(request: "aiohttp.client._RequestContextManager", url: str) -> AsyncIterator[aiohttp.ClientResponse]:
    """Enter a request, with what can go wrong on the way in our words."""
    try:
        async with request as response:
            yield response
    except aiohttp.ClientConnectorCertificateError as err:
        raise Denied(
            f"{url} shows a certificate that does not hold: {err.certificate_error}",
            fix="dial it by a name or address in its certificate ([link] names in the controller's configuration)",
        ) from err
    except TimeoutError as err:
        raise Temporary(f"{url} gave no answer in {LIMIT_S:g} s", fix="check address, port and firewall") from err
    except (aiohttp.ClientError, OSError) as err:
        raise Temporary(
            f"{url} can't be reached: {network_words(err)}", fix="check address, port and firewall"
        ) from err
