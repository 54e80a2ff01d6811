"""Reading all that a store has, while it is in use."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final

import numpy as np

from kvstore.errors import StoreClosed, StoreFailed
from kvstore.metas import metas_of
from kvstore.reasons import MissReason
from kvstore.reports import Verified
from kvstore.store import BlockMeta, Store

BATCH_BYTES: Final = 4 << 20
"""Of blocks, decoded, that are read at once: a request's read waits behind one such batch at most."""
BATCH_BLOCKS: Final = 8
SHARE: Final = 0.5
"""Of the time, what reading may take. The rest is the requests'."""


def verify(
    store: Store,
    *,
    stopped: threading.Event | None = None,
    share: float = SHARE,
    clock: Callable[[], float] = time.monotonic,
) -> Verified:
    """Read every record of the store's own namespace and check it wholly, as a read for a request does.

    What is damaged is counted and put aside by the store, as by such a read. Blocks for as long as it takes: after each small
    batch it waits, so that reading takes `share` of the time. What is written meanwhile may be read or not; what goes
    meanwhile does not count. Any thread may call it. Raises StoreClosed once `stopped` is set, and StoreError if the
    medium fails.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")
    stopped = stopped or threading.Event()
    begun_s = clock()
    block_bytes = store.layout.block_bytes
    num_blocks = max(1, min(BATCH_BLOCKS, BATCH_BYTES // block_bytes))
    buffers = [np.empty(block_bytes, np.uint8) for _ in range(num_blocks)]
    records, damaged = 0, Counter[MissReason]()
    fresh_starts = store.stats().fresh_starts
    for batch in _batches(store, num_blocks):
        if stopped.is_set():
            raise StoreClosed("the verification was stopped")
        batch_s = clock()
        outcomes = store.get_many([meta.ref for meta in batch], buffers[: len(batch)])
        records += sum(outcome.hit or outcome.damaged for outcome in outcomes)
        damaged.update(o.reason for o in outcomes if o.reason is not None and o.damaged)
        stopped.wait((clock() - batch_s) * (1 - share) / share)
    if store.stats().fresh_starts != fresh_starts:  # found by somebody else's call: the scan has ended early
        raise StoreFailed(
            "the medium failed while it was verified, and the store went on empty", temporary=True
        )
    return Verified(records=records, damaged=dict(damaged), seconds=clock() - begun_s)


def _batches(store: Store, num_blocks: int) -> Iterator[Sequence[BlockMeta]]:
    blocks = metas_of(store)
    while batch := list(islice(blocks, num_blocks)):
        yield batch
