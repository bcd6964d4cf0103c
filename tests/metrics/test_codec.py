"""Codes and packed rows: what comes back is what went in, as nearly as is promised."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from controller.metrics.codec import MOST, NONE, Codes, expand, pack, quantise, unpack

FIGURES = st.floats(0, MOST, allow_nan=False)
ROWS = arrays.arrays(np.uint16, st.tuples(st.integers(0, 12), st.integers(0, 70)), elements=st.integers(0, 0xFFFF))


@given(st.lists(FIGURES, min_size=1, max_size=50))
@settings(max_examples=200, deadline=None)
def test_a_figure_comes_back_within_one_part_in_512(figures: list[float]) -> None:
    values = np.array(figures)
    found = expand(quantise(values))
    assert (np.abs(found - values) <= np.maximum(values / 512, 0.5)).all()


@given(st.lists(st.integers(0, 512), min_size=1, max_size=50))
@settings(max_examples=50, deadline=None)
def test_a_small_whole_number_comes_back_as_it_was(numbers: list[int]) -> None:
    assert expand(quantise(np.array(numbers, np.float64))).tolist() == numbers


@given(st.lists(FIGURES, min_size=2, max_size=50))
@settings(max_examples=100, deadline=None)
def test_codes_are_in_the_order_of_figures_and_stay_the_same_when_taken_again(figures: list[float]) -> None:
    codes = quantise(np.sort(np.array(figures)))
    assert (np.diff(codes.astype(np.int64)) >= 0).all()
    assert (quantise(expand(codes)) == codes).all()


def test_what_is_not_known_stays_so() -> None:
    codes = quantise(np.array([np.nan, 0.0, MOST]))
    assert codes.tolist()[0] == NONE
    assert codes.max() == NONE
    assert codes[2] < NONE
    assert np.isnan(expand(codes)).tolist() == [True, False, False]


@given(ROWS)
@settings(max_examples=200, deadline=None)
def test_rows_come_back_bit_by_bit(codes: Codes) -> None:
    rows, points = codes.shape
    assert (unpack(pack(codes), rows, points) == codes).all()


@given(ROWS.filter(lambda codes: codes.size > 0), st.data())
@settings(max_examples=60, deadline=None)
def test_rows_that_were_cut_off_are_refused(codes: Codes, data: st.DataObject) -> None:
    raw = pack(codes)
    cut = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(ValueError, match=r"read|bytes"):
        unpack(raw[:cut], *codes.shape)


def test_rows_of_another_size_are_refused() -> None:
    codes = np.arange(120, dtype=np.uint16).reshape(2, 60)
    for rows, points in ((3, 60), (2, 61), (1, 60), (2, 59)):
        with pytest.raises(ValueError, match="bytes"):
            unpack(pack(codes), rows, points)


def test_a_machine_that_idles_costs_next_to_nothing() -> None:
    codes = np.repeat(np.array([[3], [210], [0], [0], [12], [9]], np.uint16), 60, axis=1)
    assert len(pack(codes)) < 40
