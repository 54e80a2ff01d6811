"""Whose time is it? Calls are timed from outside; what is called inside another is taken off it."""

import time
from collections.abc import Callable
from typing import Any

# Of each part: seconds by the wall, and of the thread's processor time.
Times = dict[str, list[float]]


class Parts:
    """Own time of named parts, on one thread: `take` answers what has been spent since the last call."""

    def __init__(self) -> None:
        self._times: Times = {}
        self._inside: list[list[float]] = []
        """Of each call under way, what those inside it have taken."""

    def wrap(self, owner: Any, method: str, part: str) -> None:
        """Time a method of this object from here on."""
        setattr(owner, method, self.timed(getattr(owner, method), part))

    def timed(self, call: Callable[..., Any], part: str) -> Callable[..., Any]:
        """Written for speed: what timing takes is counted as well."""
        inside, clock, thread_clock = self._inside, time.perf_counter, time.thread_time

        def call_timed(*arguments: Any, **named: Any) -> Any:
            within = [0.0, 0.0]
            inside.append(within)
            wall_s, cpu_s = clock(), thread_clock()
            try:
                return call(*arguments, **named)
            finally:
                wall_s, cpu_s = clock() - wall_s, thread_clock() - cpu_s
                inside.pop()
                times = self._times.setdefault(part, [0.0, 0.0])
                times[0] += wall_s - within[0]
                times[1] += cpu_s - within[1]
                if inside:
                    inside[-1][0] += wall_s
                    inside[-1][1] += cpu_s

        return call_timed

    def take(self) -> Times:
        times, self._times = self._times, {}
        return times
