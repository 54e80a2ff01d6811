"""Threads that do I/O run their jobs, and whoever closes them does not wait for one that hangs."""

import threading

from kvstore.layers import Gate
from tests.tiering.slot_arrays import GIVE_UP_S
from tiering.io_threads import IoThreads


def test_one_thread_runs_jobs_in_order():
    threads, done = IoThreads("test", 1), []
    for number in range(100):
        threads.put(lambda number=number: done.append(number))
    assert threads.close(GIVE_UP_S)
    assert done == list(range(100))


def test_two_threads_run_jobs_side_by_side():
    threads, barrier = IoThreads("test", 2), threading.Barrier(2)
    for _ in range(2):
        threads.put(lambda: barrier.wait(GIVE_UP_S))
    assert threads.close(GIVE_UP_S)
    assert not barrier.broken


def test_a_job_that_hangs_does_not_hold_up_close():
    threads, gate = IoThreads("test", 2), Gate()
    threads.put(gate.wait)
    assert gate.wait_until_reached(GIVE_UP_S)
    assert not threads.close(0.0)
    gate.open()
    assert threads.close(GIVE_UP_S)


def test_no_threads_close_at_once():
    assert IoThreads("test", 0).close(0.0)
