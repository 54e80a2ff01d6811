"""LMDB as we use it: how it is opened, what its errors mean, and how it is read without pinning pages."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
from lmdb.verify import VerifyError, verify

from kvstore.errors import StoreFailed, StoreFull

PAGE_BYTES = 4096
_VALUE_OVERHEAD_BYTES = 16  # LMDB's header on the first page of a value that has pages of its own
_KEYS_PER_READ = 1024

# Errors after which the tree itself cannot be trusted: going on could abort the process.
_STRUCTURAL = (
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.PageNotFoundError,
    lmdb.PanicError,
    lmdb.VersionMismatchError,
)


class Unsound(StoreFailed):
    """The environments can no longer be trusted. The next opening repairs them, or starts afresh."""


def page_rounded(value_bytes: int) -> int:
    """Bytes of whole pages that a value takes. A little more than the truth for values under half a page."""
    return -(-(value_bytes + _VALUE_OVERHEAD_BYTES) // PAGE_BYTES) * PAGE_BYTES


def open_environment(path: Path, map_bytes: int) -> lmdb.Environment:
    """Open or create. Raises StoreFailed, of the kind Unsound where the file is not a sound environment."""
    with lmdb_errors(f"opening {path}"):
        environment = lmdb.open(
            str(path),
            map_size=map_bytes,
            # Without readahead each page of a value is a read of its own: up to ten times slower from a cold
            # disk.
            readahead=True,
            # No sync for each commit, which would bind writes to the disk's latency: the writer syncs on a
            # timer.
            sync=False,
            metasync=False,
            max_readers=512,
            max_spare_txns=32,
        )
        environment.reader_check()  # frees the slots of readers that were killed: they would pin old pages
    return environment


def problems(path: Path) -> list[str]:
    """What is structurally wrong with an environment that is not open. Reads trees, not values.

    Opening a damaged environment can end in a signal rather than an error, so one that was not closed in
    order is looked at from outside first.
    """
    if not (path / "data.mdb").exists():
        return []
    try:
        return list(verify(str(path)))  # type: ignore[no-untyped-call]
    except (VerifyError, OSError) as error:
        return [str(error)]


@contextmanager
def lmdb_errors(doing: str) -> Iterator[None]:
    """Turn what LMDB and the file system raise into store errors that say what was being done."""
    try:
        yield
    except lmdb.MapFullError as error:
        raise StoreFull(f"{doing}: no run of free pages in the file is long enough") from error
    except _STRUCTURAL as error:
        raise Unsound(f"{doing}: {error}") from error
    except (lmdb.Error, OSError) as error:
        number = error.errno if isinstance(error, OSError) else error.code
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(f"{doing}: {error}") from error
        raise StoreFailed(f"{doing}: {error}") from error


def items(environment: lmdb.Environment, prefix: bytes = b"") -> Iterator[list[tuple[bytes, bytes]]]:
    """Copies of all keys that start with `prefix` and their values, in order, some at a time.

    Each list is read in a transaction of its own, which has ended when the list is handed out: one that lived
    as long as its reader would keep freed pages from being reused, and the file would grow.
    """
    start = prefix
    while True:
        with lmdb_errors("scanning"), environment.begin() as txn:
            batch = _items_from(txn.cursor(), start, prefix)
        if batch:
            yield batch
        if len(batch) < _KEYS_PER_READ:
            return
        start = batch[-1][0] + b"\x00"  # the least key after the last one


def _items_from(cursor: "lmdb.Cursor[bytes]", start: bytes, prefix: bytes) -> list[tuple[bytes, bytes]]:
    batch: list[tuple[bytes, bytes]] = []
    found = cursor.set_range(start) if start else cursor.first()
    while found and len(batch) < _KEYS_PER_READ:
        key, value = cursor.item()
        if not key.startswith(prefix):
            break
        batch.append((key, value))
        found = cursor.next()
    return batch


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
