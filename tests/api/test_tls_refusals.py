"""Who is not let in at the link's port, and what they are told."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec
import pytest
from link_bench import Bench, eventually, hello, own_context

from agent import dial, join
from agent.dial import Dialer
from common import tls
from common.codec import to_pack
from common.errors import Conflict, Denied, Invalid, Temporary
from common.ids import HostId, new_id
from common.joining import Enrolled
from common.protocol import Down, Refused, Welcome
from controller.pki import certificates
from controller.pki.authority import Authority
from controller.pki.certificates import HOST_DAYS

ROUTES = ["/link", "/images/" + "a" * 64]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    async with bench.port.up():
        yield bench


async def get(context: ssl.SSLContext, url: str) -> tuple[int, bytes]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as http, http.get(url) as response:
        return response.status, await response.read()


async def decoded(ws: aiohttp.ClientWebSocketResponse) -> Down:
    return msgspec.msgpack.decode(await ws.receive_bytes(timeout=5), type=Down)


def host_pair(authority: Authority, host: HostId, now: float) -> tuple[object, object]:
    key = certificates.new_key()
    return certificates.host_certificate(authority._current, join._csr(key), host, now), key


# --- certificates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES)
async def test_without_a_certificate_there_is_no_way_in(bench: Bench, route: str) -> None:
    status, body = await get(tls.client_context(ca_pem=bench.authority.ca_pem), bench.port.url + route)

    assert status == 403
    assert b"none was shown" in body
    assert b"skerry-agent join" in body


async def test_renewal_needs_a_certificate_too(bench: Bench) -> None:
    context = tls.client_context(ca_pem=bench.authority.ca_pem)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as http,
        http.post(bench.port.url + "/renew", json={"csr": "x"}) as response,
    ):
        assert response.status == 403


async def test_the_ca_is_shown_to_anybody(bench: Bench) -> None:
    status, body = await get(tls.unverified_context(), bench.port.url + "/ca")
    assert (status, body.decode()) == (200, bench.authority.ca_pem)


async def test_a_certificate_of_another_ca_is_refused(bench: Bench, tmp_path: Path) -> None:
    stranger = Authority.ensure(tmp_path / "other", time.time())
    context = own_context(bench.authority.ca_pem, tmp_path, signed=host_pair(stranger, bench.host, time.time()))

    with pytest.raises((aiohttp.ClientError, ssl.SSLError), match=r"(?i)unknown.ca|reset|closed|disconnected"):
        await get(context, bench.port.url + "/link")


@pytest.mark.parametrize("route", ROUTES)
async def test_an_expired_certificate_is_refused_with_the_way_back(bench: Bench, tmp_path: Path, route: str) -> None:
    long_ago = time.time() - (HOST_DAYS + 1) * 86400
    context = own_context(bench.authority.ca_pem, tmp_path, signed=host_pair(bench.authority, bench.host, long_ago))

    status, body = await get(context, bench.port.url + route)

    assert status == 403
    assert f"the certificate of host {bench.host} ran out on " in body.decode()
    assert b"skerry host token NAME, then skerry-agent join --force" in body
    assert (route != "/link") or "ran out on" in bench.books.story[0]


async def test_the_servers_own_certificate_is_no_hosts(bench: Bench, tmp_path: Path) -> None:
    context = tls.client_context(ca_pem=bench.authority.ca_pem)
    context.load_cert_chain(tmp_path / "pki" / "server.pem", tmp_path / "pki" / "server.key")

    try:
        status, _ = await get(context, bench.port.url + "/link")
    except (aiohttp.ClientError, ssl.SSLError):
        return  # OpenSSL turns it away itself: its purpose is another
    assert status == 403


async def test_tls_1_2_is_refused(bench: Bench) -> None:
    context = tls.client_context(ca_pem=bench.authority.ca_pem)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", bench.port.number, ssl=context)


async def test_a_revoked_host_is_told_so_and_a_standing_session_can_be_ended(bench: Bench) -> None:
    identity = await bench.joined()
    async with bench.raw(identity) as ws:
        await ws.send_bytes(to_pack(hello(bench.host)))
        assert isinstance(await decoded(ws), Welcome)
        bench.books.revoked.add(bench.host)
        bench.session().close("its certificate was revoked")
        closed = await ws.receive(timeout=5)
        assert (closed.type, closed.extra) == (aiohttp.WSMsgType.CLOSE, "its certificate was revoked")

    async with Dialer(identity) as dialer:
        with pytest.raises(Temporary, match=f"host {bench.host} is revoked"):
            await dialer.websocket()


async def test_a_host_cannot_speak_for_another(bench: Bench) -> None:
    identity = await bench.joined()
    victim = HostId(new_id("host"))

    async with bench.raw(identity) as ws:
        await ws.send_bytes(to_pack(hello(victim)))
        answer = await decoded(ws)

    assert isinstance(answer, Refused)
    assert answer.reason == f"its certificate is of host {bench.host}, its hello says {victim}"
    assert bench.books.story == [f"turned away: {answer.reason}"]
    assert bench.books.sessions.get(victim) is None


# --- joining ------------------------------------------------------------------------------------------------------


async def test_joining_gives_an_identity_that_opens_the_link(bench: Bench) -> None:
    identity = await bench.joined()

    assert identity.path.stat().st_mode & 0o777 == 0o600
    assert join.load(identity.path) == identity
    assert (identity.host, identity.name, identity.url) == (bench.host, "h1", bench.port.url)
    async with Dialer(identity) as dialer:
        await (await dialer.websocket()).close()


async def test_a_token_works_once(bench: Bench, tmp_path: Path) -> None:
    token = bench.books.token(bench.host)
    await join.join(bench.port.url, token, tmp_path / "one.pem")

    with pytest.raises(Denied, match="used already"):
        await join.join(bench.port.url, token, tmp_path / "two.pem")
    assert not (tmp_path / "two.pem").exists()


async def test_an_expired_token_is_refused(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(Denied, match="has expired") as caught:
        await join.join(bench.port.url, bench.books.token(bench.host, lives_s=-1), tmp_path / "id.pem")
    assert "skerry host token" in caught.value.fix


async def test_a_controller_with_another_ca_never_sees_the_token(bench: Bench, tmp_path: Path) -> None:
    token = bench.books.token(bench.host)
    secret, _, _ = token.partition(".")

    with pytest.raises(Denied, match="is not the controller this token is for"):
        await join.join(bench.port.url, f"{secret}.{'0' * 64}", tmp_path / "id.pem")

    await join.join(bench.port.url, token, tmp_path / "id.pem")  # the token is still good: it was not shown


async def test_a_server_that_shows_our_ca_without_its_key_never_sees_the_token(tmp_path: Path) -> None:
    """Someone in between can repeat the CA certificate, which is public, but not serve a certificate of it."""
    real = Bench(tmp_path / "real")
    forger = Bench(tmp_path / "forger")
    asked: list[str] = []

    async def enrol(token: str, csr_pem: str) -> object:
        asked.append(token)
        raise Denied("caught it")

    forger.books.enrol = enrol  # type: ignore[method-assign,assignment]
    forger.port.ca_pem = real.authority.ca_pem
    async with forger.port.up():
        with pytest.raises(Denied, match="does not hold"):
            await join.join(forger.port.url, real.books.token(real.host), tmp_path / "id.pem")
    assert asked == []


async def test_joining_twice_needs_force(bench: Bench) -> None:
    first = await bench.joined()
    with pytest.raises(Conflict, match=f"as h1 \\({bench.host}\\)"):
        await bench.joined()

    other = HostId(new_id("host"))
    again = await join.join(bench.port.url, bench.books.token(other), first.path, force=True)

    assert join.load(first.path).host == again.host == other


async def test_an_unreachable_controller_is_named(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    token = bench.books.token(bench.host)
    with pytest.raises(Temporary, match=r"https://127\.0\.0\.1:1 can't be reached: Connection refused") as caught:
        await join.join("https://127.0.0.1:1", token, tmp_path / "id.pem")
    assert "firewall" in caught.value.fix


async def test_a_name_that_is_not_in_the_certificate_is_refused(bench: Bench, tmp_path: Path) -> None:
    url = bench.port.url.replace("127.0.0.1", "127.0.0.2")
    with pytest.raises((Denied, Temporary)) as caught:
        await join.join(url, bench.books.token(bench.host), tmp_path / "id.pem")
    assert not (tmp_path / "id.pem").exists()
    assert "127.0.0.2" in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8443", "127.0.0.1:8443", "https://", "https://h:99999", "https://h/x"]
)
async def test_a_url_that_is_none_is_refused(bench: Bench, tmp_path: Path, url: str) -> None:
    with pytest.raises(Invalid, match="is no controller URL"):
        await join.join(url, bench.books.token(bench.host), tmp_path / "id.pem")


async def test_a_body_that_is_no_join_request_is_refused(bench: Bench) -> None:
    context = tls.client_context(ca_pem=bench.authority.ca_pem)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as http:
        for body, status in ((b"{}", 400), (b"\xff", 400), (b"x" * 100_000, 413)):
            async with http.post(bench.port.url + "/join", data=body) as response:
                assert response.status == status
                assert response.content_type == "application/problem+json"


async def test_a_certificate_renews_itself_and_keeps_its_host(bench: Bench) -> None:
    identity = msgspec.structs.replace(await bench.joined(), renew_at=0.0)
    async with Dialer(identity) as dialer:
        keeping = asyncio.ensure_future(dialer.keep_certificate_fresh())
        await eventually(lambda: dialer.identity is not identity)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await (await dialer.websocket()).close()

    renewed = join.load(identity.path)
    assert renewed.host == bench.host
    assert renewed.serial != identity.serial
    assert renewed.renew_at > time.time()


async def test_a_certificate_renews_soon_after_the_clock_was_set(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "RENEW_CHECK_S", 0.01)
    identity, days = await bench.joined(), 0
    async with Dialer(identity, lambda: time.time() + days * 86400) as dialer:
        keeping = asyncio.ensure_future(dialer.keep_certificate_fresh())
        await asyncio.sleep(0.1)
        assert dialer.identity is identity
        days = 16
        await eventually(lambda: dialer.identity is not identity)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def test_a_broken_identity_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="has not joined"):
        join.load(tmp_path / "none.pem")
    (tmp_path / "half.pem").write_text("url: https://h:1\n\n-----BEGIN")
    with pytest.raises(Invalid, match="can't be used") as caught:
        join.load(tmp_path / "half.pem")
    assert "--force" in caught.value.fix


def test_a_certificate_for_another_key_is_not_written(tmp_path: Path) -> None:
    authority = Authority.ensure(tmp_path / "pki", time.time())
    host = HostId(new_id("host"))
    signed = authority.sign_host(join._csr(certificates.new_key()), host, time.time())
    enrolled = Enrolled(host_id=host, host_name="h", certificate=signed.pem, ca=authority.ca_pem)

    with pytest.raises(Invalid, match="another key"):
        join._write(tmp_path / "id.pem", "https://h:1", certificates.new_key(), enrolled)
    assert not (tmp_path / "id.pem").exists()
