"""What a machine starts with: firmware, and a TPM, as far as its host can give them and its image can be started so."""

from collections.abc import Iterator

import msgspec

from common.documents import DomainDoc, DomainSeen
from common.errors import Conflict, Invalid
from common.firmware import abilities, named, way_out, words
from common.ids import Id
from common.kinds.kind import AnyResource
from common.kinds.vm import VmSpec
from controller.store.working import WorkingSet


def as_its_image_says(row: AnyResource, was: AnyResource | None, seen: WorkingSet) -> VmSpec:
    """Return the spec of a machine with a new image that starts as that one needs, where it asks for nothing else."""
    spec: VmSpec = row.spec
    image = seen.get(Id(spec.image))
    if image is None or (was is not None and was.spec.image == spec.image):
        return spec
    firmware = image.spec.firmware if spec.firmware == "bios" else spec.firmware
    return msgspec.structs.replace(spec, firmware=firmware, tpm=spec.tpm or image.spec.tpm)


def admit_firmware(row: AnyResource, was: AnyResource | None, seen: WorkingSet) -> None:
    """Refuse what would never start: a bare kernel under Secure Boot, and what the host where it is can't give."""
    spec: VmSpec = row.spec
    for image in (seen.get(Id(one)) for one in (spec.image, spec.rescue) if one):
        if image and image.spec.format == "kernel" and spec.firmware == "uefi-secure":
            raise Invalid(
                f"vm {row.name} has Secure Boot, and image {image.name} is a bare kernel: only a signed boot loader, "
                "which is on a disk, can start one",
                fix="use an image that is a disk, or firmware uefi",
            )
    placement = seen.placement(row.id)
    capacity = seen.capacity(placement.host) if placement else None
    if was is None or capacity is None:
        return
    lacks = _asked(spec) - _asked(was.spec) - set(capacity.traits.can)
    if lacks:
        host = seen.name_of(capacity.host)
        raise Conflict(
            f"vm {row.name} is on host {host}, which is without {named(lacks)}",
            fix=f"{way_out(lacks, host)}; or make a new machine with it: it is placed where that is to be had",
        )


def _asked(spec: VmSpec) -> frozenset[str]:
    return abilities(spec.firmware, tpm=spec.tpm)


def firmware_remarks(row: AnyResource, doc: DomainDoc, run: DomainSeen) -> Iterator[str]:
    """Say what a machine that runs starts with from its next start on, where that is something else."""
    has, wished = firmware_words(run), words(doc.firmware, tpm=doc.tpm)
    if has and has != wished:
        yield f"it was started with {has}; {wished} waits for a restart: skerry vm reboot {row.name}"


def firmware_words(run: DomainSeen | None) -> str:
    """Say what a machine was started with; empty: it is off, or its agent does not tell."""
    return words(run.firmware, tpm=run.tpm) if run and run.firmware else ""
