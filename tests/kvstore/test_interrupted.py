"""Whoever is interrupted (KeyboardInterrupt) while it reads keeps nobody else waiting, wherever that happens."""

import sys
import threading
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from kvstore.disk.door import Door
from kvstore.disk.lender import Lender
from kvstore.errors import StoreClosed


def interrupt_at(number: int) -> Callable[..., None]:
    """A profiler that raises at one of the points at which Python looks for signals: where a function begins, and behind one of C."""
    points = count()

    def profile(_: Any, event: str, called: Any) -> None:
        del called  # the traceback would keep it
        if event in {"call", "c_return"} and next(points) == number:
            raise KeyboardInterrupt

    return profile


def interruptions(job: Callable[[], None], then: Callable[[], None]) -> int:
    """Do a job again and again, interrupted at each point in turn; `then` comes while the interrupt still goes up. How many points there are."""
    for number in count():
        sys.setprofile(interrupt_at(number))
        try:
            job()
        except KeyboardInterrupt:
            sys.setprofile(None)
            then()
        else:
            sys.setprofile(None)
            return number
    raise AssertionError


def elsewhere(job: Callable[[], None]) -> None:
    """In another thread, which must not wait for ever."""
    thread = threading.Thread(target=job, daemon=True)
    thread.start()
    thread.join(10.0)
    assert not thread.is_alive(), "it waits for who was interrupted"


def test_a_door_does_not_wait_for_who_was_interrupted():
    doors = [Door("a store")]

    def read() -> None:
        with doors[-1].enter():
            len("")

    def close() -> None:
        elsewhere(doors[-1].close)
        with pytest.raises(StoreClosed):
            doors[-1].enter()
        doors.append(Door("another"))

    assert interruptions(read, close) > 5


def test_a_door_waits_for_who_is_inside():
    door, closed = Door("a store"), threading.Event()
    with door.enter():
        with door.enter():
            pass
        closing = threading.Thread(target=lambda: door.close() and closed.set())
        closing.start()
        while door._open:
            pass
        assert not closed.is_set()
    closing.join(10.0)
    assert closed.is_set()
    assert not door.close()


def test_what_is_lent_comes_back_from_who_was_interrupted():
    closed: list[int] = []
    lenders = [Lender(0, closed.append)]

    def read() -> None:
        with lenders[-1].lend() as one:
            hex(one)

    def take_back() -> None:
        lenders.append(Lender(lenders[-1].current + 1, closed.append))

    num_points = interruptions(read, take_back)
    assert num_points > 5

    def grow() -> None:
        for lender in lenders:
            with lender.alone(5.0):
                pass
            lender.replace(-1)
            lender.close()

    elsewhere(grow)
    assert closed == [each for number in range(num_points + 1) for each in (number, -1)]


def test_who_had_one_alone_is_interrupted():
    lender = Lender(0, list[int]().append)

    def grow() -> None:
        assert not lender._alone.locked(), "it would wait for ever"
        with lender.alone(0.0) as one:
            hex(one)

    assert interruptions(grow, lambda: None) > 5
    with lender.lend() as one:
        assert one == 0
