"""image: what a root disk is cloned from, or the kernel and initrd that a machine boots."""

from typing import Annotated, Literal

import msgspec

from common.counters import IMAGE_GIB, IMAGES
from common.firmware import Firmware
from common.kinds.kind import Column, Extra, Kind, Role, Scope, ServerSet, Spec, Status

ImageFormat = Literal["qcow2", "raw", "kernel"]


class ImageSpec(Spec, frozen=True):
    """The image's form. Its bytes come with `PUT …/{name}/content`, which sets digest and sizes."""

    format: Annotated[
        ImageFormat,
        msgspec.Meta(
            description="qcow2 or raw: a disk. kernel: a tar of `vmlinuz`, `initrd` and, where wanted, `cmdline`"
        ),
    ] = "qcow2"
    public: Annotated[bool, msgspec.Meta(description="whether every project may use it (operators only)")] = False
    firmware: Annotated[
        Firmware,
        msgspec.Meta(description="what machines made from it start with, where they ask for nothing but bios"),
    ] = "bios"
    tpm: Annotated[bool, msgspec.Meta(description="whether machines made from it get a TPM 2.0")] = False
    digest: Annotated[
        str,
        msgspec.Meta(
            pattern=r"^(?:sha256:[0-9a-f]{64})?$(?!\n)", description="of the bytes as uploaded; empty until then"
        ),
        ServerSet(),
    ] = ""
    size_bytes: Annotated[int, msgspec.Meta(ge=0, description="the file's size"), ServerSet()] = 0
    disk_gib: Annotated[
        int, msgspec.Meta(ge=0, description="the smallest disk it fits on, GiB; 0 for a kernel"), ServerSet()
    ] = 0


IMAGE = Kind(
    name="image",
    plural="images",
    prefix="img",
    scope=Scope.PROJECT,
    spec=ImageSpec,
    status=Status,
    summary="A disk to clone root disks from, or a kernel and initrd to boot.",
    example="skerry image create debian-12 --format qcow2 && skerry image upload debian-12 debian-12.qcow2",
    counters=(IMAGES, IMAGE_GIB),
    columns=(
        Column(title="NAME", path="name"),
        Column(title="STATE", path="status.state"),
        Column(title="FORMAT", path="spec.format"),
        Column(title="BYTES", path="spec.size_bytes"),
        Column(title="PUBLIC", path="spec.public"),
        Column(title="DIGEST", path="spec.digest"),
    ),
    extras=(
        Extra(
            name="content",
            method="PUT",
            summary="Upload the image's bytes. They are hashed, checked and then never change.",
            role=Role.MEMBER,
            accepts="application/octet-stream",
        ),
    ),
    fixed=frozenset({"format"}),
    shared=True,
)
