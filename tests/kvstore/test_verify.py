"""Verifying a store that is open: all of it is read, what is damaged goes, and requests come first."""

import os
import threading
from random import Random

import pytest

from kvstore import FaultStore, MissReason, StoreClosed, StoreFailed
from kvstore.layers import FalseMiss
from kvstore.testing import assert_holds, fill, reasons
from kvstore.verify import BATCH_BLOCKS, verify


class Pauses(threading.Event):
    """Waits for nobody, and remembers for how long it should have. `then` is done after each pause."""

    def __init__(self, then=lambda: None) -> None:
        super().__init__()
        self.waits_s, self._then = [], then

    def wait(self, timeout: float | None = None) -> bool:
        self.waits_s.append(timeout)
        self._then()
        return self.is_set()


def test_all_records_are_read_and_the_damaged_ones_are_put_aside(store):
    """Of every store; each by all checks that a read makes, the payload's decoding among them."""
    refs, blocks = fill(store, 20)
    assert verify(store).damaged == {}
    raw = store.raw()
    raw.corrupt(refs[3].key)
    raw.truncate(refs[7].key)
    raw.write(refs[9].key, b"")
    raw.corrupt(refs[19].key)
    found = verify(store)
    assert found.records == 20
    assert found.damaged == {MissReason.DAMAGED_CHECKSUM: 2, MissReason.DAMAGED_LENGTH: 2}
    assert found.damaged == store.stats().damaged
    damaged = {3, 7, 9, 19}
    expected = [MissReason.ABSENT if number in damaged else None for number in range(20)]
    assert reasons(store, refs) == expected
    again = verify(store)
    assert (again.records, again.damaged) == (16, {})
    kept = [number for number in range(20) if number not in damaged]
    assert_holds(store, [refs[number] for number in kept], [blocks[number] for number in kept])
    store.check()


def test_evidence_is_kept_as_after_a_read(open_lmdb):
    store = open_lmdb()
    refs, _ = fill(store, 3)
    store.raw().corrupt(refs[1].key)
    damaged = store.raw().read(refs[1].key)
    assert store.verify().damaged == {MissReason.DAMAGED_CHECKSUM: 1}
    store._writer.run(lambda: None)  # what was posted to the writer before has run
    [one] = store.quarantined()
    assert (one.key, one.path.read_bytes()) == (refs[1].key, damaged)


def test_an_empty_store_is_sound(store):
    assert verify(store).records == 0


def test_damage_anywhere_is_found(open_lmdb):
    """Whichever bit of a record it is."""
    store, random = open_lmdb(), Random(0)
    refs, blocks = fill(store, 30)
    for ref in refs:
        record = store.raw().read(ref.key)
        store.raw().corrupt(ref.key, random.randrange(len(record)), random.randrange(8))
    found = store.verify()
    assert (found.records, sum(found.damaged.values())) == (30, 30)
    store.put_many(refs, blocks)
    assert (store.verify().records, store.stats().blocks) == (30, 30)


def test_reading_takes_its_share_of_the_time_and_no_more(memory_store):
    """By a clock on which each batch takes a second: what follows it is a pause of three."""
    fill(memory_store, 3 * BATCH_BLOCKS)
    times = iter(range(100))
    pauses = Pauses()
    found = verify(memory_store, stopped=pauses, share=0.25, clock=lambda: float(next(times)))
    assert pauses.waits_s == [3.0, 3.0, 3.0]
    assert found.seconds == 7.0


@pytest.mark.parametrize("share", [0.0, -1.0, 1.1])
def test_shares_that_are_none_are_refused(memory_store, share):
    with pytest.raises(ValueError, match="share"):
        verify(memory_store, share=share)


def test_what_comes_and_goes_meanwhile_is_no_damage(open_lmdb):
    store = open_lmdb()
    refs, _ = fill(store, 30)

    def meanwhile() -> None:
        store.delete_many([ref.key for ref in refs[::2]])
        fill(store, 5, seed=1)

    found = verify(store, stopped=Pauses(meanwhile))
    assert found.damaged == {}
    assert 15 <= found.records <= 35
    store.check()


def test_a_block_that_is_not_there_any_more_does_not_count(memory_store):
    fill(memory_store, 2 * BATCH_BLOCKS)
    found = verify(FaultStore(memory_store, [FalseMiss(first=1)]))
    assert (found.records, found.damaged) == (2 * BATCH_BLOCKS - 1, {})


def test_it_can_be_stopped(memory_store):
    fill(memory_store, 3 * BATCH_BLOCKS)
    pauses = Pauses()
    pauses._then = pauses.set
    with pytest.raises(StoreClosed, match="stopped"):
        verify(memory_store, stopped=pauses)
    assert len(pauses.waits_s) == 1


def test_closing_the_store_stops_it_within_a_pause(open_lmdb, monkeypatch):
    store = open_lmdb()
    fill(store, 3 * BATCH_BLOCKS)
    paused, wait = threading.Event(), store._closing.wait
    ended: list[BaseException] = []

    def long_pause(_: float) -> bool:
        paused.set()
        return wait(timeout=60)

    def verify_it() -> None:
        try:
            store.verify()
        except StoreClosed as error:
            ended.append(error)

    monkeypatch.setattr(store._closing, "wait", long_pause)
    thread = threading.Thread(target=verify_it)
    thread.start()
    assert paused.wait(timeout=60)
    store.close()
    thread.join(timeout=30)  # well before the pause is over
    assert not thread.is_alive()
    assert len(ended) == 1


def test_a_medium_that_fails_is_no_sound_end(open_lmdb, tmp_path):
    """Neither where the verification meets it, nor where somebody else's read does and the store goes on empty."""
    store = open_lmdb()
    refs, _ = fill(store, 3 * BATCH_BLOCKS)

    def lose_pages(*, then_read: bool) -> None:
        os.truncate(tmp_path / "v1" / "payload" / "data.mdb", 4096)
        if then_read:
            with pytest.raises(StoreFailed):
                reasons(store, refs[:1])
            store.sync()

    with pytest.raises(StoreFailed):
        verify(store, stopped=Pauses(lambda: lose_pages(then_read=False)))
    store.sync()
    assert store.stats().fresh_starts == 1
    fill(store, 3 * BATCH_BLOCKS)
    with pytest.raises(StoreFailed, match="went on empty"):
        verify(store, stopped=Pauses(lambda: store.stats().blocks and lose_pages(then_read=True)))
    assert store.stats().fresh_starts == 2
