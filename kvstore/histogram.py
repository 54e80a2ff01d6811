"""Counts of values by size."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Final

BOUNDS_S: Final = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
)


class Histogram:
    """How many values were at most so large, for each bound, and how many were larger. One thread at a time."""

    def __init__(self, bounds: Sequence[float] = BOUNDS_S) -> None:
        """`bounds`: ascending; seconds, unless others are given."""
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count one."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def figures(self) -> dict[str, Any]:
        """`bounds`; `counts`, one a bound and one for what is above all of them; `sum`."""
        return {"bounds": list(self._bounds), "counts": list(self._counts), "sum": self._sum}
