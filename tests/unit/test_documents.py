"""A controller and an agent that are one version apart understand each other's documents, or say that they don't."""

from typing import get_args

import msgspec
import pytest

from common.codec import to_pack
from common.documents import AnyDoc, Document, VolumeDoc
from common.ids import Id

NEWEST = msgspec.defstruct(
    "VolumeDoc",
    [("mirrored", bool, False)],
    bases=(VolumeDoc,),
    frozen=True,
    kw_only=True,
    tag="volume",
    tag_field="type",
)
PLAIN = {"id": Id("vol-00000000000a"), "size_gib": 4, "image": None}


def test_a_document_that_uses_nothing_new_is_read_by_a_version_that_does_not_know_it() -> None:
    sent = to_pack(NEWEST(**PLAIN))
    assert msgspec.msgpack.decode(sent, type=AnyDoc) == VolumeDoc(**PLAIN)  # type: ignore[arg-type]


def test_a_document_that_uses_something_new_is_refused_by_a_version_that_does_not_know_it() -> None:
    sent = to_pack(NEWEST(**PLAIN, mirrored=True))
    with pytest.raises(msgspec.ValidationError, match="unknown field `mirrored`"):
        msgspec.msgpack.decode(sent, type=AnyDoc)


def test_no_document_sends_its_defaults() -> None:
    met = list(get_args(AnyDoc))
    assert len(met) > 3
    assert all(issubclass(one, Document) and one.__struct_config__.omit_defaults for one in met)
