"""What only a disk can do: outlive its process, be damaged, be full, be somebody else's."""

import random
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import lmdb
import pytest

from kvstore import MissReason, Namespace, StoreFailed, StoreFull, StoreLocked
from kvstore.disk import capacity_within
from kvstore.disk.environment import page_rounded
from kvstore.disk.opening import map_bytes
from kvstore.disk.writer import Writer
from kvstore.metas import metas_of
from kvstore.store import DURABILITIES
from kvstore.testing import assert_holds, chain, fill, noise, read, reasons

ROOT = Path(__file__).resolve().parents[2]
OTHER = Namespace.of({"model": "other"})
HOLD = """
import sys
from kvstore.disk.directory import Directory
directory = Directory(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def clean_mark(path: Path) -> bool:
    return (path / "v1" / "clean").exists()


def open_raw(path: Path, table: str) -> lmdb.Environment:
    return lmdb.open(str(path / "v1" / table), map_size=1 << 24)


def file_bytes(path: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in path.rglob("*.mdb"))


# ---- reopening -----------------------------------------------------------------------------------------


def test_blocks_outlive_the_store(open_lmdb):
    with open_lmdb() as first:
        assert not first.opening.clean
        refs, blocks = fill(first, 5)
        metas, stats = set(metas_of(first)), first.stats()
    second = open_lmdb()
    assert second.opening.clean
    assert_holds(second, refs, blocks)
    assert set(metas_of(second)) == metas
    assert second.stats() == replace(stats, written={})
    second.check()


def test_blocks_outlive_a_crash(open_lmdb, crash):
    first = open_lmdb()
    refs, blocks = fill(first, 5)
    crash(first)
    second = open_lmdb()
    assert not second.opening.clean
    assert second.opening.dropped is None
    assert_holds(second, refs, blocks)
    second.check()


def test_the_mark_says_clean_only_between_a_sync_and_the_next_write(open_lmdb, tmp_path):
    store = open_lmdb()
    refs, _ = fill(store, 2)
    assert not clean_mark(tmp_path)
    store.sync()
    assert clean_mark(tmp_path)
    read(store, refs)
    assert clean_mark(tmp_path)
    store.delete_many([refs[0].key])
    assert not clean_mark(tmp_path)
    store.close()
    assert clean_mark(tmp_path)


def test_a_write_is_synced_by_itself(open_lmdb, tmp_path, monkeypatch):
    """On the writer's thread, after the interval; nobody has to ask."""
    store = open_lmdb(sync_interval_s=0.0)
    store.sync()
    synced = threading.Event()
    mark = store._directory.mark_clean

    def mark_and_tell(counts):
        mark(counts)
        synced.set()

    monkeypatch.setattr(store._directory, "mark_clean", mark_and_tell)
    fill(store, 1)
    assert synced.wait(timeout=60)
    assert clean_mark(tmp_path)


def test_the_first_sync_may_come_before_the_store_is_all_there(open_lmdb, monkeypatch, caplog):
    """It is the writer's own, which does not wait for the constructor."""
    run = Writer.run

    def run_and_sync(writer: Writer, job):
        result = run(writer, job)
        run(writer, lambda: None)  # behind a sync that is due
        return result

    monkeypatch.setattr(Writer, "run", run_and_sync)
    open_lmdb(sync_interval_s=0.0)
    assert caplog.records == []


def test_records_and_entries_that_a_crash_left_alone_are_swept(open_lmdb, crash, tmp_path):
    """Killed between the two commits of a put, or of a deletion."""
    first = open_lmdb()
    refs, blocks = fill(first, 6)
    crash(first)
    for table, ref in (("meta", refs[1]), ("meta", refs[5]), ("payload", refs[3])):
        with open_raw(tmp_path, table) as env, env.begin(write=True) as txn:
            assert txn.delete(first.namespace.digest + ref.key)
    second = open_lmdb()
    assert second.opening.orphans == 3
    second.check()
    kept = [0, 2, 4]
    assert_holds(second, [refs[i] for i in kept], [blocks[i] for i in kept])
    assert reasons(second, [refs[1], refs[3], refs[5]]) == [MissReason.ABSENT] * 3
    assert second.stats().blocks == 3


def test_a_damaged_entry_goes_with_its_record(open_lmdb, tmp_path):
    """Found on opening, where all of them are read."""
    with open_lmdb() as first:
        refs, _ = fill(first, 3)
    with open_raw(tmp_path, "meta") as env, env.begin(write=True) as txn:
        entry = bytearray(txn.get(first.namespace.digest + refs[1].key))
        entry[9] ^= 4  # in its stored bytes
        txn.put(first.namespace.digest + refs[1].key, bytes(entry))
    second = open_lmdb()
    second.check()
    assert reasons(second, refs) == [None, MissReason.ABSENT, None]
    assert second.stats().blocks == 2


def test_an_entry_that_is_damaged_while_in_use_does_not_upset_the_counts(open_lmdb):
    store = open_lmdb()
    refs, blocks = fill(store, 3)
    key = store.namespace.digest + refs[1].key

    def damage():
        with store._tables.entries.begin(write=True) as txn:
            txn.put(key, txn.get(key)[:-1] + b"?")

    store._write(damage)
    assert len(list(metas_of(store))) == 2
    store.put_many(refs[1:2], blocks[1:2])
    store.check()
    store._write(damage)
    store.delete_many([refs[1].key])
    store.check()
    assert store.stats().blocks == 2


# ---- uses ----------------------------------------------------------------------------------------------


def used_ns(store):
    return {meta.key: meta.used_ns for meta in metas_of(store)}


def test_uses_survive_the_process(open_lmdb, crash):
    first = open_lmdb()
    refs, blocks = fill(first, 3)
    first.touch_many([refs[1].key], [77])
    crash(first)
    second = open_lmdb()
    assert used_ns(second)[refs[1].key] == 77
    second.touch_many([refs[2].key], [78])
    second.close()
    third = open_lmdb()
    assert used_ns(third)[refs[1].key] == 77
    assert used_ns(third)[refs[2].key] == 78
    assert_holds(third, refs, blocks)
    third.check()


def test_noting_a_use_unsettles_the_directory_and_a_sync_settles_it(open_lmdb, tmp_path):
    store = open_lmdb()
    refs, _ = fill(store, 1)
    store.sync()
    store.touch_many([refs[0].key], [77])
    assert not clean_mark(tmp_path)
    store.sync()
    assert clean_mark(tmp_path)


def test_noting_a_use_gives_no_record_its_entry_back(open_lmdb, monkeypatch):
    """The disk was full between deleting an entry and its record, and between writing a record and its entry."""
    store = open_lmdb()
    refs, blocks = fill(store, 3)
    keys = [ref.key for ref in refs]
    tables, begin = store._tables, lmdb.Environment.begin

    class Full:
        def __init__(self, environment) -> None:
            self.environment = environment

        def begin(self, **options):
            if options.get("write"):
                raise lmdb.MapFullError("full")
            return begin(self.environment, **options)

    for table, call, left in (
        ("records", lambda: store.delete_many(keys[:1]), keys[1:]),
        ("entries", lambda: store.put_many(refs[1:2], blocks[1:2]), keys[2:]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(tables, table, Full(getattr(tables, table)))
            with pytest.raises(StoreFull):
                call()
        store.touch_many(keys, [77] * 3)
        assert used_ns(store) == dict.fromkeys(left, 77)
    store.check()


def test_a_damaged_entry_stays_damaged(open_lmdb):
    store = open_lmdb()
    refs, _ = fill(store, 2)
    key = store.namespace.digest + refs[0].key

    def damage():
        with store._tables.entries.begin(write=True) as txn:
            txn.put(key, txn.get(key)[:-1] + b"?")

    store._write(damage)
    store.touch_many([ref.key for ref in refs], [77] * 2)
    assert used_ns(store) == {refs[1].key: 77}


# ---- capacity ------------------------------------------------------------------------------------------


def test_stored_bytes_are_whole_pages(open_lmdb):
    store = open_lmdb()
    refs, _ = fill(store, 3)
    record = store.raw().read(refs[0].key)
    assert {meta.stored_bytes for meta in metas_of(store)} == {page_rounded(len(record))}
    assert page_rounded(4096 - 16) == 4096
    assert page_rounded(4096 - 15) == 8192


def test_the_floor_of_free_space_holds(open_lmdb):
    free = [100_000]
    store = open_lmdb(min_free_bytes=90_000, free_bytes=lambda: free[0])
    refs, _ = fill(store, 1)
    free[0] = 91_000
    with pytest.raises(StoreFull, match="90000 must remain"):
        fill(store, 2)
    assert store.stats().blocks == 1
    assert reasons(store, refs) == [None]


def test_a_full_map_is_a_full_store(open_lmdb, monkeypatch):
    """The file's own bound, should freed pages lie too badly: the batch is refused, the rest goes on."""
    monkeypatch.setattr("kvstore.disk.opening._LEAST_MAP_BYTES", 1 << 16)
    monkeypatch.setattr("kvstore.disk.opening._EXTRA_SHARE", 0)
    monkeypatch.setattr("kvstore.disk.opening._PAYLOAD_SLACK", 0.3)
    store = open_lmdb()
    refs, blocks = chain(store, 15), noise(store, 15)
    with pytest.raises(StoreFull, match="free pages"):
        store.put_many(refs, blocks)
    assert store.stats().blocks == 0
    store.put_many(refs[:4], blocks[:4])
    assert_holds(store, refs[:4], blocks[:4])
    store.check()


def test_a_smaller_capacity_keeps_the_blocks_and_refuses_new_ones(open_lmdb):
    """Which blocks go is the caller's decision."""
    with open_lmdb() as first:
        refs, blocks = fill(first, 10)
    second = open_lmdb(capacity_bytes=2 * blocks[0].size)
    assert_holds(second, refs, blocks)
    with pytest.raises(StoreFull):
        fill(second, 1, seed=1)
    second.delete_many([ref.key for ref in refs])
    fill(second, 1, seed=1)
    second.check()


# ---- namespaces ----------------------------------------------------------------------------------------


def test_namespaces_do_not_see_each_other(open_lmdb):
    """Even for the very same references."""
    with open_lmdb() as first:
        refs, blocks = fill(first, 3)
        held = first.stats().stored_bytes
    with open_lmdb(namespace=OTHER) as other:
        assert reasons(other, refs) == [MissReason.ABSENT] * 3
        assert list(metas_of(other)) == []
        assert other.stats().other_namespaces_bytes == held
        other.put_many(refs, blocks[::-1])
        other.delete_many([refs[0].key])
        assert len(list(metas_of(other))) == 2
        other.check()
    third = open_lmdb()
    assert_holds(third, refs, blocks)
    third.check()


def test_other_namespaces_count_against_the_capacity(open_lmdb):
    with open_lmdb() as first:
        blocks = noise(first, 20)
        stored = first.put_many(chain(first, 20), blocks)[0]
    store = open_lmdb(namespace=OTHER, capacity_bytes=25 * stored)
    assert store.opening.trimmed_blocks == 8
    store.put_many(chain(store, 13), blocks[:13])
    with pytest.raises(StoreFull):
        store.put_many(chain(store, 1, seed=1), blocks[:1])


def test_the_oldest_blocks_of_others_go_first(open_lmdb):
    now = iter(range(100, 200))
    with open_lmdb(now_ns=lambda: next(now)) as first:
        refs = chain(first, 12)
        blocks = noise(first, 12)
        for i in (3, 1, 4, 0, 5, 9, 2, 6, 8, 7, 10, 11):
            stored = first.put_many([refs[i]], [blocks[i]])[0]
    with open_lmdb(namespace=OTHER, capacity_bytes=8 * stored) as other:
        assert other.opening.trimmed_blocks == 8
        assert other.stats().other_namespaces_bytes == 4 * stored
        other.check()
    with open_lmdb() as third:
        assert {meta.key for meta in metas_of(third)} == {refs[i].key for i in (8, 7, 10, 11)}


def test_blocks_of_others_that_nobody_has_used_for_the_ttl_go(open_lmdb):
    with open_lmdb(now_ns=lambda: 10_000_000_000) as first:
        refs, _ = fill(first, 4)
        first.touch_many([ref.key for ref in refs[:2]], [30_000_000_001, 30_000_000_000])
    with open_lmdb(namespace=OTHER, now_ns=lambda: 90_000_000_000) as other:
        assert other.opening.expired_blocks == 0
    with open_lmdb(now_ns=lambda: 90_000_000_000, ttl_s=60.0) as own:
        assert own.opening.expired_blocks == 0
    with open_lmdb(namespace=OTHER, now_ns=lambda: 90_000_000_000, ttl_s=60.0) as other:
        assert other.opening.expired_blocks == 3
        other.check()
    with open_lmdb() as third:
        assert {meta.key for meta in metas_of(third)} == {refs[0].key}


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, float("inf"), float("nan")])
def test_a_ttl_is_a_time(open_lmdb, ttl_s):
    with pytest.raises(ValueError, match="ttl_s"):
        open_lmdb(ttl_s=ttl_s)


# ---- somebody else -------------------------------------------------------------------------------------


def test_one_store_at_a_time(open_lmdb, tmp_path):
    first = open_lmdb()
    with pytest.raises(StoreLocked, match="process") as caught:
        open_lmdb()
    assert caught.value.temporary
    first.close()
    open_lmdb()


def test_another_process_has_the_directory(open_lmdb, tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreLocked, match=f"process {holder.pid}"):
            open_lmdb()
        holder.communicate()
    open_lmdb()


def test_a_path_that_cannot_be_a_directory_fails(open_lmdb, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreFailed, match="file"):
        open_lmdb(path=tmp_path / "file")


@pytest.mark.parametrize("durability", DURABILITIES)
def test_a_strict_store_has_lmdb_sync_each_commit(open_lmdb, durability):
    """In the order that a loss of power does not harm; also in what takes the place of files that failed or emptied."""
    store = open_lmdb(durability=durability, capacity_bytes=1 << 26)

    def synced() -> set[object]:
        tables = store._lender.current
        return {environment.flags()["sync"] for environment in (tables.records, tables.entries)}

    assert synced() == {durability == "strict"}
    refs, _ = fill(store, 400)
    store.delete_many([ref.key for ref in refs])
    assert synced() == {durability == "strict"}


def test_an_unknown_durability_is_refused(open_lmdb):
    with pytest.raises(ValueError, match="relaxed, strict, got 'some'"):
        open_lmdb(durability="some")


# ---- space ---------------------------------------------------------------------------------------------


def test_an_empty_store_gives_its_space_back(open_lmdb, tmp_path):
    """To the file system, at once; and it goes on, in new files."""
    store = open_lmdb(capacity_bytes=1 << 26)
    refs, blocks = chain(store, 400), noise(store, 400)
    store.put_many(refs, blocks)
    store.delete_many([ref.key for ref in refs[1:]])
    assert_holds(store, refs[:1], blocks[:1])
    assert file_bytes(tmp_path) > 2 << 20, "one block is reason to keep them"
    scanned = metas_of(store)
    store.delete_many([refs[0].key])
    assert file_bytes(tmp_path) < 1 << 18
    assert list(scanned) == []
    assert set(reasons(store, refs)) == {MissReason.ABSENT}
    store.put_many(refs[:3], blocks[:3])
    assert_holds(store, refs[:3], blocks[:3])
    store.check()
    store.close()
    again = open_lmdb(capacity_bytes=1 << 26)
    assert again.opening.clean
    assert_holds(again, refs[:3], blocks[:3])


def test_a_namespace_that_is_emptied_leaves_the_others_in_place(open_lmdb):
    with open_lmdb(capacity_bytes=1 << 26) as other:
        kept, blocks = fill(other, 3)
    with open_lmdb(capacity_bytes=1 << 26, namespace=OTHER) as store:
        refs, _ = fill(store, 400)
        store.delete_many([ref.key for ref in refs])
    assert_holds(open_lmdb(capacity_bytes=1 << 26), kept, blocks)


def test_a_reader_of_emptied_files_ends_in_peace(open_lmdb):
    """What it borrowed stays open until it is done, though the files have no name any more."""
    store = open_lmdb(capacity_bytes=1 << 26)
    refs, _ = fill(store, 400)
    with store._lender.lend() as tables, tables.records.begin() as txn:
        store.delete_many([ref.key for ref in refs])
        assert txn.stat()["entries"] == 400
    assert set(reasons(store, refs)) == {MissReason.ABSENT}


def test_files_that_cannot_be_made_anew_fail_the_deletion_and_are_tried_again(open_lmdb, monkeypatch):
    store = open_lmdb(capacity_bytes=1 << 26)
    refs, blocks = fill(store, 400)
    with monkeypatch.context() as patched:
        patched.setattr("kvstore.disk.changes.Tables", failing_tables)
        with pytest.raises(StoreFailed, match="no disk"):
            store.delete_many([ref.key for ref in refs])
        with pytest.raises(StoreFailed, match="no disk"):
            store.put_many(refs[:1], blocks[:1])
    store.put_many(refs[:1], blocks[:1])
    assert_holds(store, refs[:1], blocks[:1])
    store.check()


def test_files_that_cannot_be_deleted_are_not_opened_a_second_time(open_lmdb, tmp_path, monkeypatch):
    """LMDB must not have one file open twice. They are moved out of the way instead."""
    store = open_lmdb(capacity_bytes=1 << 26)
    refs, blocks = fill(store, 4)

    def fail(path: Path) -> NoReturn:
        raise OSError(5, "no deleting")

    with monkeypatch.context() as patched:
        patched.setattr("kvstore.disk.directory.shutil.rmtree", fail)
        with pytest.raises(StoreFailed, match="no deleting"):
            store.delete_many([ref.key for ref in refs])
    assert store.stats().fresh_starts == 1
    assert len(list((tmp_path / "v1").glob("damaged-*"))) == 1
    store.put_many(refs, blocks)
    assert_holds(store, refs, blocks)
    store.check()


def failing_tables(*_: object, **__: object) -> NoReturn:
    raise StoreFailed("no disk")


@pytest.mark.parametrize("mib", [8, 20, 54, 55, 56, 1000, 1 << 20])
def test_both_files_together_stay_within_a_size(mib):
    """LMDB's map is the bound on its file."""
    assert sum(map_bytes(capacity_within(mib << 20))) <= mib << 20
    assert capacity_within(mib << 20) > 0.5 * (mib << 20)


def test_files_stay_within_their_size_however_often_they_are_filled(open_lmdb, tmp_path):
    """With records whose sizes differ, and any of them deleted when they are full."""
    rng, keys = random.Random(5), []
    store = open_lmdb(capacity_bytes=capacity_within(8 << 20))
    for turn in range(150):
        refs, blocks = chain(store, 64, seed=turn), noise(store, 64, seed=turn)
        for block in blocks:
            block[: rng.randrange(len(block))] = 0
        while True:
            try:
                store.put_many(refs, blocks)
                break
            except StoreFull:
                rng.shuffle(keys)
                store.delete_many(keys[:64])
                del keys[:64]
        keys += [ref.key for ref in refs]
        assert file_bytes(tmp_path) <= 8 << 20
    assert len(keys) < 150 * 64 / 5, "it was full"
    store.check()


# ---- other formats -------------------------------------------------------------------------------------


def test_blocks_of_another_format_get_one_warning(open_lmdb, tmp_path, caplog):
    (tmp_path / "v0").mkdir()
    (tmp_path / "v0" / "lock").touch()
    (tmp_path / "v7").mkdir()
    (tmp_path / "notes").mkdir()
    open_lmdb().close()
    [warning] = caplog.records
    assert warning.path == tmp_path
    assert warning.formats == ["v0"]
    assert "another format (v0)" in warning.getMessage()
    assert f"kvtide disk clear --old {tmp_path}" in warning.getMessage()


def test_limits_below_zero_are_refused(open_lmdb):
    with pytest.raises(ValueError, match="min_free_bytes=-1"):
        open_lmdb(min_free_bytes=-1)


def test_a_forked_child_cannot_use_the_store_and_does_it_no_harm(tmp_path):
    """It has none of its threads, and shares its table of readers and its lock: neither is touched, and nobody waits for ever."""
    program = """
import os, signal, sys
from pathlib import Path
from kvstore import StoreClosed
from kvstore.testing import assert_holds, fill, read
from tests.kvstore.conftest import lmdb_store
store = lmdb_store(Path(sys.argv[1]))
refs, blocks = fill(store, 4)
assert_holds(store, refs, blocks)
if not (child := os.fork()):
    signal.alarm(10)
    for use in (lambda: read(store, refs), lambda: store.delete_many([refs[0].key]), store.sync):
        try:
            use()
            os._exit(1)
        except StoreClosed:
            pass
    store.close()
    try:
        lmdb_store(Path(sys.argv[1]))
    except Exception as error:
        os._exit(type(error).__name__ != "StoreLocked")
    os._exit(1)
_, status = os.waitpid(child, 0)
assert_holds(store, refs, blocks)
store.check()
print(status, store.stats().fresh_starts)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "0 0\n"
