"""Limits of a disk store that are set anew while it is in use."""

import mmap
import threading
from contextlib import suppress

import pytest

from kvstore import Namespace, StoreClosed, StoreFailed, StoreFull
from kvstore.metas import metas_of
from kvstore.testing import assert_holds, chain, fill, noise, reasons
from tests.kvstore.conftest import CAPACITY_BYTES, LAYOUT

OTHER = Namespace.of({"model": "other"})


def put_all(store, refs, blocks) -> int:
    """Put blocks one by one until there is no room. Answers how many there was room for."""
    for done, (ref, block) in enumerate(zip(refs, blocks, strict=True)):
        try:
            store.put_many([ref], [block])
        except StoreFull:
            return done
    return len(refs)


def test_more_room_is_there_at_once(open_lmdb, tmp_path):
    """Far beyond the files that the store was opened with."""
    store = open_lmdb()
    refs, blocks = chain(store, 400), noise(store, 400)
    assert put_all(store, refs, blocks) < 50
    before = store._lender.current.map_bytes
    store.change(capacity_bytes=400 * store.max_stored_bytes)
    assert put_all(store, refs, blocks) == 400
    assert (tmp_path / "v1" / "payload" / "data.mdb").stat().st_size > before[0]
    assert_holds(store, refs, blocks)
    assert store.stats().capacity_bytes == store.capacity_bytes == 400 * store.max_stored_bytes
    store.check()
    store.close()
    assert_holds(open_lmdb(capacity_bytes=1 << 26), refs, blocks)


@pytest.mark.parametrize("changed", [{}, {"durability": "strict"}], ids=["relaxed", "strict"])
def test_files_grow_while_everybody_reads(open_lmdb, changed):
    """The map moves under nobody: no read fails, none is wrong, and a scan goes on."""
    store = open_lmdb(capacity_bytes=1 << 20, **changed)
    refs, blocks = fill(store, 8)
    ended, errors = threading.Event(), []

    def keep_reading() -> None:
        try:
            while not ended.is_set():
                assert_holds(store, refs, blocks)
                assert {meta.key for meta in metas_of(store)} >= {ref.key for ref in refs}
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    readers = [threading.Thread(target=keep_reading) for _ in range(3)]
    for reader in readers:
        reader.start()
    scanned = metas_of(store)
    first = next(scanned)
    for step in range(40):
        store.change(capacity_bytes=(1 << 20) + (step << 20))
        fill(store, 2, seed=step + 1)
    assert {first.key, *(meta.key for meta in scanned)} >= {ref.key for ref in refs}
    ended.set()
    for reader in readers:
        reader.join()
    assert errors == []
    assert store.stats().fresh_starts == 0
    assert store._lender.current.map_bytes[0] > 40 << 20
    store.check()


def test_files_do_not_grow_under_a_read_that_hangs(open_lmdb, monkeypatch):
    monkeypatch.setattr("kvstore.disk.changes._GROW_S", 0.01)
    store = open_lmdb()
    refs, blocks = fill(store, 3)
    with store._lender.lend() as tables, tables.records.begin(buffers=True) as txn:
        record = txn.get(store.namespace.digest + refs[0].key)
        with pytest.raises(StoreFailed, match="while a read hangs") as refused:
            store.change(capacity_bytes=1 << 30, min_free_bytes=7)
        assert refused.value.temporary
        assert bytes(record[:6]) == b"kvtide"
        assert (store.capacity_bytes, store.min_free_bytes) == (CAPACITY_BYTES, 0), "all or none"
        assert_holds(store, refs, blocks)
        store.change(capacity_bytes=CAPACITY_BYTES - 1)  # which needs no other map
    store.change(capacity_bytes=1 << 30)
    assert_holds(store, refs, blocks)


def test_files_that_cannot_be_mapped_larger_stay_as_they_are(open_lmdb, monkeypatch):
    store = open_lmdb()
    refs, blocks = fill(store, 3)

    def no_room(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    with monkeypatch.context() as patched:
        patched.setattr("kvstore.disk.tables.mmap", no_room)
        with pytest.raises(StoreFailed, match="Cannot allocate memory"):
            store.change(capacity_bytes=1 << 40)
    assert store.capacity_bytes == CAPACITY_BYTES
    assert_holds(store, refs, blocks)
    assert store.stats().fresh_starts == 0


def test_where_one_file_cannot_be_mapped_larger_neither_is(open_lmdb, monkeypatch):
    store = open_lmdb()
    before, asked = store._lender.current.map_bytes, []

    def room_for_one(_file: int, num_bytes: int, **how: int) -> mmap.mmap:
        asked.append(num_bytes)
        if len(asked) == 2:
            raise OSError(12, "Cannot allocate memory")
        return mmap.mmap(-1, 4096, **how)

    monkeypatch.setattr("kvstore.disk.tables.mmap", room_for_one)
    with pytest.raises(StoreFailed, match="Cannot allocate memory"):
        store.change(capacity_bytes=1 << 40)
    assert len(asked) == 2
    assert store._lender.current.map_bytes == before


def test_less_room_refuses_what_comes_and_keeps_what_is_there(open_lmdb):
    store = open_lmdb()
    refs, blocks = chain(store, 20), noise(store, 20)
    stored = store.put_many(refs[:10], blocks[:10])
    store.change(capacity_bytes=sum(stored[:5]))
    assert_holds(store, refs[:10], blocks[:10])
    with pytest.raises(StoreFull):
        store.put_many(refs[10:11], blocks[10:11])
    store.delete_many([ref.key for ref in refs[:6]])
    store.put_many(refs[10:11], blocks[10:11])
    store.check()


def test_the_floor_of_free_space_moves(open_lmdb):
    store = open_lmdb(free_bytes=lambda: 1 << 20)
    fill(store, 1)
    store.change(min_free_bytes=1 << 20)
    with pytest.raises(StoreFull, match="must remain"):
        fill(store, 1, seed=1)
    store.change(min_free_bytes=0)
    fill(store, 1, seed=1)


def test_a_ttl_is_for_what_others_have(open_lmdb):
    now_ns = [10**9]
    with open_lmdb(namespace=OTHER, now_ns=lambda: now_ns[0]) as other:
        old, _ = fill(other, 2)
        now_ns[0] += 100 * 10**9
        young, _ = fill(other, 1, seed=1)
    store = open_lmdb(now_ns=lambda: now_ns[0])
    fill(store, 1)
    store.change(ttl_s=50.0)
    assert [info.blocks for info in store.namespaces()] == [1, 1]
    store.change(ttl_s=None)
    store.close()
    assert reasons(open_lmdb(namespace=OTHER), [*old, *young])[2] is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"capacity_bytes": -1},
        {"capacity_bytes": 2**70},
        {"min_free_bytes": -1},
        {"ttl_s": 0.0},
        {"ttl_s": 1e300},
        {"ttl_s": float("nan")},
    ],
)
def test_what_cannot_be_meant_is_refused_and_nothing_changes(open_lmdb, wrong):
    store = open_lmdb()
    with pytest.raises(ValueError, match="must"):
        store.change(**{"capacity_bytes": 1 << 26, "min_free_bytes": 5, **wrong})
    assert (store.capacity_bytes, store.min_free_bytes) == (CAPACITY_BYTES, 0)


def test_nothing_is_a_change_too(open_lmdb):
    store = open_lmdb()
    store.change()
    assert store.capacity_bytes == CAPACITY_BYTES


def test_a_closed_store_says_so(open_lmdb):
    store = open_lmdb()
    store.close()
    for call in (store.change, store.namespaces, store.verify, lambda: store.others_with([])):
        with pytest.raises(StoreClosed):
            call()


def test_several_change_it_at_once(open_lmdb):
    """One after the other: the map is as large as the largest needed, and the last one counts."""
    store = open_lmdb()

    def change(mib: int) -> None:
        with suppress(StoreFailed):
            store.change(capacity_bytes=mib << 20)

    threads = [threading.Thread(target=change, args=(mib,)) for mib in range(1, 17)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.capacity_bytes in {mib << 20 for mib in range(1, 17)}
    assert store._lender.current.map_bytes[0] >= store.capacity_bytes
    fill(store, 100)
    assert store.stats().blocks == 100
    assert store.stats().raw_bytes == 100 * LAYOUT.block_bytes
