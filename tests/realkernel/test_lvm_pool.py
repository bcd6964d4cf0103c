"""The driver of thin pools against real LVM: its commands run in the machine, and what they left is read there."""

import asyncio
import shlex
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.drivers.lvm import LvmPool
from agent.drivers.place import Place
from agent.drivers.shown import GIB, CachedImage
from common.documents import ImageRef, SnapshotRef
from common.errors import Invalid
from common.ids import Id, new_id
from lab.machine import SPARE, Machine

pytestmark = [pytest.mark.host, pytest.mark.timeout(600)]

GROUP = "vols"
IMAGE = ImageRef(digest="sha256:" + "b" * 64, format="qcow2", size_bytes=1)
PLACE = Place(
    volumes=Path("/none"), images=Path("/none"), logs=Path("/none"), seeds=Path("/none"),
    variables=Path("/none"), vouchers=Path("/none"),
    virtualisation="kvm", direct_io=True, volume_group=GROUP,
)  # fmt: skip


class Images:
    """A cache in the machine, with one image."""

    def look(self, _image: ImageRef) -> CachedImage:
        return CachedImage(ready=True, disk_bytes=GIB)

    def path(self, _image: ImageRef) -> Path:
        return Path("/srv/image.qcow2")

    def touch(self, _image: ImageRef) -> None:
        pass

    def list(self) -> tuple[()]:
        return ()


class Inside:
    """The pool, its commands run in the machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.pool = LvmPool(PLACE, "skerry", Images(), None, self.run)  # type: ignore[arg-type]

    async def run(self, argv: list[str], *, timeout_s: float = 30) -> str:
        return await self.sh(shlex.join(argv), timeout_s)

    async def sh(self, script: str, timeout_s: float = 60) -> str:
        return await asyncio.to_thread(self.machine.run, script, timeout_s=max(timeout_s, 120))

    async def write(self, volume: Id, text: str) -> None:
        await self.sh(f"printf %s {text} | dd of=/dev/{GROUP}/{volume} conv=fsync status=none")

    async def read(self, volume: Id, count: int) -> str:
        return await self.sh(f"head -c {count} /dev/{GROUP}/{volume} | tr '\\0' .")

    async def size_gib(self, volume: Id) -> int:
        return int(await self.sh(f"blockdev --getsize64 /dev/{GROUP}/{volume}")) // GIB


@pytest.fixture
async def inside(real_kernel: Machine) -> AsyncIterator[Inside]:
    real_kernel.run(f"pvcreate -q {SPARE}; vgcreate -q {GROUP} {SPARE}")
    try:
        yield Inside(real_kernel)
    finally:
        real_kernel.run(f"vgremove -qy {GROUP}; pvremove -q {SPARE}")


async def test_a_pool_keeps_clones_reverts_and_wipes_disks(inside: Inside) -> None:
    with pytest.raises(Invalid, match="no thin pool skerry"):
        await inside.pool.prepare()
    await inside.sh(f"lvcreate -q --type thin-pool -Zn -c 1M -L 400M -n skerry {GROUP}")
    inside = Inside(inside.machine)
    await inside.pool.prepare()
    assert (await inside.sh(f"lvs --noheadings -o zero {GROUP}/skerry")).strip() == "zero"
    await _snapshots(inside)
    await _clones(inside)
    await _wipes(inside)
    use = await inside.pool.use()
    assert use.size_bytes == 400 << 20
    assert 0 < use.metadata_percent < 50
    assert await inside.pool.survey() == ()


async def _snapshots(inside: Inside) -> None:
    pool, volume, before, after = inside.pool, new_id("vol"), new_id("snap"), new_id("snap")
    twin = new_id("vol")
    await pool.make(volume, 4, None, 0)
    await pool.make(volume, 4, None, 0)
    await inside.write(volume, "first")
    await pool.take(volume, before, None)
    await inside.write(volume, "again")
    await pool.take(volume, after, None)
    await pool.grow(volume, 6, None)
    assert await inside.size_gib(volume) == 6
    held = await pool.look(volume)
    assert held.disk is not None
    assert (held.disk.size_bytes, held.disk.untold, held.snapshots) == (6 * GIB, False, {before, after})
    assert 0 < held.disk.allocated_bytes < GIB
    await pool.make(twin, 5, SnapshotRef(id=before, volume=volume), 0)
    assert (await inside.read(twin, 6), await inside.size_gib(twin)) == ("first.", 5)
    await inside.write(twin, "own..")
    await pool.revert(volume, before, 1)
    assert await inside.read(volume, 6) == "first."
    await inside.write(volume, "since")
    await pool.revert(volume, after, 2)
    assert await inside.read(volume, 6) == "again."
    assert await inside.size_gib(volume) == 4
    assert ((await pool.look(volume)).reverts, await pool.is_ready(volume, 2)) == (2, True)
    found = {one.name: one for one in await pool.survey()}
    assert {name: (one.what, one.owner) for name, one in found.items()} == {
        volume: ("disk", volume), before: ("snapshot", before), after: ("snapshot", after), twin: ("disk", twin),
    }  # fmt: skip
    assert found[before].detail == volume
    for snapshot in (before, after):
        await pool.drop(volume, snapshot, None)
    await pool.remove(volume)
    assert await inside.read(twin, 5) == "own..", "it needs neither"
    await pool.remove(twin)


async def _clones(inside: Inside) -> None:
    await inside.sh(
        "printf content >/srv/raw; truncate -s 1G /srv/raw; "
        "qemu-img convert -f raw -O qcow2 /srv/raw /srv/image.qcow2; rm /srv/raw"
    )
    one, two = new_id("vol"), new_id("vol")
    await inside.pool.make(one, 2, IMAGE, 0)
    await inside.pool.make(two, 1, IMAGE, 0)
    await inside.write(one, "changed")
    assert await inside.read(two, 8) == "content."
    assert await inside.size_gib(one) == 2
    await inside.pool.tidy(0)
    assert [item.what for item in await inside.pool.survey()] == ["disk", "disk"]
    assert await inside.read(two, 8) == "content.", "its origin is gone, and it needs none"
    for volume in (one, two):
        await inside.pool.remove(volume)
    await inside.sh("rm /srv/image.qcow2")


async def _wipes(inside: Inside) -> None:
    """Blocks that held a secret are given out anew, all of the pool's, and none of it is read."""
    old, new = new_id("vol"), new_id("vol")
    fill = "yes secret | tr -d '\\n' | dd iflag=fullblock bs=1M count=380 oflag=direct status=none"
    await inside.pool.make(old, 2, None, 0)
    await inside.sh(f"{fill} of=/dev/{GROUP}/{old}", 300)
    await inside.pool.remove(old)
    await inside.pool.make(new, 2, None, 0)
    # One byte in each chunk, of more chunks than were never used: the rest is what was in it before, or zeros.
    touch = "for at in $(seq 0 59); do printf x | dd of=$of bs=1M seek=$at conv=notrunc status=none; done"
    await inside.sh(f"of=/dev/{GROUP}/{new}; {touch}; sync", 120)
    assert (await inside.sh(f"head -c 60M /dev/{GROUP}/{new} | grep -c secret || true")).strip() == "0"
    await inside.pool.remove(new)
