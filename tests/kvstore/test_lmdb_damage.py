"""LMDB's own pages damaged, in use and at rest: nothing wrong is served, and the store comes back by itself."""

import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

from benchmarks.faults.kinds import break_tree
from kvstore import MissReason, StoreError, StoreFailed, StoreFull
from kvstore.disk import verification
from kvstore.disk.lender import Lender
from kvstore.metas import metas_of
from kvstore.testing import assert_holds, chain, fill, kv_like, read, reasons

PAGE = 4096


def payload(path: Path) -> Path:
    return path / "v1" / "payload" / "data.mdb"


def set_aside(path: Path) -> list[Path]:
    return sorted((path / "v1").glob("damaged-*"))


def settled(store) -> None:
    store._writer.run(lambda: None)


# ---- in use --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["payload", "meta"])
@pytest.mark.parametrize("first", ["read", "put", "delete", "scan"])
def test_a_store_whose_trees_break_goes_on_empty(open_lmdb, tmp_path, table, first):
    """One call fails; what was there is absent, what is written from then on is there, after a restart too."""
    store = open_lmdb()
    refs, blocks = fill(store, 6)
    break_tree(tmp_path / "v1" / table / "data.mdb")
    calls = {
        "read": lambda: read(store, refs),
        "put": lambda: fill(store, 2, seed=1),
        "delete": lambda: store.delete_many([refs[0].key]),
        "scan": lambda: list(metas_of(store)),
    }
    for call in (calls[first], calls["read"], calls["scan"]):  # some touch only the other tree
        with suppress(StoreFailed):
            call()
        settled(store)
    assert store.stats().fresh_starts == 1
    assert store.stats().blocks == 0
    assert reasons(store, refs) == [MissReason.ABSENT] * 6
    store.put_many(refs, blocks)
    assert_holds(store, refs, blocks)
    store.check()
    [aside] = set_aside(tmp_path)
    assert (aside / table / "data.mdb").stat().st_size > 2 * PAGE
    store.close()
    again = open_lmdb()
    assert again.opening.dropped is None
    assert_holds(again, refs, blocks)


@pytest.mark.parametrize("table", ["payload", "meta"])
def test_trees_that_break_at_rest_are_found_before_lmdb_sees_them(open_lmdb, tmp_path, table):
    """After an orderly end too."""
    store = open_lmdb()
    refs, _ = fill(store, 6)
    store.close()
    break_tree(tmp_path / "v1" / table / "data.mdb")
    again = open_lmdb()
    assert again.opening.dropped is not None
    assert again.opening.clean
    assert reasons(again, refs) == [MissReason.ABSENT] * 6


def test_large_trees_that_were_left_in_order_are_believed(open_lmdb, monkeypatch):
    """To look at each of a million records would take a start ten seconds."""
    refs, blocks = fill(store := open_lmdb(), 6)
    store.close()
    monkeypatch.setattr("kvstore.disk.opening._MOST_VERIFIED_BYTES", 100)
    monkeypatch.setattr("kvstore.disk.opening.problems_found_here", None)
    monkeypatch.setattr("kvstore.disk.opening.problems", None)
    assert_holds(open_lmdb(), refs, blocks)


def test_a_file_that_the_verifier_cannot_make_sense_of_is_a_problem(tmp_path, monkeypatch):
    def fail(path: str) -> list[str]:
        raise RecursionError("around and around")

    (tmp_path / "data.mdb").write_bytes(bytes(100))
    [problem] = verification.problems_found_here([tmp_path, tmp_path / "nothing"])
    assert str(tmp_path) in problem
    monkeypatch.setattr(verification, "verify", fail)
    [problem] = verification.problems_found_here([tmp_path])
    assert "around and around" in problem


def test_only_the_last_damage_is_kept(open_lmdb, tmp_path):
    now = iter(range(1000, 2000))
    store = open_lmdb(now_ns=lambda: next(now))
    for _ in range(2):
        refs, _ = fill(store, 3)
        before = set_aside(tmp_path)
        break_tree(payload(tmp_path))
        with pytest.raises(StoreFailed):
            read(store, refs)
        settled(store)
        [aside] = set_aside(tmp_path)
        assert aside not in before
    assert store.stats().fresh_starts == 2


def test_what_was_set_aside_goes_before_the_floor_of_free_space_is_crossed(open_lmdb, tmp_path):
    store = open_lmdb(min_free_bytes=1000, free_bytes=lambda: 100 if set_aside(tmp_path) else 1 << 30)
    refs, blocks = fill(store, 3)
    break_tree(payload(tmp_path))
    with pytest.raises(StoreFailed):
        read(store, refs)
    store.put_many(refs, blocks)
    assert set_aside(tmp_path) == []
    assert_holds(store, refs, blocks)


@pytest.mark.parametrize("kind", [lmdb.CorruptedError, lmdb.PanicError, lmdb.BadTxnError, lmdb.Error])
def test_any_error_of_lmdbs_trees_is_damage(open_lmdb, monkeypatch, kind):
    store = open_lmdb()
    refs, _ = fill(store, 2)

    def fail(record, ref, out):
        raise kind("page 7")

    with monkeypatch.context() as failing:
        failing.setattr(store._format, "unpack", fail)
        with pytest.raises(StoreFailed, match="page 7") as caught:
            read(store, refs)
    assert caught.value.temporary
    settled(store)
    assert store.stats().fresh_starts == 1
    assert reasons(store, refs) == [MissReason.ABSENT] * 2


@pytest.mark.parametrize("kind", [lmdb.ReadersFullError, lmdb.MemoryError])
def test_what_says_nothing_of_the_trees_costs_no_block(open_lmdb, monkeypatch, kind):
    store = open_lmdb()
    refs, blocks = fill(store, 2)

    def fail(record, ref, out):
        raise kind("too many")

    with monkeypatch.context() as failing:
        failing.setattr(store._format, "unpack", fail)
        with pytest.raises(StoreFailed, match="too many"):
            read(store, refs)
    assert_holds(store, refs, blocks)
    assert store.stats().fresh_starts == 0


def test_a_sync_that_failed_is_not_believed_the_next_time(open_lmdb, monkeypatch):
    """The system may have dropped what it could not write: a second sync would prove nothing."""
    store = open_lmdb()
    refs, blocks = fill(store, 1)
    monkeypatch.setattr(store._tables, "records", SyncFails(store._tables.records))
    with pytest.raises(StoreFailed, match="Input/output"):
        store.sync()
    assert reasons(store, refs) == [MissReason.ABSENT]
    store.put_many(refs, blocks)
    store.sync()
    assert_holds(store, refs, blocks)
    assert store.stats().fresh_starts == 1


class SyncFails:
    """An environment that cannot be synced."""

    def __init__(self, environment: lmdb.Environment) -> None:
        self._environment = environment

    def sync(self, force):
        raise lmdb.Error("Input/output error")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._environment, name)


def test_while_the_disk_does_not_let_it_start_afresh_every_call_fails_and_tries_again(open_lmdb, monkeypatch):
    store = open_lmdb()
    refs, blocks = fill(store, 3)
    break_tree(store._directory.payload / "data.mdb")
    attempts = []

    def refuse(now_ns):
        attempts.append(now_ns)
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as failing:
        failing.setattr(store._directory, "set_aside", refuse)
        for call in (lambda: read(store, refs), lambda: store.put_many(refs, blocks), store.sync):
            with pytest.raises(StoreFailed):
                call()
            settled(store)
        assert len(attempts) == 3
        assert store.stats().fresh_starts == 0
    with pytest.raises(StoreFailed):
        read(store, refs)
    settled(store)
    assert reasons(store, refs) == [MissReason.ABSENT] * 3
    assert store.stats().fresh_starts == 1


def test_a_reader_that_hangs_in_the_damaged_file_holds_up_nobody(open_lmdb, monkeypatch, tmp_path):
    """The old map stays until it is back, beside the new one; then it goes."""
    store = open_lmdb()
    refs, blocks = fill(store, 3)
    old, unpack = store._tables, store._format.unpack
    inside, may_go_on, outcomes = threading.Event(), threading.Event(), []

    def slow(record, ref, out):
        inside.set()
        assert may_go_on.wait(timeout=60)
        return unpack(record, ref, out)

    monkeypatch.setattr(store._format, "unpack", slow)
    reader = threading.Thread(target=lambda: outcomes.extend(read(store, refs[:1])[0]))
    reader.start()
    assert inside.wait(timeout=60)
    monkeypatch.setattr(store._format, "unpack", unpack)
    with (tmp_path / "v1" / "meta" / "data.mdb").open("rb"):
        break_tree(tmp_path / "v1" / "meta" / "data.mdb")
    with pytest.raises(StoreFailed):
        list(metas_of(store))
    store.put_many(refs, blocks)
    assert_holds(store, refs, blocks)
    assert store._tables is not old
    assert old.records.stat()  # still open
    may_go_on.set()
    reader.join()
    assert outcomes[0].hit
    with pytest.raises(lmdb.Error, match="closed"):
        old.records.stat()


def test_a_scan_ends_where_the_store_starts_afresh(open_lmdb, monkeypatch, tmp_path):
    monkeypatch.setattr("kvstore.disk.environment._KEYS_PER_READ", 2)
    store = open_lmdb()
    refs, blocks = fill(store, 6)
    scan = metas_of(store)
    next(scan)
    break_tree(payload(tmp_path))
    with pytest.raises(StoreFailed):
        read(store, refs)
    store.put_many(refs, blocks)
    assert len(list(scan)) <= 1


def test_many_threads_on_a_store_that_breaks_again_and_again(open_lmdb, tmp_path):
    """Each call ends well or in a StoreError, no hit is wrong, and nobody hangs."""
    store = open_lmdb()
    refs, blocks = chain(store, 12), kv_like(store, 12)
    ended, failures = threading.Event(), []

    def work(number: int) -> None:
        mine, content = refs[3 * number : 3 * number + 3], blocks[3 * number : 3 * number + 3]
        try:
            while not ended.is_set():
                with suppress(StoreError):
                    store.put_many(mine, content)
                    outcomes, out = read(store, mine)
                    for outcome, got, expected in zip(outcomes, out, content, strict=True):
                        assert not outcome.hit or np.array_equal(got, expected)
        except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()

    def fail():
        with store._recovery.reading():
            raise lmdb.CorruptedError("page 7")

    for _ in range(25):
        with pytest.raises(StoreError):
            fail()
        settled(store)
    ended.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.stats().fresh_starts == 25
    store.check()
    store.put_many(refs, blocks)
    assert_holds(store, refs, blocks)


# ---- a full disk between two commits -------------------------------------------------------------------


class FullDisk:
    """An environment whose first `num_writes` write transactions find the disk full."""

    def __init__(self, environment: lmdb.Environment, num_writes: int) -> None:
        self._environment, self._left = environment, num_writes

    def begin(self, **kwargs):
        if kwargs.get("write") and self._left:
            self._left -= 1
            raise lmdb.MapFullError("full")
        return self._environment.begin(**kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._environment, name)


def test_a_put_that_finds_the_disk_full_half_way_leaves_nothing(open_lmdb, monkeypatch):
    store = open_lmdb()
    refs, blocks = fill(store, 4)
    new = chain(store, 2, seed=1)
    monkeypatch.setattr(store._tables, "entries", FullDisk(store._tables.entries, 1))
    with pytest.raises(StoreFull):
        store.put_many([*new, refs[0]], kv_like(store, 3, seed=1))
    store.put_many(refs[3:], blocks[3:])
    store.check()
    assert reasons(store, new) == [MissReason.ABSENT] * 2
    assert_holds(store, refs[1:], blocks[1:])
    assert store.stats().fresh_starts == 0


def test_a_deletion_that_finds_the_disk_full_half_way_is_made_up_for(open_lmdb, monkeypatch):
    store = open_lmdb()
    refs, _ = fill(store, 4)
    monkeypatch.setattr(store._tables, "records", FullDisk(store._tables.records, 2))
    for _ in range(2):
        with pytest.raises(StoreFull):
            store.delete_many([refs[0].key])
    assert store.stats().blocks == 3
    store.delete_many([refs[1].key])
    store.check()
    assert reasons(store, refs) == [MissReason.ABSENT, MissReason.ABSENT, None, None]


def test_what_a_full_disk_has_left_in_one_place_only_is_looked_for_at_the_next_opening(
    open_lmdb, monkeypatch
):
    store = open_lmdb()
    refs, blocks = fill(store, 4)
    records = store._tables.records
    monkeypatch.setattr(store._tables, "records", FullDisk(records, 2))  # for the deletion, and on closing
    with pytest.raises(StoreFull):
        store.delete_many([refs[0].key])
    store.close()
    again = open_lmdb()
    assert (again.opening.clean, again.opening.orphans) == (False, 1)
    again.check()
    assert_holds(again, refs[1:], blocks[1:])


# ---- at rest -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["payload", "meta"])
@pytest.mark.parametrize("crashed", [False, True])
def test_a_truncated_file_is_caught_before_it_is_mapped(open_lmdb, crash, tmp_path, table, crashed):
    """Also where the directory was left in order. Reading it would end the process."""
    store = open_lmdb()
    fill(store, 6)
    crash(store) if crashed else store.close()
    data = tmp_path / "v1" / table / "data.mdb"
    os.truncate(data, data.stat().st_size - 2 * PAGE)
    second = open_lmdb()
    assert second.opening.clean is not crashed
    assert table in second.opening.dropped
    assert second.stats().blocks == 0
    fill(second, 2)
    second.check()


def test_the_last_page_is_what_lmdb_says_it_is(open_lmdb, tmp_path):
    with open_lmdb() as store:
        fill(store, 6)
        last = store._tables.records.info()["last_pgno"]
    assert not verification.is_short(payload(tmp_path).parent)
    os.truncate(payload(tmp_path), (last + 1) * PAGE)
    assert not verification.is_short(payload(tmp_path).parent)
    os.truncate(payload(tmp_path), (last + 1) * PAGE - 1)
    assert verification.is_short(payload(tmp_path).parent)


@pytest.mark.parametrize("content", [b"", b"x" * 100, bytes(PAGE * 3)])
def test_what_is_no_file_of_lmdbs_is_short(tmp_path, content):
    (tmp_path / "data.mdb").write_bytes(content)
    assert verification.is_short(tmp_path)


def test_free_pages_that_are_missing_at_the_end_are_no_damage(open_lmdb, tmp_path):
    """A file may be short and sound: the verifier decides."""
    with open_lmdb() as store:
        refs, blocks = fill(store, 8)
        store.delete_many([ref.key for ref in refs[1:]])
        for _ in range(3):  # frees become usable, and roots move down
            store.put_many(refs[:1], blocks[:1])
        last = store._tables.records.info()["last_pgno"]
    os.truncate(payload(tmp_path), last * PAGE)
    found = verification.problems([payload(tmp_path).parent])
    second = open_lmdb()
    assert (second.opening.dropped is None) == (found == [])
    assert found == []
    assert_holds(second, refs[:1], blocks[:1])


# ---- the verifier --------------------------------------------------------------------------------------

SOUND, DAMAGED, KILLED, RAISES, HANGS = (
    (sys.executable, "-c", code)
    for code in (
        "pass",
        "print('page 9 is reachable twice')",
        "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        "raise RuntimeError('who knows')",
        "import time; time.sleep(600)",
    )
)


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (DAMAGED, "page 9"),
        (KILLED, "SIGSEGV"),
        (RAISES, "who knows"),
        (HANGS, "not verified within 0.5 seconds"),
        (("/nowhere/verifier",), "cannot be verified"),
    ],
)
def test_a_verifier_that_does_not_end_well_means_damage(open_lmdb, tmp_path, command, complaint):
    with open_lmdb() as store:
        fill(store, 1)
    where = [payload(tmp_path).parent]
    [found] = verification.problems(where, command=command, timeout_s=0.5 if command == HANGS else 60)
    assert complaint in found
    assert verification.problems(where, command=SOUND) == []


def test_what_the_verifier_says_decides_after_a_crash(open_lmdb, crash, monkeypatch):
    first = open_lmdb()
    refs, _ = fill(first, 2)
    crash(first)
    monkeypatch.setattr("kvstore.disk.opening.problems", lambda _: ["ended by SIGBUS"])
    second = open_lmdb()
    assert "SIGBUS" in second.opening.dropped
    assert reasons(second, refs) == [MissReason.ABSENT] * 2


def test_nothing_is_verified_after_an_orderly_end(open_lmdb, monkeypatch):
    with open_lmdb() as store:
        refs, blocks = fill(store, 2)
    monkeypatch.setattr("kvstore.disk.opening.problems", lambda _: pytest.fail("verified"))
    assert_holds(open_lmdb(), refs, blocks)


def test_a_process_that_ended_while_all_was_synced_leaves_work_for_the_verifier(
    open_lmdb, crash, monkeypatch
):
    """It may have been ended by what it read: the mark says that all was written, not that all is well."""
    first = open_lmdb()
    refs, blocks = fill(first, 2)
    first.sync()
    crash(first)
    asked = []
    monkeypatch.setattr("kvstore.disk.opening.problems", lambda paths: asked.append(paths) or [])
    second = open_lmdb()
    assert second.opening.clean
    assert len(asked) == 1
    assert_holds(second, refs, blocks)


# ---- lending -------------------------------------------------------------------------------------------


def test_what_was_replaced_is_closed_when_the_last_borrower_is_back():
    closed: list[str] = []
    lender = Lender("first", closed.append)
    with lender.lend() as one, lender.lend() as same:
        assert one == same == "first"
        lender.replace("second")
        with lender.lend() as other:
            assert other == "second"
        assert closed == []
    assert closed == ["first"]
    lender.replace("third")
    assert closed == ["first", "second"]
    lender.close()
    assert closed == ["first", "second", "third"]


def test_a_key_that_changed_at_rest_costs_its_block_and_no_space(open_lmdb, tmp_path):
    """Nothing is wrong with the tree then: what has no counterpart in the other one is swept."""
    store = open_lmdb()
    refs, blocks = fill(store, 6)
    store.close()
    key = store.namespace.digest + refs[3].key
    data = payload(tmp_path).read_bytes()
    node = data.index(key)
    # in the last bit, so that the order of keys stays
    payload(tmp_path).write_bytes(data[: node + 63] + bytes([key[-1] ^ 1]) + data[node + 64 :])
    again = open_lmdb()
    assert again.opening.dropped is None
    assert again.opening.orphans == 2
    assert reasons(again, refs) == [None, None, None, MissReason.ABSENT, None, None]
    again.check()
    again.put_many(refs[3:4], blocks[3:4])
    assert_holds(again, refs, blocks)


# ---- a file that is cut while it is mapped -----------------------------------------------------------------


@pytest.mark.parametrize("table", ["payload", "meta"])
@pytest.mark.parametrize("kept", [0, 1, 2], ids=["nothing is left", "a meta page is", "the meta pages are"])
def test_a_file_that_is_cut_in_use_costs_what_it_held(open_lmdb, tmp_path, table, kept):
    """Whoever comes next, a reader or a writer, looks at its size first: to touch what is gone would be a signal."""
    for come_next in (
        lambda store, refs, blocks: reasons(store, refs),
        lambda store, refs, blocks: store.put_many(refs, blocks),
        lambda store, refs, blocks: list(metas_of(store)),
        lambda store, refs, blocks: store.sync(),
    ):
        with open_lmdb() as store:
            refs, blocks = fill(store, 6)
            read(store, refs)
            os.truncate(tmp_path / "v1" / table / "data.mdb", kept * 4096)
            with pytest.raises(StoreFailed, match="are left"):
                come_next(store, refs, blocks)
            store.sync()
            assert store.stats().fresh_starts == 1
            assert reasons(store, refs) == [MissReason.ABSENT] * 6
            store.put_many(refs, blocks)
            assert_holds(store, refs, blocks)
            store.check()
            store.delete_many([ref.key for ref in refs])


def test_a_last_page_that_is_cut_is_no_page_gone(open_lmdb, tmp_path):
    """What is missing of it reads as zeros: its record fails a check, and the others are served."""
    store = open_lmdb()
    refs, _ = fill(store, 6)
    read(store, refs)
    data = payload(tmp_path)
    os.truncate(data, data.stat().st_size - 100)
    assert sum(reason is None for reason in reasons(store, refs)) >= 5
    assert store.stats().fresh_starts == 0
