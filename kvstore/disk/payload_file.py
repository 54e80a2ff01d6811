"""The records' data file, read past LMDB's map where its pages are not in memory.

LMDB hands out a value's address in the map. What is not in memory there comes as its pages are touched: the kernel
makes room for each page, maps it, keeps a copy beside the one in host memory, and ends the process if the disk fails (SIGBUS).
So it is only found where a value lies, and what is not in memory is read from there, in the order in which it lies, several values
with one request, into buffers, some requests ahead of what is looked at. What is in memory is looked at where it is. See
docs/adr/0010, 0022, 0026 and 0027.
"""

import errno
import fcntl
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeAlias

import lmdb
import numpy as np
from numpy.typing import NDArray

from kvstore.cores import num_cores
from kvstore.disk.buffers import huge_pages
from kvstore.disk.environment import Unsound, lmdb_errors
from kvstore.disk.presence import Presence
from kvstore.disk.request_words import MOST_PIECES
from kvstore.disk.requests import Requests
from kvstore.disk.runs import Bounds, Places, Prover, Runs, running
from kvstore.disk.tree import VALUE_OFFSET, Tree, finding
from kvstore.errors import StoreFailed
from kvstore.reasons import MissReason
from kvstore.span import Span

READ_BYTES: Final = 512 << 10
"""What is asked for at once, where as much lies together: of smaller requests a disk reads less in the same time; larger ones take more memory,
which is hot in no cache when it is written over.
"""
READS_AHEAD: Final = 16
"""So many more are asked for while what one has brought is looked at. It is more than are on their way at once, as a disk may tell of all
at the same time: what they have brought is looked at while others are on their way.
"""
_PIECES_A_CALL: Final = 8
"""So many requests' memory there is for each call that reads at once, beside one for each thread that waits for the disk."""
_READERS: Final = 4
"""Threads that wait for these, for all callers, so as many are on their way: more made no disk faster that was measured, but have it tell
of them later.
"""
_LARGE_BYTES: Final = 2 << 20
_READERS_OF_LARGE: Final = 2
"""Of larger ones fewer keep the disk as busy, and need less memory."""
_MOST_WAIT_S: Final = 0.1
"""For one's turn to look at values: milliseconds, unless somebody hangs in a page that the disk does not give, who must not stop others."""
_GAP_BYTES: Final = 64 << 10
"""Up to so much between two values is read with them: a request more would take longer."""
_MOST_BYTES: Final = 256 << 20
"""No block is larger: what says so is damaged, and no reason to take so much memory. Nor is more taken for reads ahead."""
_LEAST_BYTES: Final = 16 << 20
"""Of a file for which memory is made ready."""

Examine: TypeAlias = Callable[[int, Any], MissReason | None]
"""Says why a value is not what is looked for, None if it is; given its position and its bytes, which hold during the call."""


class PayloadFile:
    """Any thread may call it, while the environment is open."""

    def __init__(self, environment: lmdb.Environment, *, value_bytes: int, num_calls: int) -> None:
        """Where the file system does not read past the page cache (O_DIRECT), the rest is done all the same.

        Reads ahead are made of values of no more than `value_bytes`, for so many calls at once.
        """
        self._environment = environment
        self._tree = Tree(environment, lambda: self._num_bytes)
        self._path = path = Path(environment.path()) / "data.mdb"
        with lmdb_errors(f"opening {path}"):
            try:
                self._file = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
            except OSError:
                self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._readers = _readers(self._file, value_bytes + VALUE_OFFSET, num_calls)
        self._at_once = _Turns(num_cores())
        """More threads than cores that look at values would take the GIL from each other several times in each."""
        self._alone = _Turns(1)
        """To look at small values, which is nearly all done with the GIL: two threads would take it from each other at each, and from those
        that wait for the blocks.
        """

    def examined(
        self,
        txn: "lmdb.Transaction[memoryview]",
        keys: Sequence[bytes],
        examine: Examine,
        prover: Prover | None,
    ) -> list[MissReason | None]:
        """What is said of each value: None of those that `prover` is sure of, if it is given, else what `examine` says; ABSENT without one.

        Those in memory come first, then the others, each in the order in which they lie. LMDB decides: damage in what was read past
        its map is looked for there again. Raises Unsound if a part of the file is gone, OSError if the disk cannot read.
        """
        found: list[MissReason | None] = [MissReason.ABSENT] * len(keys)
        places, unsure = self._places(txn, keys)
        if unsure:
            with self._alone.turn():
                for number in unsure:
                    found[number] = _by_lmdb(txn, keys, number, examine)
        if places is None:
            return found
        bounds = Bounds(VALUE_OFFSET, READ_BYTES, _GAP_BYTES, READS_AHEAD)
        with closing(Runs(self._readers, places, bounds, self._brought)) as runs:
            for run in runs.unproven(prover):
                with self._at_once.turn():
                    for number, span in self._looked_at(run, prover, found):
                        reason = examine(number, span.view)
                        if reason is not None and reason.damaged:
                            reason = _by_lmdb(txn, keys, number, examine)
                        found[number] = reason
            for number in runs.proven:
                found[number] = None
        return found

    def _places(
        self, txn: "lmdb.Transaction[memoryview]", keys: Sequence[bytes]
    ) -> tuple[Places | None, Sequence[int]]:
        """Where values lie, and the positions of those of which only LMDB can say."""
        found = self._tree.find(txn, keys) if self._is_compiled else None
        if found is None:
            return None, range(len(keys))
        file_bytes = self._num_bytes  # now: what was found may have been written since this began
        is_known = found.begins >= 0
        # or what a damaged tree calls a value would be looked at where there is no memory, by LMDB's binding as well
        if np.any(is_known & (found.begins + found.sizes > file_bytes)):
            raise Unsound(f"{self._path} ends at {file_bytes}, within a record")
        is_known &= found.sizes <= _MOST_BYTES
        numbers = np.flatnonzero(is_known)
        numbers = numbers[np.argsort(found.begins[numbers], kind="stable")]
        places = Places(found.map_begin, found.begins[numbers], found.sizes[numbers], numbers)
        return places, np.flatnonzero(~is_known).tolist()

    def _looked_at(
        self, run: list[tuple[int, Span]], prover: Prover | None, found: list[MissReason | None]
    ) -> Iterator[tuple[int, Span]]:
        """Note in `found` what is proven; answers the others."""
        numbers, spans = [number for number, _ in run], [span for _, span in run]
        proven = [False] * len(run) if prover is None else prover.proven(numbers, spans)
        for each, is_proven in zip(run, proven, strict=True):
            if is_proven:
                found[each[0]] = None
            else:
                yield each

    def make_ready(self) -> None:
        """Have what calls need: the code that finds places, and where there is much to be read memory, threads, and where the map lies."""
        if not self._is_compiled or self._num_bytes < _LEAST_BYTES:
            return
        self._readers.begin()
        with self._environment.begin(buffers=True) as txn:
            cursor = txn.cursor()
            if cursor.first():
                self._tree.find(txn, [bytes(cursor.key())])

    @cached_property
    def _is_compiled(self) -> bool:
        """Whether the code can be had that finds values, and reads them; LMDB is asked for all where it cannot."""
        try:
            finding()
            running()
        except StoreFailed:
            return False
        return True

    @property
    def _num_bytes(self) -> int:
        """Of the file, now."""
        return os.fstat(self._file).st_size

    def close(self) -> None:
        """Nobody may read any more."""
        if self._readers.close():  # else a thread would read from whatever file has its number next
            os.close(self._file)

    def _brought(self, begin: int, num_bytes: int, least_bytes: int) -> NDArray[np.uint8]:
        """What the file has from there on, read once more by who can say why it cannot be."""
        memory = np.frombuffer(huge_pages(num_bytes), np.uint8)
        end = self._read_into(memory[:num_bytes].data, begin)
        if end < least_bytes:
            raise Unsound(f"{self._path} ends at {begin + end}, within a record")
        return memory

    def _read_into(self, data: memoryview, begin: int) -> int:
        """Fill whole pages from there. How many bytes there were: less only where the file ends."""
        num_bytes = 0
        while num_bytes < len(data):
            # A read that meets what the disk cannot give answers what lies before it; only the next one says why.
            # Past the page cache one reads from a page's begin only.
            at = num_bytes - num_bytes % self._tree.page_bytes
            so_far = at + self._preadv(data[at:], begin + at)
            if so_far <= num_bytes:
                if begin + num_bytes < self._num_bytes:
                    raise OSError(errno.EIO, f"{self._path} cannot be read from {begin + num_bytes} on")
                break
            num_bytes = so_far
        return num_bytes

    def _preadv(self, data: memoryview, begin: int) -> int:
        try:
            return os.preadv(self._file, [data], begin)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        # The file system lets files be opened so, but not read: from now on by way of the page cache. Another thread may have
        # seen to that since this one's read began.
        flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
        fcntl.fcntl(self._file, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        return os.preadv(self._file, [data], begin)


def _readers(file: int, value_bytes: int, num_calls: int) -> Requests:
    """Threads that read values of so many bytes, in whole pages, for so many calls at once."""
    num_threads, piece_bytes = _READERS, max(READ_BYTES, -(-value_bytes // mmap.PAGESIZE) * mmap.PAGESIZE)
    if piece_bytes > _LARGE_BYTES:
        num_threads = _READERS_OF_LARGE
    if _MOST_BYTES // piece_bytes <= num_threads:
        piece_bytes = READ_BYTES  # then the largest are the callers' to read
    num_pieces = min(num_threads + _PIECES_A_CALL * num_calls, MOST_PIECES, _MOST_BYTES // piece_bytes)
    return Requests(
        "kvstore-read",
        num_threads,
        file,
        piece_bytes=piece_bytes,
        num_pieces=num_pieces,
        num_requests=num_threads + (1 + READS_AHEAD) * num_calls,
    )


class _Turns:
    """So many turns that can be taken at a time. Any thread may take one."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._takers = Presence()
        self._left: SimpleQueue[None] = SimpleQueue()  # no interrupt can come while its lock is held
        self._put(number)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One's turn, until the body ends; or none, where nobody ends his in time."""
        try:
            self._left.get(timeout=_MOST_WAIT_S)
        except Empty:
            # an interrupt may have come between a turn and what gives it back
            self._put(self._number - len(self._takers) - self._left.qsize())
            yield
            return
        try:
            with self._takers.come():
                yield
        finally:
            self._left.put(None)

    def _put(self, number: int) -> None:
        for _ in range(number):
            self._left.put(None)


def _by_lmdb(
    txn: "lmdb.Transaction[memoryview]", keys: Sequence[bytes], position: int, examine: Examine
) -> MissReason | None:
    """What is said of what LMDB itself finds."""
    value = txn.get(keys[position])
    return MissReason.ABSENT if value is None else examine(position, value)
