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
    HELD,
    LET_GO,
    NUM_BYTES,
    NUM_GIVEN,
    OFFSET,
    PIECE,
    PIECE_BYTES,
    PIECES,
    POST,
    PREAD,
    QUEUED,
    ROW,
    STATE,
    TAKEN_BACK,
    TIMES,
    WAIT,
)
from kvstore.instructions import called, changed_if, leading_zeros, let_go, load8, store8
from kvstore.scratch import on_stack

_WORD: Final = 8
_MIB: Final = 1 << 20
_LEAST_TIMED: Final = _MIB
"""Of what smaller requests take more is not for their bytes."""
_TURN: Final = 4
"""So many pieces are given back one way before it is asked again which is faster: what is read at the same time is told of at the same time."""
_TURNS: Final = 24
"""In one of so many turns the slower way is tried: a system may have what copies for it run elsewhere at any moment."""
_WEIGHT: Final = 4
"""Of the times so far, by one more."""
_MONOTONIC: Final = 1
_LINE_BYTES: Final = 64
"""Of a cache, at least."""
_INT: Final = 0xFFFFFFFF
"""What of a word is an int of C's."""

_COMPILED: Final[dict[str, Any]] = {"_nrt": False}
_two_words: Final = on_stack(types.int64, 2)


def serve(
    rows: Any, queue: Any, taken: Any, queued: Any, pieces: Any, functions: Any, memory: Any, file: Any
) -> None:
    """Read until a request comes that has no bytes.

    `rows` [n, ROW] and `queue` [n] are those of kvstore.disk.request_words; `taken` [1] counts what all threads have taken from the queue;
    `queued`: the words of the semaphore that is posted for each request. `pieces`: words, as there, of `memory`, which is parted into
    pieces of equal size. `functions` [4]: addresses, looked at anew each time.

    A thread has a piece before it takes a request: who has begun with one waits for nobody but the disk.
    """
    of_rows, of_taken = np.int64(rows.ctypes.data), np.int64(taken.ctypes.data)
    of_functions, of_queued = np.int64(functions.ctypes.data), np.int64(queued.ctypes.data)
    of_pieces, begin = np.int64(pieces.ctypes.data), np.int64(memory.ctypes.data)
    piece_bytes = _word(of_pieces, PIECE_BYTES)
    piece = _taken_piece(of_pieces, of_functions)
    while True:
        _wait(of_queued, of_functions)
        row = of_rows + _next(of_taken, queue) * _WORD * ROW
        state = row + _WORD * STATE
        if not changed_if(state, QUEUED, BEGUN):
            changed_if(state, TAKEN_BACK, FREE)
            continue
        num_bytes = _word(row, NUM_BYTES)
        if num_bytes == 0:
            changed_if(state, BEGUN, FREE)
            return
        address = begin + piece * piece_bytes
        since_ns = _now_ns(of_functions)
        answer = called(_word(of_functions, PREAD), file, address, num_bytes, _word(row, OFFSET))
        if num_bytes >= _LEAST_TIMED:
            _note(of_pieces, piece, (_now_ns(of_functions) - since_ns) * _MIB // num_bytes)
        store8(row + _WORD * PIECE, np.uint64(piece))
        store8(row + _WORD * ANSWER, np.uint64(answer))
        if changed_if(state, BEGUN, DONE):
            called(_word(of_functions, POST), row + _WORD * ENDED, 0, 0, 0)
            piece = _taken_piece(of_pieces, of_functions)
        else:
            changed_if(state, TAKEN_BACK, FREE)


def take_back(row: Any) -> int:
    """1 if nobody has begun with the request whose words are at this address, nor ever will, else 0."""
    return 1 if changed_if(row + _WORD * STATE, QUEUED, TAKEN_BACK) else 0


def give_back(row: Any, memory: Any, pieces: Any, post: Any) -> None:
    """No request is wanted any more whose words are at `row`, nor what it has brought to a piece of what begins at `memory`.

    Caches may be made to let go of that before somebody else reads to it. A disk that other memory stands for is copied from by a processor,
    to which of the machine's is up to who lends it: one that shares our caches is faster if they hold what is written over, another is slower, as
    it has to be taken from them first. `post`: the C library's function.
    """
    state = row + _WORD * STATE
    if changed_if(state, QUEUED, TAKEN_BACK) or changed_if(state, BEGUN, TAKEN_BACK):
        return
    if _word(row, STATE) != DONE:
        return  # somebody has said so before
    of_pieces, bit = np.int64(pieces.ctypes.data), np.int64(1) << _word(row, PIECE)
    is_let_go = _is_to_be_let_go(of_pieces)
    if is_let_go:
        address = memory + _word(row, PIECE) * _word(of_pieces, PIECE_BYTES)
        for at in range(0, _word(row, NUM_BYTES), _LINE_BYTES):
            let_go(address + at)
    if changed_if(state, DONE, FREE):
        _set(of_pieces + _WORD * HELD, bit, not is_let_go)
        _set(of_pieces + _WORD * LET_GO, bit, is_let_go)
        _set(of_pieces + _WORD * PIECES, bit, True)
        called(post, of_pieces + _WORD * FREED, 0, 0, 0)


@njit(**_COMPILED)
def _is_to_be_let_go(pieces: Any) -> Any:
    """Whether caches are to let go of the next piece that is given back: what has been faster so far, and of some in turn the other."""
    turn = _word(pieces, NUM_GIVEN) // _TURN
    store8(pieces + _WORD * NUM_GIVEN, np.uint64(_word(pieces, NUM_GIVEN) + 1))
    held_ns, let_go_ns = _word(pieces, TIMES), _word(pieces, TIMES + 1)
    if held_ns == 0 or let_go_ns == 0:
        return turn % 2 == 1
    return (let_go_ns < held_ns) != (turn % _TURNS == 0)


@njit(**_COMPILED)
def _note(pieces: Any, piece: Any, ns: Any) -> None:
    """A read to a piece has taken so long, for each MiB."""
    bit = np.int64(1) << piece
    is_let_go = (_word(pieces, LET_GO) & bit) != 0
    if is_let_go or (_word(pieces, HELD) & bit) != 0:
        at = TIMES + np.int64(is_let_go)
        so_far = _word(pieces, at)
        store8(pieces + _WORD * at, np.uint64(ns if so_far == 0 else so_far + (ns - so_far) // _WEIGHT))


@njit(**_COMPILED)
def _next(taken: Any, queue: Any) -> Any:
    """The row that is next in the queue, taken from there."""
    while True:
        number = _word(taken, 0)
        row = queue[number % queue.size]  # before it is taken: its place may be another's as soon as it is
        if changed_if(taken, number, number + 1):
            return row


@njit(**_COMPILED)
def _now_ns(functions: Any) -> Any:
    time = _two_words()
    at = np.int64(time.ctypes.data)
    called(_word(functions, CLOCK), _MONOTONIC, at, 0, 0)
    return _word(at, 0) * 1_000_000_000 + _word(at, 1)


@njit(**_COMPILED)
def _set(address: Any, bit: Any, is_set: Any) -> None:
    """Set or clear a bit of the word at an address, whoever changes others of it."""
    while True:
        word = _word(address, 0)
        if changed_if(address, word, word | bit if is_set else word & ~bit):
            return


@njit(**_COMPILED)
def _taken_piece(pieces: Any, functions: Any) -> Any:
    """The number of a piece that nobody has, from now on the caller's: the lowest, as that was used last where few are in use."""
    _wait(pieces + _WORD * FREED, functions)
    while True:
        free = _word(pieces, PIECES)
        lowest = free & -free
        if lowest != 0 and changed_if(pieces + _WORD * PIECES, free, free - lowest):
            return 63 - np.int64(leading_zeros(np.uint64(lowest)))


@njit(**_COMPILED)
def _wait(semaphore: Any, functions: Any) -> None:
    while called(_word(functions, WAIT), semaphore, 0, 0, 0) & _INT:
        pass  # a signal has come


@njit(**_COMPILED)
def _word(address: Any, number: Any) -> Any:
    """The signed number that is the word of that number from an address on."""
    return np.int64(load8(address + _WORD * number))
