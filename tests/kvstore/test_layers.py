"""Stores around a store."""

import threading

import pytest

from kvstore import FaultStore, StoreFailed
from kvstore.testing import assert_holds, chain, kv_like


def test_a_gate_that_raises_fails_the_batch_and_nothing_else(memory_store):
    refs, blocks = chain(memory_store, 2), kv_like(memory_store, 2)
    store = FaultStore(memory_store)
    store.put_many(refs[:1], blocks[:1])

    def fail(keys):
        raise StoreFailed("the disk is gone", temporary=True)

    store.read_gate = store.write_gate = fail
    for call in (
        lambda: store.put_many(refs, blocks),
        lambda: store.get_many(refs, blocks),
        lambda: store.delete_many([refs[0].key]),
        store.scan,
        store.sync,
    ):
        with pytest.raises(StoreFailed, match="gone") as caught:
            call()
        assert caught.value.temporary
    store.read_gate = store.write_gate = None
    assert_holds(store, refs[:1], blocks[:1])
    assert store.stats().blocks == 1


def test_a_gate_is_told_which_keys_and_may_wait(memory_store):
    """A hung disk: the batch ends when the gate opens."""
    refs, blocks = chain(memory_store, 2), kv_like(memory_store, 2)
    reached, may_pass, seen = threading.Event(), threading.Event(), []

    def hang(keys):
        seen.extend(keys)
        reached.set()
        may_pass.wait()

    store = FaultStore(memory_store, write_gate=hang)
    putter = threading.Thread(target=store.put_many, args=(refs, blocks))
    putter.start()
    reached.wait()
    assert store.stats().blocks == 0
    may_pass.set()
    putter.join()
    assert seen == [ref.key for ref in refs]
    assert_holds(store, refs, blocks)
