"""The thin pool by its command lines, over a volume group that behaves: what is made, tagged, and found again."""

import json
from pathlib import Path
from typing import Any

import pytest

from agent.drivers.lvm import LvmPool, parse_lvs
from agent.drivers.place import Place
from agent.drivers.shown import GIB, CachedImage
from common.documents import ImageRef, SnapshotRef
from common.errors import Invalid
from common.faults import Died
from common.ids import Id
from common.run import CommandFailed

VOLUME, SNAP, VM = Id("vol-0123456789ab"), Id("snap-0123456789ab"), Id("vm-0123456789ab")
IMAGE = ImageRef(digest="sha256:" + "a" * 64, format="qcow2", size_bytes=100)
ORIGIN = "img-" + "a" * 64
PLACE = Place(
    volumes=Path("/none"), images=Path("/none"), logs=Path("/none"), seeds=Path("/none"),
    variables=Path("/none"), vouchers=Path("/none"),
    virtualisation="kvm", direct_io=True, volume_group="vg0",
)  # fmt: skip

SHOWN = """{"report": [{"lv": [
  {"lv_name":"skerry", "lv_size":"10737418240", "data_percent":"81.50", "metadata_percent":"12.30", "pool_lv":"",
   "lv_tags":"", "zero":"zero"},
  {"lv_name":"vol-0123456789ab", "lv_size":"4294967296", "data_percent":"50.00", "metadata_percent":"",
   "pool_lv":"skerry", "lv_tags":"backup,skerry.owner=vol-0123456789ab,skerry.reverts=2,skerry.untold", "zero":""}
]}]}"""


class Group:
    """A volume group with a thin pool. `deadly`: dies after so many changes."""

    def __init__(self) -> None:
        self.there: dict[str, dict[str, Any]] = {"skerry": {"size": 10 * GIB, "pool": "", "tags": [], "zero": ""}}
        self.lines: list[list[str]] = []
        self.deadly = -1

    async def __call__(self, argv: list[str], *, timeout_s: float = 30) -> str:
        if argv[0] == "lvs":
            return self._lvs()
        if self.deadly == 0:
            raise Died
        self.deadly -= 1
        self.lines.append(argv)
        getattr(self, f"_{argv[0].replace('-', '_')}")(argv)
        return ""

    def _lvs(self) -> str:
        rows = [
            {
                "lv_name": name, "lv_size": str(its["size"]), "data_percent": "25.00", "metadata_percent": "",
                "pool_lv": its["pool"], "lv_tags": ",".join(its["tags"]), "zero": its["zero"],
            }
            for name, its in self.there.items()
        ]  # fmt: skip
        return json.dumps({"report": [{"lv": rows}]})

    def _lvcreate(self, argv: list[str]) -> None:
        name = argv[argv.index("-n") + 1]
        assert name not in self.there
        tags = [argv[at + 1] for at, word in enumerate(argv) if word == "--addtag"]
        if "-s" in argv:
            size = self._of(argv)["size"]
        else:
            size = int(argv[argv.index("-V") + 1].removesuffix("b"))
            assert argv[argv.index("-T") + 1] == "vg0/skerry"
        self.there[name] = {"size": size, "pool": "skerry", "tags": tags, "zero": ""}

    def _lvrename(self, argv: list[str]) -> None:
        assert argv[3] not in self.there
        self.there[argv[3]] = self.there.pop(argv[2])

    def _lvremove(self, argv: list[str]) -> None:
        del self.there[argv[-1].removeprefix("vg0/")]

    def _lvextend(self, argv: list[str]) -> None:
        self._of(argv)["size"] = int(argv[argv.index("-L") + 1].removesuffix("b"))

    def _lvchange(self, argv: list[str]) -> None:
        tags = self._of(argv)["tags"]
        if argv[1] == "--addtag" and argv[2] not in tags:
            tags.append(argv[2])
        if argv[1] == "--deltag":
            tags.remove(argv[2])
        if argv[1] == "--zero":
            self._of(argv)["zero"] = "zero"

    def _qemu_img(self, argv: list[str]) -> None:
        assert argv[-1].removeprefix("/dev/vg0/") in self.there

    def _of(self, argv: list[str]) -> dict[str, Any]:
        found: dict[str, Any] = self.there[argv[-1].removeprefix("vg0/")]
        return found


class Images:
    """A cache with one image."""

    def look(self, _image: ImageRef) -> CachedImage:
        return CachedImage(ready=True, disk_bytes=2 * GIB)

    def path(self, _image: ImageRef) -> Path:
        return Path("/images/a")

    def touch(self, _image: ImageRef) -> None:
        pass

    def list(self) -> tuple[()]:
        return ()


class Guests:
    """A hypervisor that is told of sizes."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, int]] = []

    async def grow_disk(self, vm: Id, path: str, size_bytes: int) -> None:
        self.told.append((vm, path, size_bytes))


def pool(group: Group, guests: Guests | None = None) -> LvmPool:
    return LvmPool(PLACE, "skerry", Images(), guests or Guests(), group)  # type: ignore[arg-type]


def test_the_report_of_lvs_is_read_with_its_tags() -> None:
    found = parse_lvs(SHOWN)
    assert found["skerry"].used_bytes == int(10 * GIB * 0.815)
    assert found["skerry"].zero == "zero"
    disk = found[VOLUME]
    assert (disk.size_bytes, disk.used_bytes) == (4 * GIB, 2 * GIB)
    assert disk.tags == {"owner": VOLUME, "reverts": "2", "untold": ""}


async def test_a_pool_that_is_not_there_is_named_with_the_way_out_and_one_that_does_not_zero_is_made_to() -> None:
    group = Group()
    await pool(group).prepare()
    assert group.lines == [["lvchange", "--zero", "y", "vg0/skerry"]]
    del group.there["skerry"]
    with pytest.raises(Invalid, match="volume group vg0 has no thin pool skerry") as refused:
        await pool(group).prepare()
    assert "lvcreate --type thin-pool" in refused.value.fix


async def test_a_blank_disk_is_made_grows_and_goes() -> None:
    group, guests = Group(), Guests()
    unit = pool(group, guests)
    await unit.make(VOLUME, 4, None, 0)
    await unit.make(VOLUME, 4, None, 0)
    held = await unit.look(VOLUME)
    assert held.disk is not None
    assert (held.disk.size_bytes, held.disk.allocated_bytes, held.reverts) == (4 * GIB, GIB, 0)
    assert await unit.is_ready(VOLUME, 0)
    assert not await unit.is_ready(VOLUME, 1)
    await unit.grow(VOLUME, 8, VM)
    assert guests.told == [(VM, f"/dev/vg0/{VOLUME}", 8 * GIB)]
    held = await unit.look(VOLUME)
    assert held.disk is not None
    assert (held.disk.size_bytes, held.disk.untold) == (8 * GIB, False)
    await unit.remove(VOLUME)
    await unit.remove(VOLUME)
    assert list(group.there) == ["skerry"]


async def test_a_guest_that_was_not_told_of_growth_is_told_by_the_next_turn() -> None:
    group = Group()
    await pool(group).make(VOLUME, 4, None, 0)
    group.deadly = 2
    with pytest.raises(Died):
        await pool(group).grow(VOLUME, 8, None)
    held = await pool(group).look(VOLUME)
    assert held.disk is not None
    assert (held.disk.size_bytes, held.disk.untold) == (8 * GIB, True)


async def test_clones_are_thin_snapshots_of_an_image_that_is_written_once() -> None:
    group = Group()
    await pool(group).make(VOLUME, 4, IMAGE, 0)
    await pool(group).make(Id("vol-zzzzzzzzzzzz"), 2, IMAGE, 0)
    assert [argv[0] for argv in group.lines].count("qemu-img") == 1
    assert {name: its["size"] // GIB for name, its in group.there.items()} == {
        "skerry": 10, ORIGIN: 2, VOLUME: 4, "vol-zzzzzzzzzzzz": 2,
    }  # fmt: skip
    await pool(group).tidy(0)
    assert ORIGIN not in group.there, "the cache has it no more, and clones do not need it"


async def test_a_snapshot_is_cloned_by_a_thin_snapshot_that_needs_it_no_more() -> None:
    group, twin = Group(), Id("vol-zzzzzzzzzzzz")
    unit = pool(group)
    await unit.make(VOLUME, 4, None, 0)
    await unit.take(VOLUME, SNAP, None)
    for _ in range(2):
        await unit.make(twin, 6, SnapshotRef(id=SNAP, volume=VOLUME), 0)
    made = [argv for argv in group.lines if f"{twin}-part" in argv and argv[0] == "lvcreate"]
    assert [(argv[-1], "-s" in argv) for argv in made] == [(f"vg0/{SNAP}", True)]
    await unit.drop(VOLUME, SNAP, None)
    await unit.remove(VOLUME)
    assert group.there[twin]["size"] == 6 * GIB
    assert sorted(group.there) == ["skerry", twin]


async def test_a_snapshot_belongs_to_its_volume_by_tag_and_outlives_it() -> None:
    group = Group()
    unit = pool(group)
    await unit.make(VOLUME, 4, None, 0)
    await unit.take(VOLUME, SNAP, VM)
    await unit.take(VOLUME, SNAP, None)
    assert (await unit.look(VOLUME)).snapshots == {SNAP}
    found = {one.name: one for one in await unit.survey()}
    assert (found[SNAP].what, found[SNAP].owner, found[SNAP].detail) == ("snapshot", SNAP, VOLUME)
    assert (found[VOLUME].what, found[VOLUME].owner) == ("disk", VOLUME)
    assert "skerry" not in found
    await unit.remove(VOLUME)
    assert (await unit.look(VOLUME)).snapshots == {SNAP}
    await unit.drop(VOLUME, SNAP, None)
    await unit.drop(VOLUME, SNAP, None)
    assert list(group.there) == ["skerry"]


@pytest.mark.parametrize("deadly", range(4))
async def test_a_revert_is_whole_whoever_died_in_it(deadly: int) -> None:
    group = Group()
    await pool(group).make(VOLUME, 4, None, 0)
    await pool(group).take(VOLUME, SNAP, None)
    await pool(group).grow(VOLUME, 8, None)
    group.deadly = deadly
    try:
        await pool(group).revert(VOLUME, SNAP, 1)
    except Died:
        held = await pool(group).look(VOLUME)
        assert held.disk is not None, "it never counts as lost"
        assert held.reverts == 0
        assert not await pool(group).is_ready(VOLUME, 1), "and nobody gets it before it is whole"
    group.deadly = -1
    if (await pool(group).look(VOLUME)).reverts < 1:
        await pool(group).revert(VOLUME, SNAP, 1)
    held = await pool(group).look(VOLUME)
    assert held.disk is not None
    assert (held.disk.size_bytes, held.reverts, held.snapshots) == (4 * GIB, 1, {SNAP})
    assert sorted(group.there) == sorted(["skerry", VOLUME, SNAP])


async def test_what_is_nobodys_in_the_pool_is_named_and_what_is_beside_it_is_not() -> None:
    group = Group()
    its = {"size": 4 * GIB, "tags": [], "zero": ""}
    group.there |= {"backup": {**its, "pool": "skerry"}, "root": {**its, "pool": ""}}
    group.there |= {f"{VOLUME}-part": {**its, "pool": "skerry"}, ORIGIN: {**its, "pool": "skerry"}}
    found = {one.name: (one.what, one.owner, one.detail) for one in await pool(group).survey()}
    assert found == {
        "vg0/backup": ("logical-volume", None, "in thin pool vg0/skerry, of which it takes 1.0 GiB"),
        f"{VOLUME}-part": ("file", VOLUME, "in the thin pool"),
        ORIGIN: ("image", None, "the origin of clones"),
    }


async def test_a_command_that_fails_leaves_nothing_believed() -> None:
    group = Group()
    unit = pool(group)
    await unit.make(VOLUME, 4, None, 0)

    async def refuse(argv: list[str], *, timeout_s: float = 30) -> str:
        if argv[0] == "lvremove":
            raise CommandFailed(argv, 5, "Logical volume vg0/vol is used by another device.")
        return await group(argv, timeout_s=timeout_s)

    busy = LvmPool(PLACE, "skerry", Images(), Guests(), refuse)  # type: ignore[arg-type]
    with pytest.raises(CommandFailed, match="used by another device"):
        await busy.remove(VOLUME)
    assert (await busy.look(VOLUME)).disk is not None
