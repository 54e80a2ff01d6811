"""What a thread does that reads for others, compiled: one request after the other, without Python's lock. See kvstore.disk.requests.

Which thread has a request is settled by who changes its state first, and whose a piece of memory is likewise.
"""

from typing import Any, Final

import numpy as np
from numba import njit, types

from kvstore.disk.request_words import (
    ANSWER,
    BEGUN,
    CLOCK,
    DONE,
    ENDED,
    FREE,
    FREED,
    GIVEN_UP,
    HELD,
    LET_GO,
    MEMORY,
    NUM_BYTES,
    NUM_GIVEN,
    NUM_PUT,
    NUM_QUEUED,
    OFFSET,
    PIECE,
    PIECE_BYTES,
    PIECES,
    POST,
    PREAD,
    QUEUED,
    ROW,
    STATE,
    TAKEN,
    TICKET,
    TIMED_WAIT,
    TIMES,
    TRY_WAIT,
    WAIT,
    WANTED,
)
from kvstore.instructions import called, changed_if, leading_zeros, let_go, load8, store8
from kvstore.scratch import on_stack

_WORD: Final = 8
_MIB: Final = 1 << 20
_LEAST_TIMED: Final = 1 << 18
"""Of what smaller requests take more is not for their bytes."""
_TURN: Final = 4
"""So many pieces are given back one way before it is asked again which is faster: what is read at the same time is told of at the same time."""
_TURNS: Final = 24
"""In one of so many turns the slower way is tried: a system may have what copies for it run elsewhere at any moment."""
_WEIGHT: Final = 4
"""Of the times so far, by one more."""
_REALTIME, _MONOTONIC = 0, 1
_MOST_WAIT_NS: Final = 100_000_000
"""For a thread to begin with a request, and between two answers to who waits: milliseconds, unless the disk hangs."""
_SECOND_NS: Final = 1_000_000_000
_LINE_BYTES: Final = 64
"""Of a cache, at least."""
_INT: Final = 0xFFFFFFFF
"""What of a word is an int of C's."""

_COMPILED: Final[dict[str, Any]] = {"_nrt": False}
_two_words: Final = on_stack(types.int64, 2)


def serve(rows: Any, words: Any, functions: Any, memory: Any, file: Any) -> None:
    """Read until a request comes that has no bytes.

    `rows` [n, ROW] and `words` [WORDS] are those of kvstore.disk.request_words; `functions`: addresses, looked at anew each time; `memory` is
    what those words tell of, and held so.

    A thread has a piece before it takes a request: who has begun with one waits for nobody but the disk.
    """
    shared, of_functions = np.int64(words.ctypes.data), np.int64(functions.ctypes.data)
    begin = np.int64(memory.ctypes.data)
    piece_bytes = word(shared, PIECE_BYTES)
    piece = _taken_piece(shared, of_functions)
    while True:
        _wait(shared + _WORD * WANTED, of_functions)
        row = _begun(rows, shared)
        if row == 0:
            continue  # it was taken back
        state = row + _WORD * STATE
        num_bytes = word(row, NUM_BYTES)
        if num_bytes == 0:
            changed_if(state, BEGUN, FREE)
            return
        address = begin + piece * piece_bytes
        since_ns = _now_ns(of_functions, _MONOTONIC)
        answer = called(word(of_functions, PREAD), file, address, num_bytes, word(row, OFFSET))
        if num_bytes >= _LEAST_TIMED:
            took_ns = _now_ns(of_functions, _MONOTONIC) - since_ns
            _note(shared, piece, took_ns * _MIB // num_bytes)
        store8(row + _WORD * PIECE, np.uint64(piece))
        store8(row + _WORD * ANSWER, np.uint64(answer))
        if changed_if(state, BEGUN, DONE):
            called(word(of_functions, POST), row + _WORD * ENDED, 0, 0, 0)
            piece = _taken_piece(shared, of_functions)
        else:
            changed_if(state, GIVEN_UP, FREE)


def end(rows: Any, words: Any, functions: Any) -> Any:
    """Have a thread end that has nothing else to do. Whether there was a row to say so by."""
    return put(rows, np.int64(words.ctypes.data), np.int64(functions.ctypes.data), 0, 0) >= 0


def give_up(rows: Any, words: Any, functions: Any, reads: Any) -> None:
    """Nobody wants those requests any more whose rows are in `reads`, where these are 0 or more."""
    shared, of_functions = np.int64(words.ctypes.data), np.int64(functions.ctypes.data)
    for at in range(reads.size):
        give_back(rows, shared, of_functions, reads, at, False)


@njit(**_COMPILED)
def put(rows: Any, shared: Any, functions: Any, num_bytes: Any, offset: Any) -> Any:
    """Ask for so many bytes of the file, none to have a thread end. The row's number, -1 if there is none left."""
    for number in range(rows.shape[0]):
        row = np.int64(rows.ctypes.data) + number * _WORD * ROW
        if word(row, STATE) == FREE and changed_if(row + _WORD * STATE, FREE, TAKEN):
            while called(word(functions, TRY_WAIT), row + _WORD * ENDED, 0, 0, 0) & _INT == 0:
                pass  # what its last user has not waited for
            store8(row + _WORD * NUM_BYTES, np.uint64(num_bytes))
            store8(row + _WORD * OFFSET, np.uint64(offset))
            store8(row + _WORD * TICKET, np.uint64(_counted(shared + _WORD * NUM_PUT)))
            changed_if(row + _WORD * STATE, TAKEN, QUEUED)
            _counted(shared + _WORD * NUM_QUEUED)
            called(word(functions, POST), shared + _WORD * WANTED, 0, 0, 0)
            return number
    return -1


@njit(**_COMPILED)
def awaited(row: Any, functions: Any) -> Any:
    """The state of a request that was put: DONE; FREE if no thread had begun with it for a while, and none ever will; or BEGUN if that takes longer. Either
    may come sooner, with a signal.
    """
    state, time = row + _WORD * STATE, _two_words()
    until = np.int64(time.ctypes.data)
    is_timed = False
    while True:
        if changed_if(state, DONE, DONE):  # what was written before is seen after it, on any processor
            return DONE
        if not is_timed:
            until_ns = _now_ns(functions, _REALTIME) + _MOST_WAIT_NS
            time[0], time[1] = until_ns // _SECOND_NS, until_ns % _SECOND_NS
            is_timed = True
        if called(word(functions, TIMED_WAIT), row + _WORD * ENDED, until, 0, 0) & _INT:
            if changed_if(state, QUEUED, FREE):
                return FREE
            return DONE if changed_if(state, DONE, DONE) else BEGUN


@njit(**_COMPILED)
def give_back(rows: Any, shared: Any, functions: Any, reads: Any, at: Any, was_read: Any) -> None:
    """The request whose row's number is `reads` [at], if that is 0 or more, is not wanted any more, nor what it has brought. The number becomes -1.

    If `was_read`, caches may be made to let go of that before somebody else reads to it. A disk that other memory stands for is copied from by a processor,
    to which of the machine's is up to who lends it: one that shares our caches is faster if they hold what is written over, another is slower, as
    it has to be taken from them first.
    """
    if reads[at] < 0:
        return
    row = np.int64(rows[reads[at]].ctypes.data)
    reads[at] = -1
    state = row + _WORD * STATE
    if changed_if(state, QUEUED, FREE) or changed_if(state, BEGUN, GIVEN_UP):
        return
    bit = np.int64(1) << word(row, PIECE)
    is_let_go = was_read and _is_to_be_let_go(shared)
    if is_let_go:
        address = word(shared, MEMORY) + word(row, PIECE) * word(shared, PIECE_BYTES)
        for offset in range(0, word(row, NUM_BYTES), _LINE_BYTES):
            let_go(address + offset)
    changed_if(state, DONE, FREE)
    _set(shared + _WORD * HELD, bit, was_read and not is_let_go)
    _set(shared + _WORD * LET_GO, bit, is_let_go)
    _set(shared + _WORD * PIECES, bit, True)
    called(word(functions, POST), shared + _WORD * FREED, 0, 0, 0)


@njit(**_COMPILED)
def word(address: Any, number: Any) -> Any:
    """The signed number that is the word of that number from an address on."""
    return np.int64(load8(address + _WORD * number))


@njit(**_COMPILED)
def _begun(rows: Any, shared: Any) -> Any:
    """Where the words of the request are that has waited longest, the caller's from now on; 0 if none waits.

    One may be put to a row that was looked at before, and another thread, which was told of that, take the one that this thread was told of. So
    none waits only if none was put meanwhile.
    """
    while True:
        num_queued = word(shared, NUM_QUEUED)
        if not changed_if(shared + _WORD * NUM_QUEUED, num_queued, num_queued):
            continue  # on any processor it is known before rows are looked at
        oldest, least = np.int64(0), np.int64(0)
        for number in range(rows.shape[0]):
            row = np.int64(rows.ctypes.data) + number * _WORD * ROW
            if word(row, STATE) == QUEUED and (oldest == 0 or word(row, TICKET) < least):
                oldest, least = row, word(row, TICKET)
        if oldest == 0:
            if changed_if(shared + _WORD * NUM_QUEUED, num_queued, num_queued):
                return oldest
        elif changed_if(oldest + _WORD * STATE, QUEUED, BEGUN):
            return oldest


@njit(**_COMPILED)
def _is_to_be_let_go(shared: Any) -> Any:
    """Whether caches are to let go of the next piece that is given back: what has been faster so far, and of some in turn the other."""
    turn = word(shared, NUM_GIVEN) // _TURN
    store8(shared + _WORD * NUM_GIVEN, np.uint64(word(shared, NUM_GIVEN) + 1))
    held_ns, let_go_ns = word(shared, TIMES), word(shared, TIMES + 1)
    if held_ns == 0 or let_go_ns == 0:
        return turn % 2 == 1
    return (let_go_ns < held_ns) != (turn % _TURNS == 0)


@njit(**_COMPILED)
def _note(shared: Any, piece: Any, ns: Any) -> None:
    """A read to a piece has taken so long, for each MiB."""
    bit = np.int64(1) << piece
    is_let_go = (word(shared, LET_GO) & bit) != 0
    if is_let_go or (word(shared, HELD) & bit) != 0:
        at = TIMES + np.int64(is_let_go)
        so_far = word(shared, at)
        store8(shared + _WORD * at, np.uint64(ns if so_far == 0 else so_far + (ns - so_far) // _WEIGHT))


@njit(**_COMPILED)
def _now_ns(functions: Any, clock: Any) -> Any:
    time = _two_words()
    at = np.int64(time.ctypes.data)
    called(word(functions, CLOCK), clock, at, 0, 0)
    return word(at, 0) * _SECOND_NS + word(at, 1)


@njit(**_COMPILED)
def _counted(address: Any) -> Any:
    """What the word at an address was; it is one more, whoever counts besides."""
    while True:
        number = word(address, 0)
        if changed_if(address, number, number + 1):
            return number


@njit(**_COMPILED)
def _set(address: Any, bit: Any, is_set: Any) -> None:
    """Set or clear a bit of the word at an address, whoever changes others of it."""
    while True:
        so_far = word(address, 0)
        if changed_if(address, so_far, so_far | bit if is_set else so_far & ~bit):
            return


@njit(**_COMPILED)
def _taken_piece(shared: Any, functions: Any) -> Any:
    """The number of a piece that nobody has, from now on the caller's: the lowest, as that was used last where few are in use."""
    _wait(shared + _WORD * FREED, functions)
    while True:
        free = word(shared, PIECES)
        lowest = free & -free
        if lowest != 0 and changed_if(shared + _WORD * PIECES, free, free - lowest):
            return 63 - np.int64(leading_zeros(np.uint64(lowest)))


@njit(**_COMPILED)
def _wait(semaphore: Any, functions: Any) -> None:
    while called(word(functions, WAIT), semaphore, 0, 0, 0) & _INT:
        pass  # a signal has come
