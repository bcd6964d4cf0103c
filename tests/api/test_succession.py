"""One certificate authority follows another while hosts are connected: real TLS, real agents, deaths at any line."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
import pytest
from fleet_bench import World
from link_bench import Agent, eventually, own_context

from agent import join
from agent.dial import Dialer
from agent.join import Identity
from common import tls
from common.errors import Conflict, Denied, Invalid, Temporary
from common.faults import Died
from common.ids import HostId
from controller.fleet import succession as succession_module
from controller.kinds import admission
from controller.pki import certificates
from controller.pki.authority import Authority
from controller.pki.succession import Succession, advanced, behind, decode
from controller.store.rows import JOIN_TOKEN_S, Enrolment
from tests.patience import PATIENCE_S
from tests.postgres import Cluster


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(succession_module, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(succession_module, "ASKED_AGAIN_S", 1.0)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path / "one")
    async with world.up(), looking(world):
        yield world


@asynccontextmanager
async def looking(world: World) -> AsyncIterator[None]:
    """Have a controller take part in the succession."""
    looks = asyncio.ensure_future(world.successor.run())
    try:
        yield
    finally:
        looks.cancel()
        await asyncio.gather(looks, return_exceptions=True)


@asynccontextmanager
async def hosts(world: World, *names: str) -> AsyncIterator[list[Agent]]:
    async with AsyncExitStack() as stack:
        agents = []
        for name in names:
            identity = await world.joined(name)
            agents.append(await stack.enter_async_context(world.agent(identity)))
        await eventually(lambda: all(world.connected(one.identity) for one in agents))
        yield agents


def phase(world: World) -> str:
    return world.successor.now().phase


async def settled(*worlds: World, before: str) -> None:
    """Wait until another authority has followed, and new connections trust nobody else."""

    def alone(world: World) -> bool:
        inner = world.authority._inner
        followed = phase(world) == "settled" and world.authority.own_fingerprint() != before
        return followed and inner is not None and len(inner.get_ca_certs()) == 1

    for world in worlds:
        await eventually(lambda world=world: alone(world))  # type: ignore[misc]


def authorities(path: Path) -> set[str]:
    """Return whom a host trusts, by its file."""
    blocks = path.read_text().split("-----BEGIN CERTIFICATE-----")[2:]
    return {tls.fingerprint("-----BEGIN CERTIFICATE-----" + block) for block in blocks}


def enrolment(world: World, identity: Identity) -> Enrolment:
    found = world.store.seen.enrolment(identity.host)
    assert found is not None
    return found


# --- the whole of it ----------------------------------------------------------------------------------------------


async def test_a_new_authority_follows_and_every_host_stays(world: World) -> None:
    async with hosts(world, "h1", "h2") as (one, two):
        old = world.authority.fingerprint()
        disk = await world.want(one.identity.host, 1)
        await world.successor.rotate()
        await settled(world, before=old)
        new = world.successor.now().current

        await eventually(lambda: all(authorities(agent.identity.path) == {new} for agent in (one, two)))
        for agent in (one, two):
            assert enrolment(world, agent.identity).authority == new
            await eventually(lambda agent=agent: world.connected(agent.identity))  # type: ignore[misc]
        await world.settled(one.identity.host)
        assert disk in one.shelf.world
        files = {path.name for path in (world.directory / "pki").iterdir()}
        assert files == {"ca.key", "ca.pem", "server.key", "server.pem"}
        assert tls.fingerprint((world.directory / "pki" / "ca.pem").read_text()) == new
        await eventually(lambda: not world.successor.standing().behind)
        assert world.successor.standing().hosts == 2


async def test_a_host_that_is_away_holds_the_end_up_until_it_comes_or_its_certificate_runs_out(world: World) -> None:
    away = await world.joined("away")
    old = world.authority.fingerprint()
    async with hosts(world, "h1") as (agent,):
        await world.successor.rotate()
        await eventually(lambda: phase(world) == "overlap")
        await eventually(
            lambda: enrolment(world, agent.identity).confirmed and enrolment(world, agent.identity).authority != old
        )
        await asyncio.sleep(0.3)
        assert phase(world) == "overlap"
        (why,) = world.successor.standing().behind
        assert (why.host, why.why) == (
            away.host, "is not connected; its certificate of the old authority is good for 30 days",
        )  # fmt: skip
        async with world.agent(away):
            await settled(world, before=old)
            await eventually(lambda: world.connected(away))


async def test_a_host_whose_certificate_ran_out_is_not_waited_for_and_is_told_the_way_back(world: World) -> None:
    world.clock.now -= 31 * 86400
    away = await world.joined("away")
    world.clock.now += 31 * 86400
    old = world.authority.fingerprint()
    with pytest.raises(Temporary, match=r"ran out on .*skerry host token NAME"):
        async with Dialer(away) as dialer:
            await dialer.websocket()
    await world.until_event("host.turned-away", away.host, "ran out on")
    await world.successor.rotate()
    await settled(world, before=old)
    fresh = await world.joined_anew("away")
    assert fresh.host == away.host
    async with world.agent(fresh):
        await eventually(lambda: world.connected(fresh))


async def test_the_old_authoritys_certificates_open_nothing_afterwards(world: World, tmp_path: Path) -> None:
    old = Authority.ensure(world.directory / "pki", world.clock())
    before = world.authority.fingerprint()
    async with hosts(world, "h1") as (agent,):
        forged = certificates.new_key()
        stolen = certificates.host_certificate(old._current, join._csr(forged), agent.identity.host, world.clock())
        await world.successor.rotate()
        await settled(world, before=before)
        context = own_context(world.authority.ca_pem, tmp_path, signed=(stolen, forged))
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as http:
            with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
                await http.get(f"{world.url}/link")
        assert before not in {tls.fingerprint(world.authority.ca_pem), tls.fingerprint(world.authority.shown_pem)}


async def test_going_on_leaves_those_behind_who_are_away(world: World) -> None:
    await world.joined("away")
    old = world.authority.fingerprint()
    with pytest.raises(Conflict, match="nothing that is waited for"):
        await world.successor.rotate(go_on=True)
    await world.successor.rotate()
    with pytest.raises(Conflict, match="already"):
        await world.successor.rotate()
    await eventually(lambda: phase(world) == "overlap")
    await world.successor.rotate(go_on=True)
    await settled(world, before=old)


# --- join tokens --------------------------------------------------------------------------------------------------


async def test_a_token_of_either_authority_joins_during_the_overlap(world: World) -> None:
    holder = await world.joined("holds-it-up")
    early = await token(world, "early")
    old = world.authority.fingerprint()
    await world.successor.rotate()
    await eventually(lambda: phase(world) == "overlap")
    whys = [one.why for one in world.successor.standing().behind]
    assert "its join token carries the old authority, and is good for 24 hours" in whys
    late = await token(world, "late")
    assert (early.endswith(old), late.endswith(old)) == (True, False)
    for name, text in (("early", early), ("late", late)):
        identity = await join.join(world.url, text, world.directory / f"{name}.pem")
        assert len(authorities(identity.path)) == 2
        async with world.raw(identity):
            pass
    async with world.agent(holder):
        await eventually(lambda: phase(world) == "overlap" or phase(world) == "settled")


async def token(world: World, name: str) -> str:
    done = await world.store.admit(world.desk.admit_create("host", "", name))
    assert done.revealed is not None
    return world.hosts.join_text(done.revealed.reveal())


async def test_a_token_of_the_old_authority_is_refused_in_words_afterwards(world: World) -> None:
    early = await token(world, "early")
    old = world.authority.fingerprint()
    await world.successor.rotate()
    await eventually(lambda: phase(world) == "overlap")
    await world.successor.rotate(go_on=True)
    await settled(world, before=old)
    with pytest.raises(Denied, match="is not the controller this token is for") as refused:
        await join.join(world.url, early, world.directory / "early.pem")
    assert "new token" in refused.value.fix


def test_only_an_authority_that_the_meant_one_vouches_for_is_trusted(tmp_path: Path) -> None:
    ours, theirs = Authority.ensure(tmp_path / "a", 1.8e9), Authority.ensure(tmp_path / "b", 1.8e9)
    voucher = certificates.voucher(theirs._current, ours._current.certificate, 1.8e9)
    shown = [ours._current.certificate, theirs._current.certificate, voucher]
    assert join._vouched_for(shown[0], shown) == [shown[0]]
    assert join._vouched_for(shown[1], shown) == [shown[1], shown[0]]


# --- deaths -------------------------------------------------------------------------------------------------------

POINTS = (
    "authority.next-key", "authority.next", "authority.server", "authority.promoted-key", "authority.promoted",
)  # fmt: skip


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("point", POINTS)
async def test_a_controller_that_dies_on_the_way_goes_on(tmp_path: Path, point: str, times: int) -> None:
    """Every death is followed by a new process over the same files and database, which the same host dials."""
    world = World(tmp_path / "one")
    async with world.up():
        identity = await world.joined("h1")
        old = world.authority.fingerprint()
    deaths = 0

    def hook(reached: str) -> None:
        nonlocal deaths
        if reached == point and deaths < times:
            deaths += 1
            raise Died

    async with world.agent(identity):
        for _ in range(4):
            world.faults.hook = hook
            if not await lives_through(world, old):
                continue
            break
        assert deaths, "what was finished by the first death is not begun again"
    async with world.up():
        assert world.successor.now().phase == "settled"
        assert world.authority.fingerprint() == world.authority.own_fingerprint() != old


async def lives_through(world: World, old: str) -> bool:
    """Run a controller until another authority has followed (True), or until it dies."""
    try:
        async with world.up():
            if world.successor.now().phase == "settled" and world.successor.now().current == old:
                await world.successor.rotate()
            async with asyncio.timeout(PATIENCE_S):
                while world.successor.now().phase != "settled" or world.authority.own_fingerprint() == old:
                    await world.successor.look()
                    await asyncio.sleep(0.02)
    except Died:
        return False
    except BaseExceptionGroup as group:
        if group.subgroup(Died):
            return False
        raise
    return True


def test_a_database_of_another_authority_is_refused_with_the_way_out(tmp_path: Path) -> None:
    authority = Authority.ensure(tmp_path / "pki", 1.8e9)
    with pytest.raises(Invalid, match="this one has") as refused:
        authority.follow(Succession(current="ab" * 32), 1.8e9)
    assert "copy pki/ca.key" in refused.value.fix


# --- several controllers ------------------------------------------------------------------------------------------


@asynccontextmanager
async def two(cluster: Cluster, url: str, directory: Path) -> AsyncIterator[tuple[World, World]]:
    one, other = World(directory / "one", url), World(directory / "two", url, name="other")
    async with one.up():
        pki = other.directory / "pki"
        pki.mkdir()
        for name in ("ca.key", "ca.pem"):
            (pki / name).write_bytes((one.directory / "pki" / name).read_bytes())
        async with other.up():
            yield one, other


async def test_the_next_authority_goes_to_every_controller(cluster: Cluster, postgres_url: str, tmp_path: Path) -> None:
    async with two(cluster, postgres_url, tmp_path) as (one, other), looking(one):
        old = one.authority.fingerprint()
        identity = await other.joined("h1")
        async with other.agent(identity):
            await eventually(lambda: other.connected(identity))
            await other.successor.rotate()
            await eventually(lambda: "next.pem" in {path.name for path in (one.directory / "pki").iterdir()})
            await asyncio.sleep(0.3)
            assert phase(one) == "sharing", "the one that does not look yet is waited for"
            assert len(one.successor.standing().unready) == 1
            async with looking(other):
                await settled(one, other, before=old)
                await eventually(lambda: one.authority.own_fingerprint() == other.authority.own_fingerprint() != old)
                await eventually(lambda: any(each.connected(identity) for each in (one, other)))
        assert one.authority._current.key.private_numbers() == other.authority._current.key.private_numbers()


async def test_a_revocation_on_one_controller_cuts_the_link_to_another(
    cluster: Cluster, postgres_url: str, tmp_path: Path
) -> None:
    async with two(cluster, postgres_url, tmp_path) as (one, other):
        identity = await one.joined("h1")
        await other.store.catch_up()
        async with other.liar(identity) as ws:
            row = one.store.seen.get(identity.host)
            assert row is not None
            await one.store.admit(admission.reissue(one.desk.context, row))
            async with asyncio.timeout(PATIENCE_S):
                while (closed := await ws.receive()).type == aiohttp.WSMsgType.BINARY:
                    pass
            assert closed.extra == "its certificate was revoked"
        for each in (one, other):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await each.raw(identity).__aenter__()
            assert refused.value.status == 403


async def test_no_one_but_a_controller_is_given_the_next_authority(world: World) -> None:
    identity = await world.joined("h1")
    await world.successor.rotate()
    for context in (identity.context(), tls.client_context(ca_pem=identity.ca_pem)):
        connector = aiohttp.TCPConnector(ssl=context)
        async with (
            aiohttp.ClientSession(connector=connector) as http,
            http.get(f"{world.url}/authority/next") as answer,
        ):
            assert answer.status == 403
            assert b"PRIVATE KEY" not in await answer.read()


# --- renewal by a moved clock -------------------------------------------------------------------------------------


async def test_certificates_of_both_sides_renew_without_a_restart(tmp_path: Path) -> None:
    """The controller lived in the past when it gave them; nothing but the time is another one now."""
    world = World(tmp_path / "one")
    world.clock.now -= 20 * 86400
    async with world.up():
        identity = await world.joined("h1")
        async with world.agent(identity):
            await eventually(lambda: world.connected(identity))
            shown = await served(world)
            world.clock.now += 20 * 86400
            assert identity.renew_at < world.clock.now
            async with join_dialer(identity) as renewed:
                await eventually(lambda: renewed().serial != identity.serial)
                assert renewed().renew_at > world.clock.now
                assert not world.authority.renew_server(["127.0.0.1", "localhost"], world.clock())
                world.clock.now += 260 * 86400
                assert world.authority.renew_server(["127.0.0.1", "localhost"], world.clock())
                assert await served(world) != shown
                assert world.sessions.get(identity.host) is not None, "the link that stands was not touched"


@asynccontextmanager
async def join_dialer(identity: Identity) -> AsyncIterator[Callable[[], Identity]]:
    async with Dialer(identity) as dialer:
        keeping = asyncio.ensure_future(dialer.keep_certificate_fresh())
        try:
            yield lambda: dialer.identity
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)


async def served(world: World) -> bytes:
    """Return the certificate that a new connection is shown."""
    context = tls.unverified_context()
    _, writer = await asyncio.open_connection("127.0.0.1", world.number, ssl=context)
    shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return shown


# --- the phases, pure ---------------------------------------------------------------------------------------------

NOW = 1.8e9
OVERLAP = Succession(phase="overlap", current="a", next="b", since=NOW, ready=("c1",))


def an_enrolment(**more: object) -> Enrolment:
    told = {
        "host": HostId("host-1"),  # type: ignore[arg-type]
        "join_digest": "", "join_expires_at": 0.0, "certificate_serial": "1", "expires_at": NOW + 86400 * 9,
        "authority": "b", "trusts": ("a", "b"), "confirmed": True,
    } | more  # fmt: skip
    return Enrolment(**told)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({}, ""),
        ({"authority": "a"}, "good for 9 days"),
        ({"trusts": ("a",)}, "good for 9 days"),
        ({"authority": "", "expires_at": 0.0}, "good for an unknown time"),
        ({"confirmed": False}, "has not shown its new certificate yet"),
        ({"authority": "a", "expires_at": NOW - 1}, ""),
        ({"certificate_serial": ""}, ""),
        ({"certificate_serial": "", "join_digest": "x", "join_expires_at": NOW + 3600}, "join token carries the old"),
        ({"certificate_serial": "", "join_digest": "x", "join_expires_at": NOW - 1}, ""),
        ({"certificate_serial": "", "join_digest": "x", "join_expires_at": NOW + JOIN_TOKEN_S + 1}, ""),
    ],
)
def test_who_is_waited_for_and_why(more: dict[str, object], why: str) -> None:
    found = behind(OVERLAP, [an_enrolment(**more)], set(), NOW)
    assert bool(found) == bool(why)
    assert not found or why in found[0].why


def test_a_phase_ends_when_every_controller_that_lives_is_ready() -> None:
    assert advanced(OVERLAP, ("c1", "c2"), (), NOW) is None
    switching = advanced(OVERLAP, ("c1",), (), NOW + 1)
    assert switching is not None
    assert (switching.phase, switching.ready, switching.serves) == ("switching", (), "b")
    done = advanced(msgspec.structs.replace(switching, ready=("c1",)), ("c1",), (), NOW + 2)
    assert done == Succession(current="b", since=NOW + 2)
    assert advanced(done, ("c1",), (), NOW) is None
    assert decode(OVERLAP.encode()) == OVERLAP
