"""Reads that other threads make, in compiled code: what comes is what the file has, and whose request hangs is alone with that."""

import ctypes
import gc
import os
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from kvstore.disk.request_words import FREE, HELD, LET_GO, QUEUED, STATE, TAKEN
from kvstore.disk.requests import Requests
from kvstore.disk.runs import Bounds, Places, Runs
from tests.kvstore.conftest import absent_by, patient, read_by, served_by

PAGE = 4096
NUM_PAGES = 64
PIECE_BYTES = 2 * PAGE
NUM_ROWS = 16
FAR = 1000


@pytest.fixture
def content(tmp_path) -> bytes:
    made: bytes = np.random.default_rng(0).bytes(NUM_PAGES * PAGE)
    (tmp_path / "data").write_bytes(made)
    return made


@pytest.fixture(autouse=True)
def _nothing_in_memory_and_nobody_in_a_hurry(monkeypatch):
    absent_by(monkeypatch, lambda address, num_bytes: 1)
    patient(monkeypatch)


@contextmanager
def opened(
    folder: Path,
    num_threads: int = 2,
    num_pieces: int = 4,
    piece_bytes: int = PIECE_BYTES,
    num_requests: int = NUM_ROWS,
) -> Iterator[Requests]:
    file = os.open(folder / "data", os.O_RDONLY)
    requests = Requests(
        "test-read",
        num_threads,
        file,
        piece_bytes=piece_bytes,
        num_pieces=num_pieces,
        num_requests=num_requests,
    )
    try:
        yield requests
    finally:
        requests.close()  # what was given back while it was read may be read still
        requests.check()
        os.close(file)


class Reads:
    """What callers have read themselves."""

    def __init__(self, folder: Path) -> None:
        self.made: list[int] = []
        self._content = (folder / "data").read_bytes()

    def __call__(self, begin: int, num_bytes: int, least_bytes: int) -> np.ndarray:
        assert least_bytes <= num_bytes
        self.made.append(begin)
        return np.frombuffer(self._content[begin : begin + num_bytes], np.uint8)


def runs_of(
    requests: Requests, pages: Sequence[int], read: Reads, *, pages_each: int = 1, num_ahead: int = 3
) -> Runs:
    """A record on each of these pages, and those behind it, and a run for each."""
    begins = np.array(pages, np.int64) * PAGE
    sizes = np.full(begins.size, pages_each * PAGE, np.int64)
    places = Places(1 << 40, begins, sizes, np.arange(begins.size))
    return Runs(requests, places, Bounds(0, pages_each * PAGE, 0, num_ahead), read)


def brought(runs: Runs) -> Iterator[tuple[int, bytes]]:
    """Each record's number and what is there, looked at for a while."""
    for run in runs.unproven(None):
        for number, span in run:
            seen = {bytes(span.view) for _ in range(3)}
            yield number, seen.pop() if len(seen) == 1 else b"it changes"


def in_threads(number: int, call) -> None:
    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(number)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()


def hanging_reads(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Semaphore, threading.Event]:
    """From now on a read says when it has begun, and goes on when it is told to."""
    begun, go_on, preadv = threading.Semaphore(0), threading.Event(), os.preadv

    def hanging(file, buffers, offset):
        begun.release()
        assert go_on.wait(10.0)
        return preadv(file, buffers, offset)

    read_by(monkeypatch, hanging)
    return begun, go_on


def test_they_bring_what_the_file_has(content, tmp_path):
    """To several callers at once, of which some leave before they have seen all; more requests than there are rows. None reads by itself."""
    wrong: list[int] = []
    read = Reads(tmp_path)

    def call(seed):
        random = np.random.default_rng(seed)
        for _ in range(60):
            pages = np.sort(random.choice(NUM_PAGES - 1, random.integers(1, 12), replace=False)).tolist()
            each, last = int(random.integers(1, 3)), random.integers(0, 24)
            with closing(runs_of(requests, pages, read, pages_each=each)) as runs:
                for number, found in brought(runs):
                    at = pages[number] * PAGE
                    if found != content[at : at + each * PAGE]:
                        wrong.append(pages[number])
                    if number == last:
                        break

    with opened(tmp_path, num_threads=3, num_pieces=12) as requests:
        in_threads(4, call)
    assert wrong == []
    assert read.made == []


def test_each_request_is_begun_with_whichever_thread_was_told_of_it(content, tmp_path):
    """Looking for the one that has waited longest takes long here, so that others come and go meanwhile: a thread may take the one that
    another one was told of.
    """
    read = Reads(tmp_path)

    def call(seed):
        random = np.random.default_rng(seed)
        for _ in range(150):
            pages = np.sort(random.choice(NUM_PAGES, random.integers(1, 8), replace=False)).tolist()
            with closing(runs_of(requests, pages, read)) as runs:
                for number, found in brought(runs):
                    assert found == content[pages[number] * PAGE :][:PAGE]

    with opened(tmp_path, num_threads=3, num_pieces=60, num_requests=NUM_ROWS * FAR) as requests:
        states = requests.shared[0][:, STATE]
        states[np.arange(states.size) % FAR > 0] = TAKEN
        in_threads(4, call)
        states[np.arange(states.size) % FAR > 0] = FREE
    assert read.made == []


def test_runs_for_which_there_was_no_row_are_asked_for_later(content, tmp_path, monkeypatch):
    """When others have given some back: only the first of a call's runs is its own to read."""
    read = Reads(tmp_path)
    with opened(tmp_path, num_threads=1, num_pieces=4) as requests:
        begun, go_on = hanging_reads(monkeypatch)
        others = runs_of(requests, range(NUM_ROWS), read, num_ahead=NUM_ROWS)
        assert begun.acquire(timeout=10.0)
        with closing(runs_of(requests, range(20, 26), read)) as runs:
            found = brought(runs)
            assert next(found) == (0, content[20 * PAGE : 21 * PAGE])
            others.close()
            go_on.set()
            assert [each for _, each in found] == [content[at * PAGE :][:PAGE] for at in range(21, 26)]
    assert read.made == [20 * PAGE]


def test_a_read_that_fails_is_made_by_the_caller(content, tmp_path, monkeypatch):
    """Who can say why. So is one that brings less than there must be."""

    def failing(file, buffers, offset):
        if offset == PAGE:
            raise OSError
        return PAGE - 1 if offset == 2 * PAGE else PAGE

    read = Reads(tmp_path)
    with opened(tmp_path) as requests:
        read_by(monkeypatch, failing)
        with closing(runs_of(requests, range(4), read)) as runs:
            for number, found in brought(runs):
                assert number not in {1, 2} or found == content[number * PAGE :][:PAGE]
        assert read.made == [PAGE, 2 * PAGE]
        monkeypatch.undo()


def test_what_no_thread_has_begun_with_is_taken_back_and_read_by_the_caller(content, tmp_path, monkeypatch):
    """While the only thread hangs: as many as there are rows, and those for which there is none."""
    read = Reads(tmp_path)
    num = NUM_ROWS + 8
    patient(monkeypatch, 0)
    pages = np.arange(num) % NUM_PAGES
    with opened(tmp_path, num_threads=1) as requests:
        begun, go_on = hanging_reads(monkeypatch)
        hanging = runs_of(requests, [0], read)
        assert begun.acquire(timeout=10.0)
        places = Places(1 << 40, pages * PAGE, np.full(num, PAGE), np.arange(num))
        with closing(Runs(requests, places, Bounds(0, PAGE, -1, num), read)) as runs:
            assert (requests.shared[0][1:, STATE] == QUEUED).all()
            for number, found in brought(runs):
                assert found == content[pages[number] * PAGE :][:PAGE]
                if number == 3:  # each takes a tenth of a second
                    break
        assert read.made == [page * PAGE for page in range(4)]
        go_on.set()
        assert [found for _, found in brought(hanging)] == [content[:PAGE]]
        with closing(runs_of(requests, [5, 7], read)) as runs:  # comes behind all of them
            assert [found for _, found in brought(runs)] == [content[at * PAGE :][:PAGE] for at in (5, 7)]
        hanging.close()


def test_nobody_waits_for_what_is_given_up(content, tmp_path, monkeypatch):
    """Begun with or not. What it was read to is nobody else's until then."""
    read = Reads(tmp_path)
    with opened(tmp_path, num_threads=2, num_pieces=3) as requests:
        begun, go_on = hanging_reads(monkeypatch)
        runs = runs_of(requests, range(4), read)
        assert begun.acquire(timeout=10.0)
        runs.close()
        runs.close()  # once more is as once
        go_on.set()
        with closing(runs_of(requests, [9], read)) as runs:
            assert [found for _, found in brought(runs)] == [content[9 * PAGE :][:PAGE]]
    assert read.made == []


def test_more_requests_than_pieces_wait_for_one(content, tmp_path, monkeypatch):
    """What lies in a piece stays until it was looked at: what comes after it is read by who needs it."""
    read, made, preadv = Reads(tmp_path), threading.Semaphore(0), os.preadv

    def noted(file, buffers, offset):
        try:
            return preadv(file, buffers, offset)
        finally:
            made.release()

    read_by(monkeypatch, noted)
    with opened(tmp_path, num_threads=1, num_pieces=2) as requests:
        with closing(runs_of(requests, [0, 1], read)) as held:
            for _ in range(2):
                assert made.acquire(timeout=10.0)
            patient(monkeypatch, 0)
            with closing(runs_of(requests, [2], read)) as late:
                assert [found for _, found in brought(late)] == [content[2 * PAGE :][:PAGE]]
            assert read.made == [2 * PAGE]
            patient(monkeypatch)
            assert [found for _, found in brought(held)] == [content[:PAGE], content[PAGE : 2 * PAGE]]
        with closing(runs_of(requests, [3], read)) as runs:
            assert [found for _, found in brought(runs)] == [content[3 * PAGE :][:PAGE]]
    assert read.made == [2 * PAGE]


def test_what_is_longer_than_a_piece_is_the_callers_to_read(content, tmp_path):
    read = Reads(tmp_path)
    with opened(tmp_path) as requests:
        for each, reads in ((2, []), (3, [0])):
            with closing(runs_of(requests, [0], read, pages_each=each)) as runs:
                assert [found for _, found in brought(runs)] == [content[: each * PAGE]]
            assert read.made == reads


@pytest.mark.parametrize("faster", [HELD, LET_GO])
def test_caches_let_go_of_memory_if_reads_are_faster_then(tmp_path, monkeypatch, faster):
    """It is tried both ways, what was faster is done most of the time, and the other way now and then, as that may change."""
    (tmp_path / "data").write_bytes(np.random.default_rng(1).bytes(1 << 20))
    read, now_ns, ways = Reads(tmp_path), [0], []
    each = (1 << 20) // PAGE

    with opened(tmp_path, 1, 2, 1 << 20) as requests:
        words = requests.shared[1]

        @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
        def clock(number, at):
            """Each look takes longer after the slower way, whatever the piece is. The time of day is what it is."""
            is_let_go = bool(words[LET_GO])
            now_ns[0] += 1000 if is_let_go == (faster == LET_GO) else 5000
            told = (ctypes.c_long * 2).from_address(at)
            later_ns = time.time_ns() + 30 * 10**9
            told[0], told[1] = divmod(now_ns[0] if number == time.CLOCK_MONOTONIC else later_ns, 10**9)
            return 0

        with monkeypatch.context() as timed:
            served_by(timed, "CLOCK", clock)
            for _ in range(200):
                with closing(runs_of(requests, [0], read, pages_each=each)) as runs:
                    assert len(list(brought(runs))) == 1
                ways.append(bool(words[LET_GO]))
    assert read.made == []
    assert 0.9 < np.mean([way == (faster == LET_GO) for way in ways[20:]]) < 1


@pytest.mark.usefixtures("content")
def test_threads_keep_what_they_wait_for(tmp_path):
    """Of one that nobody has closed: what comes to lie there would be taken for a semaphore else, and changed."""
    file = os.open(tmp_path / "data", os.O_RDONLY)
    requests = Requests("test-read", 1, file, piece_bytes=PIECE_BYTES, num_pieces=2, num_requests=8)
    with closing(runs_of(requests, [0], Reads(tmp_path))) as runs:
        list(brought(runs))
    kept = [weakref.ref(each) for each in (*requests.shared, requests._memory)]
    del requests, runs
    gc.collect()
    assert all(each() is not None for each in kept)
    os.close(file)


@pytest.mark.usefixtures("content")
def test_what_somebody_put_who_is_gone_is_given_back(tmp_path):
    """More requests than there are pieces, whose callers were interrupted before they gave anything back."""
    read = Reads(tmp_path)
    with opened(tmp_path) as requests:
        for _ in range(10):
            runs = runs_of(requests, range(3), read)
            assert next(brought(runs))[0] == 0
            del runs
    assert read.made == []
