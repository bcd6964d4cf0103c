"""Image bytes: taken in whole and as they should be, or not at all."""

import asyncio
import hashlib
import io
import os
import tarfile
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest
from api_world import P, Reply, World, world

from common.run import run
from controller.config import parse

RAW = b"\x01" * 4096


async def upload(cloud: World, data: Any, name: str = "disk", **more: Any) -> Reply:
    return await cloud.call("PUT", f"{P}/a/images/{name}/content", data=data, as_="a-member", **more)


async def image(cloud: World, form: str, name: str = "disk") -> None:
    await cloud.make(f"{P}/a/images", name, {"format": form}, as_="a-member")


def files(cloud: World) -> list[str]:
    return sorted(path.name for path in cloud.blobs._directory.iterdir())


def tar(members: Iterable[tuple[str, bytes]], kind: bytes = tarfile.REGTYPE, form: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as made:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            info.type = kind
            info.linkname = "/etc/passwd" if kind != tarfile.REGTYPE else ""
            made.addfile(info, io.BytesIO(content))
    return out.getvalue()


KERNEL = tar([("vmlinuz", b"k" * 1000), ("initrd", b"i" * 1000), ("cmdline", b"console=ttyS0")])


async def qcow2(path: Path, *options: str) -> bytes:
    await run(["qemu-img", "create", "-q", "-f", "qcow2", *options[:-1], str(path), options[-1]])
    return await asyncio.to_thread(path.read_bytes)


async def test_bytes_become_the_digest_and_the_sizes_of_the_spec(cloud: World) -> None:
    await image(cloud, "raw")

    reply = await upload(cloud, RAW)
    await cloud.settled(reply.json["operation"]["id"])
    shown = (await cloud.call("GET", f"{P}/a/images/disk")).json["resource"]

    digest = hashlib.sha256(RAW).hexdigest()
    assert reply.status == 202
    assert reply.json["operation"]["verb"] == "content"
    assert shown["spec"]["digest"] == f"sha256:{digest}"
    assert shown["spec"]["size_bytes"] == 4096
    assert shown["spec"]["disk_gib"] == 1
    assert shown["status"]["state"] == "active"
    assert files(cloud) == [digest]
    path = cloud.blobs.path_of(f"sha256:{digest}")
    assert path is not None
    assert path.read_bytes() == RAW
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_qcow2_image_needs_the_disk_of_its_virtual_size(cloud: World, tmp_path: Path) -> None:
    await image(cloud, "qcow2")

    reply = await upload(cloud, await qcow2(tmp_path / "x.qcow2", "5000M"))

    assert reply.status == 202, reply.raw
    assert reply.json["resource"]["spec"]["disk_gib"] == 5


async def test_a_kernel_is_a_tar_and_needs_no_disk(cloud: World) -> None:
    for number, data in enumerate(
        (KERNEL, tar([("vmlinuz", b"k"), ("initrd", b"i")]), tar([("initrd", b"i"), ("vmlinuz", b"k")], form=2))
    ):
        await image(cloud, "kernel", f"k{number}")
        reply = await upload(cloud, data, f"k{number}")
        assert reply.status == 202, reply.raw
        assert reply.json["resource"]["spec"]["disk_gib"] == 0


async def test_the_same_bytes_again_are_welcome_and_others_are_not(cloud: World) -> None:
    await image(cloud, "raw")
    first = await upload(cloud, RAW)

    again = await upload(cloud, RAW)
    other = await upload(cloud, b"\x02" * 4096)
    longer = await upload(cloud, RAW * 2)

    assert (first.status, again.status) == (202, 202)
    assert again.json["resource"]["spec"] == first.json["resource"]["spec"]
    for refused in (other, longer):
        assert (refused.status, refused.json["code"]) == (409, "conflict")
        assert "never change" in refused.json["detail"]
    assert files(cloud) == [hashlib.sha256(RAW).hexdigest()]


async def test_uploads_at_once_end_with_one_winner_and_nothing_left_over(cloud: World) -> None:
    await image(cloud, "raw")

    replies = await asyncio.gather(*(upload(cloud, bytes([number]) * 4096) for number in (1, 1, 2, 2)))
    await cloud.blobs.sweep(lambda: {row.spec.digest for row in cloud.store.seen.of_kind("image")})

    row = cloud.store.seen.named("image", "a", "disk")
    assert row is not None
    assert sorted(reply.status for reply in replies) == [202, 202, 409, 409]
    assert files(cloud) == [row.spec.digest.removeprefix("sha256:")]


def _qcow2_header(**fields: int) -> bytes:
    wanted = {"version": 3, "backing": 0, "crypt": 0, "features": 0, "size": 1 << 30} | fields
    head = b"QFI\xfb" + wanted["version"].to_bytes(4, "big") + wanted["backing"].to_bytes(8, "big")
    head += (16).to_bytes(4, "big") + (16).to_bytes(4, "big") + wanted["size"].to_bytes(8, "big")
    head += wanted["crypt"].to_bytes(4, "big")
    return head.ljust(72, b"\0") + wanted["features"].to_bytes(8, "big") + b"\0" * 1024


BAD: dict[str, tuple[str, bytes, str]] = {
    "no bytes": ("raw", b"", "no bytes"),
    "not sectors": ("raw", b"\x01" * 1000, "multiple of 512"),
    "qcow2 as raw": ("raw", _qcow2_header(), "qcow2"),
    "gzip as raw": ("raw", b"\x1f\x8b" + b"\0" * 1022, "gzip"),
    "raw as qcow2": ("qcow2", RAW, "not a qcow2"),
    "xz as qcow2": ("qcow2", b"\xfd7zXZ\x00" + b"\0" * 1018, "xz"),
    "short qcow2": ("qcow2", b"QFI\xfb\0\0\0\3", "not a qcow2"),
    "backing file": ("qcow2", _qcow2_header(backing=512), "backing file"),
    "data file": ("qcow2", _qcow2_header(features=4), "another file"),
    "encrypted": ("qcow2", _qcow2_header(crypt=2), "encrypted"),
    "corrupt": ("qcow2", _qcow2_header(features=2), "corrupt"),
    "unknown feature": ("qcow2", _qcow2_header(features=1 << 40), "not known"),
    "unknown version": ("qcow2", _qcow2_header(version=9), "version 9"),
    "nonsense tables": ("qcow2", _qcow2_header(), "no sound qcow2"),
    "not a tar": ("kernel", RAW, "tar"),
    "cut tar": ("kernel", KERNEL[:1800], "tar"),
    "compressed tar": ("kernel", b"\x1f\x8b" + b"\0" * 2000, "tar"),
    "no initrd": ("kernel", tar([("vmlinuz", b"k")]), "no initrd"),
    "another file": ("kernel", tar([("vmlinuz", b"k"), ("initrd", b"i"), ("evil", b"")]), "'evil'"),
    "a path": ("kernel", tar([("../vmlinuz", b"k"), ("initrd", b"i")]), "'../vmlinuz'"),
    "an absolute path": ("kernel", tar([("/vmlinuz", b"k"), ("initrd", b"i")]), "vmlinuz"),
    "a link": ("kernel", tar([("vmlinuz", b""), ("initrd", b"")], tarfile.SYMTYPE), "not a plain file"),
    "a hard link": ("kernel", tar([("vmlinuz", b""), ("initrd", b"")], tarfile.LNKTYPE), "not a plain file"),
    "a device": ("kernel", tar([("vmlinuz", b""), ("initrd", b"")], tarfile.CHRTYPE), "not a plain file"),
    "twice": ("kernel", tar([("vmlinuz", b"k"), ("vmlinuz", b"l"), ("initrd", b"i")]), "twice"),
    "empty kernel": ("kernel", tar([("vmlinuz", b""), ("initrd", b"i")]), "empty"),
    "long command line": ("kernel", tar([("vmlinuz", b"k"), ("initrd", b"i"), ("cmdline", b"x" * 5000)]), "4096"),
    "a huge header": ("kernel", tar([("vmlinuz", b"k"), ("a" * 200_000, b"i")]), "header"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD, ids=str)
async def test_a_file_that_is_something_else_is_refused_and_gone(cloud: World, case: str) -> None:
    form, data, word = BAD[case]
    await image(cloud, form)

    reply = await upload(cloud, data)

    assert (reply.status, reply.json["code"]) == (400, "invalid"), reply.raw
    assert word in reply.json["detail"]
    assert reply.json["fix"]
    assert files(cloud) == []
    assert (await cloud.call("GET", f"{P}/a/images/disk")).json["resource"]["spec"]["digest"] == ""


async def test_real_images_that_point_elsewhere_are_refused(cloud: World, tmp_path: Path) -> None:
    await image(cloud, "qcow2")
    await qcow2(tmp_path / "base.qcow2", "1G")
    backed = await qcow2(tmp_path / "b.qcow2", "-b", str(tmp_path / "base.qcow2"), "-F", "qcow2", "1G")
    outside = await qcow2(tmp_path / "d.qcow2", "-o", f"data_file={tmp_path / 'raw.data'}", "1G")

    for data, word in ((backed, "backing file"), (outside, "another file")):
        reply = await upload(cloud, data)
        assert reply.status == 400
        assert word in reply.json["detail"]


async def test_an_upload_that_is_cut_off_leaves_nothing(cloud: World) -> None:
    await image(cloud, "raw")
    server = cloud.client.server
    reader, writer = await asyncio.open_connection(server.host, server.port)
    writer.write(
        f"PUT {P}/a/images/disk/content HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {cloud.tokens['a-member']}\r\n"
        "Content-Length: 100000\r\n\r\n".encode()
        + b"\x01" * 50000
    )
    await writer.drain()
    await cloud.until(lambda: files(cloud))

    writer.close()
    await writer.wait_closed()

    await cloud.until(lambda: not files(cloud))
    assert reader is not None
    assert (await cloud.call("GET", f"{P}/a/images/disk")).json["resource"]["spec"]["digest"] == ""


async def test_the_limit_holds_for_announced_and_for_unannounced_bytes(tmp_path: Path) -> None:
    async with world(tmp_path, parse("[api]\nmax_image_gib = 1\n", "x")) as cloud:
        cloud.tokens["a-member"] = cloud.tokens["root"]
        await cloud.make("/v1/projects", "a")
        await image(cloud, "raw")
        announced = await upload(cloud, None, headers={"Content-Length": str((1 << 30) + 1), "Expect": "100-continue"})

        assert (announced.status, announced.json["code"]) == (413, "too-large")
        assert "1 GiB" in announced.json["detail"]
        assert "max_image_gib" in announced.json["fix"]
        assert files(cloud) == []


async def test_bytes_are_asked_for_only_when_they_are_wanted(cloud: World) -> None:
    await image(cloud, "raw")
    server = cloud.client.server

    async def first_line(path: str, token: str) -> str:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(
            f"PUT {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            "Content-Length: 4096\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        line = (await reader.readline()).decode().strip()
        writer.close()
        await writer.wait_closed()
        return line

    assert await first_line(f"{P}/a/images/disk/content", cloud.tokens["a-member"]) == "HTTP/1.1 100 Continue"
    assert "403" in await first_line(f"{P}/a/images/disk/content", cloud.tokens["a-reader"])
    assert "404" in await first_line(f"{P}/a/images/nothing/content", cloud.tokens["a-member"])
    assert "401" in await first_line(f"{P}/a/images/disk/content", "skt_" + "0" * 64)


async def test_a_full_disk_is_told_and_nothing_is_left(cloud: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await image(cloud, "raw")

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        patched.setattr("controller.store.blobs.os.fsync", full)
        reply = await upload(cloud, RAW)
    left = files(cloud)
    after = await upload(cloud, RAW)

    assert (reply.status, reply.json["code"]) == (507, "out-of-space")
    assert "room" in reply.json["detail"]
    assert left == []
    assert after.status == 202


async def test_other_media_types_and_images_on_their_way_out_are_refused(cloud: World) -> None:
    await image(cloud, "raw")

    typed = await upload(cloud, b"{}", headers={"Content-Type": "application/json"})
    nowhere = await upload(cloud, RAW, "nothing")

    assert (typed.status, typed.json["code"]) == (415, "unsupported-media-type")
    assert nowhere.status == 404


async def test_a_stream_without_announced_length_is_taken(cloud: World) -> None:
    await image(cloud, "raw")

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"\x05" * 65536

    reply = await upload(cloud, parts())

    assert reply.status == 202
    assert reply.json["resource"]["spec"]["size_bytes"] == 64 * 65536


async def test_a_sweep_removes_what_no_image_names_and_no_upload_holds(cloud: World) -> None:
    await image(cloud, "raw")
    await upload(cloud, RAW)
    kept = files(cloud)
    directory = cloud.blobs._directory
    (directory / ("0" * 64)).write_bytes(b"orphan")
    (directory / "up-000000000000-part").write_bytes(b"cut off by a death")

    async def parts() -> AsyncIterator[bytes]:
        yield RAW

    async def fits(_path: Path, _digest: str) -> int:
        return 1

    async with cloud.blobs.receive(parts(), name="up-1", limit_bytes=1 << 20, inspect=fits) as blob:
        removed = await cloud.blobs.sweep(set)
        assert cloud.blobs.path_of(blob.digest) is not None

    assert removed == ("0" * 64, "up-000000000000-part")
    assert files(cloud) == kept
    assert await cloud.blobs.sweep(set) == tuple(kept)
    assert cloud.blobs.path_of("sha256:../../etc/passwd") is None
