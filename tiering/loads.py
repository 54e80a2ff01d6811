"""Bringing blocks up: from disk to host slots, from host slots to the device, for the requests that wait for them."""

from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np

from kvstore.block import BlockKey
from kvstore.reasons import MissReason
from kvstore.store import BlockRef
from tiering.eviction import Eviction
from tiering.holdings import DEVICE, DISK, HOST, PRESENT, WRITING, Holdings
from tiering.lease import NOT_CACHED, Lease
from tiering.moves import HasRead, Promote, Read
from tiering.outbox import Outbox
from tiering.residency import Ids


@dataclass(slots=True)
class _Load:
    lease: Lease
    unread: deque[int] = field(default_factory=deque)
    """Blocks on disk whose read has not been asked for, in prefix order."""


class Loads:
    """The loads of all admitted requests. Reads are asked for in prefix order, oldest request first, within a budget."""

    def __init__(
        self,
        holdings: Holdings,
        eviction: Eviction,
        outbox: Outbox,
        *,
        root_key: BlockKey,
        batch: int,
        budget: int,
    ) -> None:
        """`batch`: blocks in one read; `budget`: blocks that may be in reads in flight together."""
        self._holdings, self._eviction, self._outbox = holdings, eviction, outbox
        self._root_key = root_key
        self._batch, self._budget = batch, budget
        self._loads: list[_Load] = []
        self._wanted: dict[int, tuple[Lease, int]] = {}
        """Who waits for a block on its way to the device, and at which position of its path."""
        self.misses: Counter[MissReason] = Counter()
        """Blocks that were matched but could not be loaded, by reason."""

    def start(self, lease: Lease, positions: Ids) -> None:
        """Load the blocks at these positions of the lease, whose device places are reserved and WRITING."""
        residency = self._holdings.residency
        ids = lease.ids[positions]
        self._wanted.update(zip(ids.tolist(), ((lease, p) for p in positions.tolist()), strict=True))
        lease.num_loading += len(ids)
        on_host = residency.state[HOST, ids] == PRESENT
        self._promote(ids[on_host])
        load = _Load(lease, deque(ids[~on_host].tolist()))
        if load.unread:
            self._loads.append(load)

    def plan(self) -> None:
        """Ask for reads as far as the budget and host memory allow."""
        while self._loads:
            load = self._loads[0]
            allowed = self._budget - self._outbox.blocks_in_flight(Read)
            slots = self._eviction.host_slots(min(self._batch, allowed, len(load.unread)))
            if not len(slots):
                return
            self._read(np.array([load.unread.popleft() for _ in slots], dtype=np.intp), slots)
            if not load.unread:
                self._loads.pop(0)

    def _read(self, ids: Ids, slots: Ids) -> None:
        self._holdings.read_begins(DISK, ids)
        self._holdings.expect(HOST, ids, slots)
        refs = tuple(self._ref(block) for block in ids.tolist())
        self._outbox.send(Read(self._outbox.next_number(), ids, refs, slots))

    def _ref(self, block: int) -> BlockRef:
        residency = self._holdings.residency
        parent = residency.parent.item(block)
        key, parent_key = residency.key_of(block), self._root_key if parent < 0 else residency.key_of(parent)
        assert key is not None, "a stored block has a key"
        assert parent_key is not None, "the parent of a stored block has a key"
        return BlockRef(key, parent_key, self._holdings.radix.tokens_of(block))

    def was_read(self, move: Read, answer: HasRead) -> Ids:
        """A read is over: promote what arrived, give back what did not. Answers the blocks that did not come."""
        self._holdings.read_ended(DISK, move.ids)
        if answer.error is None:
            hit = np.array([outcome.hit for outcome in answer.outcomes])
            self.misses.update(o.reason for o in answer.outcomes if o.reason is not None)
        else:
            hit = np.zeros(len(move.ids), dtype=np.bool_)
            self.misses[MissReason.READ_FAILED] += len(move.ids)
        arrived: Ids = move.ids[hit]
        lost: Ids = move.ids[~hit]
        self._holdings.arrived(HOST, arrived)
        self._holdings.failed(HOST, lost)
        if answer.error is None:  # the store has nothing good under these keys: what was there it has removed
            self._holdings.left(DISK, lost)
        awaited = np.array([block in self._wanted for block in arrived.tolist()], dtype=np.bool_)
        self._promote(arrived[awaited])
        for block in lost.tolist():
            self._lose(block)
        return lost

    def _lose(self, block: int) -> None:
        """A block did not come: whoever waits for it computes it, in the slot that was reserved."""
        if (wanted := self._wanted.pop(block, None)) is not None:
            lease, position = wanted
            lease.found_in[position] = NOT_CACHED
            lease.filling[position] = True
            lease.num_loading -= 1
            lease.num_lost += 1

    def _promote(self, ids: Ids) -> None:
        if len(ids):
            self._holdings.read_begins(HOST, ids)
            place = self._holdings.residency.place
            number = self._outbox.next_number()
            self._outbox.send(Promote(number, ids, place[HOST, ids], place[DEVICE, ids]))

    def promoted(self, move: Promote, error: Exception | None) -> Ids:
        """A copy up is over. A block whose request has gone stays on the device: it is cached there now.

        Answers the blocks that are not on their way to the device any more.
        """
        self._holdings.read_ended(HOST, move.ids)
        if error is not None:
            return self._promotion_failed(move.ids)
        self._holdings.arrived(DEVICE, move.ids)
        for block in move.ids.tolist():
            if (wanted := self._wanted.pop(block, None)) is not None:
                lease, position = wanted
                lease.ready[position] = True
                lease.num_loading -= 1
        return move.ids[:0]

    def _promotion_failed(self, ids: Ids) -> Ids:
        self.misses[MissReason.READ_FAILED] += len(ids)
        wanted = np.array([block in self._wanted for block in ids.tolist()], dtype=np.bool_)
        for block in ids[wanted].tolist():
            self._lose(block)
        self._holdings.failed(DEVICE, ids[~wanted])
        return ids[~wanted]

    def cancel(self, lease: Lease) -> Ids:
        """The request ends: what is not being copied to the device already will not be.

        Answers the blocks that are not on their way to the device any more.
        """
        self._loads = [load for load in self._loads if load.lease is not lease]
        state = self._holdings.residency.state
        coming = lease.ids[state[DEVICE, lease.ids] == WRITING].tolist()
        mine = [block for block in coming if block in self._wanted and self._wanted[block][0] is lease]
        for block in mine:
            del self._wanted[block]
        ids = np.array(mine, dtype=np.intp)
        # what is in host memory is being copied up already; its slot stays taken until that copy ends
        given_up: Ids = ids[state[HOST, ids] != PRESENT]
        self._holdings.failed(DEVICE, given_up)
        lease.num_loading = 0
        return given_up
