"""Where LMDB's values lie, found by a walk of our own in its map. See docs/adr/0022.

LMDB finds one key after the other, with Python in between, and its binding touches the first page of each value that it finds: where that
is not in memory the disk is waited for. Here all keys are looked for in one call, without Python's lock, and no value is touched.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Final, NamedTuple

import lmdb
import numpy as np
from numpy.typing import NDArray

from kvstore.code import Function, loaded
from kvstore.disk.verification import Meta
from kvstore.errors import StoreFailed

VALUE_OFFSET: Final = 16
"""Where a value begins on the first of its pages."""
_META, _VERSION = 0x08, 1
_MOST_DEPTH: Final = 32
"""LMDB goes no deeper."""
_NO_PAGE: Final = 1 << 48
"""No page has such a number."""

_FIND: Final = Function(
    "kvstore.disk.descent",
    "find",
    ("kvstore.disk.descent", "kvstore.instructions", "kvstore.scratch"),
    (
        *["int64"] * 5,
        "uint8 1",
        "int64 1",
        "int64 1 written",
        "int64 1 written",
    ),
)

FUNCTIONS: Final = (_FIND,)
"""All that is compiled for this."""


@cache
def finding() -> Callable[..., int]:
    """`find` of kvstore/disk/descent.py. The first call loads it, or has it compiled. Raises StoreFailed where it cannot be."""
    return loaded(_FIND)[0]


class Found(NamedTuple):
    """Where the values of some keys lie."""

    map_begin: int
    """An address."""
    begins: NDArray[np.int64]
    """In the file and the map; -1 where LMDB is to be asked, which may know better."""
    sizes: NDArray[np.int64]
    """Bytes, where there is a begin."""


class Tree:
    """The main database of an environment that this process alone has open. Any thread may call it.

    LMDB's answer about one value is compared with ours, once for each map: if they differ it is asked about all.
    """

    def __init__(self, environment: lmdb.Environment, file_bytes: Callable[[], int]) -> None:
        """`file_bytes`: of the environment's file, as it is when that is called."""
        self._environment, self._file_bytes = environment, file_bytes
        self.page_bytes: Final = int(environment.stat()["psize"])
        self._map: tuple[int, int | None] | None = None
        """Its size, which changes whenever it moves, and its address: None where LMDB does not lay out its pages as we think."""

    def find(self, txn: "lmdb.Transaction[memoryview]", keys: Sequence[bytes]) -> Found | None:
        """Where the values under these keys lie in the file; None if LMDB is to be asked about all.

        That may be of a commit since the transaction began: this keeps the pages of all that come after it as well.
        """
        map_bytes = int(self._environment.info()["map_size"])
        known = self._map
        if known is None or known[0] != map_bytes:
            self._map = known = self._learned(txn, keys, map_bytes)
        begin = None if known is None else known[1]
        meta = None if begin is None else _newest(begin, self.page_bytes, txn.id())
        return None if begin is None or meta is None else self._found(begin, meta, keys)

    def _learned(
        self, txn: "lmdb.Transaction[memoryview]", keys: Sequence[bytes], map_bytes: int
    ) -> tuple[int, int | None] | None:
        """None as long as there is no value to learn it from that has pages for itself."""
        cursor = txn.cursor()
        key = next(filter(cursor.set_key, keys), None)
        if key is None:
            return None
        value = np.frombuffer(cursor.value(), np.uint8)
        places = np.frombuffer(cursor.key(), np.uint8).ctypes.data, value.ctypes.data
        pages = [place - place % self.page_bytes for place in places]
        if pages[0] == pages[1]:
            return None
        # both tell their numbers: it is the map's begin if they agree
        begins = {
            page - self.page_bytes * int.from_bytes(ctypes.string_at(page, 8), "little") for page in pages
        }
        begin = begins.pop()
        meta = None if begins else _newest(begin, self.page_bytes, txn.id())
        if meta is not None and meta.commit != txn.id():  # there, the value may lie elsewhere
            return None
        try:
            found = None if meta is None else self._found(begin, meta, [key])
        except StoreFailed:  # it cannot be compiled
            found = None
        is_same = found is not None and (begin + found.begins[0], found.sizes[0]) == (places[1], value.size)
        return map_bytes, begin if is_same else None

    def _found(self, begin: int, meta: Meta, keys: Sequence[bytes]) -> Found:
        # the file's size is asked for behind the meta page: it may have grown for that commit
        num_pages = min(meta.last_page + 1, self._file_bytes() // self.page_bytes)
        first_pages, sizes = np.empty(len(keys), np.int64), np.empty(len(keys), np.int64)
        finding()(
            begin,
            num_pages,
            self.page_bytes,
            meta.root,
            meta.depth,
            np.frombuffer(b"".join(keys), np.uint8),
            np.fromiter(map(len, keys), np.int64).cumsum(),
            first_pages,
            sizes,
        )
        begins = np.where(first_pages < 0, -1, first_pages * self.page_bytes + VALUE_OFFSET)
        return Found(begin, begins, sizes)


def _newest(begin: int, page_bytes: int, commit: int) -> Meta | None:
    """What the map at that address says of the newest commit, which is this one or a later one; None if it is not as it should be."""
    both = [ctypes.string_at(begin + page * page_bytes, Meta.num_bytes) for page in (0, 1)]
    try:
        page, meta = max(enumerate(map(Meta, both)), key=lambda one: one[1].commit)
    except ValueError:
        return None
    # the next commit but one is written over it
    is_whole = ctypes.string_at(begin + page * page_bytes, Meta.num_bytes) == both[page]
    told = meta.number, meta.kind, meta.version, meta.page_bytes, meta.flags
    is_known = told == (page, _META, _VERSION, page_bytes, 0)
    is_tree = 0 < meta.depth <= _MOST_DEPTH and meta.root <= meta.last_page < _NO_PAGE
    return meta if is_whole and is_known and is_tree and meta.commit >= commit else None
