"""Counts of times by size."""

from bisect import bisect_left
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
    """How many times were at most so long, for each of BOUNDS_S, and how many were longer. One thread at a time."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._sum_s = 0.0

    def add(self, time_s: float) -> None:
        """Count one."""
        self._counts[bisect_left(BOUNDS_S, time_s)] += 1
        self._sum_s += time_s

    def figures(self) -> dict[str, Any]:
        """`bounds`; `counts`, one a bound and one for what is above all of them; `sum`."""
        return {"bounds": list(BOUNDS_S), "counts": list(self._counts), "sum": self._sum_s}
