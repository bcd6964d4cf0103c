"""Blocks on disk: whole or not there, whenever the process dies; damage is seen, not believed."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from told import KEEP, START

from common.ids import new_id
from controller.metrics import block
from controller.metrics.block import Broken, Chunk, Head, id_of, key_of
from controller.metrics.codec import Codes
from controller.metrics.shelf import Shelf

TOP = Path(__file__).parents[2]
HEAD = Head(start=START, step=5, points=60, planes=1, metrics={"vm": ("a", "b"), "host": ("c",)})


def chunks(seed: int, hosts: int = 3, guests: int = 4) -> list[Chunk]:
    """Return chunks of figures by chance."""
    chance = np.random.default_rng(seed)
    found = []
    for _ in range(hosts):
        host = new_id("host")
        at = {host: 0, **{new_id("vm"): 1 + 2 * number for number in range(guests)}}
        codes: Codes = chance.integers(0, 600, (1 + 2 * guests, 60)).astype(np.uint16)
        found.append(Chunk(host, at, codes))
    return found


def test_a_thing_is_found_among_all_others(tmp_path: Path) -> None:
    made = chunks(1)
    block.write(tmp_path / "b", HEAD, made)
    with block.opened(tmp_path / "b") as found:
        found.check()
        assert found.head == HEAD
        for chunk in made:
            assert found.chunk(found.hosts[chunk.host]).at == chunk.at
            for thing, row in chunk.at.items():
                width = 1 if thing.startswith("host-") else 2
                (codes,) = found.find(thing)
                assert (codes[0] == chunk.codes[row : row + width]).all()
        assert list(found.find(new_id("vm"))) == []


@given(st.integers(0, 2**60 - 1), st.sampled_from(["vm", "host"]))
@settings(max_examples=60, deadline=None)
def test_an_id_comes_back_from_its_key(number: int, prefix: str) -> None:
    thing = new_id(prefix, lambda _count: number.to_bytes(8, "big"))
    assert id_of(key_of(thing)) == thing


def test_an_empty_block_is_one(tmp_path: Path) -> None:
    block.write(tmp_path / "b", HEAD, [])
    with block.opened(tmp_path / "b") as found:
        found.check()
        assert list(found.find(new_id("vm"))) == []


@given(st.integers(0, 10_000), st.integers(1, 255))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_byte_of_damage_is_never_believed(tmp_path: Path, place: int, change: int) -> None:
    made = chunks(2, hosts=2)
    block.write(tmp_path / "b", HEAD, made)
    raw = bytearray((tmp_path / "b").read_bytes())
    raw[place % len(raw)] ^= change
    (tmp_path / "b").write_bytes(raw)
    try:
        with block.opened(tmp_path / "b") as found:
            found.check()
            for chunk in made:
                for thing, row in chunk.at.items():
                    (codes,) = found.find(thing)
                    assert (codes[0] == chunk.codes[row : row + codes.shape[1]]).all()
    except Broken:
        pass


def test_a_block_that_was_cut_off_anywhere_is_seen(tmp_path: Path) -> None:
    block.write(tmp_path / "b", HEAD, chunks(3))
    raw = (tmp_path / "b").read_bytes()
    for length in [0, 1, 7, 8, 9, *range(10, len(raw), 97), len(raw) - 1]:
        (tmp_path / "b").write_bytes(raw[:length])
        with pytest.raises(Broken), block.opened(tmp_path / "b") as found:
            found.check()


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> list[Chunk]:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        block.write(tmp_path / "b", HEAD, (one for _ in range(2) for one in failing()))
    assert list(tmp_path.iterdir()) == []


def test_killed_at_any_moment_of_writing_every_block_that_is_there_is_whole(tmp_path: Path) -> None:
    chance, words = random.Random(4), [sys.executable, "-P", str(Path(__file__).with_name("writer.py")), str(tmp_path)]
    for _ in range(4):
        with subprocess.Popen(words, stdout=subprocess.PIPE, env={"PYTHONPATH": str(TOP)}) as writer:
            assert writer.stdout
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(0.02 + chance.random() * 0.1)
            writer.send_signal(signal.SIGKILL)
        shelf = Shelf(tmp_path, KEEP)
        shelf.load()
        assert not list(tmp_path.rglob("*-part"))
        for kept in shelf.kept:
            with block.opened(kept.path) as found:
                found.check()
                for number in found.hosts.values():
                    found.chunk(number)
            kept.path.unlink()


def test_what_is_no_block_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "notes").write_text("mine")
    (tmp_path / "raw" / f"{START}.0-part").write_text("half")
    shelf = Shelf(tmp_path, KEEP)
    shelf.load()
    assert shelf.kept == ()
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["notes"]
    assert shelf.size_bytes == 0
