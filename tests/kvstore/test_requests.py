"""Reads that other threads make, in compiled code: what comes is what the file has, and whose request hangs is alone with that."""

import ctypes
import gc
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from kvstore.disk.request_words import CLOCK, HELD, LET_GO
from kvstore.disk.requests import Requests, functions
from tests.kvstore.conftest import read_by

FILE_BYTES = 1 << 16
PIECE_BYTES = 8192


@pytest.fixture
def content(tmp_path) -> bytes:
    made: bytes = np.random.default_rng(0).bytes(FILE_BYTES)
    (tmp_path / "data").write_bytes(made)
    return made


@contextmanager
def opened(folder: Path, num_threads: int = 2, num_pieces: int = 4) -> Iterator[Requests]:
    file = os.open(folder / "data", os.O_RDONLY)
    requests = Requests("test-read", num_threads, file, piece_bytes=PIECE_BYTES, num_pieces=num_pieces)
    try:
        yield requests
    finally:
        requests.close()  # what was given back while it was read may be read still
        requests.check()
        os.close(file)


def brought(requests: Requests, num_bytes: int, offset: int) -> bytes:
    number = requests.put(num_bytes, offset, requests)
    assert number is not None
    return taken(requests, number)


def taken(requests: Requests, number: int) -> bytes:
    """What a request has brought; it is given back."""
    answer = requests.answer(number, 10.0)
    assert answer is not None
    content = ctypes.string_at(requests.address(number), max(answer, 0))
    requests.give_back(number)
    return content


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


def test_what_no_thread_has_begun_with_is_taken_back_and_never_read(content, tmp_path, monkeypatch):
    """While the only thread hangs: as many as there are rows, and no more."""
    with opened(tmp_path, num_threads=1) as requests:
        begun, go_on = hanging_reads(monkeypatch)
        first = requests.put(100, 0, requests)
        assert begun.wait(10.0)
        put = [requests.put(100, number, requests) for number in range(1, 100)]
        waiting = [number for number in put if number is not None]
        assert len(waiting) == 63
        assert [requests.answer(number, 0.0) for number in waiting[1:]] == [None] * 62
        assert requests.put(100, 0, requests) is None, "the thread has not passed them"
        begun.clear()
        go_on.set()
        assert taken(requests, first) == content[:100]
        assert taken(requests, waiting[0]) == content[1:101]
        assert brought(requests, 100, 0) == content[:100]  # comes behind all of them


def test_nobody_waits_for_what_is_given_back(content, tmp_path, monkeypatch):
    """Begun with or not. What it was read to is nobody else's until then."""
    with opened(tmp_path, num_threads=2, num_pieces=3) as requests:
        begun, go_on = hanging_reads(monkeypatch)
        numbers = [requests.put(100, 0, requests) for _ in range(3)]
        assert begun.wait(10.0)
        for number in numbers:
            requests.give_back(number)
            requests.give_back(number)  # once more is as once
        go_on.set()
        monkeypatch.undo()
        assert brought(requests, 100, 50) == content[50:150]


def test_no_piece_is_anothers_while_it_is_looked_at(content, tmp_path):
    """Several callers hold several each, give some back unread, and look at what they have for a while."""
    wrong: list[int] = []

    def call(seed):
        random = np.random.default_rng(seed)
        for _ in range(60):
            asked = [
                (random.integers(1, 5000).item(), random.integers(0, FILE_BYTES // 2).item())
                for _ in range(2)
            ]
            numbers = [requests.put(*each, requests) for each in asked]
            if random.random() < 0.3 and numbers[1] is not None:
                requests.give_back(numbers[1])
                numbers[1] = None
            for number, (num_bytes, offset) in zip(numbers, asked, strict=True):
                if number is None:
                    continue
                assert requests.answer(number, 10.0) == num_bytes
                seen = {ctypes.string_at(requests.address(number), num_bytes) for _ in range(3)}
                if seen != {content[offset : offset + num_bytes]}:
                    wrong.append(seed)
                requests.give_back(number)

    with opened(tmp_path, num_threads=3, num_pieces=12) as requests:
        callers = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert wrong == []


def test_more_requests_than_pieces_wait_for_one(content, tmp_path):
    """What lies in a piece stays until it is given back: what comes after it is not begun with, and can be taken back."""
    with opened(tmp_path, num_threads=1, num_pieces=2) as requests:
        held = [requests.put(100, offset, requests) for offset in (0, 100)]
        assert [requests.answer(number, 10.0) for number in held] == [100, 100]
        late = requests.put(100, 200, requests)
        assert requests.answer(late, 0.0) is None
        for number, offset in zip(held, (0, 100), strict=True):
            assert ctypes.string_at(requests.address(number), 100) == content[offset : offset + 100]
            requests.give_back(number)
        assert brought(requests, 100, 200) == content[200:300]


def test_what_is_longer_than_a_piece_is_the_callers_to_read(content, tmp_path):
    with opened(tmp_path) as requests:
        assert requests.put(PIECE_BYTES + 1, 0, requests) is None
        assert brought(requests, PIECE_BYTES, 0) == content[:PIECE_BYTES]


@pytest.mark.parametrize("faster", [HELD, LET_GO])
def test_caches_let_go_of_memory_if_reads_are_faster_then(tmp_path, monkeypatch, faster):
    """It is tried both ways, what was faster is done most of the time, and the other way now and then, as that may change."""
    content = np.random.default_rng(1).bytes(1 << 20)
    (tmp_path / "data").write_bytes(content)
    file = os.open(tmp_path / "data", os.O_RDONLY)
    requests = Requests("test-read", 1, file, piece_bytes=1 << 20, num_pieces=2)
    now_ns = [0]

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
    def clock(_clock, time):
        """Each look takes longer after the slower way, whatever the piece is."""
        is_let_go = bool(requests._pieces[LET_GO])
        now_ns[0] += 1000 if is_let_go == (faster == LET_GO) else 5000
        words = (ctypes.c_long * 2).from_address(time)
        words[0], words[1] = divmod(now_ns[0], 10**9)
        return 0

    was = functions[CLOCK]
    functions[CLOCK] = ctypes.cast(clock, ctypes.c_void_p).value
    try:
        ways = []
        for _ in range(200):
            assert brought(requests, 1 << 20, 0) == content
            ways.append(bool(requests._pieces[LET_GO]))
    finally:
        functions[CLOCK] = was
        requests.close()
        os.close(file)
    assert 0.9 < np.mean([way == (faster == LET_GO) for way in ways[20:]]) < 1


def test_threads_keep_what_they_wait_for(content, tmp_path):
    """Of one that nobody has closed: what comes to lie there would be taken for a semaphore else, and changed."""
    file = os.open(tmp_path / "data", os.O_RDONLY)
    requests = Requests("test-read", 1, file, piece_bytes=PIECE_BYTES, num_pieces=2)
    assert brought(requests, 100, 0) == content[:100]
    arrays = requests._rows, requests._queue, requests._taken, requests._semaphore, requests._pieces
    kept = [weakref.ref(each) for each in arrays]
    del requests, arrays
    gc.collect()
    assert all(each() is not None for each in kept)
    os.close(file)


@pytest.mark.usefixtures("content")
def test_what_somebody_put_who_is_gone_is_given_back(tmp_path):
    """More requests than there are pieces, whose callers were interrupted before they gave anything back."""
    with opened(tmp_path) as requests:
        for _ in range(10):
            owner = set[None]()
            number = requests.put(100, 0, owner)
            assert number is not None
            assert requests.answer(number, 10.0) == 100
            del owner
