"""What a thread does that reads for others, compiled: one request after the other, without Python's lock. See kvstore.disk.requests.

Which thread has a request is settled by who changes its state first. Addresses come from there too.
"""

from typing import Any, Final

import numpy as np
from numba import njit

from kvstore.disk.requests import (
    ADDRESS,
    ANSWER,
    BEGUN,
    DONE,
    ENDED,
    FREE,
    NUM_BYTES,
    OFFSET,
    POST,
    PREAD,
    QUEUED,
    ROW,
    STATE,
    TAKEN_BACK,
    WAIT,
)
from kvstore.instructions import called, changed_if, load8, store8

_WORD: Final = 8
_INT: Final = 0xFFFFFFFF
"""What of a word is an int of C's."""

_COMPILED: Final[dict[str, Any]] = {"_nrt": False}


def serve(rows: Any, queue: Any, taken: Any, queued: Any, functions: Any, file: Any) -> None:
    """Read until a request comes that has no bytes.

    `rows` [n, ROW] and `queue` [n] are those of kvstore.disk.requests; `taken` [1] counts what all threads have taken from the queue;
    `queued`: the words of the semaphore that is posted for each request. `functions` [3]: addresses, looked at anew each time.
    """
    num_rows = queue.size
    of_rows, of_taken = np.int64(rows.ctypes.data), np.int64(taken.ctypes.data)
    of_functions, of_queued = np.int64(functions.ctypes.data), np.int64(queued.ctypes.data)
    while True:
        while called(_word(of_functions, WAIT), of_queued, 0, 0, 0) & _INT:
            pass  # a signal has come
        number = _word(of_taken, 0)
        while not changed_if(of_taken, number, number + 1):
            number = _word(of_taken, 0)
        row = of_rows + queue[number % num_rows] * _WORD * ROW
        state = row + _WORD * STATE
        if not changed_if(state, QUEUED, BEGUN):
            changed_if(state, TAKEN_BACK, FREE)
            continue
        num_bytes = _word(row, NUM_BYTES)
        if num_bytes == 0:
            changed_if(state, BEGUN, FREE)
            return
        answer = called(_word(of_functions, PREAD), file, _word(row, ADDRESS), num_bytes, _word(row, OFFSET))
        store8(row + _WORD * ANSWER, np.uint64(answer))
        changed_if(state, BEGUN, DONE)
        called(_word(of_functions, POST), row + _WORD * ENDED, 0, 0, 0)


def take_back(state: Any) -> int:
    """1 if nobody has begun with the request whose state is at this address, nor ever will, else 0."""
    return 1 if changed_if(state, QUEUED, TAKEN_BACK) else 0


@njit(**_COMPILED)
def _word(address: Any, number: Any) -> Any:
    """The signed number that is the word of that number from an address on."""
    return np.int64(load8(address + _WORD * number))
