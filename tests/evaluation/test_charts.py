from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelyard.evaluation.charts import MAX_POINTS, axis, dots, line, smoothed, thinned

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: round(value, 3))


@given(st.lists(NUMBERS, min_size=1, max_size=8))
def test_an_axis_holds_its_values_with_a_few_even_ticks(values: list[float]) -> None:
    scale = axis(values)
    assert scale.low <= min(values)
    assert scale.high >= max(values)
    assert 2 <= len(scale.ticks) <= 8
    assert all(0 <= scale.position(tick) <= 100 for tick in scale.ticks)


def test_an_axis_of_shares_stays_between_its_ends() -> None:
    assert axis([0.91, 0.93, 1.0], floor=0.0, ceiling=1.0).ticks == (0.9, 0.925, 0.95, 0.975, 1.0)
    assert axis([0.0, 0.0], floor=0.0, ceiling=1.0).low == 0.0
    assert axis([1.0], floor=0.0, ceiling=1.0).high == 1.0
    assert axis([]).ticks == (0.0, 0.25, 0.5, 0.75, 1.0)


def test_ticks_are_written_with_the_decimals_that_tell_them_apart() -> None:
    assert axis([0.685, 0.697], 4).num_decimals() == 3
    assert axis([0.0, 0.9]).num_decimals() == 2
    assert axis([0.0, 1000.0]).num_decimals() == 0
    assert axis([0.7, 0.9], 4, ceiling=1.0).num_decimals(100) == 0


def test_lines_run_upwards_in_a_square_of_1000() -> None:
    scale = axis([0.0, 1.0])
    assert line([(0.0, 0.0), (1.0, 1.0)], scale, scale) == "M0.0 1000.0L1000.0 0.0"
    assert dots([(0.5, 0.5)], scale, scale) == "M500.0 500.0h0.01"
    assert line([], scale, scale) == ""


def test_thinning_keeps_the_mean_and_bounds_the_points() -> None:
    points = [(float(step), float(step % 7)) for step in range(2400)]
    few = thinned(points)
    assert len(few) == MAX_POINTS
    assert abs(sum(y for _, y in few) / len(few) - sum(y for _, y in points) / len(points)) < 1e-9
    assert thinned(points[:5]) == points[:5]


def test_smoothing_leaves_a_constant_alone_from_the_first_step() -> None:
    assert all(abs(y - 3.0) < 1e-9 for _, y in smoothed([(float(x), 3.0) for x in range(100)]))
    assert smoothed([]) == []
