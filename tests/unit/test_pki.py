"""The certificate authority, the join token and the TLS contexts, without a network."""

import ssl
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from common import tls
from common.errors import Denied, Invalid
from common.ids import HostId, Id
from common.joining import JoinToken, parse_join_token
from common.secret import Secret, new_token
from controller.pki.authority import Authority
from controller.pki.certificates import CA_DAYS, HOST_DAYS, SERVER_DAYS

NOW = 1_800_000_000.0
DAY = 86400.0
HOST = HostId(Id("host-00000000000a"))


def csr(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, **extra: str) -> str:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, extra.get("cn", "whoever"))])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    if uri := extra.get("uri"):
        san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        builder = builder.add_extension(san, critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def load(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


def san(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def test_the_ca_is_made_once_and_its_key_is_private(tmp_path: Path) -> None:
    first = Authority.ensure(tmp_path / "pki", NOW)
    second = Authority.ensure(tmp_path / "pki", NOW + DAY)

    assert first.fingerprint() == second.fingerprint()
    assert (tmp_path / "pki" / "ca.key").stat().st_mode & 0o777 == 0o600
    ca = load(first.ca_pem)
    assert (ca.not_valid_after_utc.timestamp() - NOW) == pytest.approx(CA_DAYS * DAY, abs=1)
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_ca_that_died_between_key_and_certificate_is_finished(tmp_path: Path) -> None:
    Authority.ensure(tmp_path, NOW)
    key = (tmp_path / "ca.key").read_bytes()
    (tmp_path / "ca.pem").unlink()

    Authority.ensure(tmp_path, NOW)

    assert (tmp_path / "ca.key").read_bytes() == key


def test_a_ca_without_its_key_is_never_replaced_silently(tmp_path: Path) -> None:
    Authority.ensure(tmp_path, NOW)
    (tmp_path / "ca.key").unlink()

    with pytest.raises(Invalid, match=r"its key .* is not"):
        Authority.ensure(tmp_path, NOW)


def test_a_ca_with_anothers_key_is_refused(tmp_path: Path) -> None:
    Authority.ensure(tmp_path / "a", NOW)
    Authority.ensure(tmp_path / "b", NOW)
    (tmp_path / "b" / "ca.key").rename(tmp_path / "a" / "ca.key")

    with pytest.raises(Invalid, match="is not the key of"):
        Authority.ensure(tmp_path / "a", NOW)


def test_the_server_certificate_has_every_name_and_is_kept_while_it_fits(tmp_path: Path) -> None:
    authority = Authority.ensure(tmp_path, NOW)

    assert authority.ensure_server(["10.77.0.1", "ctl.example", "::1"], NOW)
    assert not authority.ensure_server(["ctl.example", "10.77.0.1", "::1"], NOW + DAY)
    certificate = load((tmp_path / "server.pem").read_text())
    assert {str(a) for a in san(certificate).get_values_for_type(x509.IPAddress)} == {"10.77.0.1", "::1"}
    assert san(certificate).get_values_for_type(x509.DNSName) == ["ctl.example"]
    assert authority.ensure_server(["10.77.0.2"], NOW + DAY), "other names: a new one"
    assert authority.ensure_server(["10.77.0.2"], NOW + (SERVER_DAYS - 30) * DAY), "worn out: a new one"


def test_a_server_certificate_of_an_earlier_ca_is_not_kept(tmp_path: Path) -> None:
    Authority.ensure(tmp_path, NOW).ensure_server(["h"], NOW)
    (tmp_path / "ca.pem").unlink()
    (tmp_path / "ca.key").unlink()

    assert Authority.ensure(tmp_path, NOW).ensure_server(["h"], NOW)


def test_a_server_needs_a_name(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="at least one name"):
        Authority.ensure(tmp_path, NOW).ensure_server([], NOW)


def test_of_a_request_only_the_key_is_taken(tmp_path: Path) -> None:
    authority = Authority.ensure(tmp_path, NOW)
    key = ec_key()

    signed = authority.sign_host(csr(key, cn="root", uri="urn:skerry:host:host-zzzzzzzzzzzz"), HOST, NOW)

    certificate = load(signed.pem)
    assert certificate.public_key() == key.public_key()
    assert san(certificate).get_values_for_type(x509.UniformResourceIdentifier) == [f"urn:skerry:host:{HOST}"]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert signed.expires_at == pytest.approx(NOW + HOST_DAYS * DAY, abs=1)
    assert int(signed.serial, 16) == certificate.serial_number
    certificate.verify_directly_issued_by(load(authority.ca_pem))


def test_a_request_with_a_broken_signature_is_refused(tmp_path: Path) -> None:
    authority = Authority.ensure(tmp_path, NOW)
    der = bytearray(x509.load_pem_x509_csr(csr(ec_key()).encode()).public_bytes(serialization.Encoding.DER))
    der[-3] ^= 0xFF
    broken = ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE", "CERTIFICATE REQUEST")

    with pytest.raises(Invalid, match=r"not signed by the key|can't be read"):
        authority.sign_host(broken, HOST, NOW)


@pytest.mark.parametrize("text", ["", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"])
def test_a_request_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(Invalid, match="can't be read"):
        Authority.ensure(tmp_path, NOW).sign_host(text, HOST, NOW)


def test_another_sort_of_key_is_refused(tmp_path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    with pytest.raises(Invalid, match="another sort of key"):
        Authority.ensure(tmp_path, NOW).sign_host(csr(key), HOST, NOW)


def test_both_sides_speak_tls_1_3_only(tmp_path: Path) -> None:
    authority = Authority.ensure(tmp_path, time.time())
    authority.ensure_server(["localhost"], time.time())
    server, client = authority.server_context(), tls.client_context(ca_pem=authority.ca_pem)

    assert server.minimum_version == client.minimum_version == ssl.TLSVersion.TLSv1_3
    assert client.check_hostname
    assert client.verify_mode == ssl.CERT_REQUIRED
    assert server.verify_mode == ssl.CERT_OPTIONAL


def peercert(*uris: str) -> dict[str, object]:
    return {
        "serialNumber": "0A1B",
        "notAfter": "Jan  5 09:34:43 2030 GMT",
        "subjectAltName": tuple(("URI", uri) for uri in uris),
    }


def test_the_host_is_the_one_in_the_uri() -> None:
    peer = tls.host_of(peercert(f"urn:skerry:host:{HOST}"))
    assert (peer.host, peer.serial) == (HOST, "a1b")
    assert peer.expires_at > NOW


@pytest.mark.parametrize(
    "certificate",
    [
        None,
        {},
        peercert(),
        peercert("urn:skerry:host:vm-00000000000a"),
        peercert("https://example"),
        peercert(f"urn:skerry:host:{HOST}", "urn:skerry:host:host-00000000000b"),
    ],
)
def test_a_certificate_that_names_no_one_host_is_nobody(certificate: dict[str, object] | None) -> None:
    with pytest.raises(Denied):
        tls.host_of(certificate)


def test_a_join_token_survives_the_trip_over_a_terminal(tmp_path: Path) -> None:
    secret = new_token("skj")
    token = JoinToken(secret=secret, fingerprint=Authority.ensure(tmp_path, NOW).fingerprint())

    parsed = parse_join_token(f"  {token.text().reveal()}\n")

    assert parsed.secret == secret
    assert parsed.fingerprint == token.fingerprint
    assert secret.reveal() not in repr(parsed)


@pytest.mark.parametrize(
    "text", ["", "skj_12.34", "skt_" + "a" * 64 + "." + "b" * 64, "skj_" + "A" * 64 + "." + "b" * 64]
)
def test_what_is_no_join_token_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_join_token(text)
    assert not text or text not in str(caught.value)


def test_a_secret_is_not_shown_by_the_struct_around_it() -> None:
    assert "hush" not in repr(JoinToken(secret=Secret("hush"), fingerprint="f"))
