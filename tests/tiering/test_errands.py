"""Other threads' work is done in slices, in turn, and whoever waits for it gets an answer, whatever happens."""

import threading
import time
from concurrent.futures import CancelledError

import pytest

from tests.tiering.rig import Rig
from tests.tiering.slot_arrays import GIVE_UP_S
from tiering.errands import Errands, at_once


class Ticks:
    """A clock that moves by what a step says that it takes."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock():
    return Ticks()


@pytest.fixture
def errands(clock):
    return Errands(clock, slice_s=1.0)


def counting(clock, log, name, num_steps, step_s):
    def steps():
        for i in range(num_steps):
            clock.now_s += step_s
            log.append((name, i))
            yield
        return name

    return steps


def test_a_slice_ends_with_the_step_in_which_its_time_is_over(errands, clock):
    log = []
    future = errands.post(counting(clock, log, "a", 10, 0.3))
    assert errands.run()
    assert len(log) == 4, "0.9 s is less than a second, 1.2 s is not"
    assert errands.are_ready and not future.done()
    assert errands.run() and errands.run()
    assert future.result(0) == "a"
    assert not errands.are_ready
    assert not errands.run()


def test_errands_take_turns_and_the_one_that_came_first_begins(errands, clock):
    log = []
    for name in "abc":
        errands.post(counting(clock, log, name, 2, 0.1))
    errands.run()
    assert log == [("a", 0), ("b", 0), ("c", 0), ("a", 1), ("b", 1), ("c", 1)]


def test_a_function_is_an_errand_of_one_step(errands):
    future = errands.post(at_once(lambda: 7))
    errands.run()
    assert future.result(0) == 7


def test_who_waits_for_something_costs_no_turn_until_it_has_happened(errands):
    happened = []

    def steps():
        yield lambda: bool(happened)
        return len(happened)

    future = errands.post(steps)
    assert errands.run(), "the step up to where it waits"
    assert not errands.are_ready
    assert not errands.run()
    happened.append(1)
    assert errands.are_ready
    assert errands.run()
    assert future.result(0) == 1


def test_what_an_errand_raises_its_future_gets_and_others_go_on(errands):
    def fails():
        yield
        raise KeyError("gone")

    first, second = errands.post(fails), errands.post(at_once(lambda: 1))
    errands.run()
    with pytest.raises(KeyError, match="gone"):
        first.result(0)
    assert second.result(0) == 1


def test_books_that_do_not_agree_end_the_one_who_keeps_them_as_well(errands):
    def finds_them_wrong():
        raise AssertionError("a lease is lost")

    future = errands.post(at_once(finds_them_wrong))
    with pytest.raises(AssertionError, match="a lease"):
        errands.run()
    with pytest.raises(AssertionError, match="a lease"):
        future.result(0)


def test_what_is_not_done_at_the_end_fails_and_so_does_what_comes_later(errands):
    ended = []

    def begun():
        try:
            yield lambda: False
        finally:
            ended.append(True)

    under_way = errands.post(begun)
    errands.run()
    posted = errands.post(at_once(lambda: 1))
    cancelled = errands.post(at_once(lambda: 1))
    assert cancelled.cancel()
    errands.close(RuntimeError("closed"))
    errands.close(RuntimeError("again"))
    later = errands.post(at_once(lambda: 1))
    for future in (under_way, posted, later):
        with pytest.raises(RuntimeError, match="closed"):
            future.result(0)
    with pytest.raises(CancelledError):
        cancelled.result(0)
    assert ended, "a step that was waiting could not put back what it had changed"


def test_an_errand_that_was_cancelled_before_it_began_is_not_done(errands):
    done = []
    future = errands.post(at_once(lambda: done.append(1)))
    assert future.cancel()
    errands.run()
    assert not done


# --- in the cache ---------------------------------------------------------------------------------------------------


def drive(rig, until):
    """A loop as an engine's: it pumps, and sleeps when there is nothing to do. Answers how often it did not sleep."""
    spins = 0
    while not until():
        if rig.cache.deadline_s == float("-inf"):
            spins += 1
        else:
            assert rig.woken.wait(GIVE_UP_S), "asleep although somebody waits"
            rig.woken.clear()
        rig.cache.pump()
    return spins


def test_a_sleeping_loop_is_woken_and_comes_back_while_there_is_work_and_no_longer():
    rig = Rig(None)
    with rig.cache as cache:
        cache.pump()
        assert cache.deadline_s is None
        turns = []

        def steps():
            for _ in range(3):
                turns.append(threading.get_ident())
                until_s = time.perf_counter() + 1.1e-3
                while time.perf_counter() < until_s:
                    pass
                yield
            return "done"

        answers = []

        def ask():
            answers.append(cache.ask_in_steps(steps).result(GIVE_UP_S))
            rig.woken.set()

        asker = threading.Thread(target=ask)
        asker.start()
        spins = drive(rig, lambda: bool(answers))
        asker.join()
        assert turns == [threading.get_ident()] * 3, "not done by the thread that drives"
        assert spins >= 3, "a slice of a millisecond each, and no sleep between"
        cache.pump()
        assert cache.deadline_s is None


def test_the_thread_that_drives_does_what_it_asks_for_at_once():
    with Rig(None).cache as cache:
        cache.pump()
        assert cache._answer_to(at_once(lambda: 3)) == 3


def test_a_closed_cache_leaves_nobody_waiting():
    cache = Rig(None).cache
    before = cache.ask(lambda: 1)
    cache.close()
    for future in (before, cache.ask(lambda: 1)):
        with pytest.raises(RuntimeError, match="the cache is closed"):
            future.result(0)


def test_within_a_turn_only_one_pump_runs_errands():
    with Rig(None).cache as cache:
        future = cache.ask(lambda: 1)
        cache.pump(errands=False)
        assert not future.done()
        cache.pump()
        assert future.done()
