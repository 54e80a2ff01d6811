"""The time of a call that is made inside another counts as its own, and once."""

from types import SimpleNamespace

import pytest

from benchmarks.overheads import parts
from benchmarks.overheads.parts import Parts


class Work:
    def __init__(self, clock) -> None:
        self._clock = clock

    def outer(self):
        self._clock.wait(3)
        self.inner()
        self.inner()
        self._clock.wait(1)

    def inner(self):
        self._clock.wait(10)

    def fails(self):
        self.inner()
        raise KeyError


class Clock:
    def __init__(self) -> None:
        self._now_s = 0.0

    def wait(self, seconds):
        self._now_s += seconds

    def __call__(self) -> float:
        return self._now_s


@pytest.fixture
def work(monkeypatch):
    clock = Clock()
    fake = SimpleNamespace(perf_counter=clock, thread_time=lambda: clock() / 2)
    monkeypatch.setattr(parts, "time", fake)
    return Work(clock)


def test_what_is_called_inside_is_taken_off(work):
    times = Parts()
    times.wrap(work, "inner", "inside")
    times.wrap(work, "outer", "outside")
    work.outer()
    work.inner()
    assert times.take() == {"outside": [4.0, 2.0], "inside": [30.0, 15.0]}
    assert times.take() == {}


def test_a_call_that_fails_has_taken_time_as_well(work):
    times = Parts()
    times.wrap(work, "inner", "inside")
    times.wrap(work, "fails", "outside")
    with pytest.raises(KeyError):
        work.fails()
    work.outer()
    assert times.take() == {"outside": [0.0, 0.0], "inside": [30.0, 15.0]}
