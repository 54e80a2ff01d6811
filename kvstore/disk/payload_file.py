"""The records' data file, read past LMDB's map where its pages are not in memory.

LMDB hands out a value's address in the map. What is not in memory there comes as its pages are touched: the kernel
makes room for each page, maps it, keeps a copy beside the one in host memory, and ends the process if the disk fails (SIGBUS).
So it is only found where a value lies, and what is not in memory is read from there, in the order in which it lies, several values
with one request, into buffers, some requests ahead of what is looked at. What is in memory is looked at where it is. See
docs/adr/0010 and 0022.
"""

import errno
import fcntl
import mmap
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple, TypeAlias

import lmdb
import numpy as np

from kvstore.cores import num_cores
from kvstore.disk.buffers import huge_pages
from kvstore.disk.environment import Unsound, lmdb_errors
from kvstore.disk.page_cache import pages_absent
from kvstore.disk.presence import Presence
from kvstore.disk.request_words import MOST_PIECES
from kvstore.disk.requests import Requests, serving
from kvstore.disk.tree import VALUE_OFFSET, Tree, finding
from kvstore.errors import StoreFailed
from kvstore.reasons import MissReason
from kvstore.span import Span

READ_BYTES: Final = 2 << 20
"""What is asked for at once, where as much lies together: of smaller requests a disk reads less in the same time, and each takes a turn of
Python's; larger ones leave less to do meanwhile.
"""
_FIRST_BYTES: Final = 1 << 20
"""What is asked for first: it is there sooner, and looked at while the next is read."""
READS_AHEAD: Final = 5
"""So many more are asked for while what one has brought is looked at. It is more than are on their way at once, as a disk may tell of all
at the same time: what they have brought is looked at while others are on their way.
"""
_PIECES_A_CALL: Final = 4
"""So many requests' memory there is for each call that reads at once, beside one for each thread that waits for the disk."""
_READERS: Final = 2
"""Threads that wait for these, for all callers, so as many are on their way: more made no disk faster that was measured, but have it tell
of them later.
"""
_MOST_WAIT_S: Final = 0.1
"""For one's turn to look at values, and for a thread to begin with a read: milliseconds, unless somebody hangs in a page that the
disk does not give, who must not stop others.
"""
_GAP_BYTES: Final = 64 << 10
"""Up to so much between two values is read with them: a request more would take longer."""
_MOST_BYTES: Final = 256 << 20
"""No block is larger: what says so is damaged, and no reason to take so much memory. Nor is more taken for reads ahead."""
_LEAST_BYTES: Final = 16 << 20
"""Of a file for which memory is made ready."""


class _Place(NamedTuple):
    """Where a value lies."""

    position: int
    """Among those that are looked for."""
    address: int
    begin: int
    """In the file."""
    num_bytes: int


Examine: TypeAlias = Callable[[int, Any], MissReason | None]
"""Says why a value is not what is looked for, None if it is; given its position and its bytes, which hold during the call."""
Prove: TypeAlias = Callable[[Sequence[int], Sequence[Span]], Sequence[bool]]
"""Says of several values, by their positions and where they lie, of which it is sure that they are what is looked for: of the others nothing is
said. Whatever it touches of them it touches without the GIL: a page may hang that was in memory when that was asked.
"""


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
        self._readers = _readers(self._file, self._paged(value_bytes + VALUE_OFFSET), num_calls)
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
        prove: Prove | None,
    ) -> list[MissReason | None]:
        """What is said of each value: None of those that `prove` is sure of, if it is given, else what `examine` says; ABSENT without one.

        Those in memory come first, then the others, each in the order in which they lie. LMDB decides: damage in what was read past
        its map is looked for there again. Raises Unsound if a part of the file is gone, OSError if the disk cannot read.
        """
        found: list[MissReason | None] = [MissReason.ABSENT] * len(keys)
        places, unsure = self._places(txn, keys)
        if unsure:
            with self._alone.turn():
                for position in unsure:
                    found[position] = _by_lmdb(txn, keys, position, examine)
        with closing(self._held(places)) as runs:
            for run, spans in runs:
                with self._at_once.turn():
                    for place, span in self._looked_at(run, spans, prove, found):
                        reason = examine(place.position, span.view)
                        if reason is not None and reason.damaged:
                            reason = _by_lmdb(txn, keys, place.position, examine)
                        found[place.position] = reason
        return found

    def _places(
        self, txn: "lmdb.Transaction[memoryview]", keys: Sequence[bytes]
    ) -> tuple[list[_Place], list[int]]:
        """Where values lie, in that order, and the positions of those of which only LMDB can say."""
        found = self._tree.find(txn, keys)
        if found is None:
            return [], list(range(len(keys)))
        file_bytes = self._num_bytes  # now: what was found may have been written since this began
        # or what a damaged tree calls a value would be looked at where there is no memory, by LMDB's binding as well
        if np.any((found.begins >= 0) & (found.begins + found.sizes > file_bytes)):
            raise Unsound(f"{self._path} ends at {file_bytes}, within a record")
        order = np.argsort(found.begins).tolist()
        begins, sizes = found.begins.tolist(), found.sizes.tolist()
        sure = [position for position in order if begins[position] >= 0 and sizes[position] <= _MOST_BYTES]
        places = [
            _Place(position, found.map_begin + begins[position], begins[position], sizes[position])
            for position in sure
        ]
        return places, sorted({*range(len(keys))}.difference(sure))

    def _looked_at(
        self, places: list[_Place], spans: list[Span], prove: Prove | None, found: list[MissReason | None]
    ) -> Iterator[tuple[_Place, Span]]:
        """Note in `found` what is proven; answers the others."""
        proven = (
            [False] * len(places) if prove is None else prove([place.position for place in places], spans)
        )
        for place, span, is_proven in zip(places, spans, proven, strict=True):
            if is_proven:
                found[place.position] = None
            else:
                yield place, span

    def make_ready(self) -> None:
        """Have what calls need: the code that finds places, and where there is much to be read memory, threads, and where the map lies."""
        with suppress(StoreFailed):  # LMDB is asked then
            finding()
            serving()
        if self._num_bytes < _LEAST_BYTES:
            return
        self._readers.begin()
        with self._environment.begin(buffers=True) as txn:
            cursor = txn.cursor()
            if cursor.first():
                self._tree.find(txn, [bytes(cursor.key())])

    @property
    def _num_bytes(self) -> int:
        """Of the file, now."""
        return os.fstat(self._file).st_size

    def close(self) -> None:
        """Nobody may read any more."""
        if self._readers.close():  # else a thread would read from whatever file has its number next
            os.close(self._file)

    def _held(self, places: list[_Place]) -> Generator[tuple[list[_Place], list[Span]], None, None]:
        """Values and their bytes, which hold until the next ones are asked for. To be closed: reads may be on their way.

        Those in memory come first, where they are. While they, and then one run's values, are looked at, the next ones are read by other threads,
        of which the first begin as soon as anything is known not to be in memory.
        """
        in_memory: list[_Place] = []
        runs: list[list[_Place]] = []
        owner: set[None] = set()
        reads: list[int | None] = []
        """Of runs, in their order; None of one that is no other thread's any more."""

        def put(end: int) -> None:
            for run in runs[len(reads) : end]:
                begin, num_bytes = self._span(run)
                reads.append(self._readers.put(num_bytes, begin, owner))

        try:
            for is_absent, run in _parted(places):
                if is_absent:
                    runs.append(run)
                    put(1 + READS_AHEAD)
                else:
                    in_memory += run
            if in_memory:
                yield in_memory, [Span(place.address, place.num_bytes) for place in in_memory]
            for number, run in enumerate(runs):
                put(number + 1 + READS_AHEAD)
                read, reads[number] = reads[number], None
                with self._brought(read, run) as address:
                    at = address - run[0].begin
                    yield run, [Span(at + one.begin, one.num_bytes) for one in run]
        finally:
            for read in reads:
                if read is not None:
                    self._readers.give_back(read)

    @contextmanager
    def _brought(self, read: int | None, run: list[_Place]) -> Iterator[int]:
        """Where a run's first value lies in memory. What another thread could not read is read once more, by who can say why."""
        begin, most_bytes = self._span(run)
        num_bytes: int | None = 0  # or who is interrupted here would keep the memory
        try:
            num_bytes = None if read is None else self._readers.answer(read, _MOST_WAIT_S)
            if read is not None and num_bytes is not None and begin + num_bytes >= _end(run):
                yield self._readers.address(read) + run[0].begin - begin
            else:
                memory = np.frombuffer(huge_pages(most_bytes), np.uint8)
                self._fill(memory[:most_bytes].data, run)
                yield memory.ctypes.data + run[0].begin - begin
        finally:
            if read is not None and num_bytes is not None:
                self._readers.give_back(read)

    def _span(self, run: list[_Place]) -> tuple[int, int]:
        """Where in the file a run begins, and the bytes of its pages."""
        begin = run[0].begin - VALUE_OFFSET
        return begin, self._paged(_end(run) - begin)

    def _paged(self, num_bytes: int) -> int:
        """As many bytes, in whole pages."""
        return -(-num_bytes // self._tree.page_bytes) * self._tree.page_bytes

    def _fill(self, buffer: memoryview, run: list[_Place]) -> None:
        """Read a run."""
        begin, num_bytes = self._span(run)
        end = begin + self._read_into(buffer[:num_bytes], begin)
        if end < _end(run):
            raise Unsound(f"{self._path} ends at {end}, within a record")

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
    """Threads that read values of so many bytes, with their pages, for so many calls at once."""
    piece_bytes = max(READ_BYTES, value_bytes)
    if _MOST_BYTES // piece_bytes <= _READERS:
        piece_bytes = READ_BYTES  # then the largest are the callers' to read
    num_pieces = min(_READERS + _PIECES_A_CALL * num_calls, MOST_PIECES, _MOST_BYTES // piece_bytes)
    return Requests("kvstore-read", _READERS, file, piece_bytes=piece_bytes, num_pieces=num_pieces)


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


def _runs(places: list[_Place]) -> Iterator[list[_Place]]:
    """Values that are read with one request, in the order in which they lie. None of a run lies over another, as it may in a damaged tree:
    the last one of a run ends last.
    """
    run: list[_Place] = []
    most_bytes = min(_FIRST_BYTES, READ_BYTES)
    for place in places:
        if run:
            gap_bytes = place.begin - run[-1].begin - run[-1].num_bytes
            if not 0 <= gap_bytes <= _GAP_BYTES or place.begin + place.num_bytes - run[0].begin > most_bytes:
                yield run
                run = []
                most_bytes = READ_BYTES
        run.append(place)
    if run:
        yield run


def _end(run: list[_Place]) -> int:
    """Where in the file its last value ends."""
    return run[-1].begin + run[-1].num_bytes


def _parted(places: list[_Place]) -> Iterator[tuple[bool, list[_Place]]]:
    """Runs, in the order in which they lie, each with whether it is not in memory."""
    for run in _runs(places):
        if all(pages_absent(place.address, 1) for place in run):
            yield True, run  # it is no matter whether some of the rest is there
            continue
        begin, end = run[0].address, run[-1].address + run[-1].num_bytes
        num_absent = pages_absent(begin, end - begin)
        num_present = (end - 1) // mmap.PAGESIZE - begin // mmap.PAGESIZE + 1 - num_absent
        if not num_absent:
            yield False, run
        elif num_present * mmap.PAGESIZE < min(place.num_bytes for place in run):
            yield True, run
        else:
            parted = [(place, pages_absent(place.address, place.num_bytes) > 0) for place in run]
            yield False, [place for place, is_absent in parted if not is_absent]
            for each in _runs([place for place, is_absent in parted if is_absent]):
                yield True, each
