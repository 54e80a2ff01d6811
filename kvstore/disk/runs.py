"""The records of one call, in runs: those in memory, and those that are read from the file together, some runs ahead of what is looked at.

All of it is compiled (kvstore.disk.run_loop), and needs Python only where not all of a run is proven to be what is looked for.
"""

import mmap
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from kvstore.code import Function, loaded
from kvstore.disk.request_words import (
    AT,
    CALL,
    END,
    FIRST,
    OVER,
    RUN,
    RUN_BEGIN,
    RUN_BYTES,
    RUN_LEAST,
    UNANSWERED,
    UNREAD,
)
from kvstore.disk.requests import SHARED, SOURCES, Requests, serving
from kvstore.huffman import PROVEN
from kvstore.kernels import PROOFS
from kvstore.kernels import SOURCES as PROOF_SOURCES
from kvstore.span import Span

_NUMBERS: Final = "int64 1"
_WRITTEN: Final = "int64 1 written"
_RUNS: Final = ("int64 2 written", _WRITTEN, _WRITTEN)
_ALL_SOURCES: Final = (*dict.fromkeys((*SOURCES, *PROOF_SOURCES, "kvstore.disk.run_loop")),)
_PART: Final = Function(
    "kvstore.disk.run_loop",
    "part",
    _ALL_SOURCES,
    (
        *(*SHARED, "int64", _NUMBERS, _NUMBERS, "int64", _NUMBERS),
        *("int64 2 written", "uint8 1 written", *_RUNS),
    ),
)
_RECORDS: Final = (_WRITTEN, *[_NUMBERS] * 3, "uint64 2 written", "uint8 1 written")


def _go_on(proof: str | tuple[str, ...]) -> Function:
    given = (*SHARED, "int64 2", "int64", "int64", _WRITTEN, _WRITTEN, _RECORDS, proof)
    return Function("kvstore.disk.run_loop", "go_on", _ALL_SOURCES, given)


_PLAIN: Final = _go_on("none")
PROVING: Final = {itemsize: _go_on(proof) for itemsize, proof in PROOFS.items()}
"""Compiled for elements of so many bytes besides, where any are to be proven."""
FUNCTIONS: Final = (_PART, _PLAIN)
"""All that is compiled for this, where nothing is proven."""


def running() -> None:
    """Have it all ready, of what proves nothing. Raises StoreFailed where it cannot be compiled."""
    serving()
    _parting()
    _going_on(None)


@cache
def _parting() -> Callable[..., int]:
    return loaded(_PART)[0]


@cache
def _going_on(itemsize: int | None) -> Callable[..., int]:
    """Of what has a proof for words of so many bytes; None for none."""
    return loaded(_PLAIN if itemsize is None else PROVING[itemsize])[0]


class Places(NamedTuple):
    """Where records lie in a file, in that order."""

    map_begin: int
    """The address at which it is mapped."""
    begins: NDArray[np.int64]
    """[n], in the file."""
    sizes: NDArray[np.int64]
    """[n], bytes."""
    numbers: NDArray[np.int64]
    """[n], among those that are looked for."""


class Bounds(NamedTuple):
    """Of runs."""

    offset: int
    """Bytes before a record on its first page."""
    run_bytes: int
    """The most that a run has, where records are no longer."""
    gap_bytes: int
    """The most between two records of a run."""
    num_ahead: int
    """So many more are asked for while one is looked at."""


class Prover(Protocol):
    """What is sure of records. Whatever it touches of them it touches without the GIL: a page may hang that was in memory when that was asked."""

    @property
    def proof(self) -> tuple[int, tuple[Any, ...]] | None:
        """By what compiled code proves most of them, and the bytes of a word, if that is known by now: of kvstore.kernels.PROOFS."""
        ...

    def proven(self, numbers: Sequence[int], records: Sequence[Span]) -> Sequence[bool]:
        """Of which records, by their numbers and where they lie, it is sure that they are what is looked for: of the others nothing is said."""
        ...


class Runs:
    """One thread uses it. What it has asked for is given back when it is closed, or nothing is left of it."""

    def __init__(
        self,
        requests: Requests,
        places: Places,
        bounds: Bounds,
        read: Callable[[int, int, int], NDArray[np.uint8]],
    ) -> None:
        """The first runs are asked for. `read`: brings so many bytes from somewhere in the file, of which there must be so many, where no other
        thread could.
        """
        self._requests, self._read, self._num_ahead = requests, read, bounds.num_ahead
        num = places.begins.size
        self._runs = np.zeros((1 + num, RUN), np.int64)
        self._reads = np.full(1 + num, -1, np.int64)
        self._call = np.zeros(CALL, np.int64)
        self._owner = threading.Lock()  # of a type of C
        part = _parting()
        requests.begin()
        requests.come(self._owner, self._reads)
        order = np.empty((2, num), np.int64)
        self._num_runs = part(
            *requests.shared,
            places.map_begin,
            places.begins,
            places.sizes,
            mmap.PAGESIZE,
            np.array(bounds, np.int64),
            order,
            np.empty(2 + places.sizes.max(initial=0) // mmap.PAGESIZE, np.uint8),
            self._runs,
            self._reads,
            self._call,
        )
        sorted_ = [each[order[0]] for each in places[1:]]
        self._records = (
            np.empty(num, np.int64),
            *sorted_,
            np.empty((num, 2), np.uint64),
            np.zeros(num, np.uint8),
        )

    def unproven(self, prover: Prover | None) -> Iterator[list[tuple[int, Span]]]:
        """Those that are not proven, run by run, by their numbers; they hold until the next ones are asked for."""
        addresses, begins, sizes, numbers, _, states = self._records
        while True:
            known = None if prover is None else prover.proof
            itemsize, proof = (None, None) if known is None else known
            why = _going_on(itemsize)(
                *self._requests.shared,
                self._runs,
                self._num_runs,
                self._num_ahead,
                self._reads,
                self._call,
                self._records,
                proof,
            )
            if why == OVER:
                return
            if why == UNANSWERED:
                continue
            run = self._runs[self._call[AT]].tolist()
            records = slice(run[FIRST], run[END])
            memory = np.empty(0, np.uint8)
            if why == UNREAD:
                memory = self._read(run[RUN_BEGIN], run[RUN_BYTES], run[RUN_LEAST])
                addresses[records] = memory.ctypes.data + begins[records] - run[RUN_BEGIN]
            found = zip(
                states[records].tolist(),
                numbers[records].tolist(),
                addresses[records].tolist(),
                sizes[records].tolist(),
                strict=True,
            )
            yield [(number, Span(address, size)) for state, number, address, size in found if state != PROVEN]
            del memory  # before more is taken

    @property
    def proven(self) -> list[int]:
        """The numbers of those that were."""
        _, _, _, numbers, _, states = self._records
        found: list[int] = numbers[states == PROVEN].tolist()
        return found

    def close(self) -> None:
        """Nobody wants any of it any more."""
        self._requests.give_up(self._reads)
