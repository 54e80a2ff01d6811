"""The threads that compute together."""

import threading

import pytest
import torch

from engine.lanes import registers
from engine.team import Team
from kvstore.cores import num_cores

pytestmark = pytest.mark.skipif(registers()[0] == 0, reason="this processor has no kernel to compute with")


@pytest.mark.usefixtures("threads")
def test_each_thread_does_the_work_each_time():
    """Whether it stayed since the last time or has gone."""
    with Team(2) as team:
        for _ in range(50):
            done: list[int] = []
            team.run(done.append, 1)
            assert len(done) == torch.get_num_threads()
        team.close()
        team.run(done.append, 1)
        assert len(done) == 2 * torch.get_num_threads()


@pytest.mark.usefixtures("threads")
def test_what_failed_is_raised_once_all_are_done():
    with Team(2) as team:
        for raises_here in (True, False):
            caller, done = threading.current_thread(), []

            def work(*, raises_here: bool = raises_here, caller: threading.Thread = caller) -> None:
                done.append(1)  # noqa: B023 - the list of this turn, as it runs in it
                if (threading.current_thread() is caller) == raises_here:
                    raise ZeroDivisionError

            if raises_here or torch.get_num_threads() > 1:
                with pytest.raises(ZeroDivisionError):
                    team.run(work)
                assert len(done) == torch.get_num_threads()
        done = []
        team.run(done.append, 1)
        assert len(done) == torch.get_num_threads()


@pytest.mark.parametrize("threads", [2], indirect=True)
def test_the_work_is_done_when_no_thread_may_be_begun(threads, monkeypatch):
    """As when the interpreter ends, while a thread of the user's still waits for a reply."""
    with Team(2) as team:
        monkeypatch.setattr("concurrent.futures.thread._shutdown", True)
        for _ in range(threads):
            done: list[int] = []
            team.run(done.append, 1)
            assert done == [1]


@pytest.mark.parametrize("threads", [2], indirect=True)
def test_the_work_is_done_while_there_are_too_many_threads(threads, monkeypatch):
    """By the caller alone, each time once; and by all when there is room again."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with Team(2) as team:
        with monkeypatch.context() as full:
            full.setattr(threading.Thread, "start", refuse)
            for _ in range(3):
                done: list[int] = []
                team.run(done.append, 1)
                assert done == [1]
        for _ in range(3):
            done = []
            team.run(done.append, 1)
            assert len(done) == threads


@pytest.mark.parametrize("threads", [2], indirect=True)
def test_what_several_raise_is_raised_once(threads):
    def fail() -> None:
        raise ZeroDivisionError

    with Team(2) as team:
        with pytest.raises(ZeroDivisionError):
            team.run(fail)
        done: list[int] = []
        team.run(done.append, 1)
        assert len(done) == threads


def test_there_are_no_more_threads_than_cores():
    """Whatever torch was told."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_cores() + 3)
    try:
        with Team() as team:
            done: list[int] = []
            team.run(done.append, 1)
        assert len(done) == num_cores()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [2], indirect=True)
def test_an_interrupt_waits_until_all_are_done(threads, monkeypatch):
    """Or the others would go on in memory that is no more, and not have their next work."""
    with Team(2) as team:
        team.run(lambda: None)
        [seat] = team._seats
        caller, wait, interrupted, done = threading.current_thread(), seat.wait, threading.Event(), []

        def wait_interrupted() -> None:
            if not interrupted.is_set():
                interrupted.set()
                raise KeyboardInterrupt
            goes_on.set()
            wait()

        def work() -> None:
            if threading.current_thread() is not caller:
                goes_on.wait()
            done.append(1)

        goes_on = threading.Event()
        try:
            with monkeypatch.context() as signal:
                signal.setattr(seat, "wait", wait_interrupted)
                with pytest.raises(KeyboardInterrupt):
                    team.run(work)
            assert len(done) == threads
        finally:
            goes_on.set()
        team.run(done.append, 1)
        assert len(done) == 2 * threads
