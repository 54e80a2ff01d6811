"""LMDB as we use it: how it is opened, what its errors mean, and how it is read without pinning pages."""

import errno
import itertools
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import lmdb

from kvstore.errors import StoreFailed, StoreFull

PAGE_BYTES = 4096
_VALUE_OVERHEAD_BYTES = 16  # LMDB's header on the first page of a value that has pages of its own
_KEYS_PER_READ = 1024
_MAX_READERS = 512
_LOCK_FILE_BYTES = 64 << 10  # LMDB takes 64 bytes for a reader, and as much as two for itself
_NO_ROOM_BYTES = 1 << 20

# py-lmdb refuses to open a file that is open already, and knows files by their numbers: one that a close gives back may
# be another file's before that close has told so.
_opening = threading.Lock()

# What LMDB raises although its trees are in order. After anything else they are not trusted: going on could
# abort the process.
_HARMLESS = (
    lmdb.LockError,
    lmdb.MemoryError,
    lmdb.ReadersFullError,
    lmdb.ReadonlyError,
    lmdb.TlsFullError,
    lmdb.TxnFullError,
)


class Unsound(StoreFailed):
    """The environments can no longer be trusted. Others take their place."""

    def __init__(self, message: str) -> None:
        super().__init__(message, temporary=True)


def page_rounded(value_bytes: int) -> int:
    """Bytes of whole pages that a value takes. A little more than the truth for values under half a page."""
    return -(-(value_bytes + _VALUE_OVERHEAD_BYTES) // PAGE_BYTES) * PAGE_BYTES


def open_environment(path: Path, map_bytes: int, *, strict: bool, readahead: bool) -> lmdb.Environment:
    """Open or create, for the owner alone; no other process may have it open.

    `readahead`: what is touched brings in what lies around it, up to megabytes. It must be off where values are large and
    are not read through the map: a page of the tree would bring in values that nobody wants.

    `strict`: each commit reaches the disk before it returns, in an order that a loss of power does not harm. Otherwise
    nothing does before a sync. Raises StoreFailed, of the kind Unsound where the file is not a sound environment.
    """
    with _opening, lmdb_errors(f"opening {path}"):
        path.mkdir(mode=0o700, exist_ok=True)
        # The table of readers knows processes by number, and numbers repeat: in another PID namespace a reader
        # that was killed there looks alive here, and would keep old pages from being reused for ever.
        _make_lock_file(path / "lock.mdb")
        environment = lmdb.open(
            str(path),
            map_size=map_bytes,
            mode=0o600,
            readahead=readahead,
            sync=strict,
            metasync=strict,
            max_readers=_MAX_READERS,
            max_spare_txns=32,
        )
    return environment


def close_environment(environment: lmdb.Environment) -> None:
    """To be called in place of its own `close`."""
    with _opening:
        environment.close()


def _make_lock_file(path: Path) -> None:
    """An empty one with all its blocks: LMDB maps it, and a page that the disk has no room for would be a signal."""
    path.unlink(missing_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(file, 0, _LOCK_FILE_BYTES)
    finally:
        os.close(file)


class DataFile:
    """The file of an environment, watched: it only grows, and to read from the map what was cut off ends the process.

    Any thread may call it.
    """

    def __init__(self, path: Path) -> None:
        """`path`: the environment's directory."""
        self._path = path
        with lmdb_errors(f"opening {path}"):
            self._file = os.open(path / "data.mdb", os.O_RDONLY | os.O_CLOEXEC)
        self._num_pages = 0
        self.check()

    def check(self) -> None:
        """Raise Unsound if pages are gone that were there at an earlier check."""
        known = self._num_pages  # first: it may grow meanwhile
        with lmdb_errors(f"looking at {self._path}"):
            num_pages = -(-os.fstat(self._file).st_size // PAGE_BYTES)
        if num_pages < known:
            raise Unsound(f"{self._path} had {known} pages, and {num_pages} are left")
        self._num_pages = num_pages

    def close(self) -> None:
        os.close(self._file)


@contextmanager
def lmdb_errors(doing: str, on: Path | None = None) -> Iterator[None]:
    """Turn what LMDB and the file system raise into store errors that say what was being done.

    `on`: a directory of the disk that is written to. LMDB says EIO where the disk took a part of a write only: it is
    full then, and the trees are as they were before.
    """
    try:
        yield
    except lmdb.MapFullError as error:
        raise StoreFull(f"{doing}: no run of free pages in the file is long enough") from error
    except (lmdb.Error, OSError) as error:
        number = getattr(error, "errno", None) or getattr(error, "code", None)
        if number in (errno.ENOSPC, errno.EDQUOT) or (number == errno.EIO and _is_full(on)):
            raise StoreFull(f"{doing}: {error}") from error
        if isinstance(error, (OSError, *_HARMLESS)):
            raise StoreFailed(f"{doing}: {error}") from error
        raise Unsound(f"{doing}: {error}") from error


def _is_full(directory: Path | None) -> bool:
    try:
        return directory is not None and shutil.disk_usage(directory).free < _NO_ROOM_BYTES
    except OSError:
        return False


def items(environment: lmdb.Environment, prefix: bytes = b"") -> Iterator[list[tuple[bytes, bytes]]]:
    """Copies of all keys that start with `prefix` and their values, in order, some at a time.

    Each list is read in a transaction of its own, which has ended when the list is handed out: one that lived
    as long as its reader would keep freed pages from being reused, and the file would grow.
    """
    start: bytes | None = prefix
    while start is not None:
        batch, start = some_items(environment, start, prefix)
        if batch:
            yield batch


def some_items(
    environment: lmdb.Environment, start: bytes, prefix: bytes
) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
    """One list of `items`, from the key `start` on, and where the next one starts; None after the last."""
    batch: list[tuple[bytes, bytes]] = []
    with lmdb_errors("scanning"), environment.begin() as txn:
        cursor = txn.cursor()
        if cursor.set_range(start) if start else cursor.first():
            batch = list(islice(cursor.iternext(), _KEYS_PER_READ))
    more = len(batch) == _KEYS_PER_READ
    if batch and not batch[-1][0].startswith(prefix):  # in order: what is not of the prefix is behind it
        batch, more = [item for item in batch if item[0].startswith(prefix)], False
    return batch, batch[-1][0] + b"\x00" if more else None  # the least key after the last one


def keys(environment: lmdb.Environment, at_once: int) -> Iterator[list[bytes]]:
    """All keys, in order, `at_once` at a time. Touches no value. Nobody may write meanwhile."""
    with environment.begin() as txn:
        every = txn.cursor().iternext(keys=True, values=False)
        while some := list(itertools.islice(every, at_once)):
            yield some


def unpaired(left: lmdb.Environment, right: lmdb.Environment) -> tuple[list[bytes], list[bytes]]:
    """The keys that only `left` has, and those that only `right` has. Touches no value."""
    only_left: list[bytes] = []
    only_right: list[bytes] = []
    with lmdb_errors("comparing keys"), left.begin() as left_txn, right.begin() as right_txn:
        left_keys = left_txn.cursor().iternext(keys=True, values=False)
        right_keys = right_txn.cursor().iternext(keys=True, values=False)
        left_key, right_key = next(left_keys, None), next(right_keys, None)
        while left_key is not None or right_key is not None:
            if left_key == right_key:
                left_key, right_key = next(left_keys, None), next(right_keys, None)
            elif right_key is None or (left_key is not None and left_key < right_key):
                assert left_key is not None
                only_left.append(left_key)
                left_key = next(left_keys, None)
            else:
                only_right.append(right_key)
                right_key = next(right_keys, None)
    return only_left, only_right
