"""What is believed of an agent's vectors: no spikes, no lies, and nobody else's figures are harmed."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from told import HOST, START, Clock, guest, host, opened, said, vm

from common.ids import HostId, Id, new_id
from common.protocol import GuestMetrics, HostMetrics
from controller.metrics.history import History, Question
from controller.metrics.intake import Intake


async def values(history: History, thing: Id, metric: str, *, step: int = 5, seconds: int = 60) -> list[float | None]:
    """Return one metric from START on; None where nothing is known."""
    question = Question(thing=thing, metrics=(metric,), start=START, step=step, count=seconds // step, how="avg")
    (found,) = await history.query(question)
    return [None if math.isnan(value) else round(float(value), 1) for value in found]


async def test_a_counter_is_shown_as_its_growth(tmp_path: Path) -> None:
    clock = Clock()
    history, thing = await opened(tmp_path, clock), vm()
    for number in range(4):
        clock.now = START + 5 * number
        history.take({HOST: said(clock.now, [guest(thing, cpu_s=number * 2.5, memory=100 + number)])})
    assert await values(history, thing, "cpu", seconds=20) == [None, 50, 50, 50]
    assert await values(history, thing, "memory", seconds=20) == [100, 101, 102, 103]


@pytest.mark.parametrize("after", [0.0, 1.0, 499.0])
async def test_a_counter_that_began_anew_gives_no_spike(tmp_path: Path, after: float) -> None:
    clock = Clock()
    history, thing = await opened(tmp_path, clock), vm()
    for number, cpu_s in enumerate((500.0, 501.0, after, after + 1.0)):
        clock.now = START + 5 * number
        history.take({HOST: said(clock.now, [guest(thing, cpu_s=cpu_s)])})
    assert await values(history, thing, "cpu", seconds=20) == [None, 20, None, 20]


async def test_after_a_long_silence_there_is_a_gap_and_no_guess(tmp_path: Path) -> None:
    clock = Clock()
    history, thing = await opened(tmp_path, clock), vm()
    for at, cpu_s in ((0, 0.0), (5, 1.0), (40, 30.0), (45, 31.0)):
        clock.now = START + at
        history.take({HOST: said(clock.now, [guest(thing, cpu_s=cpu_s)])})
    assert await values(history, thing, "cpu", seconds=50) == [None, 20, *[None] * 7, 20]


async def test_a_vector_speaks_for_the_time_since_the_one_before(tmp_path: Path) -> None:
    """An agent's interval is a little longer than a point of the grid: no point is left out."""
    clock = Clock()
    history, thing = await opened(tmp_path, clock), vm()
    for number in range(60):
        clock.now = START + 5.4 * number
        history.take({HOST: said(clock.now, [guest(thing, cpu_s=0.54 * number)])})
    found = await values(history, thing, "cpu", seconds=315)
    assert found[0] is None
    assert set(found[1:]) == {10.0}


async def test_guests_come_and_go_and_keep_their_own_figures(tmp_path: Path) -> None:
    clock = Clock()
    history, (one, two, three) = await opened(tmp_path, clock), (vm(), vm(), vm())
    for number, there in enumerate(([one, two], [two, one], [two, three], [three, two, one], [one, three])):
        clock.now = START + 5 * number
        told = [guest(thing, memory=100 * (1 + [one, two, three].index(thing))) for thing in there]
        history.take({HOST: said(clock.now, told)})
    assert await values(history, one, "memory", seconds=25) == [100, 100, None, 100, 100]
    assert await values(history, two, "memory", seconds=25) == [200, 200, 200, 200, None]
    assert await values(history, three, "memory", seconds=25) == [None, None, 300, 300, 300]


LIES = {
    "time far ahead": (said(START + 3600), "ahead of this controller's"),
    "time far behind": (said(START - 3600), "behind this controller's"),
    "time not a number": (said(math.nan), "its time is nan"),
    "time endless": (said(math.inf), "its time is inf"),
    "host not a number": (said(START, of_host=host(load=math.nan)), "load_1 is nan"),
    "host endless": (said(START, of_host=host(cpu=math.inf)), "cpu_percent is inf"),
    "host negative": (said(START, of_host=HostMetrics(1.0, -5, 1.0, 1.0, 1, 1, 1.0, 1)), "memory_used_mib is -5"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_vector_that_can_t_be_is_refused_whole(lie: str) -> None:
    vector, words = LIES[lie]
    taken = Intake().take({HOST: vector}, START)[HOST]
    assert taken.metrics is None
    assert words in taken.refused.replace(" of this", " this") or words in taken.refused


@pytest.mark.parametrize("bad", [-1, -(2**63), 2**63 + 2**40, 2**64 - 1])
async def test_a_guest_s_part_that_can_t_be_is_refused_and_its_neighbours_kept(tmp_path: Path, bad: int) -> None:
    clock = Clock()
    history, (liar, neighbour) = await opened(tmp_path, clock), (vm(), vm())
    for number in range(3):
        clock.now = START + 5 * number
        lie = GuestMetrics(liar, 0, 100, 0, 0, bad, 0)
        taken = history.take({HOST: said(clock.now, [lie, guest(neighbour, cpu_s=number)])})[HOST]
    assert taken.metrics is not None
    assert [one.vm for one in taken.metrics.guests] == [neighbour]
    assert f"of {liar}: net_rx_bytes is" in taken.refused
    assert await values(history, neighbour, "cpu", seconds=15) == [None, 20, 20]
    assert await values(history, liar, "memory", seconds=15) == [None] * 3


async def test_a_figure_that_nobody_can_have_is_left_out_alone(tmp_path: Path) -> None:
    clock = Clock()
    history, thing = await opened(tmp_path, clock), vm()
    for number, sent in enumerate((0, 10, 2**60)):
        clock.now = START + 5 * number
        taken = history.take({HOST: said(clock.now, [guest(thing, cpu_s=number, net=(0, sent))])})[HOST]
    assert "net_tx of" in taken.refused
    assert await values(history, thing, "net_tx", seconds=15) == [None, 2, None]
    assert await values(history, thing, "cpu", seconds=15) == [None, 20, 20]


async def test_a_guest_that_is_named_twice_harms_nobody(tmp_path: Path) -> None:
    clock = Clock()
    history, (one, two) = await opened(tmp_path, clock), (vm(), vm())
    for number in range(3):
        clock.now = START + 5 * number
        history.take({HOST: said(clock.now, [guest(one, memory=1), guest(one, memory=2), guest(two, memory=3)])})
    assert await values(history, two, "memory", seconds=15) == [3, 3, 3]
    await history.close()


def test_the_newest_figures_are_those_of_hosts_that_were_heard_of_lately() -> None:
    intake, thing, quiet = Intake(), vm(), new_id("host")
    intake.take({type(HOST)(quiet): said(START)}, START)
    intake.take({HOST: said(START + 50, [guest(thing, memory=7)])}, START + 50)
    ((found, at, things),) = intake.newest(START + 10)
    assert (found, at) == (HOST, START + 50)
    assert set(things) == {HOST, thing}
    assert np.isnan(things[thing]).tolist() == [True, False, True, True, True, True]
    assert things[thing][1] == 7


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_many_vectors_at_once_are_kept_as_one_by_one(data: st.DataObject) -> None:
    hosts = [HostId(new_id("host")) for _ in range(4)]
    guests = {one: [vm() for _ in range(3)] for one in hosts}
    together, alone = Intake(), Intake()
    for number in range(4):
        told = {}
        for one in data.draw(st.lists(st.sampled_from(hosts), unique=True)):
            at = START + 5 * number + data.draw(st.sampled_from([0.0, 1.5, 40.0, 3600.0]))
            there = data.draw(st.lists(st.sampled_from(guests[one]), unique=True))
            sent = data.draw(st.sampled_from([0, 10 * number, 2**60, -1]))
            told[one] = said(at, [guest(thing, cpu_s=number, net=(sent, 0)) for thing in there])
        taken = together.take(told, START + 5 * number)
        assert taken == {one: alone.take({one: vector}, START + 5 * number)[one] for one, vector in told.items()}
    assert kept(together) == kept(alone)


def kept(intake: Intake) -> dict[tuple[int, Id], list[list[int]]]:
    """Return all that is in an intake's windows, by window and thing."""
    found = {}
    for window in intake.open_windows():
        for rows in intake.rows(window).values():
            for thing in rows.at:
                codes = rows.of(thing)
                assert codes is not None
                found[window, thing] = codes.tolist()
    return found
