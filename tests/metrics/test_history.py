"""History as it is asked for: the same as a plain reckoning over all that was sent, whatever lies where."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from told import HOST, START, Clock, guest, host, opened, said, vm

from common.ids import HostId, Id, new_id
from controller.metrics.buckets import Aggregate, Buckets
from controller.metrics.codec import expand, quantise
from controller.metrics.history import History, Question, without
from controller.metrics.shelf import RESERVE_BYTES, Keep
from controller.metrics.thin import thin

HOWS: tuple[Aggregate, ...] = ("avg", "max", "last")


async def ask(
    history: History, thing: Id, metric: str, span: tuple[int, int, int], how: Aggregate = "avg"
) -> np.ndarray[Any, Any]:
    """Return one metric over a span: its start, the step, and how many."""
    start, step, count = span
    question = Question(thing=thing, metrics=(metric,), start=start, step=step, count=count, how=how)
    return (await history.query(question))[0]


def names_below(directory: Path, pattern: str = "*") -> list[str]:
    """Return the names of the files that fit."""
    return sorted(path.name for path in directory.rglob(pattern) if path.is_file())


def figure(at: int) -> int:
    """Return what the test's machine uses at a moment: small whole numbers, which are kept as they are."""
    return 100 + (at // 5 * 37) % 83


async def fed(history: History, clock: Clock, thing: Id, start: int, end: int) -> None:
    """Have a machine tell of itself every 5 s; what is due is done every minute."""
    for at in range(start, end, 5):
        clock.now = at
        history.take({HOST: said(at, [guest(thing, memory=figure(at))])})
        if at % 60 == 0:
            await history.tick()


def reckoned(start: int, step: int, count: int, how: Aggregate, there: range) -> list[float]:
    """Return the same from what was sent, plainly."""
    found = []
    for bucket in range(start, start + step * count, step):
        values = [figure(at) for at in range(bucket, bucket + step, 5) if at in there]
        pick = {"avg": lambda v: sum(v) / len(v), "max": max, "last": lambda v: v[-1]}[how]
        found.append(pick(values) if values else math.nan)
    return found


@pytest.mark.parametrize("step", [5, 15, 60, 300, 900])
async def test_a_question_is_answered_from_memory_and_disk_alike(tmp_path: Path, step: int) -> None:
    clock = Clock()
    history, thing = await opened(tmp_path, clock), vm()
    end = START + 3 * 3600 + 130
    await fed(history, clock, thing, START, end)
    span = (START - 1800, step, (end + 1800 - START) // step + 3)
    for how in HOWS:
        found = await ask(history, thing, "memory", span, how)
        wanted = reckoned(START - 1800, step, len(found), how, range(START, end, 5))
        assert np.isnan(found).tolist() == np.isnan(wanted).tolist()
        if how == "last" and step >= 60:
            continue  # of what was thinned, it is the last minute's mean
        exact = step < 60 or how == "max"
        np.testing.assert_allclose(found, wanted, rtol=0 if exact else 1 / 250, atol=1e-9)
    await history.close()


async def test_a_restart_loses_nothing_when_it_is_stopped_in_peace(tmp_path: Path) -> None:
    clock = Clock()
    history, thing = await opened(tmp_path, clock), vm()
    await fed(history, clock, thing, START, START + 400)
    await history.close()
    again = await opened(tmp_path, clock)
    await fed(again, clock, thing, START + 420, START + 500)
    there = [at for at in range(START, START + 500, 5) if not START + 400 <= at < START + 420]
    found = await ask(again, thing, "memory", (START, 5, 100))
    assert [START + 5 * n for n, value in enumerate(found) if not math.isnan(value)] == there
    await again.close()
    third = await opened(tmp_path, clock)
    np.testing.assert_array_equal(await ask(third, thing, "memory", (START, 5, 100)), found)


async def test_a_process_that_is_killed_loses_the_newest_windows_and_nothing_else(tmp_path: Path) -> None:
    clock = Clock()
    history, thing = await opened(tmp_path, clock), vm()
    await fed(history, clock, thing, START, START + 1050)
    again = await opened(tmp_path, clock)  # without close
    found = await ask(again, thing, "memory", (START, 300, 4))
    assert np.isnan(found).tolist() == [False, False, False, True]


async def test_with_age_points_become_coarser_and_then_go(tmp_path: Path) -> None:
    clock = Clock()
    keep = Keep(raw_s=3600, minute_s=86400, hour_s=3 * 86400, most_bytes=1 << 30)
    history, thing = await opened(tmp_path, clock, keep), vm()
    for day in range(3):
        await fed(history, clock, thing, START + day * 86400, START + day * 86400 + 7200)
        clock.now = START + day * 86400 + 86400 + 300
        await history.tick()
    raw, minute, hour = (sorted((tmp_path / tier).iterdir()) for tier in ("raw", "minute", "hour"))
    assert (len(raw), len(minute), len(hour)) == (0, 2, 3)
    first = await ask(history, thing, "memory", (START, 3600, 3))
    np.testing.assert_allclose(first, reckoned(START, 3600, 3, "avg", range(START, START + 7200)), rtol=1 / 200)
    peak = await ask(history, thing, "memory", (START, 3600, 2), "max")
    assert peak.tolist() == reckoned(START, 3600, 2, "max", range(START, START + 7200))
    fine = await ask(history, thing, "memory", (START, 600, 12))
    assert np.isnan(fine).sum() == 0, "a long point fills all that it reaches"
    clock.now = START + 8 * 86400
    await history.tick()
    assert [list((tmp_path / tier).iterdir()) for tier in ("raw", "minute", "hour")] == [[], [], []]


async def test_over_its_limit_the_oldest_goes_first(tmp_path: Path) -> None:
    clock = Clock()
    history, thing = await opened(tmp_path, clock, Keep(raw_s=1e9, minute_s=1e9, hour_s=1e9, most_bytes=2000)), vm()
    await fed(history, clock, thing, START, START + 7000)
    assert 0 < history.size_bytes <= 2000
    left = sorted(int(path.name.split(".")[0]) for path in (tmp_path / "raw").iterdir())
    assert left == list(range(left[0], START + 6301, 300))
    assert not math.isnan((await ask(history, thing, "memory", (START + 6300, 300, 1)))[0])


async def test_a_full_disk_costs_history_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    history, thing = await opened(tmp_path, clock), vm()
    await fed(history, clock, thing, START, START + 900)
    with monkeypatch.context() as full:
        full.setattr("controller.metrics.block.os.fsync", _no_space)
        await fed(history, clock, thing, START + 900, START + 4500)
        newest = await ask(history, thing, "memory", (START + 4200, 300, 1))
        assert not math.isnan(newest[0])
        assert len(history._intake.open_windows()) <= 6
    await fed(history, clock, thing, START + 4500, START + 6000)
    found = await ask(history, thing, "memory", (START, 300, 20))
    assert not np.isnan(found[:2]).any()
    assert np.isnan(found[2:]).any(), "what could not be written was given up"
    assert not np.isnan(found[-5:]).any()
    assert names_below(tmp_path, "*-part") == []


def _no_space(_descriptor: int) -> None:
    raise OSError(28, "No space left on device")


async def test_history_gives_way_where_the_disk_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    history, thing = await opened(tmp_path, clock), vm()
    await fed(history, clock, thing, START, START + 1500)
    assert list((tmp_path / "raw").iterdir())
    monkeypatch.setattr(
        "controller.metrics.shelf.shutil.disk_usage", lambda _path: type("U", (), {"free": RESERVE_BYTES // 2})
    )
    await history.tick()
    assert not list((tmp_path / "raw").iterdir())


async def test_a_damaged_block_is_passed_over_and_the_others_are_read(tmp_path: Path) -> None:
    clock = Clock()
    history, thing = await opened(tmp_path, clock), vm()
    await fed(history, clock, thing, START, START + 1500)
    blocks = sorted((tmp_path / "raw").iterdir())
    assert len(blocks) >= 4
    for path, damage in zip(blocks, (b"", b"x" * 40, None), strict=False):
        raw = path.read_bytes()
        path.write_bytes(damage if damage is not None else raw[:9] + bytes([raw[9] ^ 255]) + raw[10:])
    again = await opened(tmp_path, clock)
    found = await ask(again, thing, "memory", (START, 300, 4))
    assert np.isnan(found).tolist() == [True, True, True, False]


async def test_a_machine_that_moved_is_one_history(tmp_path: Path) -> None:
    clock = Clock()
    history, thing, other = await opened(tmp_path, clock), vm(), HostId(new_id("host"))
    for at in range(START, START + 600, 5):
        clock.now = at
        there = HOST if at < START + 200 else other
        history.take({HOST: said(at, [guest(thing, memory=figure(at))] if there is HOST else [])})
        history.take({other: said(at, [guest(thing, memory=figure(at))] if there is other else [])})
    wanted = reckoned(START, 5, 120, "avg", range(START, START + 600))
    assert (await ask(history, thing, "memory", (START, 5, 120))).tolist() == wanted
    await history.close()
    again = await opened(tmp_path, clock)
    assert (await ask(again, thing, "memory", (START, 5, 120))).tolist() == wanted


async def test_a_host_has_a_history_of_its_own(tmp_path: Path) -> None:
    clock = Clock()
    history = await opened(tmp_path, clock)
    for number in range(4):
        clock.now = START + 5 * number
        history.take({HOST: said(clock.now, of_host=host(cpu=10.0 * number, net=(1000 * number, 0)))})
    await history.close()
    again = await opened(tmp_path, clock)
    assert (await ask(again, HOST, "cpu", (START, 5, 4))).tolist() == [0, 10, 20, 30]
    np.testing.assert_array_equal(await ask(again, HOST, "net_rx", (START, 5, 4)), [math.nan, 200, 200, 200])


async def test_of_what_was_never_heard_of_nothing_is_known(tmp_path: Path) -> None:
    clock = Clock()
    history, thing = await opened(tmp_path, clock), vm()
    await fed(history, clock, thing, START, START + 700)
    for span in ((START - 500, 5, 50), (START + 5000, 5, 50)):
        assert np.isnan(await ask(history, thing, "memory", span)).all()
    assert np.isnan(await ask(history, vm(), "memory", (START, 5, 50))).all()


# --- parts --------------------------------------------------------------------------------------------------------

POINTS = st.lists(st.one_of(st.none(), st.integers(0, 500)), min_size=12, max_size=12)


@given(st.lists(POINTS, min_size=1, max_size=4), st.sampled_from([2, 3, 4, 6, 12]))
@settings(max_examples=60, deadline=None)
def test_thinning_is_as_a_plain_reckoning(rows: list[list[int | None]], into: int) -> None:
    codes = quantise(np.array([[math.nan if v is None else v for v in row] for row in rows], np.float64))
    means, peaks = thin(codes, codes, into)
    for row, mean, peak in zip(rows, expand(means), expand(peaks), strict=True):
        for place, at in enumerate(range(0, 12, into)):
            known = [value for value in row[at : at + into] if value is not None]
            if known:
                assert mean[place] == pytest.approx(sum(known) / len(known), abs=0.5)
                assert peak[place] == max(known)
            else:
                assert math.isnan(mean[place])
                assert math.isnan(peak[place])


SPAN = st.tuples(st.integers(0, 40), st.integers(1, 40)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(st.lists(SPAN, max_size=4), st.lists(SPAN, max_size=4))
@settings(max_examples=60, deadline=None)
def test_what_is_left_of_spans_is_what_no_other_has(spans: list[tuple[int, int]], taken: list[tuple[int, int]]) -> None:
    def seconds(of: list[tuple[int, int]]) -> set[int]:
        return {second for start, end in of for second in range(start, end)}

    assert seconds(without(spans, taken)) == seconds(spans) - seconds(taken)


@given(st.integers(1, 50), st.integers(1, 50), st.integers(-30, 30))
@settings(max_examples=60, deadline=None)
def test_a_figure_that_does_not_change_is_shown_so_at_every_resolution(point: int, bucket: int, offset: int) -> None:
    buckets = Buckets(1000, bucket, 8, 1)
    begin = 1000 + offset - 60
    values = np.full((1, 600), 7.0)
    buckets.add((begin, point), values, values, (begin, begin + 600 * point))
    behind = begin + 600 * point >= buckets.end
    assert behind
    for how in HOWS:
        assert set(buckets.result(how)[0].round(9).tolist()) == {7.0}
