"""A host that leaves: what the controller is told, what is refused, and that nothing is left of what was made."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent import leave
from agent.kinds.unit import Do, Settled, Wish
from agent.memory import Memory, open_memory
from common.documents import Desired, DocKey, DomainDoc, NetworkDoc, Report, VolumeDoc, last_document
from common.errors import Conflict, Temporary
from common.ids import Id, Revision
from common.protocol import DesiredBatch, Found

KNOWN, UNKNOWN = Id("vol-00000000000a"), Id("vol-00000000000b")


class Remove:
    """The one step there is."""

    destroys = True

    def __init__(self, name: str) -> None:
        self.name = name


class Disks:
    """Volumes that exist in a set, and go by tombstones only. One may not want to go."""

    name = "volume"

    def __init__(self, *there: str, stuck: str = "") -> None:
        self.there = set(there)
        self.stuck = stuck

    async def observe(self, wish: Wish) -> bool:
        return wish.unit.partition("/")[2] in self.there

    def plan(self, wish: Wish, seen: bool, now: float) -> Do[Remove] | Settled:
        item = wish.items[DocKey(wish.unit)]
        if seen and item.gone:
            return Do(step=Remove(wish.unit.partition("/")[2]), say="removing it")
        return Settled(reports=(Report(key=item.key, revision=item.revision, done=True),))

    async def apply(self, step: Remove) -> None:
        if step.name == self.stuck:
            raise Temporary("it is in use")
        self.there.discard(step.name)

    async def survey(self) -> tuple[Found, ...]:
        return tuple(Found(what="disk", name=f"{one}.qcow2", owner=Id(one)) for one in sorted(self.there))


@pytest.fixture
async def memory(tmp_path: Path) -> AsyncIterator[Memory]:
    memory = await open_memory(tmp_path / "memory.db")
    document = Desired(
        key=DocKey(f"volume/{KNOWN}"), revision=Revision(5), doc=VolumeDoc(id=KNOWN, size_gib=1, image=None)
    )
    await memory.apply(DesiredBatch(items=(document,)))
    yield memory
    await memory.close()


async def test_what_is_known_and_what_nobody_knows_goes(memory: Memory) -> None:
    disks = Disks(KNOWN, UNKNOWN)
    await leave.clear(memory, [disks])
    assert disks.there == set()
    assert memory.items == {}


async def test_what_does_not_go_is_named(memory: Memory) -> None:
    disks = Disks(KNOWN, UNKNOWN, stuck=UNKNOWN)
    with pytest.raises(Temporary, match=f"there is still disk {UNKNOWN}.qcow2"):
        await leave.clear(memory, [disks], limit_s=0.5)
    assert disks.there == {UNKNOWN}
    disks.stuck = ""
    await leave.clear(memory, [disks])  # typed again
    assert disks.there == set()


def test_machines_and_disks_are_lost_by_consent_only() -> None:
    bridge = Found(what="bridge", name="b-x", owner=Id("net-00000000000a"))
    somebodys = Found(what="domain", name="other", owner=None)
    leave.refuse_losing((bridge, somebodys))
    with pytest.raises(Conflict, match=r"disk vol-00000000000a.qcow2") as caught:
        leave.refuse_losing((bridge, Found(what="disk", name=f"{KNOWN}.qcow2", owner=KNOWN)))
    assert "skerry-agent leave --force" in caught.value.fix


def test_a_tombstone_is_newer_than_all_that_is_known() -> None:
    document = Desired(
        key=DocKey(f"volume/{KNOWN}"), revision=Revision(5), doc=VolumeDoc(id=KNOWN, size_gib=1, image=None)
    )
    found = (
        Found(what="domain", name="vm-00000000000c", owner=Id("vm-00000000000c")),
        Found(what="bridge", name="b-x", owner=Id("net-00000000000d")),
        Found(what="disk", name=f"{KNOWN}.qcow2", owner=KNOWN),
        Found(what="domain", name="somebodys", owner=None),
    )
    dead = leave.tombstones({document.key: document}, Revision(9), found)
    assert {item.key for item in dead} == {document.key, "domain/vm-00000000000c", "network/net-00000000000d"}
    assert all(item.gone and item.revision == 10 for item in dead)


def test_of_each_that_is_built_a_last_document_can_be_made_up() -> None:
    assert isinstance(last_document(Id("vm-00000000000a")), DomainDoc)
    assert isinstance(last_document(Id("net-00000000000a")), NetworkDoc)
    assert isinstance(last_document(KNOWN), VolumeDoc)
    assert last_document(Id("key-00000000000a")) is None


def test_everything_in_the_directories_goes_and_the_identity_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    (state / "images").mkdir(parents=True)
    for name in ("identity.pem", "lock", "memory.db", "zzz"):
        (state / name).write_text("")
    gone: list[str] = []
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path: (gone.append(path.name), unlink(path)))
    leave.wipe((state, tmp_path / "missing"))
    assert list(state.iterdir()) == []
    assert gone[-1] == "identity.pem"


async def test_a_machine_that_never_joined_has_nothing_to_tell() -> None:
    assert "had joined no cloud" in await leave.let_go(None, force=False)
