"""What a store is called for, on threads of its own: whatever it does, the thread that computes does not wait for it."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Final, TypeAlias

import numpy as np

from kvstore.block import BlockKey, chain_key
from kvstore.errors import StoreError, Unsupported
from kvstore.metas import BlockMetas
from kvstore.slots import SlotMemory
from kvstore.steering import Retains, StoredTerm
from kvstore.store import BlockRef, Store
from tiering.found import Found, arranged
from tiering.io_threads import Jobs
from tiering.moves import (
    Forget,
    HasRead,
    Lineage,
    Read,
    Retain,
    Touch,
    Unname,
    Wanted,
    Write,
    Written,
)
from tiering.ranks import Rank
from tiering.residency import block_keys
from tiering.terms import Term

HasFound: TypeAlias = tuple[Found, dict[BlockKey, Wanted]] | Exception
"""What a store holds, with what was said of those blocks of which something was; or why it cannot be listed."""

_log = logging.getLogger(__name__)
_RANKS: Final = frozenset(Rank)


class StoreCalls:
    """Makes the calls of one store: reads side by side, everything else one after the other, as it was asked for.

    One thread asks, the cache's own, and never waits, save in `close`. No call raises: reads and writes are answered,
    on the thread that made them, and of the rest what fails is counted.
    """

    def __init__(
        self,
        store: Store,
        slab: SlotMemory,
        report: Callable[[HasRead | Written], None],
        *,
        jobs: Callable[[str, int], Jobs],
        read_threads: int,
    ) -> None:
        """`report` gets each answer, on any thread; `slab` is what is read into and written from.

        `jobs` makes what runs the calls, from a name and a number of threads.
        """
        self._store, self._slab, self._report = store, slab, report
        self._readers, self._writer = jobs("read", read_threads), jobs("write", 1)
        self._touch_until_s = float("inf")
        self._closing = False
        self.num_failed_deletes = 0
        """Records that could not be deleted."""
        self.num_failed_touches = 0
        """Blocks of which the store was not told the last use."""
        self.num_failed_terms = 0
        """Calls by which the store was to note terms, or that a name is over."""

    # --- what is asked for ----------------------------------------------------------------------------------------

    def read(self, move: Read, refs: Sequence[BlockRef]) -> None:
        """Read into host slots; answered with a HasRead. `refs`: see Index.refs."""
        self._readers.put(lambda: self._report(self._read(move, refs)))

    def write(self, move: Write, lineage: Lineage) -> None:
        """Compute the keys that are missing, and write; answered with a Written. `lineage`: see Index.lineage."""
        self._writer.put(lambda: self._report(self._write(move, lineage)))

    def forget(self, move: Forget) -> None:
        """Delete records."""
        self._writer.put(lambda: self._forget(move))

    def touch(self, move: Touch, used_ns: Sequence[int]) -> None:
        """Note when blocks were used, each at one of `used_ns` on the store's clock."""
        self._writer.put(lambda: self._touch(move, used_ns))

    def retain(self, move: Retain | Unname) -> None:
        """Note what users asked to keep, or no longer do, where the store can."""
        if (store := self.retaining) is not None:
            self._writer.put(lambda: self._retain(store, move))

    @property
    def retaining(self) -> Retains | None:
        """The store, if it keeps names and terms."""
        return self._store if isinstance(self._store, Retains) else None

    def erase(self, owner: bytes, erased: Future[bool], *, all_gone: bool) -> None:
        """Erase what the store has of an owner's. `erased` gets `all_gone`, or what the store raises."""
        self._writer.put(lambda: self._erase(owner, erased, all_gone=all_gone))

    def find(self, root_key: BlockKey, now_ns: int, found: Callable[[HasFound], None]) -> None:
        """List what the store holds; `found` gets it, on the thread that did, or why that could not be done, twice.

        `now_ns`: the time on the store's clock. It comes before whatever is asked for later, so nothing leaves meanwhile.
        """
        self._writer.put(lambda: found(self._find(root_key, now_ns)))

    def touch_for(self, seconds: float) -> None:
        """The end is near: uses that are not noted by then are worth less than an end in time, and are left."""
        self._touch_until_s = time.monotonic() + seconds

    def close(self, timeout_s: float) -> bool:
        """Let reads, and then the rest, end for so long each. False if one hangs: then the store must stay open. Idempotent."""
        self._closing = True
        return self._readers.close(timeout_s) & self._writer.close(timeout_s)

    # --- on the threads -------------------------------------------------------------------------------------------

    def _read(self, move: Read, refs: Sequence[BlockRef]) -> HasRead:
        try:
            views = [self._slab.view(slot) for slot in move.host_slots.tolist()]
            return HasRead(move.number, tuple(self._store.get_many(refs, views)))
        except Exception as error:  # noqa: BLE001 - the thread's top: whatever it is, the requests compute instead
            return HasRead(move.number, error=error)

    def _write(self, move: Write, lineage: Lineage) -> Written:
        computed = b""
        try:
            ancestors, keys = lineage
            for block in ancestors:
                keys[block.id] = chain_key(keys[block.parent_id], block.tokens)
            computed = b"".join([keys[block.id] for block in ancestors])
            by_id = {block.id: block for block in ancestors}
            blocks = [by_id[block] for block in move.ids.tolist()]
            refs = [
                BlockRef(keys[block.id], keys[block.parent_id], block.tokens, block.owner) for block in blocks
            ]
            views = [self._slab.view(slot) for slot in move.host_slots.tolist()]
            return Written(move.number, np.array(self._store.put_many(refs, views), dtype=np.int64), computed)
        except Exception as error:  # noqa: BLE001 - the thread's top: the blocks stay where they are
            return Written(move.number, keys=computed, error=error)

    def _find(self, root_key: BlockKey, now_ns: int) -> HasFound:
        try:
            try:
                found = arranged(self._pages(), root_key, now_ns)
            except StoreError:  # what is damaged is found by reading it: a disk store goes on empty then
                self._store.sync()
                found = arranged(self._pages(), root_key, now_ns)
            return found, self._wanted_of(found)
        except Exception as error:  # noqa: BLE001 - the thread's top: the index goes on without
            _log.error("what is on disk cannot be listed, and is not used: %s", error, extra={"error": error})
            return error

    def _wanted_of(self, found: Found) -> dict[BlockKey, Wanted]:
        if self.retaining is None:
            return {}
        try:
            stored = self.retaining.terms(block_keys(found.keys))
        except Unsupported:
            return {}
        except StoreError as error:  # its blocks live as the TTL says
            _log.error("the terms of blocks cannot be read: %s", error, extra={"error": error})
            return {}
        return {
            key: Wanted(Term(term.own_s, term.by_default), Rank(term.rank))
            for key, term in stored.items()
            if term.rank in _RANKS  # else it is of a program that knows more
        }

    def _pages(self) -> Iterator[BlockMetas]:
        for page in self._store.scan():
            if self._closing:
                return
            yield page

    def _forget(self, move: Forget) -> None:
        try:
            self._store.delete_many(block_keys(move.keys))
        except Exception:  # noqa: BLE001 - what cannot be deleted is bounded by the store and found at the next start
            self.num_failed_deletes += len(move.keys)

    def _touch(self, move: Touch, used_ns: Sequence[int]) -> None:
        if time.monotonic() > self._touch_until_s:
            self.num_failed_touches += len(move.keys)
            return
        try:
            self._store.touch_many(move.keys, used_ns)
        except Exception:  # noqa: BLE001 - after a restart these blocks are thought older than they are
            self.num_failed_touches += len(move.keys)

    def _retain(self, store: Retains, move: Retain | Unname) -> None:
        try:
            if isinstance(move, Unname):
                store.delete_name(move.key)
            else:
                told = zip(move.keys, move.wanted, strict=True)
                store.put_terms({key: StoredTerm(*term, rank) for key, (term, rank) in told})
        except Exception:  # noqa: BLE001 - after a restart these blocks live as the TTL says; a name that is over is found so
            self.num_failed_terms += 1

    def _erase(self, owner: bytes, erased: Future[bool], *, all_gone: bool) -> None:
        try:
            self._store.erase(owner)
        except Exception as error:  # noqa: BLE001 - the thread's top: who asked must know
            erased.set_exception(error)
        else:
            erased.set_result(all_gone)
