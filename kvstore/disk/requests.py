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

import numpy as np
from numpy.typing import NDArray

from kvstore.code import Function, loaded
from kvstore.errors import StoreFailed

FREE, QUEUED, BEGUN, DONE, TAKEN_BACK = range(5)
"""States of a row: nobody's; waiting for a thread; a thread's; its caller's again, with an answer; no longer wanted, but in the queue still."""
STATE, ADDRESS, NUM_BYTES, OFFSET, ANSWER = range(5)
"""Words of a row: its state; where bytes go, how many, and from where in the file; and what the read has answered."""
ENDED: Final = 8
"""The word at which a semaphore of the C library's begins, posted when a request is done: four words with glibc, no more than these eight anywhere."""
ROW: Final = 16

PREAD, WAIT, POST = range(3)

_MOST_REQUESTS: Final = 64
"""At a time: more are the caller's to read, as where all threads hang in the kernel."""
_LONG_S: Final = 3600.0

_SOURCES: Final = (
    "kvstore.disk.request_loop",
    "kvstore.disk.requests",
    "kvstore.instructions",
    "kvstore.scratch",
)
_SERVE: Final = Function(
    "kvstore.disk.request_loop",
    "serve",
    _SOURCES,
    ("int64 2 written", "int64 1 written", "int64 1 written", "int64 1 written", "int64 1", "int64"),
)
_TAKE_BACK: Final = Function("kvstore.disk.request_loop", "take_back", _SOURCES, ("int64",), keeps_gil=True)

_libc: Final = ctypes.PyDLL(None)
"""What is called so keeps the GIL: it takes less than to give it up, and wait for it behind others."""
_waiting_libc: Final = ctypes.CDLL(None)


def _addresses(*names: str) -> NDArray[np.int64]:
    return np.array([ctypes.cast(_libc[name], ctypes.c_void_p).value for name in names], np.int64)


functions: Final = _addresses("pread", "sem_wait", "sem_post")
"""Of the C library's, by which requests are served."""


class _Timespec(ctypes.Structure):
    _fields_ = (("s", ctypes.c_long), ("ns", ctypes.c_long))


@cache
def serving() -> Callable[..., int]:
    """`serve` of kvstore/disk/request_loop.py. The first call loads it, or has it compiled. Raises StoreFailed where it cannot be."""
    return loaded(_SERVE)[0]


@cache
def _taking_back() -> Callable[..., int]:
    return loaded(_TAKE_BACK)[0]


class Requests:
    """Daemon threads that read one file, and begin with the first request if they have not before. Any thread may call it.

    A request that no thread has begun with can be taken back, so that whoever needs it does not wait for those of others for ever: one
    that hangs stops its own caller only. The interpreter's exit does not wait for one.
    """

    def __init__(self, name: str, num_threads: int, file: int) -> None:
        self._name, self._num_threads, self._file = name, num_threads, file
        self._lock = threading.Lock()  # two callers would take the same row, or begin threads for both
        self._threads: list[threading.Thread] = []
        self._rows = np.zeros((_MOST_REQUESTS, ROW), np.int64)
        self._queue = np.zeros(_MOST_REQUESTS, np.int64)
        """Numbers of rows in the order in which they came, over and over."""
        self._num_put = 0
        self._taken = np.zeros(1, np.int64)
        semaphore = np.zeros(ROW - ENDED, np.int64)
        self._semaphore, self._queued = semaphore, ctypes.c_void_p(semaphore.ctypes.data)
        self._ended = [ctypes.c_void_p(row[ENDED:].ctypes.data) for row in self._rows]
        for each in (self._queued, *self._ended):
            _libc.sem_init(each, 0, 0)

    def put(self, address: int, num_bytes: int, offset: int) -> int | None:
        """Have so many bytes of the file, more than none, read to an address soon. Answers the request's number.

        None where there is no thread for it, or too many wait: then it is the caller's to do.
        """
        self.begin()
        return self._put(address, num_bytes, offset) if self._threads else None

    def answer(self, number: int, after_s: float) -> int | None:
        """How many bytes a request has brought, less than none where it failed; it is to be freed then. None if no thread has begun with it, nor
        ever will: one may for so many seconds, and longer where the clock is set back.
        """
        self._wait(number, after_s)
        if _taking_back()(self._rows[number, STATE:].ctypes.data):
            return None
        while self._is_open(number):
            self._wait(number, _LONG_S)
        answer: int = self._rows[number, ANSWER].item()
        return answer

    def free(self, number: int) -> None:
        """An answered request is no longer looked at."""
        self._rows[number, STATE] = FREE

    def drop(self, number: int) -> None:
        """Nobody wants it any more: from now on it writes nothing."""
        if self.answer(number, 0.0) is not None:
            self.free(number)

    def is_awaited(self, address: int, num_bytes: int) -> bool:
        """Whether a request that is not done goes to any of so many bytes at an address."""
        begins = self._rows[:, ADDRESS]
        reach = (begins < address + num_bytes) & (begins + self._rows[:, NUM_BYTES] > address)
        return bool((reach & np.isin(self._rows[:, STATE], (QUEUED, BEGUN))).any())

    def begin(self) -> None:
        """Have the threads run, as far as the system has so many, and they can be compiled."""
        if len(self._threads) == self._num_threads:
            return
        try:
            serve = serving()
            _taking_back()
        except StoreFailed:
            return
        # arrays, which a thread so keeps for as long as it runs, whatever becomes of who began it
        given = self._rows, self._queue, self._taken, self._semaphore, functions, self._file
        with self._lock:
            for number in range(len(self._threads), self._num_threads):
                name = f"{self._name}-{number}"
                thread = threading.Thread(target=serve, args=given, name=name, daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the system has no more of them, or the program is about to end
                    return
                self._threads.append(thread)

    def check(self) -> None:
        """While nobody reads: no request is left."""
        assert (self._rows[:, STATE] == FREE).all(), "a request was neither freed nor taken back"
        assert self._taken.item() == self._num_put, "a request is in the queue that nobody wants"

    def close(self) -> None:
        """No request may be on its way, and none may be put any more."""
        self._rows[self._rows[:, STATE] == DONE, STATE] = FREE  # of callers that were interrupted
        for _ in self._threads:
            while self._put(0, 0, 0) is None:
                time.sleep(0.001)  # what was taken back is about to leave the queue
        for thread in self._threads:
            thread.join()

    def _put(self, address: int, num_bytes: int, offset: int) -> int | None:
        with self._lock:
            number: int = (self._rows[:, STATE] == FREE).argmax().item()
            if self._rows[number, STATE] != FREE:
                return None
            self._rows[number, :ANSWER] = QUEUED, address, num_bytes, offset
            self._queue[self._num_put % _MOST_REQUESTS] = number
            self._num_put += 1
            _libc.sem_post(self._queued)
        return number

    def _is_open(self, number: int) -> bool:
        return self._rows[number, STATE].item() in {QUEUED, BEGUN}

    def _wait(self, number: int, most_s: float) -> None:
        """Until a request is done, for so long at most; or shorter, where a signal comes."""
        until_ns = time.time_ns() + int(most_s * 1e9)
        until: Any = ctypes.byref(_Timespec(*divmod(until_ns, 10**9)))
        while self._is_open(number):  # the row's last user may have left a post
            if _waiting_libc.sem_timedwait(self._ended[number], until):
                return
