"""What a volume needs next; the image cache against good, bad and hostile images; qemu-img for real."""

import asyncio
import contextlib
import hashlib
import io
import os
import struct
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.drivers import files
from agent.drivers.file_pool import FilePool
from agent.drivers.hypervisor import ListedDomain
from agent.drivers.images import CacheEntry, Fetch, ImageCache, Progress, evictable
from agent.drivers.place import Place
from agent.drivers.shown import GIB, CachedImage, Disk, Held
from agent.kinds.unit import Do, Mark, Settled, UnitKey, Wait, Wish
from agent.kinds.volume import Volumes
from agent.kinds.volume_plan import (
    DiskUser,
    FetchImage,
    GrowDisk,
    MakeDisk,
    RemoveDisk,
    VolumeView,
    plan,
)
from common.documents import Desired, ImageRef, Report, VolumeDoc, VolumeSeen, key_of
from common.errors import Invalid, Temporary
from common.faults import Died, Faults
from common.ids import Id, Revision
from common.run import run

VOLUME = Id("vol-0123456789ab")
QCOW2 = ImageRef(digest="sha256:" + "a" * 64, format="qcow2", size_bytes=100)
KERNEL = ImageRef(digest="sha256:" + "b" * 64, format="kernel", size_bytes=100)
READY = CachedImage(ready=True, disk_bytes=2 * GIB)


def wish(image: ImageRef | None = None, size_gib: int = 4, *, gone: bool = False) -> Wish:
    doc = VolumeDoc(id=VOLUME, size_gib=size_gib, image=image)
    item = Desired(key=key_of(doc), revision=Revision(3), doc=doc, gone=gone)
    return Wish(unit=UnitKey(item.key), items={item.key: item}, marks={})


def view(disk_gib: int | None = None, **changes: Any) -> VolumeView:
    disk = Disk(size_bytes=disk_gib * GIB, allocated_bytes=7) if disk_gib else None
    of_held = {name: changes.pop(name) for name in ("anything", "snapshots", "reverts") if name in changes}
    held = msgspec.structs.replace(Held(disk=disk, anything=disk is not None), **of_held)
    return msgspec.structs.replace(VolumeView(held=held, image=CachedImage()), **changes)


def step_of(outcome: object) -> object:
    assert isinstance(outcome, Do), outcome
    return outcome.step


# --- the plan -----------------------------------------------------------------------------------------------------


def test_a_volume_of_an_image_is_fetched_cloned_and_settled() -> None:
    assert isinstance(step_of(plan(wish(QCOW2), view(), 0)), FetchImage)
    assert step_of(plan(wish(QCOW2), view(image=READY), 0)) == MakeDisk(volume=VOLUME, size_gib=4, over=QCOW2)
    outcome = plan(wish(QCOW2), view(4, image=READY), 0)
    assert isinstance(outcome, Settled)
    assert outcome.reports[0].seen == VolumeSeen(size_gib=4, allocated_bytes=7)


def test_a_kernel_image_is_fetched_and_gives_a_blank_disk() -> None:
    assert isinstance(step_of(plan(wish(KERNEL), view(), 0)), FetchImage)
    ready = view(image=CachedImage(ready=True))
    assert step_of(plan(wish(KERNEL), ready, 0)) == MakeDisk(volume=VOLUME, size_gib=4, over=None)


def test_an_image_lost_from_the_cache_is_fetched_again_though_the_disk_exists() -> None:
    assert isinstance(step_of(plan(wish(QCOW2), view(4), 0)), FetchImage)


def test_a_refused_image_is_reported_and_not_fetched_again() -> None:
    outcome = plan(wish(QCOW2), view(image=CachedImage(refused="it is an overlay of '/etc/passwd'")), 0)
    assert isinstance(outcome, Wait)
    assert "/etc/passwd" in outcome.reports[0].problem


def test_an_image_larger_than_the_volume_is_refused_with_the_size_that_fits() -> None:
    outcome = plan(wish(QCOW2, 1), view(image=READY), 0)
    assert isinstance(outcome, Wait)
    assert "size ≥ 2" in outcome.reports[0].problem


def test_a_volume_grows_in_the_machine_that_runs_with_it_and_never_shrinks() -> None:
    users = (DiskUser(name="vm-0123456789ab", active=True),)
    assert step_of(plan(wish(None, 8), view(4, users=users), 0)) == GrowDisk(
        volume=VOLUME, size_gib=8, running_in=Id("vm-0123456789ab")
    )
    smaller = plan(wish(None, 2), view(4), 0)
    assert isinstance(smaller, Settled)
    assert "never shrink" in smaller.reports[0].message


def test_removal_waits_until_no_domain_has_the_disk() -> None:
    users = (DiskUser(name="vm-0123456789ab", active=False),)
    waiting = plan(wish(gone=True), view(4, users=users), 0)
    assert isinstance(waiting, Wait)
    assert "vm-0123456789ab" in waiting.message
    assert step_of(plan(wish(gone=True), view(4), 0)) == RemoveDisk(volume=VOLUME)
    assert isinstance(plan(wish(gone=True), view(), 0), Settled)


def test_a_part_is_removed_with_its_volume() -> None:
    assert step_of(plan(wish(gone=True), view(anything=True), 0)) == RemoveDisk(volume=VOLUME)


# --- the cache ----------------------------------------------------------------------------------------------------


def put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


class Source:
    """Where images come from in these tests."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.fetched: list[str] = []
        self.damage = False
        self.gate = asyncio.Event()
        self.gate.set()

    def offer(self, content: bytes, form: str) -> ImageRef:
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        self.content[digest] = content
        return ImageRef(digest=digest, format=form, size_bytes=len(content))  # type: ignore[arg-type]

    async def fetch(self, digest: str, destination: Path, progress: Progress) -> None:
        self.fetched.append(digest)
        content = self.content[digest]
        await self.gate.wait()
        progress(len(content) // 2)
        put(destination, b"x" + content[1:] if self.damage else content)
        progress(len(content))


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    found = Place(
        volumes=tmp_path / "volumes",
        images=tmp_path / "images",
        logs=tmp_path / "logs",
        seeds=tmp_path / "seeds",
        variables=tmp_path / "variables",
        vouchers=tmp_path / "vouchers",
        virtualisation="tcg",
        direct_io=False,
    )
    found.prepare()
    return found


def cache(place: Place, fetch: Fetch, faults: Faults | None = None) -> ImageCache:
    return ImageCache(place.images, fetch, faults or Faults())


def tar_of(members: dict[str, bytes], extra: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in extra:
            tar.addfile(info)
    return out.getvalue()


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def qcow2(path: Path, *arguments: str) -> bytes:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *arguments[:-1], str(path), arguments[-1]], check=True)
    return path.read_bytes()


def read(path: str) -> bytes:
    return Path(path).read_bytes()


async def test_a_kernel_image_is_unpacked_and_its_tar_removed(place: Place, source: Source) -> None:
    image = source.offer(tar_of({"vmlinuz": b"K", "./initrd": b"I", "cmdline": b"quiet\n"}), "kernel")
    images = cache(place, source.fetch)
    assert images.boot_files(image) is None
    await images.ensure(image, lambda _: None)
    boot = images.boot_files(image)
    assert boot is not None
    assert (read(boot.kernel), read(boot.initrd), boot.cmdline) == (b"K", b"I", "quiet")
    assert len(list(place.images.iterdir())) == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"no tar at all" * 100, "not a plain tar"),
        (tar_of({"vmlinuz": b"K"}), "no initrd"),
        (tar_of({"initrd": b"I"}, (link("vmlinuz", "/etc/passwd"),)), "not a regular file"),
        (tar_of({"vmlinuz": b"K", "initrd": b"I", "cmdline": b"x" * 3000}), "2048"),
        (tar_of({"vmlinuz": b"K", "initrd": b"I", "cmdline": b"\xff\xfe"}), "UTF-8"),
    ],
)
async def test_bad_kernel_images_are_refused(place: Place, source: Source, content: bytes, says: str) -> None:
    image = source.offer(content, "kernel")
    images = cache(place, source.fetch)
    await images.ensure(image, lambda _: None)
    assert says in images.look(image).refused
    assert images.boot_files(image) is None
    await images.ensure(image, lambda _: None)
    assert len(source.fetched) == 1


async def test_a_tar_can_not_write_outside_its_directory(place: Place, source: Source) -> None:
    content = tar_of({"../../evil": b"E", "/tmp/evil-skerry": b"E", "vmlinuz": b"K", "initrd": b"I", "x/vmlinuz": b"E"})
    image = source.offer(content, "kernel")
    await cache(place, source.fetch).ensure(image, lambda _: None)
    found = {path.name for path in place.images.rglob("*") if path.is_file()}
    assert found == {"vmlinuz", "initrd"}
    assert not (place.images.parent.parent / "evil").exists()


async def test_a_qcow2_image_that_opens_other_files_is_refused(place: Place, source: Source, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.write_bytes(b"\0" * 65536)
    overlay = source.offer(qcow2(tmp_path / "o", "-b", str(base), "-F", "raw", "1M"), "qcow2")
    external = source.offer(qcow2(tmp_path / "e", "-o", f"data_file={tmp_path / 'data'}", "1M"), "qcow2")
    good = qcow2(tmp_path / "b", "1M")
    broken = source.offer(good[:20] + b"\0\0\0\x3f" + good[24:], "qcow2")  # clusters of 2^63 bytes
    other = source.offer(b"plain bytes" * 100, "qcow2")
    images = cache(place, source.fetch)
    for image, says in (
        (overlay, "overlay"),
        (external, "external data"),
        (broken, "qemu-img"),
        (other, "not a qcow2"),
    ):
        await images.ensure(image, lambda _: None)
        assert says in images.look(image).refused
        assert not images.path(image).exists()


async def test_a_damaged_image_is_not_kept_and_can_be_fetched_again(place: Place, source: Source) -> None:
    image = source.offer(b"\0" * 1024, "raw")
    images = cache(place, source.fetch)
    source.damage = True
    with pytest.raises(Temporary, match="damaged"):
        await images.ensure(image, lambda _: None)
    assert list(place.images.iterdir()) == []
    source.damage = False
    await images.ensure(image, lambda _: None)
    assert images.look(image) == CachedImage(ready=True, disk_bytes=1024)


async def test_an_image_longer_than_announced_is_cut_off(place: Place, source: Source) -> None:
    image = msgspec.structs.replace(source.offer(b"\0" * 1024, "raw"), size_bytes=100)
    with pytest.raises(Temporary, match="longer"):
        await cache(place, source.fetch).ensure(image, lambda _: None)


async def test_an_image_without_room_is_not_fetched(place: Place, source: Source) -> None:
    image = msgspec.structs.replace(source.offer(b"\0", "raw"), size_bytes=1 << 60)
    with pytest.raises(Temporary, match="MiB"):
        await cache(place, source.fetch).ensure(image, lambda _: None)
    assert source.fetched == []


async def test_two_who_want_one_image_fetch_it_once(place: Place, source: Source) -> None:
    image = source.offer(b"\0" * 1024, "raw")
    images = cache(place, source.fetch)
    source.gate.clear()
    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(images.ensure(image, lambda _: None))
        await asyncio.sleep(0.05)
        source.gate.set()
    assert len(source.fetched) == 1
    assert images.look(image).ready


async def test_a_volume_whose_image_is_under_way_waits_and_shows_how_far_it_is(place: Place, source: Source) -> None:
    image = source.offer(b"\0" * 1024, "raw")
    unit = volumes(place, source)
    source.gate.clear()
    first = asyncio.create_task(settle(unit, wish(image, 1)))
    await asyncio.sleep(0.05)
    second = await settle(unit, wish(image, 1))
    assert isinstance(second, Wait)
    assert second.reports[0].progress == 0
    source.gate.set()
    assert isinstance(await first, Settled)
    assert len(source.fetched) == 1


async def test_few_images_are_fetched_at_once(place: Place, source: Source) -> None:
    images = cache(place, source.fetch)
    source.gate.clear()
    offered = [source.offer(bytes([n]) * 512, "raw") for n in range(5)]
    async with asyncio.TaskGroup() as group:
        for image in offered[:4]:
            group.create_task(images.ensure(image, lambda _: None))
        await asyncio.sleep(0.05)
        assert images.look(offered[4]).crowded
        waiting = plan(wish(offered[4]), view(image=images.look(offered[4])), 0)
        assert isinstance(waiting, Wait)
        assert "other images" in waiting.message
        source.gate.set()
    assert not images.look(offered[4]).crowded


def test_eviction_keeps_what_is_referenced_under_a_disk_under_way_or_fresh() -> None:
    old, fresh = CacheEntry(name="a", used_at=0), CacheEntry(name="f", used_at=9000)
    entries = [old, fresh, *(CacheEntry(name=name, used_at=0) for name in ("b.d", "c", "d-part", "e.raw.refused"))]
    assert evictable(entries, {"sha256:b"}, {"c"}, {"d"}, 10000) == ("a", "e.raw.refused")


# --- the unit -----------------------------------------------------------------------------------------------------


class Hypervisor:
    """Only what volumes ask of one."""

    def __init__(self) -> None:
        self.users: tuple[ListedDomain, ...] = ()

    async def users_of(self, path: str) -> tuple[ListedDomain, ...]:
        return self.users


def volumes(place: Place, source: Source, told: list[Report] | None = None, faults: Faults | None = None) -> Volumes:
    faults = faults or Faults()
    reports: list[Report] = [] if told is None else told
    images, hypervisor = cache(place, source.fetch, faults), Hypervisor()
    return Volumes(
        place,
        FilePool(place, images, hypervisor),  # type: ignore[arg-type]
        images,
        hypervisor,  # type: ignore[arg-type]
        report=reports.append,
        clock=time.time,
        faults=faults,
    )


async def settle(unit: Volumes, wanted: Wish) -> Settled | Wait:
    for _ in range(20):
        outcome = unit.plan(wanted, await unit.observe(wanted), time.time())
        if isinstance(outcome, Mark):
            marks = {**wanted.marks, outcome.name: outcome.value}
            kept = {name: value for name, value in marks.items() if value is not None}
            wanted = msgspec.structs.replace(wanted, marks=kept)
            continue
        if not isinstance(outcome, Do):
            assert isinstance(outcome, Settled | Wait)
            return outcome
        await unit.apply(outcome.step)
    raise AssertionError("it goes in circles")


async def test_a_clone_lies_over_the_cached_image_and_holds_its_bytes(
    place: Place, source: Source, tmp_path: Path
) -> None:
    content = os.urandom(65536) + b"\0" * (1 << 20)
    told: list[Report] = []
    unit = volumes(place, source, told)
    outcome = await settle(unit, wish(source.offer(content, "raw"), 1))
    assert isinstance(outcome, Settled)
    assert [report.progress for report in told] == [0.5, 1.0]
    flat = tmp_path / "flat"
    disk = place.volumes / f"{VOLUME}.qcow2"
    await run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(disk), str(flat)])
    assert flat.stat().st_size == GIB
    with flat.open("rb") as file:
        assert file.read(65536) == content[:65536]
    assert disk.stat().st_mode & 0o777 == 0o600


async def test_a_volume_grows_and_goes(place: Place, source: Source) -> None:
    unit = volumes(place, source)
    await settle(unit, wish(None, 1))
    outcome = await settle(unit, wish(None, 2))
    assert isinstance(outcome, Settled)
    assert isinstance(outcome.reports[0].seen, VolumeSeen)
    assert outcome.reports[0].seen.size_gib == 2
    await settle(unit, wish(None, 2, gone=True))
    assert list(place.volumes.iterdir()) == []


async def test_a_death_at_any_step_of_a_volume_is_repaired_by_the_next_turn(place: Place, source: Source) -> None:
    image = source.offer(tar_of({"vmlinuz": b"K", "initrd": b"I"}), "kernel")
    points: list[str] = []
    await settle(volumes(place, source, faults=Faults(points.append)), wish(image))
    await settle(volumes(place, source, faults=Faults(points.append)), wish(image, gone=True))
    assert len(points) >= 7
    for deadly in set(points):
        for path in place.images.iterdir():
            files.remove(path)
        for _ in range(2):
            await _die_at(deadly, lambda faults: settle(volumes(place, source, faults=faults), wish(image)))
        assert isinstance(await settle(volumes(place, source), wish(image)), Settled)
        await _die_at(deadly, lambda faults: settle(volumes(place, source, faults=faults), wish(image, gone=True)))
        assert isinstance(await settle(volumes(place, source), wish(image, gone=True)), Settled)
        assert list(place.volumes.iterdir()) == []


async def _die_at(deadly: str, work: Callable[[Faults], Any]) -> None:
    def hook(point: str) -> None:
        if point == deadly:
            raise Died

    with contextlib.suppress(Died):
        await work(Faults(hook))


@pytest.mark.parametrize("disk", [True, False], ids=["with its disk", "left by itself"])
async def test_what_uefi_keeps_goes_with_the_volume_and_is_found_where_it_is_left(
    place: Place, source: Source, *, disk: bool
) -> None:
    unit = volumes(place, source)
    if disk:
        await settle(unit, wish(None, 1))
    for firmware in ("uefi", "uefi-secure"):
        (place.variables / f"{VOLUME}.{firmware}").touch()
    other = place.variables / "vol-zzzzzzzzzzzz.uefi"
    other.touch()
    kept = {one.name: one.owner for one in await unit.survey() if one.detail == "UEFI's variables"}
    assert kept == {f"{VOLUME}.uefi": VOLUME, f"{VOLUME}.uefi-secure": VOLUME, other.name: "vol-zzzzzzzzzzzz"}
    assert isinstance(await settle(unit, wish(None, 1, gone=True)), Settled)
    assert list(place.variables.iterdir()) == [other]


async def test_a_part_of_a_disk_does_not_count_as_the_disk(place: Place, source: Source) -> None:
    (place.volumes / f"{VOLUME}.qcow2-part").write_bytes(b"half")
    assert isinstance(await settle(volumes(place, source), wish(None, 1)), Settled)
    assert [path.name for path in place.volumes.iterdir()] == [f"{VOLUME}.qcow2"]


async def test_eviction_spares_an_image_that_an_orphaned_disk_lies_over(place: Place, source: Source) -> None:
    unit = volumes(place, source)
    image, unused = source.offer(b"\0" * 512, "raw"), source.offer(b"\1" * 512, "raw")
    await settle(unit, wish(image, 1))
    await cache(place, source.fetch).ensure(unused, lambda _: None)
    old_part = place.volumes / "vol-zzzzzzzzzzzz.qcow2-part"
    old_part.write_bytes(b"")
    for path in (*place.images.iterdir(), old_part):
        os.utime(path, (0, 0))
    await unit.evict(set())
    assert [path.name for path in place.images.iterdir()] == [image.digest.removeprefix("sha256:")]
    assert not old_part.exists()


async def test_of_a_pool_that_is_given_up_nothing_is_left(place: Place, source: Source) -> None:
    unit, image = volumes(place, source), source.offer(b"\0" * 512, "raw")
    await settle(unit, wish(image, 1))
    (place.volumes / "vol-zzzzzzzzzzzz.qcow2-part").write_bytes(b"")
    await settle(unit, wish(image, 1, gone=True))
    await unit.empty()
    assert [*place.images.iterdir(), *place.volumes.iterdir()] == []


async def test_the_survey_names_owners_and_strangers(place: Place, source: Source) -> None:
    await settle(volumes(place, source), wish(None, 1))
    (place.volumes / "notes.txt").write_text("")
    found = {item.name: item for item in await volumes(place, source).survey()}
    assert (found[VOLUME].owner, found[VOLUME].what) == (VOLUME, "disk")
    assert f"{VOLUME}.qcow2" in found[VOLUME].detail
    assert found["notes.txt"].owner is None


async def test_a_damaged_disk_is_reported_and_left_alone(place: Place, source: Source) -> None:
    path = place.volumes / f"{VOLUME}.qcow2"
    path.write_bytes(b"garbage")
    outcome = await settle(volumes(place, source), wish(None, 1))
    assert isinstance(outcome, Wait)
    assert "not a qcow2 file" in outcome.reports[0].problem
    assert path.read_bytes() == b"garbage"


def test_a_header_with_a_far_backing_name_still_counts_as_an_overlay() -> None:
    head = struct.pack(">4sIQIIQ", b"QFI\xfb", 2, 1 << 40, 10, 16, GIB) + b"\0" * 80
    assert files.qcow_header(head).backing
    with pytest.raises(Invalid):
        files.qcow_header(b"QFI\xfb" + b"\0" * 10)
