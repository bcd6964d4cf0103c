"""A block: one file with what was measured in one window, whole or not there. The only files of metrics there are.

    magic · chunk … · index · chunk table · head (msgpack) · trailer
    chunk: the rows of one host and its guests, packed (`codec`); its CRC is in the table
    index: for each thing a key, its chunk and its first row, in the order of keys
    trailer: where the head is, how long, and a CRC over index, table and head

Written under a `-part` name, synced, then renamed: a death at any line leaves no block or a whole one.
"""

import mmap
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from common import names
from common.ids import Id
from controller.metrics.codec import Codes, pack, unpack

MAGIC = b"SKMET1\n\0"
_TRAILER = struct.Struct("<QIIQ8s")
_ENTRY = np.dtype([("key", "<u8"), ("chunk", "<u4"), ("row", "<u4")])
_PIECE = np.dtype([("at", "<u8"), ("bytes", "<u4"), ("crc", "<u4"), ("rows", "<u4"), ("host", "<u8")])
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_DIGIT = {letter: number for number, letter in enumerate(_ALPHABET)}
_PREFIXES = ("vm", "host")


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What a block holds."""

    start: int
    """Epoch seconds."""
    step: int
    """Seconds from one point to the next."""
    points: int
    planes: int
    """1: one figure a point. 2: the mean and the highest of what it was thinned from."""
    metrics: dict[str, tuple[str, ...]]
    """The names of a kind's figures, in the order of rows."""

    @property
    def end(self) -> int:
        """Return the second behind the last point."""
        return self.start + self.step * self.points


class Chunk(NamedTuple):
    """The rows of one host: `codes` has them plane after plane, `at` the first row of each thing within a plane."""

    host: Id
    at: dict[Id, int]
    codes: Codes


class Broken(Exception):
    """The file is not a block, or was damaged."""


# --- writing ------------------------------------------------------------------------------------------------------


def write(path: Path, head: Head, chunks: Iterable[Chunk]) -> int:
    """Write a block and return its size. Raises OSError where it can't be written; then nothing is left of it."""
    part = path.with_name(names.part(path.name))
    try:
        with part.open("wb") as file:
            file.write(MAGIC)
            entries: list[tuple[int, int, int]] = []
            pieces: list[tuple[int, int, int, int, int]] = []
            for number, chunk in enumerate(chunks):
                raw = pack(chunk.codes)
                rows = len(chunk.codes) // head.planes
                pieces.append((file.tell(), len(raw), zlib.crc32(raw), rows, key_of(chunk.host)))
                entries += [(key_of(thing), number, row) for thing, row in chunk.at.items()]
                file.write(raw)
            index = np.sort(np.array(entries, _ENTRY), order="key").tobytes()
            foot = index + np.array(pieces, _PIECE).tobytes() + msgspec.msgpack.encode(head)
            place = file.tell()
            file.write(foot)
            file.write(_TRAILER.pack(place, len(entries), len(pieces), zlib.crc32(foot), MAGIC))
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
        _sync(path.parent)
        return path.stat().st_size
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _sync(directory: Path) -> None:
    held = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(held)
    finally:
        os.close(held)


# --- reading ------------------------------------------------------------------------------------------------------


class Block:
    """A block that is open for reading."""

    def __init__(self, path: Path, raw: memoryview) -> None:
        self._path, self._raw = path, raw
        if len(raw) < len(MAGIC) + _TRAILER.size or raw[: len(MAGIC)] != MAGIC:
            raise Broken(f"{path} is no block of metrics")
        place, entries, pieces, crc, magic = _TRAILER.unpack(raw[-_TRAILER.size :])
        foot = raw[place : -_TRAILER.size]
        table = entries * _ENTRY.itemsize
        if magic != MAGIC or place > len(raw) or table + pieces * _PIECE.itemsize > len(foot):
            raise Broken(f"{path} is cut off or damaged at its end")
        self._crc, self._foot = crc, foot
        self._index = np.frombuffer(foot, _ENTRY, entries)
        self._pieces = np.frombuffer(foot, _PIECE, pieces, table)
        try:
            self.head = msgspec.msgpack.decode(foot[table + pieces * _PIECE.itemsize :], type=Head)
        except msgspec.DecodeError as err:
            raise Broken(f"{path} has no head: {err}") from err

    def check(self) -> None:
        """Raise Broken where index, table or head are not as they were written. Reads all of them."""
        if zlib.crc32(self._foot) != self._crc:
            raise Broken(f"{self._path} is damaged: the sum over its index is another")

    def find(self, thing: Id) -> Iterator[Codes]:
        """Give the rows of a thing, each as (planes, figures, points): from each host that told of it."""
        key = key_of(thing)
        place = int(np.searchsorted(self._index["key"], np.uint64(key)))
        width = len(self.head.metrics.get(prefix_of(thing), ()))
        while place < len(self._index) and int(self._index["key"][place]) == key:
            entry = self._index[place]
            codes = self._chunk(int(entry["chunk"]))
            yield codes[:, int(entry["row"]) : int(entry["row"]) + width]
            place += 1

    @cached_property
    def hosts(self) -> dict[Id, int]:
        """Return the hosts that told, each with the number of its chunk."""
        return {id_of(int(key)): number for number, key in enumerate(self._pieces["host"].tolist())}

    def chunk(self, number: int) -> Chunk:
        """Return one chunk."""
        own = self._index[self._index["chunk"] == number]
        at = {id_of(key): row for key, row in zip(own["key"].tolist(), own["row"].tolist(), strict=True)}
        codes = self._chunk(number)
        return Chunk(id_of(int(self._pieces["host"][number])), at, codes.reshape(-1, self.head.points))

    def _chunk(self, number: int) -> Codes:
        if number >= len(self._pieces):
            raise Broken(f"{self._path} names a chunk that it does not have")
        piece = self._pieces[number]
        raw = bytes(self._raw[int(piece["at"]) : int(piece["at"]) + int(piece["bytes"])])
        if zlib.crc32(raw) != int(piece["crc"]):
            raise Broken(f"{self._path} is damaged in chunk {number}")
        rows = int(piece["rows"])
        try:
            codes = unpack(raw, rows * self.head.planes, self.head.points)
        except ValueError as err:
            raise Broken(f"{self._path} is damaged in chunk {number}: {err}") from err
        return codes.reshape(self.head.planes, rows, self.head.points)


@contextmanager
def opened(path: Path) -> Iterator[Block]:
    """Open a block for reading. Raises FileNotFoundError where it has gone, Broken where it is none."""
    with path.open("rb") as file:
        try:
            held = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except ValueError as err:
            raise Broken(f"{path} is empty") from err
    # numpy's views hold the map for as long as they live; it is closed with the last of them.
    yield Block(path, memoryview(held))


# --- keys ---------------------------------------------------------------------------------------------------------


def prefix_of(thing: Id) -> str:
    """Return what sort of thing an id names."""
    return thing.partition("-")[0]


def key_of(thing: Id) -> int:
    """Return an id as a number of 64 bits: four for its prefix, five for each of its twelve letters."""
    prefix, _, letters = thing.partition("-")
    key = _PREFIXES.index(prefix)
    for letter in letters:
        key = key << 5 | _DIGIT[letter]
    return key


def id_of(key: int) -> Id:
    """Return the id that a key stands for."""
    letters = "".join(_ALPHABET[key >> shift & 31] for shift in range(55, -1, -5))
    return Id(f"{_PREFIXES[key >> 60 & 15]}-{letters}")
