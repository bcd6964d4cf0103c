"""The link between real ends over real TLS: resync, reconnects, orders, streams, and hosts that misbehave."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from link_bench import Bench, Shelf, eventually, hello, volume

from agent import link as agent_link
from agent.dial import Dialer
from agent.link import PAUSE_CAP_S, pause_s
from agent.memory import Memory
from common.codec import to_pack
from common.errors import Denied, NotFound, Temporary
from common.ids import Id, RequestId
from common.protocol import (
    MAX_MESSAGE_BYTES,
    STREAM_WINDOW_BYTES,
    AttachConsole,
    DesiredBatch,
    Down,
    Found,
    HostEvent,
    Metrics,
    ReadSerialLog,
    Refused,
    Reports,
    StreamCredit,
    StreamData,
    Survey,
    Welcome,
)
from common.stream import Stream, StreamBroken, StreamEnded
from controller.fleet import line
from controller.fleet import link as link_server
from controller.fleet import sessions as session_module
from controller.fleet.link import Allowance
from controller.fleet.sessions import Session
from tests.patience import PATIENCE_S

REQUEST = RequestId("req-000000000000")
VM = Id("vm-00000000000a")


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    async with bench.port.up():
        yield bench


async def welcomed(ws: aiohttp.ClientWebSocketResponse, bench: Bench) -> None:
    await ws.send_bytes(to_pack(hello(bench.host)))
    assert isinstance(await next_down(ws), Welcome)


async def next_down(ws: aiohttp.ClientWebSocketResponse) -> Down:
    return msgspec.msgpack.decode(await ws.receive_bytes(timeout=5), type=Down)


async def end_of(ws: aiohttp.ClientWebSocketResponse) -> str:
    """Read to the close frame and return its reason."""
    async with asyncio.timeout(PATIENCE_S):
        while (message := await ws.receive()).type == aiohttp.WSMsgType.BINARY:
            pass
    assert message.type == aiohttp.WSMsgType.CLOSE, message
    return str(message.extra)


# --- documents and reports ----------------------------------------------------------------------------------------


async def test_a_new_host_gets_its_documents_and_reports_on_each(bench: Bench) -> None:
    bench.books.want(*(volume(n, n) for n in range(1, 601)))

    async with bench.agent(await bench.joined()) as agent:
        await bench.books.until(bench.books.all_done)

        assert len(agent.shelf.world) == 600
        assert len(bench.books.reports) == 600


async def test_an_unchanged_host_costs_one_message_at_a_reconnect(bench: Bench) -> None:
    bench.books.want(volume(1, 1), volume(2, 2))
    identity, shelf = await bench.joined(), Shelf()
    async with bench.agent(identity, shelf):
        await bench.books.until(bench.books.all_done)
    await bench.books.until(lambda: "disconnected" in bench.books.story[-1])
    resyncs, full_reports = bench.books.resyncs, bench.books.full_reports
    bench.books.heard.clear()

    async with bench.agent(identity, shelf):
        await bench.books.until(lambda: any(isinstance(told, Metrics) for told in bench.books.heard))

    assert bench.books.resyncs == resyncs
    assert bench.books.full_reports == full_reports
    assert not any(isinstance(told, Reports) for told in bench.books.heard)


async def test_a_tombstone_ends_with_both_sides_knowing_nothing_of_it(bench: Bench) -> None:
    bench.books.want(volume(1, 1), volume(2, 2))
    async with bench.agent(await bench.joined()) as agent:
        await bench.books.until(bench.books.all_done)
        tombstone = volume(1, 3, gone=True)
        bench.books.want(tombstone)
        bench.session().send(DesiredBatch(items=(tombstone,)))
        await bench.books.until(lambda: len(bench.books.desired) == 1)
        await eventually(lambda: len(agent.memory.items) == 1)

        assert set(agent.shelf.world) == {Id("vol-000000000002")}
        assert set(agent.memory.items) == set(bench.books.desired)


async def test_lost_repeated_and_reordered_batches_end_well_after_one_resync(bench: Bench) -> None:
    history = [volume(1, 1), volume(2, 2), volume(1, 3, gone=True), volume(3, 4), volume(2, 5)]
    identity = await bench.joined()
    async with bench.agent(identity) as agent:
        await bench.books.until(lambda: bench.books.sessions.get(bench.host) is not None)
        bench.books.want(*history)
        for position in (4, 0, 0, 2, 4, 0):  # revision 2 is superseded, revision 4 is lost
            bench.session().send(DesiredBatch(items=(history[position],)))
        await bench.books.until(lambda: len(bench.books.reports) == 1)
        bench.session().close("a test ends it")
        await bench.books.until(lambda: bench.books.all_done() and len(bench.books.desired) == 2)

        assert set(agent.shelf.world) == {Id("vol-000000000002"), Id("vol-000000000003")}


async def test_what_cannot_be_saved_is_told_and_sent_again_after_a_pause(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_is_full, apply = asyncio.Event(), Memory.apply
    disk_is_full.set()

    async def saved(memory: Memory, batch: DesiredBatch) -> Any:
        if disk_is_full.is_set():
            raise Temporary("the disk is full, " + "ö" * 100)
        return await apply(memory, batch)

    monkeypatch.setattr(Memory, "apply", saved)
    monkeypatch.setattr(agent_link, "REFUSED_PAUSE_S", 0.2)
    monkeypatch.setattr(agent_link, "pause_s", lambda *_: 0.0)
    bench.books.want(volume(1, 1))
    identity, before = await bench.joined(), asyncio.get_running_loop().time()
    async with bench.agent(identity):
        await bench.books.until(lambda: len(bench.books.story) == 2)
        told = "disconnected: the host closed the link: documents could not be saved: the disk is full, öö"
        assert bench.books.story[1].startswith(told), bench.books.story
        await bench.books.until(lambda: len(bench.books.story) == 4)
        assert asyncio.get_running_loop().time() - before >= 0.2, "it dialled again without a pause"
        disk_is_full.clear()
        await bench.books.until(bench.books.all_done)


async def test_a_host_is_back_by_itself_after_the_controllers_restart(bench: Bench, tmp_path: Path) -> None:
    other = Bench(tmp_path / "restarted")
    async with other.port.up():
        identity = await other.joined()
    async with other.agent(identity) as agent:
        async with other.port.up():
            await other.books.until(lambda: "connected" in other.books.story)
        assert "disconnected: the controller is stopping" in other.books.story
        other.books.story.clear()
        other.books.want(volume(1, 1))
        await asyncio.sleep(1)

        async with other.port.up():
            await other.books.until(other.books.all_done)
            assert agent.shelf.world == {Id("vol-000000000001"): 1}


async def test_the_host_works_on_with_the_controller_gone(bench: Bench) -> None:
    bench.books.want(volume(1, 1))
    identity = await bench.joined()
    async with bench.agent(identity):
        await bench.books.until(bench.books.all_done)

    lost = msgspec.structs.replace(identity, url="https://127.0.0.1:1")
    async with bench.agent(lost, Shelf()) as agent:
        await eventually(lambda: agent.shelf.world)


async def test_metrics_and_events_arrive(bench: Bench) -> None:
    async with bench.agent(await bench.joined()) as agent:
        event = HostEvent(at=1.0, subject="domain/vm-1", action="crashed", message="it did")
        agent.outbox.event(event)
        await bench.books.until(lambda: event in bench.books.heard)
        await bench.books.until(lambda: sum(isinstance(told, Metrics) for told in bench.books.heard) > 2)


def test_pauses_start_small_grow_and_have_a_cap() -> None:
    assert pause_s(0, 1.0) == 0.2
    assert pause_s(3, 1.0) < 1
    assert pause_s(100, 1.0) == PAUSE_CAP_S
    assert pause_s(100, 0.0) == 0.05


# --- orders and streams -------------------------------------------------------------------------------------------


async def test_an_order_is_answered_in_the_hosts_words(bench: Bench) -> None:
    async with bench.agent(await bench.joined()):
        await bench.books.until(lambda: bench.books.story)
        session = bench.session()

        assert await session.call(ReadSerialLog(vm=VM, tail_bytes=3), REQUEST) == b"ted"
        found = msgspec.msgpack.decode(await session.call(Survey(), REQUEST), type=tuple[Found, ...])
        assert found == (Found(what="disk", name="vol-1", owner=None),)
        with pytest.raises(NotFound, match="vm-00000000000z is not known here"):
            await session.call(ReadSerialLog(vm=Id("vm-00000000000z"), tail_bytes=3), REQUEST)
        with pytest.raises(Temporary, match="ZeroDivisionError"):
            await session.call(ReadSerialLog(vm=Id("vm-00000000000y"), tail_bytes=3), REQUEST)
        with pytest.raises(Temporary, match=r"no answer in 0\.1 s"):
            await session.call(ReadSerialLog(vm=Id("vm-00000000000x"), tail_bytes=3), REQUEST, limit_s=0.1)


async def test_a_call_ends_with_its_session(bench: Bench) -> None:
    async with bench.agent(await bench.joined()):
        await bench.books.until(lambda: bench.books.story)
        session = bench.session()
        asyncio.get_running_loop().call_later(0.1, session.close, "a test ends it")
        with pytest.raises(Temporary, match="a test ends it"):
            await session.call(ReadSerialLog(vm=Id("vm-00000000000x"), tail_bytes=3), REQUEST)
        with pytest.raises(Temporary, match="not connected"):
            await session.call(Survey(), REQUEST)


async def test_a_console_echoes_and_is_let_go_at_either_end(bench: Bench) -> None:
    async with bench.agent(await bench.joined()) as agent:
        await bench.books.until(lambda: bench.books.story)
        stream = await bench.session().open_stream(AttachConsole(vm=VM, stream=0), REQUEST)
        await stream.write(b"ls\n")
        assert await stream.read() == b"ls\n"
        stream.close("done")
        await eventually(lambda: agent.answers.consoles[0].left)

        other = await bench.session().open_stream(AttachConsole(vm=VM, stream=0), REQUEST)
        await other.write(b"exit")
        assert await other.read() == b""
        assert other.ended == "the machine's console ended"
        with pytest.raises(StreamEnded):
            await other.write(b"x")

        with pytest.raises(NotFound, match="not running here"):
            await bench.session().open_stream(AttachConsole(vm=Id("vm-00000000000z"), stream=0), REQUEST)


async def test_a_console_nobody_reads_stops_at_its_window_and_flows_on_when_read(bench: Bench) -> None:
    total = 4 * STREAM_WINDOW_BYTES
    async with bench.agent(await bench.joined()) as agent:
        await bench.books.until(lambda: bench.books.story)
        agent.answers.blurt = total
        stream = await bench.session().open_stream(AttachConsole(vm=VM, stream=0), REQUEST)
        (console,) = agent.answers.consoles
        await asyncio.sleep(0.6)
        assert STREAM_WINDOW_BYTES <= console.given <= STREAM_WINDOW_BYTES + 10_000

        taken = 0
        async with asyncio.timeout(PATIENCE_S):
            while taken < total:
                taken += len(await stream.read())
        assert taken == total
        await stream.write(b"still here")
        assert await stream.read() == b"still here"


async def test_the_window_holds_for_a_writer_until_it_is_granted_more() -> None:
    frames: list[object] = []
    stream = Stream(1, frames.append)
    writing = asyncio.ensure_future(stream.write(b"x" * (STREAM_WINDOW_BYTES + 10)))
    await asyncio.sleep(0.01)
    assert sum(len(frame.data) for frame in frames if isinstance(frame, StreamData)) == STREAM_WINDOW_BYTES

    stream.take(StreamCredit(stream=1, bytes=100))
    await writing
    assert sum(len(frame.data) for frame in frames if isinstance(frame, StreamData)) == STREAM_WINDOW_BYTES + 10


async def test_a_peer_that_overruns_the_window_or_invents_credit_is_caught() -> None:
    stream = Stream(1, lambda _frame: None)
    stream.take(StreamData(stream=1, data=b"x" * STREAM_WINDOW_BYTES))
    with pytest.raises(StreamBroken, match="window"):
        stream.take(StreamData(stream=1, data=b"y"))
    with pytest.raises(StreamBroken, match="never taken"):
        Stream(2, lambda _frame: None).take(StreamCredit(stream=2, bytes=1))


# --- images -------------------------------------------------------------------------------------------------------


async def test_an_image_is_fetched_only_by_a_host_that_needs_it_and_carried_on(bench: Bench, tmp_path: Path) -> None:
    content = bytes(range(256)) * 20_000
    source = tmp_path / "image"
    source.write_bytes(content)
    wanted = "sha256:" + "a" * 64
    bench.books.images[wanted] = source
    told: list[int] = []
    async with Dialer(await bench.joined()) as dialer:
        await dialer.fetch(wanted, tmp_path / "whole", told.append)
        assert (tmp_path / "whole").read_bytes() == content
        assert told[-1] == len(content)

        (tmp_path / "half").write_bytes(content[:1_000_000])
        told.clear()
        await dialer.fetch(wanted, tmp_path / "half", told.append)
        assert (tmp_path / "half").read_bytes() == content
        assert told[0] > 1_000_000
        await dialer.fetch(wanted, tmp_path / "half", told.append)
        assert (tmp_path / "half").read_bytes() == content

        with pytest.raises(NotFound, match="no image"):
            await dialer.fetch("sha256:" + "b" * 64, tmp_path / "other", told.append)
        with pytest.raises(NotFound, match="no image"):
            await dialer.fetch("sha256:..%2f..%2fpki%2fca.key", tmp_path / "other", told.append)


# --- hosts that misbehave -----------------------------------------------------------------------------------------


async def test_a_newer_connection_replaces_the_older_in_that_order(bench: Bench) -> None:
    identity = await bench.joined()
    async with bench.raw(identity) as old, bench.raw(identity) as new:
        await welcomed(old, bench)
        first = bench.session()
        ending = asyncio.ensure_future(end_of(old))
        await welcomed(new, bench)

        assert await ending == "the host connected anew"
        assert bench.session() is not first
        assert bench.books.story == ["connected", "disconnected: the host connected anew", "connected"]


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"\xc1garbage", "sent what can't be read"),
        (to_pack({"m": "Unheard"}), "sent what can't be read"),
        (to_pack(Reports(number=1, reports=())) + b"trailing", "sent what can't be read"),
        (b"\x00" * (MAX_MESSAGE_BYTES + 1), f"sent a message over the limit of {MAX_MESSAGE_BYTES} bytes"),
        ("text", "sent text, where every message is binary"),
    ],
)
async def test_what_cannot_be_read_ends_the_session_with_a_reason(
    bench: Bench, frame: bytes | str, reason: str
) -> None:
    async with bench.raw(await bench.joined()) as ws:
        await welcomed(ws, bench)
        await (ws.send_str(frame) if isinstance(frame, str) else ws.send_bytes(frame))

        await bench.books.until(lambda: f"disconnected: {reason}" in bench.books.story[-1])


async def test_a_second_hello_ends_the_session(bench: Bench) -> None:
    async with bench.raw(await bench.joined()) as ws:
        await welcomed(ws, bench)
        await ws.send_bytes(to_pack(hello(bench.host)))
        assert await end_of(ws) == "broke the rules: a second hello"


async def test_a_message_before_hello_is_turned_away(bench: Bench) -> None:
    async with bench.raw(await bench.joined()) as ws:
        await ws.send_bytes(to_pack(Reports(number=1, reports=())))
        assert await next_down(ws) == Refused(reason="it said Reports before its hello")
    assert bench.books.story == ["turned away: it said Reports before its hello"]


async def test_another_protocol_is_turned_away_with_the_way_out(bench: Bench) -> None:
    async with bench.raw(await bench.joined()) as ws:
        await ws.send_bytes(to_pack(hello(bench.host, protocol=9)))
        answer = await next_down(ws)
    assert isinstance(answer, Refused)
    assert "it speaks protocol 9" in answer.reason
    assert "upgrade" in answer.reason


async def test_an_agent_one_protocol_behind_is_let_in(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_server, "PROTOCOL", 2)
    async with bench.raw(await bench.joined()) as ws:
        await ws.send_bytes(to_pack(hello(bench.host, protocol=1)))
        assert isinstance(await next_down(ws), Welcome)


async def test_an_agent_ahead_of_its_controller_goes_on_and_is_let_in_once_that_was_upgraded(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_link, "PROTOCOL", 2)
    monkeypatch.setattr(agent_link, "REFUSED_PAUSE_S", 0.05)
    async with bench.agent(await bench.joined()):
        await bench.books.until(lambda: any("it speaks protocol 2" in line for line in bench.books.story))
        assert "connected" not in bench.books.story
        monkeypatch.setattr(link_server, "PROTOCOL", 2)
        await bench.books.until(lambda: "connected" in bench.books.story)


async def test_silence_instead_of_hello_is_not_waited_for_long(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_server, "HELLO_LIMIT_S", 0.1)
    async with bench.raw(await bench.joined()) as ws:
        assert await next_down(ws) == Refused(reason="it said no hello within 0.1 s")


async def test_a_flood_ends_the_session(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_server, "Allowance", lambda **_: Allowance(burst=50, per_s=1))
    async with bench.raw(await bench.joined()) as ws:
        await welcomed(ws, bench)
        frame = to_pack(HostEvent(at=1, subject="", action="noise", message=""))
        for _ in range(60):
            await ws.send_bytes(frame)
        await bench.books.until(lambda: "flooded the link" in bench.books.story[-1])


def test_an_allowance_refills_with_time() -> None:
    allowance = Allowance(burst=2, per_s=1)
    assert [allowance.spend(now) for now in (10.0, 10.0, 10.0)] == [True, True, False]
    assert allowance.spend(12.5)


async def test_a_host_that_does_not_read_is_shed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "QUEUE_BYTES", 2_000_000)
    async with bench.raw(await bench.joined()) as ws:
        await welcomed(ws, bench)
        session = bench.session()
        for number in range(64):
            session.send(StreamData(stream=number, data=b"x" * 500_000))
            await asyncio.sleep(0)
        await bench.books.until(lambda: "too slow" in bench.books.story[-1])
        assert bench.books.sessions.get(bench.host) is None


async def test_a_host_that_takes_nothing_for_too_long_is_shed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "SEND_LIMIT_S", 0.3)
    async with bench.raw(await bench.joined()) as ws:
        await welcomed(ws, bench)
        assert ws._conn is not None
        ws._conn.transport.pause_reading()
        session = bench.session()
        for number in range(14):
            session.send(StreamData(stream=number, data=b"x" * 1_000_000))
        await bench.books.until(lambda: "took nothing for 0.3 s" in bench.books.story[-1])


async def test_a_dead_peer_is_noticed_by_both_sides(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_server, "HEARTBEAT_S", 0.4)
    async with bench.raw(await bench.joined()) as ws:
        await welcomed(ws, bench)
        assert ws._conn is not None
        ws._conn.transport.pause_reading()  # no ping is seen, none is answered

        await bench.books.until(lambda: "no sign of life" in bench.books.story[-1])


async def test_a_failing_fleet_ends_the_session_in_words(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(session: Session, message: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(bench.books, "received", broken)
    async with bench.raw(await bench.joined()) as ws:
        await welcomed(ws, bench)
        await ws.send_bytes(to_pack(Reports(number=1, reports=())))
        assert await end_of(ws) == "the controller failed on its Reports: see the controller's log"


async def test_messages_are_taken_in_in_order_and_replies_pass_them(bench: Bench) -> None:
    bench.books.pace = asyncio.Event()
    async with bench.agent(await bench.joined()) as agent:
        await bench.books.until(lambda: bench.books.story)
        for number in range(5):
            agent.outbox.event(HostEvent(at=number, subject="", action="tick", message=""))
        assert await bench.session().call(ReadSerialLog(vm=VM, tail_bytes=1), REQUEST) == b"d"
        assert bench.books.heard == []

        bench.books.pace.set()
        await bench.books.until(lambda: sum(isinstance(told, HostEvent) for told in bench.books.heard) == 5)
        assert [told.at for told in bench.books.heard if isinstance(told, HostEvent)] == [0, 1, 2, 3, 4]


async def test_a_session_ends_with_its_certificate(bench: Bench) -> None:
    identity = await bench.joined()
    bench.port.clock_ahead_s = 30 * 86400 - 3
    async with bench.raw(identity) as ws:
        await ws.send_bytes(to_pack(hello(bench.host)))
        assert await end_of(ws) == "its certificate has expired"


async def test_a_refusal_by_the_fleet_reaches_the_host(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def connected(session: Session, hello: object) -> Welcome:
        raise Denied("host h1 was deleted")

    monkeypatch.setattr(bench.books, "connected", connected)
    async with bench.raw(await bench.joined()) as ws:
        await ws.send_bytes(to_pack(hello(bench.host)))
        assert await next_down(ws) == Refused(reason="host h1 was deleted")
