"""Hosts that lie: each lie harms nobody else, is not believed, and leaves one clear event that names host and lie."""

import asyncio
import math
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from fleet_bench import World, next_down
from link_bench import INVENTORY, eventually, hello

from agent.dial import Dialer
from agent.join import Identity
from common import tls
from common.codec import to_pack
from common.documents import DocKey, DomainSeen, Report, VolumeDoc, VolumeSeen
from common.errors import Temporary
from common.ids import Id, Revision
from common.protocol import (
    MAX_MESSAGE_BYTES,
    Call,
    GuestMetrics,
    HostEvent,
    HostMetrics,
    Metrics,
    Refused,
    Reply,
    Reports,
)
from controller.fleet import lies as lies_module
from controller.fleet import link as link_server
from controller.fleet.lies import Lies
from controller.fleet.link import Allowance
from controller.store.writes import PutDocument, Tombstone
from tests.store.desk import Clock, take

HOST_FIGURES = HostMetrics(1.0, 1, 1.0, 1.0, 1, 1, 1.0, 0)


class Fleet(msgspec.Struct):
    """A controller, an honest host that is connected and has a disk, and a host that may lie."""

    world: World
    honest: Identity
    liar: Identity
    disk: Id

    async def unharmed(self) -> None:
        """The honest host is there, and does what it is asked to."""
        assert self.world.connected(self.honest)
        await self.world.want(self.honest.host, 77)
        await self.world.settled(self.honest.host)
        report = self.world.store.seen.report(self.honest.host, DocKey(f"volume/{self.disk}"))
        assert report is not None
        assert report.done

    async def lied(self, text: str) -> str:
        event = await self.world.until_event("host.lied", self.liar.host, text)
        assert (event.name, event.kind) == ("liar", "host")
        return event.message


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    world = World(tmp_path)
    async with world.up():
        honest, liar = await world.joined("honest"), await world.joined("liar")
        disk = await world.want(honest.host, 1)
        async with world.agent(honest):
            await eventually(lambda: world.connected(honest))
            await world.settled(honest.host)
            yield Fleet(world, honest, liar, disk)


def report(key: str, revision: int = 1, **more: Any) -> Report:
    return Report(key=DocKey(key), revision=Revision(revision), done=True, **more)


# --- what is not its own ------------------------------------------------------------------------------------------


async def test_reports_on_anothers_machine_are_not_taken_in(fleet: Fleet) -> None:
    vm = await fleet.world.desk.create("project", "", "shop")
    await fleet.world.desk.write(take(fleet.honest.host, vm.id))
    async with fleet.world.liar(fleet.liar) as ws:
        seen = DomainSeen(state="stopped", start_generation=1, boot_generation=1, started_at=1.0)
        await ws.send_bytes(to_pack(Reports(number=1, reports=(report(f"domain/{vm.id}", seen=seen),))))
        message = await fleet.lied("spoke for what is not on it")
        assert "project shop" in message
        guest = GuestMetrics(vm.id, 1, 1, 1, 1, 1, 1)
        await ws.send_bytes(to_pack(Metrics(at=1.0, host=HOST_FIGURES, guests=(guest,))))
        await eventually(lambda: fleet.world.store.seen.host(fleet.liar.host).metrics)
        view = fleet.world.store.seen.host(fleet.liar.host)
        assert view.reports == {}
        assert view.metrics is not None
        assert view.metrics.guests == ()
        await ws.send_bytes(to_pack(HostEvent(at=1.0, subject=f"domain/{vm.id}", action="domain.died", message="ha")))
        await fleet.unharmed()
    assert not [one for one in await fleet.world.events("*") if one.actor == fleet.liar.host]


async def test_a_tombstone_of_anothers_disk_is_not_acknowledged(fleet: Fleet) -> None:
    doc = VolumeDoc(id=Id("vol-000000000009"), size_gib=1, image=None)
    await fleet.world.desk.write(PutDocument(host=fleet.liar.host, owner=doc.id, doc=doc))
    await fleet.world.desk.write(Tombstone(host=fleet.liar.host, key=DocKey(f"volume/{doc.id}")))
    other = VolumeDoc(id=Id("vol-000000000008"), size_gib=1, image=None)
    idle = await fleet.world.joined("idle")
    await fleet.world.desk.write(PutDocument(host=idle.host, owner=other.id, doc=other))
    await fleet.world.desk.write(Tombstone(host=idle.host, key=DocKey(f"volume/{other.id}")))
    async with fleet.world.liar(fleet.liar) as ws:
        gone = tuple(report(f"volume/{one}", fleet.world.store.seen.revision) for one in (doc.id, other.id))
        await ws.send_bytes(to_pack(Reports(number=1, reports=gone)))
        await fleet.unharmed()
    assert fleet.world.store.seen.document(idle.host, DocKey(f"volume/{other.id}")) is not None


async def test_reports_about_what_nobody_gave_it_make_one_event(fleet: Fleet) -> None:
    async with fleet.world.liar(fleet.liar) as ws:
        made_up = tuple(report(f"domain/vm-{number:012d}") for number in range(200))
        for number in range(1, 11):
            await ws.send_bytes(to_pack(Reports(number=number, reports=made_up)))
        message = await fleet.lied("spoke of what nobody gave it (200 times)")
        assert "skerry audit host" in message
        await fleet.unharmed()
    assert len(await fleet.world.events("host.lied", fleet.liar.host)) == 1
    fleet.world.clock.now += 2 * lies_module.QUIET_S
    await fleet.world.hosts._lies.sum_up()
    assert "(1800 times)" in (await fleet.world.events("host.lied", fleet.liar.host))[-1].message


async def test_a_disk_reported_as_a_machine_is_not_believed(fleet: Fleet) -> None:
    disk = await fleet.world.want(fleet.liar.host, 2)
    revision = fleet.world.store.seen.revision
    async with fleet.world.liar(fleet.liar) as ws:
        seen = DomainSeen(state="running", start_generation=1, boot_generation=1, started_at=1.0)
        await ws.send_bytes(to_pack(Reports(number=1, reports=(report(f"volume/{disk}", revision, seen=seen),))))
        assert f"volume/{disk} as DomainSeen" in await fleet.lied("reported one thing as another")
        assert fleet.world.store.seen.host(fleet.liar.host).reports == {}
        await fleet.unharmed()


async def test_a_report_on_a_revision_that_never_was_is_not_believed(fleet: Fleet) -> None:
    """Otherwise it would answer the tombstone that is only written later."""
    disk = await fleet.world.want(fleet.liar.host, 2)
    key = DocKey(f"volume/{disk}")
    async with fleet.world.liar(fleet.liar) as ws:
        await ws.send_bytes(to_pack(Reports(number=1, reports=(report(key, 1 << 40),))))
        await fleet.lied("a document that it was never sent")
        await fleet.world.desk.write(Tombstone(host=fleet.liar.host, key=key))
        await ws.send_bytes(to_pack(Reports(number=2, reports=(report(key, 1 << 40),))))
        await fleet.unharmed()
        assert fleet.world.store.seen.document(fleet.liar.host, key) is not None


async def test_an_old_report_that_comes_again_is_refused(fleet: Fleet) -> None:
    disk = await fleet.world.want(fleet.liar.host, 2)
    key, revision = DocKey(f"volume/{disk}"), fleet.world.store.seen.revision
    old = Reports(number=1, reports=(Report(key=key, revision=revision, done=False, problem="no space"),))
    new = Reports(number=2, reports=(report(key, revision, seen=VolumeSeen(size_gib=1, allocated_bytes=0)),))
    async with fleet.world.liar(fleet.liar) as ws:
        for message in (old, new, old, new):
            await ws.send_bytes(to_pack(message))
        assert "number 1, after number 2" in await fleet.lied("said again what it had said before")
        said = fleet.world.store.seen.report(fleet.liar.host, key)
        assert said is not None
        assert said.done
        await fleet.unharmed()


async def test_where_reports_are_missing_both_sides_compare_anew(fleet: Fleet) -> None:
    async with fleet.world.liar(fleet.liar) as ws:
        await ws.send_bytes(to_pack(Reports(number=3, reports=())))
        await fleet.world.until_event("host.disconnected", fleet.liar.host, "reports number 1 were lost")
        await fleet.unharmed()


async def test_an_event_that_only_the_controller_can_know_is_not_written(fleet: Fleet) -> None:
    async with fleet.world.liar(fleet.liar) as ws:
        for action in ("delete", "create", "host.connected", "domain." + "x" * 40):
            await ws.send_bytes(to_pack(HostEvent(at=1.0, subject="", action=action, message="me")))
        await fleet.lied("told of an event that a host can't know")
        await fleet.unharmed()
    assert not [one for one in await fleet.world.events("*") if one.actor == fleet.liar.host]


async def test_a_survey_of_rubbish_is_an_error_of_the_hosts(fleet: Fleet) -> None:
    async with fleet.world.liar(fleet.liar) as ws:

        async def answer() -> None:
            while not isinstance(call := await next_down(ws), Call):
                pass
            await ws.send_bytes(to_pack(Reply(call=call.call, body=b"\xc1")))

        answering = asyncio.ensure_future(answer())
        with pytest.raises(Temporary, match="host liar answered with what is no survey"):
            await fleet.world.hosts.audit(fleet.liar.host, fleet.world.desk.context.caller.request)
        await answering
        await fleet.lied("answered a survey with what can't be")
        await fleet.unharmed()


# --- what can't be read, and absurd figures -----------------------------------------------------------------------


def with_nan(message: object) -> bytes:
    """Replace the float 12345.5 in a message by NaN."""
    raw = to_pack(message)
    assert raw.count(struct.pack(">d", 12345.5)) == 1
    return raw.replace(struct.pack(">d", 12345.5), struct.pack(">d", math.nan))


def odd(**figures: Any) -> bytes:
    return to_pack(Metrics(at=1.0, host=msgspec.structs.replace(HOST_FIGURES, **figures), guests=()))


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (b"\xc1\x00garbage", "malformed"),
        (b"", "truncated"),
        (to_pack({"m": "Reports", "number": "one", "reports": ()}), "Expected `int`, got `str`"),
        (to_pack({"m": "Metrics", "at": 1.0, "host": [1], "guests": []}), "$.host"),
        (to_pack({"m": "Welcome"}), "Invalid value 'Welcome'"),
        (b"\x00" * (MAX_MESSAGE_BYTES + 1), "over the limit"),
        ("words", "every message is binary"),
        (with_nan(Metrics(at=1.0, host=msgspec.structs.replace(HOST_FIGURES, cpu_percent=12345.5), guests=())), "host"),
        (odd(memory_used_mib=-1), ">= 0"),
        (odd(load_1=math.inf), "<= 1"),
        (odd(net_rx_bytes=2**63), "out of range|<= 9223372036854775807"),
        (with_nan(HostEvent(at=12345.5, subject="", action="domain.died", message="")), "$.at"),
        (to_pack(Reports(number=1, reports=(report("volume/v", progress=2.0),))), "progress"),
        (to_pack(Reports(number=0, reports=())), "$.number"),
    ],
)
async def test_what_is_no_message_ends_the_session_and_is_named(fleet: Fleet, frame: bytes | str, text: str) -> None:
    async with fleet.world.liar(fleet.liar) as ws:
        await (ws.send_str(frame) if isinstance(frame, str) else ws.send_bytes(frame))
        message = await fleet.lied("sent ")
        assert any(part in message for part in text.split("|")), message
        await eventually(lambda: not fleet.world.connected(fleet.liar))
        await fleet.unharmed()


@pytest.mark.parametrize(
    ("figures", "where"),
    [
        ({"cpu_threads": 10**9}, "$.inventory.cpu_threads"),
        ({"memory_mib": -1}, "$.inventory.memory_mib"),
        ({"disk_gib": 2**62}, "$.inventory.disk_gib"),
        ({"underlay_mtu": 0}, "$.inventory.underlay_mtu"),
        ({"cpu_model": "x" * 10_000}, "$.inventory.cpu_model"),
    ],
)
async def test_an_absurd_inventory_is_turned_away(fleet: Fleet, figures: dict[str, Any], where: str) -> None:
    async with fleet.world.raw(fleet.liar) as ws:
        inventory = msgspec.structs.replace(INVENTORY, **figures)
        await ws.send_bytes(to_pack(msgspec.structs.replace(hello(fleet.liar.host), inventory=inventory)))
        answer = await next_down(ws)
    assert isinstance(answer, Refused)
    assert where in answer.reason
    await fleet.world.until_event("host.turned-away", fleet.liar.host, where)
    await fleet.unharmed()


# --- too much, too slow -------------------------------------------------------------------------------------------


async def test_a_flood_is_one_event_and_ends_the_session(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_server, "FLOOD_BURST", 100.0)
    monkeypatch.setattr(link_server.Allowance, "__init__", _small)
    for _ in range(3):
        async with fleet.world.liar(fleet.liar) as ws:
            frame = to_pack(Metrics(at=1.0, host=HOST_FIGURES, guests=()))
            for _ in range(200):
                await ws.send_bytes(frame)
            await eventually(lambda: not fleet.world.connected(fleet.liar))
    await fleet.lied("flooded the link")
    assert len(await fleet.world.events("host.lied", fleet.liar.host)) == 1


def _small(self: Allowance, *, burst: float = 100.0, per_s: float = 1.0) -> None:
    self._left, self._burst, self._per_s, self._at = burst, burst, per_s, 0.0


async def test_a_host_that_dials_all_the_time_is_sent_away_for_a_while(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_server, "DIALS_BURST", 3.0)
    for _ in range(3):
        async with fleet.world.liar(fleet.liar):
            pass
    for _ in range(5):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await fleet.world.liar(fleet.liar).__aenter__()
        assert refused.value.status == 429
    assert "times a minute" in await fleet.lied("flooded the link")
    assert len(await fleet.world.events("host.connected", fleet.liar.host)) == 3
    await fleet.unharmed()


async def test_a_host_that_is_turned_away_again_and_again_leaves_one_event(fleet: Fleet) -> None:
    for _ in range(4):
        async with fleet.world.raw(fleet.liar) as ws:
            await ws.send_bytes(to_pack(hello(fleet.liar.host, protocol=9)))
            assert isinstance(await next_down(ws), Refused)
    found = await fleet.world.events("host.turned-away", fleet.liar.host)
    assert [("protocol 9" in one.message, "upgrade" in one.message) for one in found] == [(True, True)]
    await fleet.unharmed()


async def test_who_says_nothing_or_a_byte_at_a_time_is_not_waited_for(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_server, "REQUEST_LIMIT_S", 0.5)
    context = tls.unverified_context()
    half, bodiless = (
        b"GET /link HTTP/1.1\r\nHost: x\r\nX-",
        b"POST /join HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{",
    )
    for said in (b"", half, bodiless):
        reader, writer = await asyncio.open_connection("127.0.0.1", fleet.world.number, ssl=context)
        writer.write(said)
        async with asyncio.timeout(8):
            answer = await reader.read()
        assert (b"did not come within" in answer) == (said is bodiless)
        writer.close()
    await fleet.unharmed()


async def test_a_handshake_that_never_comes_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_server, "REQUEST_LIMIT_S", 0.5)
    world = World(tmp_path)
    async with world.up():
        reader, writer = await asyncio.open_connection("127.0.0.1", world.number)
        async with asyncio.timeout(8):
            assert await reader.read() == b""
        writer.close()


# --- who it says it is --------------------------------------------------------------------------------------------


async def test_a_hello_in_anothers_name_is_turned_away(fleet: Fleet) -> None:
    async with fleet.world.raw(fleet.liar) as ws:
        await ws.send_bytes(to_pack(hello(fleet.honest.host)))
        assert isinstance(await next_down(ws), Refused)
    await fleet.world.until_event("host.turned-away", fleet.liar.host, f"its hello says {fleet.honest.host}")
    await fleet.unharmed()


async def test_two_machines_with_one_certificate_are_found_out(fleet: Fleet) -> None:
    def of(boot: str) -> Any:
        inventory = msgspec.structs.replace(INVENTORY, boot_id=boot)
        return msgspec.structs.replace(hello(fleet.liar.host), inventory=inventory)

    async with fleet.world.liar(fleet.liar, of("one")), fleet.world.liar(fleet.liar, of("two")):
        assert not await fleet.world.events("host.lied", fleet.liar.host)  # it may have been booted anew
        async with fleet.world.liar(fleet.liar, of("one")):
            message = await fleet.lied("is two machines that use one certificate")
            assert "skerry host token" in message
            await fleet.unharmed()


async def test_a_revoked_certificate_opens_nothing_and_cuts_what_was_open(fleet: Fleet) -> None:
    async with fleet.world.liar(fleet.liar) as ws:
        fresh = msgspec.structs.replace(fleet.liar)
        kept = fleet.liar.path.read_bytes()
        await fleet.world.joined_anew("liar")
        while (closed := await ws.receive(timeout=5)).type == aiohttp.WSMsgType.BINARY:
            pass
        assert (closed.type, closed.extra) == (aiohttp.WSMsgType.CLOSE, "its certificate was revoked")
    fleet.liar.path.write_bytes(kept)
    async with Dialer(fresh) as dialer:
        with pytest.raises(Temporary, match="is revoked"):
            await dialer.websocket()
    await fleet.unharmed()


async def test_a_host_that_pretends_to_know_the_future_harms_only_itself(fleet: Fleet) -> None:
    said = msgspec.structs.replace(hello(fleet.liar.host), newest=1 << 60, epoch=fleet.world.store.seen.fact("epoch"))
    before = fleet.world.store.seen.fact("epoch")
    async with fleet.world.liar(fleet.liar, said):
        assert "skerry-controller restored" in await fleet.lied("newer than the database")
        await fleet.unharmed()
    assert fleet.world.store.seen.fact("epoch") == before


# --- the notes ----------------------------------------------------------------------------------------------------


async def test_a_lie_is_one_event_a_minute_with_a_count() -> None:
    clock, written = Clock(), list[str]()

    async def happened(host: object, what: str, message: str) -> None:
        written.append(message)

    lies = Lies(happened, clock)
    host = hello(Id("host-000000000001")).host  # type: ignore[arg-type]
    for _ in range(1000):
        await lies.told(host, "replay", "x")
        clock.now += 0.01
    assert len(written) == 1
    clock.now += 60
    await lies.told(host, "replay", "y")
    assert written[1] == "it said again what it had said before (1000 times): y"
    await lies.told(host, "claim", "z" * 10_000)
    assert len(written[2]) < 400
    clock.now += 61
    await lies.sum_up()
    assert len(written) == 3, "nothing came since"
