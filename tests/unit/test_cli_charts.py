"""Figures as text: lines of blocks, charts, and amounts in their units."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.cli.charts import chart, figure, spark
from controller.cli.metrics import squeezed

VALUES = st.lists(st.one_of(st.none(), st.floats(0, 1e12)), min_size=1, max_size=80)


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (None, "%", "-"),
        (3.14159, "%", "3.1 %"),
        (1536.0, "B/s", "1.5 KiB/s"),
        (256.0, "MiB", "256.0 MiB"),
        (0.5, "GiB", "512.0 MiB"),
        (3.0, "machines", "3"),
    ],
)
def test_a_figure_has_the_unit_that_people_read(value: float | None, unit: str, said: str) -> None:
    assert figure(value, unit) == said


def test_a_spark_line_rises_and_has_gaps() -> None:
    assert spark([0.0, 4.0, None, 8.0]) == "▁▄ █"
    assert spark([0.0, 0.0]) == "▁▁"
    assert spark([None, None]) == "  "


@given(VALUES, st.integers(3, 12))
@settings(max_examples=60, deadline=None)
def test_a_chart_has_its_height_and_no_column_is_taller_than_the_highest(
    values: list[float | None], height: int
) -> None:
    lines = chart(values, "B/s", start=1_800_000_000, step=60, height=height)
    assert len(lines) == height + 2
    columns = [line.partition("┤")[2].ljust(len(values)) for line in lines[:height]]
    assert {len(line) for line in columns} == {len(values)}
    filled = [sum(line[place] != " " for line in columns) for place in range(len(values))]
    known = [value for value in values if value is not None]
    for value, count in zip(values, filled, strict=True):
        assert (count == 0) == (value is None)
        if value is not None and max(known) > 0 and value == max(known):
            assert count == height


@given(VALUES, st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_squeezed_values_are_few_and_lie_between_lowest_and_highest(values: list[float | None], columns: int) -> None:
    found = squeezed(tuple(values), columns)
    known = [value for value in values if value is not None]
    assert len(found) <= max(columns, 1)
    for value in found:
        assert value is None or min(known) * (1 - 1e-9) <= value <= max(known) * (1 + 1e-9)
