"""The agent's memory: what survives lost, repeated and reordered messages, and death at any line."""

import sqlite3
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.kinds.unit import UnitKey
from agent.memory import DirectLane, Memory, open_memory
from common.documents import Desired, DocKey, NetworkDoc, PortDoc, VolumeDoc, key_of
from common.errors import Invalid
from common.faults import Died, Faults
from common.ids import HostId, Id, Revision
from common.protocol import DesiredBatch

NET = Id("net-00000000000n")
VOL = Id("vol-00000000000a")


def volume(revision: int, *, gone: bool = False, size_gib: int = 1, volume_id: Id = VOL) -> Desired:
    doc = VolumeDoc(id=volume_id, size_gib=size_gib, image=None)
    return Desired(key=key_of(doc), revision=Revision(revision), doc=doc, gone=gone)


def network(revision: int) -> Desired:
    doc = NetworkDoc(id=NET, vni=7, cidr="10.0.0.0/24", gateway="10.0.0.1", mtu=1400, domain="n.p.internal")
    return Desired(key=key_of(doc), revision=Revision(revision), doc=doc)


def port(revision: int, *, gone: bool = False) -> Desired:
    doc = PortDoc(
        vm=Id("vm-00000000000a"), index=0, network=NET, mac="02:00:00:00:00:01", address="10.0.0.5",
        hostname="web", host=HostId(Id("host-00000000000h")), vtep="10.77.0.11",
    )  # fmt: skip
    return Desired(key=key_of(doc), revision=Revision(revision), doc=doc, gone=gone)


def batch(*items: Desired, full: bool = False) -> DesiredBatch:
    return DesiredBatch(items=items, full=full)


@pytest.fixture
async def memory(tmp_path: Path) -> AsyncIterator[Memory]:
    opened = await open_memory(tmp_path / "memory.db")
    yield opened
    await opened.close()


async def test_what_was_applied_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    first = await open_memory(path)
    await first.apply(batch(volume(3), network(4), port(5)))
    await first.mark(UnitKey(f"volume/{VOL}"), "stop-asked-at", "12")
    await first.write_fact("host_name", "h1")
    before = first.digest()
    await first.close()

    second = await open_memory(path)

    assert second.digest() == before
    assert second.units() == (UnitKey(f"network/{NET}"), UnitKey(f"volume/{VOL}"))
    assert set(second.wish(UnitKey(f"network/{NET}")).items) == {key_of(network(4).doc), key_of(port(5).doc)}
    assert second.wish(UnitKey(f"volume/{VOL}")).marks == {"stop-asked-at": "12"}
    assert second.fact("host_name") == "h1"
    await second.close()


async def test_an_older_or_equal_revision_changes_nothing(memory: Memory) -> None:
    await memory.apply(batch(volume(5, size_gib=5)))

    assert await memory.apply(batch(volume(4, size_gib=4), volume(5, size_gib=6))) == frozenset()
    (item,) = memory.items.values()
    assert item == volume(5, size_gib=5)


async def test_the_changed_units_are_named_and_a_port_belongs_to_its_network(memory: Memory) -> None:
    assert await memory.apply(batch(volume(1), port(2))) == {UnitKey(f"volume/{VOL}"), UnitKey(f"network/{NET}")}


async def test_absence_in_a_full_list_is_no_order(memory: Memory) -> None:
    await memory.apply(batch(volume(1), network(2)))

    await memory.apply(batch(network(2), full=True))

    assert DocKey(f"volume/{VOL}") in memory.items


async def test_a_forgotten_tombstone_is_not_undone_by_a_late_repetition(memory: Memory) -> None:
    await memory.apply(batch(volume(1)))
    await memory.apply(batch(volume(2, gone=True)))
    await memory.forget([(DocKey(f"volume/{VOL}"), Revision(2))])
    assert not memory.items

    await memory.apply(batch(volume(1)))

    assert not memory.items


async def test_a_forgotten_tombstone_that_comes_again_is_looked_at_again(memory: Memory) -> None:
    await memory.apply(batch(volume(2, gone=True)))
    await memory.forget([(DocKey(f"volume/{VOL}"), Revision(2))])

    assert await memory.apply(batch(volume(2, gone=True), full=True)) == {UnitKey(f"volume/{VOL}")}
    assert memory.items[DocKey(f"volume/{VOL}")].gone


async def test_after_the_life_of_a_thing_the_digest_is_what_it_was(memory: Memory) -> None:
    await memory.apply(batch(network(1)))
    before = memory.digest()
    await memory.apply(batch(volume(2)))
    await memory.apply(batch(volume(3, gone=True)))

    await memory.forget([(DocKey(f"volume/{VOL}"), Revision(3))])

    assert memory.digest() == before


async def test_forgetting_spares_what_lives_and_what_has_changed(memory: Memory) -> None:
    await memory.apply(batch(volume(2)))
    await memory.forget([(DocKey(f"volume/{VOL}"), Revision(2))])
    assert memory.items
    await memory.apply(batch(volume(4, gone=True)))
    await memory.forget([(DocKey(f"volume/{VOL}"), Revision(3))])
    assert memory.items


async def test_marks_go_with_the_last_document_of_their_unit(memory: Memory) -> None:
    unit = UnitKey(f"volume/{VOL}")
    await memory.apply(batch(volume(2, gone=True)))
    await memory.mark(unit, "a", "1")
    await memory.mark(unit, "b", "2")
    await memory.mark(unit, "a", None)
    assert memory.wish(unit).marks == {"b": "2"}

    await memory.forget([(DocKey(f"volume/{VOL}"), Revision(2))])

    assert memory.wish(unit).marks == {}


async def test_dying_after_the_commit_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"

    def die(point: str) -> None:
        if point == "memory.documents":
            raise Died(point)

    dying = await open_memory(path, lane=DirectLane(), faults=Faults(die))
    with pytest.raises(Died):
        await dying.apply(batch(volume(1)))
    assert not dying.items, "nothing is seen that a reader could act on before the call has returned"
    await dying.close()

    after = await open_memory(path)
    assert after.items[DocKey(f"volume/{VOL}")] == volume(1)
    await after.close()


async def test_a_file_that_is_no_memory_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    path.write_bytes(b"not a database at all, but long enough to look like one" * 20)

    with pytest.raises(Invalid, match="can't be read") as caught:
        await open_memory(path)
    assert "move the file away" in caught.value.fix


async def test_a_newer_layout_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    await (await open_memory(path)).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()

    with pytest.raises(Invalid, match="layout 99"):
        await open_memory(path)


async def test_the_file_is_private(tmp_path: Path) -> None:
    memory = await open_memory(tmp_path / "memory.db")
    await memory.close()
    assert (tmp_path / "memory.db").stat().st_mode & 0o077 == 0


@st.composite
def deliveries(draw: st.DrawFn) -> list[Desired]:
    """A history of two volumes with rising revisions, then delivered with losses, repetitions and in any order."""
    ids = [Id("vol-00000000000a"), Id("vol-00000000000b")]
    history = [
        volume(revision, gone=draw(st.booleans()), size_gib=revision, volume_id=draw(st.sampled_from(ids)))
        for revision in range(1, draw(st.integers(2, 8)))
    ]
    return draw(st.lists(st.sampled_from(history), max_size=30))


@settings(deadline=None, max_examples=60)
@given(deliveries())
async def test_whatever_order_messages_come_in_the_newest_seen_holds(items: list[Desired]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        memory = await open_memory(Path(directory) / "memory.db", lane=DirectLane())
        for item in items:
            await memory.apply(batch(item))
        await memory.close()

    newest: dict[DocKey, Desired] = {}
    for item in items:
        if item.key not in newest or item.revision > newest[item.key].revision:
            newest[item.key] = item
    assert dict(memory.items) == newest
