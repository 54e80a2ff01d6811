"""Disks and trees that fail, and how a store ends."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import lmdb
import numpy as np
import pytest

from kvstore import MissReason, StoreClosed, StoreFull
from kvstore.disk import directory, environment, presence
from kvstore.disk.environment import Unsound
from kvstore.disk.tables import Tables
from kvstore.metas import metas_of
from kvstore.testing import assert_holds, fill, read, reasons


def clean_mark(path: Path) -> bool:
    return (path / "v1" / "clean").exists()


# ---- LMDB's own pages ----------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["payload", "meta"])
@pytest.mark.parametrize("junk", [b"not LMDB", bytes(100_000), None], ids=["text", "zeros", "tree"])
def test_damaged_trees_are_dropped_after_a_crash(open_lmdb, crash, tmp_path, table, junk):
    """They are looked at from outside, since opening them could end the process; the store starts empty."""
    first = open_lmdb()
    refs, blocks = fill(first, 6)
    crash(first)
    data = tmp_path / "v1" / table / "data.mdb"
    content = bytearray(data.read_bytes())
    if junk is None:
        for page in range(2, len(content) // 4096):
            content[page * 4096 : page * 4096 + 8] = b"\xff" * 8  # every page forgets its number
    data.write_bytes(content if junk is None else junk)
    second = open_lmdb()
    assert second.opening.dropped is not None
    assert table in second.opening.dropped
    assert reasons(second, refs) == [MissReason.ABSENT] * 6
    second.put_many(refs, blocks)
    assert_holds(second, refs, blocks)
    second.check()


def test_a_store_whose_file_is_no_lmdb_starts_empty_even_if_marked_clean(open_lmdb, tmp_path):
    with open_lmdb() as first:
        fill(first, 2)
    (tmp_path / "v1" / "payload" / "data.mdb").write_bytes(b"?" * 100_000)
    second = open_lmdb()
    assert second.opening.clean
    assert second.opening.dropped is not None
    assert second.stats().blocks == 0
    second.check()


def test_a_tree_that_fails_while_it_is_counted_is_dropped(open_lmdb, monkeypatch):
    """Marked clean, and damaged since: a directory that can never be opened again would help nobody."""
    with open_lmdb() as first:
        refs, blocks = fill(first, 2)
    problems = iter(["page 3"])
    recount = Tables.recount

    def fail_once(tables):
        for problem in problems:
            raise Unsound(problem)
        recount(tables)

    monkeypatch.setattr(Tables, "recount", fail_once)
    second = open_lmdb()
    assert second.opening.dropped == "page 3"
    assert second.stats().blocks == 0
    second.put_many(refs, blocks)
    assert_holds(second, refs, blocks)
    second.check()


def test_a_mark_that_cannot_be_set_harms_nothing(open_lmdb, monkeypatch, tmp_path):
    """All is on the disk, only nobody may rely on it; the next sync that follows a change tries again."""
    store = open_lmdb()
    refs, blocks = fill(store, 1)

    def fail(folder):
        raise OSError(28, f"No space left on device: {folder}")

    with monkeypatch.context() as full:
        full.setattr(directory, "sync_path", fail)
        with pytest.raises(StoreFull, match="No space left"):
            store.sync()
    assert_holds(store, refs, blocks)
    store.put_many(refs, blocks)
    assert not clean_mark(tmp_path)
    store.sync()
    assert clean_mark(tmp_path)
    assert store.stats().fresh_starts == 0


@pytest.mark.parametrize(("free", "kind"), [(0, StoreFull), (1 << 30, Unsound)])
def test_half_a_write_is_a_full_disk_if_the_disk_is_full(tmp_path, monkeypatch, free, kind):
    """LMDB says EIO then, which is an error of the disk's otherwise."""
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    error = lmdb.Error("mdb_txn_commit: Input/output error")
    error.code = 5
    with pytest.raises(kind), environment.lmdb_errors("writing", tmp_path):
        raise error


# ---- closing -------------------------------------------------------------------------------------------


def test_closing_waits_for_a_reader(open_lmdb, monkeypatch):
    """The map goes away with the environment: a read that is under way must end first."""
    store = open_lmdb()
    refs, _ = fill(store, 1)
    inside, may_go_on = threading.Event(), threading.Event()
    unpack, end = store._format.unpack, store._changes.end
    order = []

    def slow(record, ref, out):
        inside.set()
        may_go_on.wait()
        reason = unpack(record, ref, out)
        order.append("read")
        return reason

    def noted_end():
        order.append("ended")
        may_go_on.set()
        end()

    monkeypatch.setattr(store._format, "unpack", slow)
    monkeypatch.setattr(store._changes, "end", noted_end)
    # who closes has seen that somebody is inside
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: may_go_on.set())
    monkeypatch.setattr(presence, "time", clock)
    outcomes = []
    reader = threading.Thread(target=lambda: outcomes.extend(read(store, refs)[0]))
    reader.start()
    inside.wait()
    store.close()
    reader.join()
    assert order == ["read", "ended"]
    assert outcomes[0].hit


def test_a_scan_that_is_under_way_ends_with_the_store(open_lmdb, monkeypatch):
    monkeypatch.setattr("kvstore.disk.environment._KEYS_PER_READ", 2)
    store = open_lmdb()
    refs, _ = fill(store, 5)
    assert {meta.key for meta in metas_of(store)} == {ref.key for ref in refs}
    scan = metas_of(store)
    next(scan)
    store.delete_many([ref.key for ref in refs])
    assert len(list(scan)) <= 1
    scan = metas_of(store)
    store.close()
    with pytest.raises(StoreClosed):
        next(scan)


def test_no_thread_is_left(open_lmdb):
    before = threading.active_count()
    with open_lmdb() as store:
        fill(store, 1)
    assert threading.active_count() == before


def test_several_threads_write_and_read(open_lmdb):
    """Each its own blocks, through one writer."""
    store = open_lmdb()
    failures = []

    def work(seed: int) -> None:
        try:
            for turn in range(4):
                refs, blocks = fill(store, 3, seed=10 * seed + turn)
                assert_holds(store, refs, blocks)
                store.delete_many([ref.key for ref in refs[1:]])
        except Exception as error:  # noqa: BLE001 - raised again in the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.stats().blocks == 16
    store.check()


def test_a_record_that_was_replaced_in_time_is_not_taken_for_the_damaged_one(open_lmdb):
    """Between a reader's finding damage and the deletion, somebody wrote the block anew."""
    store = open_lmdb()
    refs, blocks = fill(store, 1)
    store.raw().corrupt(refs[0].key)
    _, damaged = store._reading.read(refs, [np.empty_like(blocks[0])])
    assert len(damaged) == 1
    store.put_many(refs, blocks)
    assert store._write(lambda: store._changes.take_out(damaged)) == []
    assert_holds(store, refs, blocks)
