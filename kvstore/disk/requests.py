"""Reads of a file that other threads make before their results are needed, in compiled code (kvstore.disk.request_loop).

Between two requests such a thread needs nothing of Python's. So it does not wait for the lock of those who look at what was read, and the
disk has its next request at once.
"""

import ctypes
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, Final, NamedTuple
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from kvstore.code import Function, loaded
from kvstore.disk.buffers import huge_pages
from kvstore.disk.request_words import (
    ENDED,
    FREE,
    FREED,
    MEMORY,
    NUM_THREADS,
    PIECE_BYTES,
    PIECES,
    ROW,
    STATE,
    WANTED,
    WORDS,
)
from kvstore.errors import StoreFailed

_MOST_END_S: Final = 1.0

SOURCES: Final = (
    "kvstore.disk.request_loop",
    "kvstore.disk.request_words",
    "kvstore.instructions",
    "kvstore.scratch",
)
_WRITTEN: Final = "int64 1 written"
SHARED: Final = ("int64 2 written", _WRITTEN, "int64 1")
"""The arguments that tell of all requests."""
_SERVE: Final = Function("kvstore.disk.request_loop", "serve", SOURCES, (*SHARED, "uint8 1 written", "int64"))
_END: Final = Function("kvstore.disk.request_loop", "end", SOURCES, SHARED, keeps_gil=True)
_GIVE_UP: Final = Function(
    "kvstore.disk.request_loop", "give_up", SOURCES, (*SHARED, _WRITTEN), keeps_gil=True
)
FUNCTIONS: Final = (_SERVE, _END, _GIVE_UP)
"""All that is compiled for this."""

_libc: Final = ctypes.CDLL(None)


def _addresses(*names: str) -> NDArray[np.int64]:
    return np.array([ctypes.cast(_libc[name], ctypes.c_void_p).value for name in names], np.int64)


functions: Final = _addresses(
    "pread", "sem_wait", "sem_timedwait", "sem_trywait", "sem_post", "clock_gettime", "mincore"
)
"""Of the C library's, by which requests are served, awaited and timed."""


class Serving(NamedTuple):
    """Of kvstore/disk/request_loop.py."""

    serve: Callable[..., int]
    end: Callable[..., int]
    give_up: Callable[..., int]


@cache
def serving() -> Serving:
    """The first call loads them, or has them compiled. Raises StoreFailed where they cannot be."""
    return Serving(*loaded(*FUNCTIONS))


class Requests:
    """Daemon threads that read one file, and begin with the first request if they have not before. Any thread may call it.

    What is read lies in memory of theirs, in pieces of equal size, of which a request has one from when it is read until it is given back.

    A request that no thread has begun with can be taken back, so that whoever needs it does not wait for those of others for ever: one
    that hangs stops its own caller only. The interpreter's exit does not wait for one.

    Requests are put, awaited and given back by compiled code: see kvstore.disk.runs.
    """

    def __init__(
        self, name: str, num_threads: int, file: int, *, piece_bytes: int, num_pieces: int, num_requests: int
    ) -> None:
        """`piece_bytes`: the most that a request may bring. `num_pieces`: more than there are threads, and no more than MOST_PIECES. `num_requests`: at
        a time; more are the callers' to read, as where all threads hang in the kernel.
        """
        self._name, self._num_threads, self._file = name, num_threads, file
        self.piece_bytes: Final = piece_bytes
        self._num_pieces = num_pieces
        self._lock = threading.Lock()  # two callers would begin threads for both
        self._threads: list[threading.Thread] = []
        rows, words = np.zeros((num_requests, ROW), np.int64), np.zeros(WORDS, np.int64)
        for semaphore, count in (
            (words[FREED:], num_pieces),
            (words[WANTED:], 0),
            *((row[ENDED:], 0) for row in rows),
        ):
            _libc.sem_init(ctypes.c_void_p(semaphore.ctypes.data), 0, count)
        words[PIECES], words[PIECE_BYTES] = (1 << num_pieces) - 1, piece_bytes
        self.shared: Final = rows, words, functions
        """What compiled code takes; each keeps what it takes for as long as it runs."""
        self._memory: NDArray[np.uint8] = np.empty(0, np.uint8)
        """All pieces, one after the other, as soon as there is a thread."""
        self._callers: dict[ref[Any], NDArray[np.int64]] = {}
        self._gone: list[ref[Any]] = []
        """Those of whom nothing is left."""

    def begin(self) -> None:
        """Have the memory, and the threads run, as far as the system has so many, and they can be compiled."""
        if len(self._threads) == self._num_threads:
            return
        try:
            serve = serving().serve
        except StoreFailed:
            return
        with self._lock:
            if not self._memory.size:
                try:
                    self._memory = np.frombuffer(huge_pages(self._num_pieces * self.piece_bytes), np.uint8)
                except OSError:  # there is not so much
                    return
                self.shared[1][MEMORY] = self._memory.ctypes.data
            # arrays, which a thread so keeps for as long as it runs, whatever becomes of who began it
            given = *self.shared, self._memory, self._file
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
                self.shared[1][NUM_THREADS] = len(self._threads)

    def come(self, owner: object, reads: NDArray[np.int64]) -> None:
        """Somebody is about to put requests, whose rows will be in `reads`, -1 where there is none. They are given back when there is no owner any
        more, if not before: who is interrupted (KeyboardInterrupt) may not have come to that. `owner`: of a type of C, held by a local variable alone.
        """
        if self._gone:
            self._give_up_left()
        self._callers[ref(owner, self._gone.append)] = reads

    def give_up(self, reads: NDArray[np.int64]) -> None:
        """Nobody wants these requests any more, or looks at what they have brought. Nobody waits for them either: they may be read still."""
        if (reads >= 0).any():
            serving().give_up(*self.shared, reads)

    def check(self) -> None:
        """While nobody reads: no request is left, and each thread has one piece."""
        rows, words, _ = self.shared
        assert (rows[:, STATE] == FREE).all(), "a request was not given back"
        num_free = words[PIECES].item().bit_count()
        assert num_free == self._num_pieces - len(self._threads), f"{num_free} pieces are nobody's"

    def close(self) -> bool:
        """No request may be put any more. Answers whether all threads have ended, and nobody needs the file: one that hangs in a read which nobody
        wants goes on when the disk answers, and is not waited for.
        """
        for reads in list(self._callers.values()):
            self.give_up(reads)  # of callers that were interrupted
        self._callers.clear()
        deadline_s = time.monotonic() + _MOST_END_S
        for _ in self._threads:
            while not serving().end(*self.shared):
                if time.monotonic() >= deadline_s:
                    return False
                time.sleep(0.001)  # what was given back is about to end
        for thread in filter(threading.Thread.is_alive, self._threads):
            thread.join(max(0.0, deadline_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _give_up_left(self) -> None:
        """What was put by those that are gone."""
        for caller in self._gone.copy():
            reads = self._callers.get(caller)
            if reads is not None:
                self.give_up(reads)
            self._callers.pop(caller, None)
            with suppress(ValueError):  # somebody else saw it too
                self._gone.remove(caller)
