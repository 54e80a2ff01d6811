"""Records that fail a check are put aside, within bounds, and that never costs more than the evidence."""

import os
import shutil
import threading

import pytest

from kvstore import MissReason
from kvstore.disk.quarantine import Quarantine
from kvstore.testing import assert_holds, fill, read, reasons


def settled(store) -> None:
    """What was posted to the writer before has run."""
    store._writer.run(lambda: None)


def test_what_failed_a_check_can_be_looked_at(open_lmdb):
    store = open_lmdb(now_ns=lambda: 1_700_000_000_000_000_000)
    refs, _ = fill(store, 3)
    store.raw().corrupt(refs[1].key)
    damaged = store.raw().read(refs[1].key)
    read(store, refs)
    settled(store)
    [found] = store.quarantined()
    assert found.key == refs[1].key
    assert found.namespace_digest == store.namespace.digest
    assert found.reason is MissReason.DAMAGED_CHECKSUM
    assert found.when_ns == 1_700_000_000_000_000_000
    assert found.path.read_bytes() == damaged
    assert found.num_bytes == len(damaged)


def test_only_the_owner_may_look(open_lmdb):
    store = open_lmdb()
    refs, _ = fill(store, 1)
    store.raw().corrupt(refs[0].key)
    read(store, refs)
    settled(store)
    [found] = store.quarantined()
    assert found.path.stat().st_mode & 0o777 == 0o600
    assert found.path.parent.stat().st_mode & 0o777 == 0o700


def test_the_oldest_go_first(tmp_path):
    quarantine = Quarantine(tmp_path / "q", max_records=3, max_bytes=100)
    for number in range(5):
        quarantine.add(bytes([number]) * 64, MissReason.DAMAGED_HEADER, bytes(10), now_ns=number)
    assert [one.key[0] for one in quarantine.listed()] == [2, 3, 4]
    quarantine.add(bytes([5]) * 64, MissReason.DAMAGED_HEADER, bytes(85), now_ns=5)
    assert [one.key[0] for one in quarantine.listed()] == [4, 5]
    quarantine.add(bytes([6]) * 64, MissReason.DAMAGED_HEADER, bytes(101), now_ns=6)
    assert [one.key[0] for one in quarantine.listed()] == [4, 5]


def test_a_clock_that_is_set_back_changes_no_order(tmp_path):
    quarantine = Quarantine(tmp_path / "q", max_records=2)
    for number, now_ns in enumerate((500, 100, 100)):
        quarantine.add(bytes([number]) * 64, MissReason.DAMAGED_HEADER, b"x", now_ns)
    assert [(one.key[0], one.when_ns) for one in quarantine.listed()] == [(1, 501), (2, 502)]


def test_files_of_others_are_left_alone(tmp_path):
    quarantine = Quarantine(tmp_path, max_records=1)
    (tmp_path / "notes.txt").write_text("mine")
    for number in range(3):
        quarantine.add(bytes([number]) * 64, MissReason.DAMAGED_HEADER, b"x", number)
    assert len(quarantine.listed()) == 1
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("obstacle", ["a file in its place", "a name too long", "no folder"])
def test_a_disk_that_fails_there_costs_the_evidence_and_nothing_else(open_lmdb, monkeypatch, obstacle):
    store = open_lmdb()
    refs, blocks = fill(store, 2)
    folder = store._directory.quarantine
    if obstacle == "a file in its place":
        folder.write_text("")
    elif obstacle == "a name too long":
        monkeypatch.setattr(Quarantine, "_write", lambda *_: os.open("x" * 300, os.O_RDONLY))
    else:
        shutil.rmtree(folder.parent / "quarantine", ignore_errors=True)
        monkeypatch.setattr(store._quarantine, "_folder", folder / "nowhere" / "else")
    store.raw().corrupt(refs[0].key)
    assert reasons(store, refs) == [MissReason.DAMAGED_CHECKSUM, None]
    settled(store)
    assert store.quarantined() == []
    assert reasons(store, refs) == [MissReason.ABSENT, None]
    store.put_many(refs, blocks)
    assert_holds(store, refs, blocks)
    assert store.stats().damaged_blocks == 1


def test_the_floor_of_free_space_holds_there_too(open_lmdb):
    free = [1 << 30]
    store = open_lmdb(min_free_bytes=1 << 20, free_bytes=lambda: free[0])
    refs, _ = fill(store, 1)
    store.raw().corrupt(refs[0].key)
    free[0] = 1 << 20
    assert reasons(store, refs) == [MissReason.DAMAGED_CHECKSUM]
    settled(store)
    assert store.quarantined() == []


def test_a_read_does_not_wait_for_the_evidence(open_lmdb, monkeypatch):
    """The read that found the damage is over, and says so, while the file is still being written."""
    store = open_lmdb()
    refs, _ = fill(store, 2)
    begun, may_go_on = threading.Event(), threading.Event()
    add = Quarantine.add

    def slow(quarantine, entry_key, reason, record, now_ns):
        begun.set()
        assert may_go_on.wait(timeout=60)
        add(quarantine, entry_key, reason, record, now_ns)

    monkeypatch.setattr(Quarantine, "add", slow)
    store.raw().corrupt(refs[0].key)
    assert reasons(store, refs) == [MissReason.DAMAGED_CHECKSUM, None]
    assert begun.wait(timeout=60)
    assert reasons(store, refs) == [MissReason.ABSENT, None]  # and so are others
    may_go_on.set()
    settled(store)
    assert len(store.quarantined()) == 1
