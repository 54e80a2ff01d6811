"""Reads that other threads make, in compiled code: what comes is what the file has, and whose request hangs is alone with that."""

import gc
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from kvstore.disk.requests import Requests
from tests.kvstore.conftest import read_by

FILE_BYTES = 1 << 16


@pytest.fixture
def content(tmp_path) -> bytes:
    made: bytes = np.random.default_rng(0).bytes(FILE_BYTES)
    (tmp_path / "data").write_bytes(made)
    return made


@contextmanager
def opened(folder: Path, num_threads: int = 2) -> Iterator[Requests]:
    file = os.open(folder / "data", os.O_RDONLY)
    requests = Requests("test-read", num_threads, file)
    try:
        yield requests
        requests.check()
    finally:
        requests.close()
        requests.check()
        os.close(file)


def brought(requests: Requests, num_bytes: int, offset: int) -> bytes:
    memory = np.zeros(num_bytes, np.uint8)
    number = requests.put(memory.ctypes.data, num_bytes, offset)
    assert number is not None
    answer = requests.answer(number, 10.0)
    assert answer is not None
    requests.free(number)
    return memory[: max(answer, 0)].tobytes()


def hanging_reads(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """From now on a read says when it has begun, and goes on when it is told to."""
    begun, go_on, preadv = threading.Event(), threading.Event(), os.preadv

    def hanging(file, buffers, offset):
        begun.set()
        assert go_on.wait(10.0)
        return preadv(file, buffers, offset)

    read_by(monkeypatch, hanging)
    return begun, go_on


def test_they_bring_what_the_file_has(content, tmp_path):
    """To several callers at once, more often than there are rows; and less where it ends."""
    wrong: list[tuple[int, int]] = []

    def call(seed):
        random = np.random.default_rng(seed)
        for _ in range(100):
            num_bytes, offset = random.integers(1, 5000).item(), random.integers(0, FILE_BYTES).item()
            if brought(requests, num_bytes, offset) != content[offset : offset + num_bytes]:
                wrong.append((num_bytes, offset))

    with opened(tmp_path) as requests:
        callers = [threading.Thread(target=call, args=(seed,)) for seed in range(3)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert wrong == []


def test_a_read_that_fails_says_so(content, tmp_path, monkeypatch):
    def failing(file, buffers, offset):
        raise OSError

    with opened(tmp_path) as requests:
        read_by(monkeypatch, failing)
        assert brought(requests, 100, 0) == b""
        monkeypatch.undo()
        assert brought(requests, 100, 0) == content[:100]


def test_what_no_thread_has_begun_with_is_taken_back_and_writes_nothing(content, tmp_path, monkeypatch):
    """While the only thread hangs: as many as there are rows, and no more."""
    memory = np.zeros((100, 100), np.uint8)
    with opened(tmp_path, num_threads=1) as requests:
        begun, go_on = hanging_reads(monkeypatch)
        first = requests.put(memory[0].ctypes.data, 100, 0)
        assert begun.wait(10.0)
        put = [requests.put(one.ctypes.data, 100, 0) for one in memory[1:]]
        waiting = [number for number in put if number is not None]
        assert len(waiting) == 63
        assert [requests.answer(number, 0.0) for number in waiting[1:]] == [None] * 62
        assert requests.put(memory[0].ctypes.data, 100, 0) is None, "the thread has not passed them"
        go_on.set()
        for number in (first, waiting[0]):
            assert requests.answer(number, 10.0) == 100
            requests.free(number)
        assert brought(requests, 100, 0) == content[:100]  # comes behind all of them
    assert memory[:2].tobytes() == 2 * content[:100]
    assert not memory[2:].any()


def test_nobody_waits_for_what_is_dropped_unless_it_is_being_written(content, tmp_path, monkeypatch):
    memory = np.zeros((2, 100), np.uint8)
    with opened(tmp_path, num_threads=1) as requests:
        begun, go_on = hanging_reads(monkeypatch)
        numbers = [requests.put(one.ctypes.data, 100, 0) for one in memory]
        assert begun.wait(10.0)
        requests.drop(numbers[1])
        threading.Timer(0.01, go_on.set).start()
        requests.drop(numbers[0])
        assert memory[0].tobytes() == content[:100]
        monkeypatch.undo()
        brought(requests, 100, 0)
    assert not memory[1].any()


def test_threads_keep_what_they_wait_for(content, tmp_path):
    """Of one that nobody has closed: what comes to lie there would be taken for a semaphore else, and changed."""
    file = os.open(tmp_path / "data", os.O_RDONLY)
    requests = Requests("test-read", 1, file)
    assert brought(requests, 100, 0) == content[:100]
    arrays = requests._rows, requests._queue, requests._taken, requests._semaphore
    kept = [weakref.ref(each) for each in arrays]
    del requests, arrays
    gc.collect()
    assert all(each() is not None for each in kept)
    os.close(file)
