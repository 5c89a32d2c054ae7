"""Geometry of the report's charts: axes with round ticks, and paths in a square of 1000 by 1000 that CSS
stretches.

Only lines and bars are drawn as SVG; every word stays HTML text, placed by percentages, so that a chart is as
readable on a phone as on a desk and follows the page's colours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MAX_POINTS = 240  # more cannot be told apart on a page
Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """A linear axis from `low` to `high` with round `ticks` inside."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def num_decimals(self, scale: float = 1.0) -> int:
        """Decimals that tell neighbouring ticks apart when they are written times `scale`; at most 6."""
        exact = (digits for digits in range(6) if all(_is_round(scale * tick, digits) for tick in self.ticks))
        return next(exact, 6)

    def position(self, value: float) -> float:
        """Percent of the axis's length, 0 to 100; values beyond the ends are put on them."""
        return round(100 * min(1.0, max(0.0, (value - self.low) / (self.high - self.low))), 2)


def _is_round(number: float, digits: int) -> bool:
    return abs(number - round(number, digits)) < 1e-9 * max(1.0, abs(number))


def axis(
    values: Iterable[float], num_ticks: int = 5, *, floor: float | None = None, ceiling: float | None = None
) -> Axis:
    """An axis that holds all `values`, with about `num_ticks` ticks, not beyond `floor` and `ceiling`."""
    present = list(values) or [0.0, 1.0]
    low, high = min(present), max(present)
    if high - low < 1e-9:
        margin = abs(high) * 0.1 or 0.5
        low, high = low - margin, high + margin
    raw = (high - low) / max(1, num_ticks - 1)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999) * magnitude
    low = math.floor(low / step + 1e-9) * step
    high = math.ceil(high / step - 1e-9) * step
    low = low if floor is None else max(floor, low)
    high = high if ceiling is None else min(ceiling, high)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Axis(low, high, tuple(round(index * step, 10) for index in range(first, last + 1)))


def line(points: Sequence[Point], x: Axis, y: Axis) -> str:
    """The SVG path through `points`, y upwards."""
    coordinates = (f"{10 * x.position(px):.1f} {1000 - 10 * y.position(py):.1f}" for px, py in points)
    return "M" + "L".join(coordinates) if points else ""


def dots(points: Sequence[Point], x: Axis, y: Axis) -> str:
    """A path of zero-length strokes: with round caps they stay circles however the square is stretched."""
    return "".join(f"M{10 * x.position(px):.1f} {1000 - 10 * y.position(py):.1f}h0.01" for px, py in points)


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most `MAX_POINTS` points, each the mean of its neighbours."""
    if len(points) <= MAX_POINTS:
        return list(points)
    size = len(points) / MAX_POINTS
    groups = [points[int(index * size) : int((index + 1) * size)] for index in range(MAX_POINTS)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Exponential moving average over about a twentieth of the points, corrected for its start."""
    decay = 1 - 1 / max(1.0, len(points) / 20)
    total = weight = 0.0
    result = []
    for x, y in points:
        total, weight = decay * total + (1 - decay) * y, decay * weight + (1 - decay)
        result.append((x, total / weight))
    return result
