"""Reads of a file that other threads make before their results are needed, in compiled code (kvstore.disk.request_loop).

Between two requests such a thread needs nothing of Python's. So it does not wait for the lock of those who look at what was read, and the
disk has its next request at once.
"""

import ctypes
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any, Final
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from kvstore.code import Function, loaded
from kvstore.disk.buffers import huge_pages
from kvstore.disk.request_words import (
    ANSWER,
    BEGUN,
    ENDED,
    FREE,
    FREED,
    PIECE,
    PIECE_BYTES,
    PIECES,
    POST,
    QUEUED,
    ROW,
    STATE,
)
from kvstore.errors import StoreFailed

_MOST_REQUESTS: Final = 64
"""At a time: more are the caller's to read, as where all threads hang in the kernel."""
_LONG_S: Final = 3600.0
_MOST_END_S: Final = 1.0

_SOURCES: Final = (
    "kvstore.disk.request_loop",
    "kvstore.disk.request_words",
    "kvstore.instructions",
    "kvstore.scratch",
)
_WRITTEN: Final = "int64 1 written"
_SERVE: Final = Function(
    "kvstore.disk.request_loop",
    "serve",
    _SOURCES,
    ("int64 2 written", *(_WRITTEN,) * 4, "int64 1", "uint8 1 written", "int64"),
)
_TAKE_BACK: Final = Function("kvstore.disk.request_loop", "take_back", _SOURCES, ("int64",), keeps_gil=True)
_GIVE_BACK: Final = Function(
    "kvstore.disk.request_loop", "give_back", _SOURCES, ("int64", "int64", _WRITTEN, "int64")
)
FUNCTIONS: Final = (_SERVE, _TAKE_BACK, _GIVE_BACK)
"""All that is compiled for this."""

_libc: Final = ctypes.PyDLL(None)
"""What is called so keeps the GIL: it takes less than to give it up, and wait for it behind others."""
_sem_post, _sem_trywait = _libc.sem_post, _libc.sem_trywait
_waiting_libc: Final = ctypes.CDLL(None)


def _addresses(*names: str) -> NDArray[np.int64]:
    return np.array([ctypes.cast(_libc[name], ctypes.c_void_p).value for name in names], np.int64)


functions: Final = _addresses("pread", "sem_wait", "sem_post", "clock_gettime")
"""Of the C library's, by which requests are served, and timed."""


class _Timespec(ctypes.Structure):
    _fields_ = (("s", ctypes.c_long), ("ns", ctypes.c_long))


@cache
def serving() -> Callable[..., int]:
    """`serve` of kvstore/disk/request_loop.py. The first call loads it, or has it compiled. Raises StoreFailed where it cannot be."""
    return loaded(_SERVE)[0]


@cache
def _ending() -> list[Callable[..., int]]:
    """`take_back` and `give_back`, likewise."""
    return loaded(_TAKE_BACK, _GIVE_BACK)


class Requests:
    """Daemon threads that read one file, and begin with the first request if they have not before. Any thread may call it.

    What is read lies in memory of theirs, in pieces of equal size, of which a request has one from when it is read until it is given back.

    A request that no thread has begun with can be taken back, so that whoever needs it does not wait for those of others for ever: one
    that hangs stops its own caller only. The interpreter's exit does not wait for one.
    """

    def __init__(self, name: str, num_threads: int, file: int, *, piece_bytes: int, num_pieces: int) -> None:
        """`piece_bytes`: the most that a request may bring. `num_pieces`: more than there are threads, and no more than MOST_PIECES."""
        self._name, self._num_threads, self._file = name, num_threads, file
        self.piece_bytes: Final = piece_bytes
        self._num_pieces = num_pieces
        self._lock = threading.Lock()  # two callers would take the same row, or begin threads for both
        self._threads: list[threading.Thread] = []
        self._rows = np.zeros((_MOST_REQUESTS, ROW), np.int64)
        self._row_bytes, self._begin = self._rows.strides[0], self._rows.ctypes.data
        self._queue = np.zeros(_MOST_REQUESTS, np.int64)
        """Numbers of rows in the order in which they came, over and over."""
        self._owners: list[ref[Any] | None] = [None] * _MOST_REQUESTS
        """Of the rows: whoever put a request last."""
        self._gone: list[ref[Any]] = []
        """Those of whom nothing is left."""
        self._num_put = 0
        self._taken = np.zeros(1, np.int64)
        semaphore = np.zeros(ROW - ENDED, np.int64)
        self._semaphore, self._queued = semaphore, ctypes.c_void_p(semaphore.ctypes.data)
        self._ended = [ctypes.c_void_p(row[ENDED:].ctypes.data) for row in self._rows]
        for each in (self._queued, *self._ended):
            _libc.sem_init(each, 0, 0)
        self._pieces = np.zeros(ROW, np.int64)
        self._pieces[PIECES], self._pieces[PIECE_BYTES] = (1 << num_pieces) - 1, piece_bytes
        _libc.sem_init(ctypes.c_void_p(self._pieces[FREED:].ctypes.data), 0, num_pieces)
        self._memory: NDArray[np.uint8] = np.empty(0, np.uint8)
        """All pieces, one after the other, as soon as there is a thread."""

    def put(self, num_bytes: int, offset: int, owner: object) -> int | None:
        """Have so many bytes of the file, more than none, read soon. Answers the request's number.

        `owner`: of the request, which is given back when there is no owner any more, if not before: who is interrupted (KeyboardInterrupt) may not
        have come to that. To be of a type of C, and held by a local variable alone.

        None where there is no thread for it, or too many wait, or it is for more than a piece: then it is the caller's to do.
        """
        if num_bytes > self.piece_bytes:
            return None
        self.begin()
        return self._put(num_bytes, offset, owner) if self._threads else None

    def answer(self, number: int, after_s: float) -> int | None:
        """How many bytes a request has brought, less than none where it failed; it is to be given back then. None if no thread has begun with it, nor
        ever will: one may for so many seconds, and longer where the clock is set back.
        """
        self._wait(number, after_s)
        take_back, _ = _ending()
        if take_back(self._row(number)):
            return None
        while self._is_open(number):
            self._wait(number, _LONG_S)
        answer: int = self._rows[number, ANSWER].item()
        return answer

    def address(self, number: int) -> int:
        """Where the bytes are that an answered request has brought, until it is given back."""
        at: int = self._memory.ctypes.data + self._rows[number, PIECE].item() * self.piece_bytes
        return at

    def give_back(self, number: int) -> None:
        """Nobody wants a request any more, or looks at what it has brought. Nobody waits for it either: it may be read still."""
        _, give_back = _ending()
        give_back(self._row(number), self._memory.ctypes.data, self._pieces, functions[POST].item())

    def begin(self) -> None:
        """Have the memory, and the threads run, as far as the system has so many, and they can be compiled."""
        if len(self._threads) == self._num_threads:
            return
        try:
            serve = serving()
            _ending()
        except StoreFailed:
            return
        with self._lock:
            if not self._memory.size:
                try:
                    self._memory = np.frombuffer(huge_pages(self._num_pieces * self.piece_bytes), np.uint8)
                except OSError:  # there is not so much
                    return
            # arrays, which a thread so keeps for as long as it runs, whatever becomes of who began it
            words = self._rows, self._queue, self._taken, self._semaphore, self._pieces, functions
            given = *words, self._memory, self._file
            for number in range(len(self._threads), self._num_threads):
                name = f"{self._name}-{number}"
                thread = threading.Thread(target=serve, args=given, name=name, daemon=True)
                # first: an interrupt may come while it begins, and it is to be told to end
                self._threads.append(thread)
                try:
                    thread.start()
                except RuntimeError:  # the system has no more of them, or the program is about to end
                    self._threads.pop()
                    return

    def check(self) -> None:
        """While nobody reads: no request is left, and each thread has one piece."""
        assert (self._rows[:, STATE] == FREE).all(), "a request was not given back"
        assert self._taken.item() == self._num_put, "a request is in the queue that nobody wants"
        num_free = self._pieces[PIECES].item().bit_count()
        assert num_free == self._num_pieces - len(self._threads), f"{num_free} pieces are nobody's"

    def close(self) -> bool:
        """No request may be put any more. Answers whether all threads have ended, and nobody needs the file: one that hangs in a read which nobody
        wants goes on when the disk answers, and is not waited for.
        """
        for number in np.flatnonzero(self._rows[:, STATE] != FREE).tolist():
            self.give_back(number)  # of callers that were interrupted
        deadline_s = time.monotonic() + _MOST_END_S
        for _ in self._threads:
            while self._put(0, 0, self) is None:
                if time.monotonic() >= deadline_s:
                    return False
                time.sleep(0.001)  # what was taken back is about to leave the queue
        for thread in filter(threading.Thread.is_alive, self._threads):
            thread.join(max(0.0, deadline_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _put(self, num_bytes: int, offset: int, owner: object) -> int | None:
        with self._lock:
            if self._gone:
                self._give_back_left()
            number: int = (self._rows[:, STATE] == FREE).argmax().item()
            if self._rows[number, STATE] != FREE:
                return None
            while not _sem_trywait(self._ended[number]):
                pass  # what its last users have not waited for
            self._owners[number] = ref(owner, self._gone.append)
            self._rows[number, :ANSWER] = QUEUED, num_bytes, offset
            self._queue[self._num_put % _MOST_REQUESTS] = number
            self._num_put += 1
            _sem_post(self._queued)
        return number

    def _give_back_left(self) -> None:
        """What was put by those that are gone."""
        self._gone.clear()  # first: who goes now is seen by the next
        for number, owner in enumerate(self._owners):
            if owner is not None and owner() is None:
                self.give_back(number)
                self._owners[number] = None

    def _row(self, number: int) -> int:
        return self._begin + number * self._row_bytes

    def _is_open(self, number: int) -> bool:
        return self._rows[number, STATE].item() in {QUEUED, BEGUN}

    def _wait(self, number: int, most_s: float) -> None:
        """Until a request is done, for so long at most; or shorter, where a signal comes."""
        until_ns = time.time_ns() + int(most_s * 1e9)
        until: Any = ctypes.byref(_Timespec(*divmod(until_ns, 10**9)))
        while self._is_open(number):  # the row's last user may have left a post
            if _waiting_libc.sem_timedwait(self._ended[number], until):
                return
