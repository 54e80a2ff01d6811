"""Faults around a store: what each does, which calls it strikes, and what a caller may still rely on."""

import threading
from collections import Counter

import numpy as np
import pytest

from kvstore import MissReason, StoreClosed, StoreFailed, StoreFull, Unsupported
from kvstore.layers import (
    Delay,
    DirtyMiss,
    ErrorAfter,
    ErrorBefore,
    FalseMiss,
    Fault,
    FaultStore,
    Garbage,
    Gate,
    Hang,
    ShortData,
)
from kvstore.metas import metas_of
from kvstore.testing import assert_holds, chain, fill, kv_like, read, reasons

GIVE_UP_S = 20.0  # a test that is right never waits so long


def calls_of(store, refs, blocks):
    """A call of each operation, by its name."""
    return {
        "read": lambda: read(store, refs),
        "write": lambda: store.put_many(refs, blocks),
        "delete": lambda: store.delete_many([ref.key for ref in refs]),
        "touch": lambda: store.touch_many([ref.key for ref in refs], [1] * len(refs)),
        "scan": lambda: list(metas_of(store)),
        "sync": store.sync,
    }


OPERATIONS = ["read", "write", "delete", "touch", "scan", "sync"]


def in_thread(call):
    """Run a call beside the test; what it raised, or None, is at the end of the list."""
    ends = []

    def run():
        try:
            call()
        except Exception as error:  # noqa: BLE001 - looked at by the test
            ends.append(error)
        else:
            ends.append(None)

    thread = threading.Thread(target=run, daemon=True)  # one that hangs for good does not hold up the end
    thread.start()
    return thread, ends


# ---- errors


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", [ErrorBefore, ErrorAfter])
def test_an_error_strikes_its_operation_and_no_other(memory_store, operation, kind):
    refs, blocks = fill(memory_store, 2)
    store = FaultStore(memory_store, [kind(on=operation)])
    for name, call in calls_of(store, refs, blocks).items():
        if name == operation:
            with pytest.raises(StoreFailed, match=f"{operation} failed") as caught:
                call()
            assert caught.value.temporary
        else:
            call()
    assert store.injected(kind, operation) == store.injected() == 1


def test_before_means_that_nothing_was_done_and_after_that_all_was(memory_store):
    refs, blocks = chain(memory_store, 2), kv_like(memory_store, 2)
    store = FaultStore(memory_store)
    for fault, is_there in ((ErrorBefore(on="write"), False), (ErrorAfter(on="write"), True)):
        store.faults = [fault]
        with pytest.raises(StoreFailed):
            store.put_many(refs, blocks)
        assert reasons(memory_store, refs) == [None if is_there else MissReason.ABSENT] * 2
    for fault, is_there in ((ErrorBefore(on="delete"), True), (ErrorAfter(on="delete"), False)):
        store.faults = [fault]
        with pytest.raises(StoreFailed):
            store.delete_many([ref.key for ref in refs])
        assert reasons(memory_store, refs) == [None if is_there else MissReason.ABSENT] * 2


def test_a_read_that_fails_after_its_work_has_filled_the_buffers(memory_store):
    refs, blocks = fill(memory_store, 2)
    out = [np.zeros_like(block) for block in blocks]
    store = FaultStore(memory_store, [ErrorAfter(on="read")])
    with pytest.raises(StoreFailed):
        store.get_many(refs, out)
    assert np.array_equal(out, blocks)


def test_a_scan_that_fails_after_its_work_has_told_everything(memory_store):
    refs, _ = fill(memory_store, 3)
    scan = metas_of(FaultStore(memory_store, [ErrorAfter(on="scan")]))
    assert {next(scan).ref for _ in refs} == set(refs)
    with pytest.raises(StoreFailed):
        next(scan)


def test_an_error_of_the_callers_is_made_anew_each_time(memory_store):
    """One instance raised again and again would drag along the frames, and so the buffers, of all calls before."""
    store = FaultStore(memory_store, [ErrorBefore(lambda: StoreFull("not a byte is left"), on="sync")])
    with pytest.raises(StoreFull, match="not a byte") as first:
        store.sync()
    with pytest.raises(StoreFull, match="not a byte") as second:
        store.sync()
    assert first.value is not second.value


def test_the_first_fault_that_raises_ends_the_call(memory_store):
    slept = []
    faults = [ErrorBefore(StoreFull, on="sync"), Delay(1.0), ErrorBefore(on="sync")]
    with pytest.raises(StoreFull):
        FaultStore(memory_store, faults, sleep=slept.append).sync()
    assert slept == []


# ---- time


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_delay_comes_before_the_work(memory_store, operation):
    refs, blocks = fill(memory_store, 1)
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        assert memory_store.stats().blocks == 1

    store = FaultStore(memory_store, [Delay(0.25), Delay(0.5, on=operation)], sleep=sleep)
    calls_of(store, refs, blocks)[operation]()
    assert slept == [0.25, 0.5]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_hang_ends_when_the_gate_opens_and_the_work_is_done(memory_store, operation):
    refs, blocks = fill(memory_store, 1)
    gate = Gate()
    store = FaultStore(memory_store, [Hang(gate, on=operation)])
    thread, ends = in_thread(calls_of(store, refs, blocks)[operation])
    assert gate.wait_until_reached(GIVE_UP_S), "it hangs: who comes and goes on does not count"
    store.faults = ()  # a call keeps the faults with which it began
    assert gate.wait_until_reached(0)
    assert store.stats().blocks == 1
    assert ends == []
    gate.open()
    thread.join(GIVE_UP_S)
    assert ends == [None]
    assert store.stats().blocks == (0 if operation == "delete" else 1)
    assert store.injected(Hang, operation) == 1


def test_a_gate_can_be_shut_again(memory_store):
    gate = Gate()
    gate.open()
    store = FaultStore(memory_store, [Hang(gate)])
    store.sync()
    gate.shut()
    assert not gate.wait_until_reached(0), "who has passed does not hang"
    thread, ends = in_thread(store.sync)
    assert gate.wait_until_reached(GIVE_UP_S)
    assert ends == []
    gate.open()
    thread.join(GIVE_UP_S)
    assert ends == [None]


def test_a_gate_that_is_shut_again_at_once_has_let_go_who_hung(memory_store):
    gate = Gate()
    store = FaultStore(memory_store, [Hang(gate)])
    hung = [in_thread(store.sync) for _ in range(2)]
    assert gate.wait_until_reached(GIVE_UP_S, by=2)
    with gate._changed:  # nobody can move in between
        gate.open()
        gate.shut()
        assert not gate.wait_until_reached(0), "who may go does not hang, though it has not gone yet"
    for thread, ends in hung:
        thread.join(GIVE_UP_S)
        assert ends == [None]
    assert not gate.wait_until_reached(0)


def test_close_lets_go_of_what_hangs_and_its_work_is_not_done(memory_store):
    shared = Gate()
    refs, blocks = chain(memory_store, 1), kv_like(memory_store, 1)
    store, other = FaultStore(memory_store, [Hang(shared)]), FaultStore(memory_store, [Hang(shared)])
    hung = [in_thread(lambda: store.put_many(refs, blocks)) for _ in range(3)]
    elsewhere = [in_thread(lambda: list(metas_of(other)))]
    assert shared.wait_until_reached(GIVE_UP_S, by=4)
    store.close()
    store.close()
    for thread, ends in hung:
        thread.join(GIVE_UP_S)
        assert [(type(end), str(end)) for end in ends] == [(StoreClosed, "closed while it hung: write")]
    assert memory_store._shelf == {}
    elsewhere.append(in_thread(lambda: list(metas_of(other))))
    assert shared.wait_until_reached(GIVE_UP_S, by=2), "a gate that two layers share is open for neither"
    with pytest.raises(StoreClosed):
        store.sync()
    shared.open()
    for thread, ends in elsewhere:
        thread.join(GIVE_UP_S)
        assert [type(end) for end in ends] == [StoreClosed], "of the store, which is closed by now"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_closed_layer_injects_nothing_it_says_that_it_is_closed(memory_store, operation):
    refs, blocks = fill(memory_store, 1)
    store = FaultStore(memory_store, [Garbage(), ErrorBefore(StoreFull), Hang()])
    store.close()
    with pytest.raises(StoreClosed):
        calls_of(store, refs, blocks)[operation]()
    assert store.injected() == 0


# ---- damage


@pytest.mark.parametrize("kind", [ShortData, Garbage])
@pytest.mark.parametrize("operation", ["read", "write"])
def test_damage_strikes_one_record_of_the_batch_and_is_found(store, kind, operation):
    """On whichever way: the store says so, and what it does serve is right."""
    layer = FaultStore(store, [kind(on=operation)])
    struck = Counter()
    for seed in range(30):
        refs, blocks = fill(layer, 3, seed)
        outcomes, out = read(layer, refs)
        assert sum(outcome.damaged for outcome in outcomes) == 1
        for place, (outcome, got, block) in enumerate(zip(outcomes, out, blocks, strict=True)):
            struck[place] += outcome.damaged
            assert outcome.damaged or (outcome.hit and np.array_equal(got, block))
        store.delete_many([ref.key for ref in refs])
    assert layer.injected(kind, operation) == layer.injected() == store.stats().damaged_blocks == 30
    assert set(struck) == {0, 1, 2}
    store.check()


@pytest.mark.parametrize("kind", [ShortData, Garbage, FalseMiss])
def test_where_nothing_is_there_nothing_is_injected(memory_store, kind):
    store = FaultStore(memory_store, [kind()])
    assert reasons(store, chain(memory_store, 2)) == [MissReason.ABSENT] * 2
    assert store.get_many([], []) == store.put_many([], []) == []
    assert store.injected() == 0


def test_damage_meets_a_record_that_is_deleted_meanwhile(memory_store, monkeypatch):
    """Between a look at the record and the writing of the damaged one: that one is left out, another is struck."""
    refs, _ = fill(memory_store, 2)
    raw, gone = memory_store.raw(), []

    def read_then_delete(key):
        record = raw.read(key)
        if not gone:
            gone.append(key)
            memory_store.delete_many([key])
        return record

    monkeypatch.setattr(memory_store, "raw", lambda: type(raw)(read_then_delete, raw.write))
    store = FaultStore(memory_store, [Garbage(on="read")])
    outcomes = {ref.key: outcome for ref, outcome in zip(refs, read(store, refs)[0], strict=True)}
    assert outcomes.pop(gone[0]).reason is MissReason.ABSENT
    assert next(iter(outcomes.values())).damaged
    assert store.injected(Garbage) == 1


def test_a_store_without_raw_records_cannot_be_damaged(memory_store):
    class Closed:
        """A store of somebody's that lets nobody at its records."""

        def __getattr__(self, name) -> object:
            if name == "raw":
                raise AttributeError(name)
            return getattr(memory_store, name)

    for damage in (ShortData(), Garbage()):
        with pytest.raises(Unsupported, match="no raw"):
            FaultStore(Closed(), [damage])
    store = FaultStore(Closed(), [Delay(0.0)])
    refs, blocks = fill(store, 2)
    assert_holds(store, refs, blocks)


def test_a_false_miss_hides_one_hit_and_harms_nothing(memory_store):
    refs, blocks = fill(memory_store, 4)
    store = FaultStore(memory_store, [FalseMiss()])
    for _ in range(10):
        found = Counter(reasons(store, refs))
        assert found == {None: 3, MissReason.ABSENT: 1}
    store.faults = ()
    assert_holds(store, refs, blocks)
    assert store.stats().damaged_blocks == 0


def test_buffers_of_misses_are_littered_and_those_of_hits_are_not(memory_store):
    refs, blocks = chain(memory_store, 3), kv_like(memory_store, 3)
    memory_store.put_many(refs[1:2], blocks[1:2])
    store = FaultStore(memory_store, [DirtyMiss()])
    littered = set()
    for _ in range(20):
        outcomes, out = read(store, refs)
        assert [outcome.hit for outcome in outcomes] == [False, True, False]
        assert np.array_equal(out[1], blocks[1])
        half = out[0].size // 2
        assert (out[0][:half] != 0xA5).any(), "as it was before the call"
        littered.add(bool((out[0][half:] != 0xA5).any()))
    assert littered == {True, False}, "wholly and by half"
    assert store.injected(DirtyMiss, "read") == 20


# ---- which calls


def test_the_first_calls_are_counted_for_each_operation(memory_store):
    store = FaultStore(memory_store, [ErrorBefore(on=("sync", "scan"), first=2)])
    for call in (store.sync, store.scan, store.sync, store.scan):
        with pytest.raises(StoreFailed):
            call()
    store.sync()
    assert list(metas_of(store)) == []
    store.faults = store.faults
    with pytest.raises(StoreFailed):
        store.sync()
    assert store.injected(ErrorBefore, "sync") == 3
    assert store.injected(on="scan") == 2


def struck_syncs(memory_store, seed, *, others=0, threads=1):
    """Which of 60 syncs meet each of two faults, with other calls in between."""
    lock, struck = threading.Lock(), []
    store = FaultStore(memory_store, [Delay(1.0, chance=0.5), Delay(2.0, on="sync", chance=0.5)], seed=seed)
    draw = store._injector.draw

    def noting(operation):
        with lock:  # so that the order of the draws is known; in use there is no such lock
            strikes = draw(operation)
            if operation == "sync":
                struck.append([strike.fault.seconds for strike in strikes])
        return strikes

    store._injector.draw, store._injector._sleep = noting, lambda _: None

    def sync():
        for _ in range(60 // threads):
            store.sync()
            for _ in range(others):
                metas_of(store)

    pool = [threading.Thread(target=sync) for _ in range(threads)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    return struck


def test_the_nth_call_meets_the_same_faults_with_the_same_seed(memory_store):
    once = struck_syncs(memory_store, seed=1)
    assert (
        once == struck_syncs(memory_store, seed=1, others=2) == struck_syncs(memory_store, seed=1, threads=4)
    )
    assert once != struck_syncs(memory_store, seed=2)
    counts = Counter(tuple(struck) for struck in once)
    assert len(counts) == 4, "two faults of one list are drawn apart"
    assert min(counts.values()) > 5


def test_the_same_seed_damages_the_same_bytes(memory_store):
    def damaged(seed):
        refs, _ = fill(memory_store, 3)
        FaultStore(memory_store, [Garbage(on="read")], seed=seed)._before("read", [ref.key for ref in refs])
        return [memory_store.raw().read(ref.key)[200:] for ref in refs]  # after the time of writing

    memory_store._now_ns = lambda: 0
    assert damaged(1) == damaged(1)
    assert damaged(1) != damaged(2)


def test_chance_is_about_as_often_as_it_says(memory_store):
    store = FaultStore(memory_store, [Delay(0.0, chance=0.2)], sleep=lambda _: None)
    for _ in range(1000):
        store.sync()
    assert 150 < store.injected() < 250


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Delay(-1.0), "seconds"),
        (lambda: Delay(1.0, chance=1.5), "chance"),
        (lambda: Hang(first=-1), "first"),
        (lambda: Delay(1.0, on="reed"), "reed"),
        (lambda: FalseMiss(on="write"), "FalseMiss strikes read, but on names write"),
        (lambda: Garbage(on=("read", "scan")), "scan"),
        (Fault, "cannot be injected"),
    ],
)
def test_faults_that_cannot_act_are_refused_and_leave_what_was_in_force(memory_store, make, complaint):
    """One that silently never struck would make a test pass that proves nothing."""
    store = FaultStore(memory_store, [Delay(0.0)])
    with pytest.raises(ValueError, match=complaint):
        store.faults = [make()]
    assert store.faults == (Delay(0.0),)
