"""A file system that somebody else fills while a store is open there: no byte is left on it."""

import sys

import pytest

from tests.kvstore.mounts import run_mounted

PROGRAM = """
import os
import sys
from contextlib import suppress
from pathlib import Path
from kvstore import StoreError, StoreFailed, StoreFull
from kvstore.disk import maintenance
from kvstore.testing import assert_holds, chain, fill, kv_like, read
from tests.kvstore.conftest import lmdb_store

path, master_key = Path(sys.argv[1]), bytes(32) if sys.argv[2] == "encrypted" else None


def eat():
    with suppress(OSError), (path / "eaten").open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with suppress(OSError), (path / "eaten").open("ab", buffering=0) as file:
        while True:
            file.write(bytes(1))


def opened():
    return lmdb_store(path, capacity_bytes=1 << 21, master_key=master_key)


def complains(call):
    try:
        call()
    except StoreError as error:
        return type(error).__name__
    return "done"


store = opened()
refs, blocks = fill(store, 30)
store.sync()
eat()
more = chain(store, 200, seed=1), kv_like(store, 200, seed=1)
print("put", complains(lambda: store.put_many(*more)))
print("delete", complains(lambda: store.delete_many([ref.key for ref in refs[:5]])))
print("touch", complains(lambda: store.touch_many([ref.key for ref in refs[5:9]], [1] * 4)))
print("sync", complains(store.sync))
assert store.stats().fresh_starts == 0, "trees that are sound were given up"
assert_holds(store, refs[5:], blocks[5:])
print("close", complains(store.close))
eat()
with opened() as store:
    assert_holds(store, refs[5:], blocks[5:])
    print("erase", complains(lambda: store.erase(bytes([1]) * 16)))
eat()
maintenance.clear(path, old=False)
(path / "eaten").unlink()
with opened() as store:
    refs, blocks = fill(store, 5)
    assert_holds(store, refs, blocks)
    store.check()
    eat()
    os.truncate(path / "v1" / "payload" / "data.mdb", 8192)
    eat()  # and now the store has to start afresh, with no room for it
    for _ in range(3):
        assert complains(lambda: read(store, refs)) != "done"
        assert complains(store.sync) != "done"
    (path / "eaten").unlink()
    store.sync()
    store.put_many(refs, blocks)
    assert_holds(store, refs, blocks)
    store.check()
print("as it should be")
"""


@pytest.mark.parametrize("form", ["plain", "encrypted"])
def test_a_disk_without_a_byte_left_is_read_cleared_and_never_fatal(tmp_path, form):
    mount = 'mount -t tmpfs -o size=3m tmpfs "$0"'
    said = run_mounted(mount, tmp_path, [sys.executable, "-c", PROGRAM, str(tmp_path), form])
    assert "as it should be" in said
    assert "put StoreFull" in said
