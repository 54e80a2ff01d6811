"""Bringing blocks up: from disk to host slots, from host slots to the device, for the requests that wait for them."""

from collections import Counter, deque
from dataclasses import dataclass

import numpy as np

from kvstore.block import BlockKey
from kvstore.reasons import MissReason
from kvstore.store import BlockRef
from tiering.eviction import Eviction
from tiering.holdings import DEVICE, DISK, HOST, PRESENT, WRITING, Holdings
from tiering.lease import NOT_CACHED, Lease
from tiering.moves import HasRead, Promote, Read
from tiering.outbox import Outbox
from tiering.residency import Ids, Mask


@dataclass(slots=True)
class _Load:
    lease: Lease
    unread: deque[int]
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
        deadline_s: float,
    ) -> None:
        """Sizes of the work.

        `batch`: blocks in one read; `budget`: blocks that may be in reads in flight together; `deadline_s`: how long
        a read may take, and how long a load may go on without being given a place to read into.
        """
        self._holdings, self._eviction, self._outbox = holdings, eviction, outbox
        self._root_key = root_key
        self._batch, self._budget, self._deadline_s = batch, budget, deadline_s
        self._loads: list[_Load] = []
        self._wanted: dict[int, tuple[Lease, int]] = {}
        """Who waits for a block on its way to the device, and at which position of its path."""
        self._overdue: set[int] = set()
        """Blocks whose read took too long and is not over: their host places are not to be touched until it is."""
        self._since_s = 0.0
        """When a read was last asked for, or the first of the loads was begun if that is later."""
        self.misses: Counter[MissReason] = Counter()
        """Blocks that a request waited for but that did not come, by reason."""
        self.num_bytes = 0
        """Read, ever, before decompression, of blocks that arrived."""
        self.num_given_up = 0
        """Loads, ever, that had no place to read into for too long."""

    def resize(self, *, deadline_s: float) -> None:
        """Another deadline from now on, for what is under way as well."""
        self._deadline_s = deadline_s

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
            self._since_s = self._since_s if self._loads else self._outbox.now_s
            self._loads.append(load)

    def plan(self) -> None:
        """Ask for reads as far as the budget and host memory allow; give up loads for which there has been no place."""
        while self._loads:
            load = self._loads[0]
            allowed = self._budget - self._outbox.blocks_in_flight(Read)
            slots = self._eviction.host_slots(min(self._batch, allowed, len(load.unread)))
            if not len(slots):
                break
            self._since_s = self._outbox.now_s
            self._read(np.array([load.unread.popleft() for _ in slots], dtype=np.intp), slots)
            if not load.unread:
                self._loads.pop(0)
        if self._loads and self._outbox.now_s - self._since_s >= self._deadline_s:
            self.num_given_up += len(self._loads)
            self.give_up(MissReason.OVERDUE)

    def expire(self) -> None:
        """Give up the reads that have taken too long; what they read into stays taken until they are over after all."""
        for move in self._outbox.expire(Read, self._deadline_s):
            assert isinstance(move, Read), "reads were asked for"
            self._overdue.update(move.ids.tolist())
            self._lose(move.ids, MissReason.OVERDUE)

    def give_up(self, reason: MissReason) -> None:
        """Do not read what has not been asked for yet: the requests compute it."""
        loads, self._loads = self._loads, []
        for load in loads:
            self._lose(np.array(load.unread, dtype=np.intp), reason)

    def deadline_s(self) -> float | None:
        """When `expire` or `plan` will have something to give up, unless something ends before; None for never."""
        since_s = [self._outbox.oldest_s(Read), self._since_s if self._loads else None]
        return min((each + self._deadline_s for each in since_s if each is not None), default=None)

    def is_overdue(self, ids: Ids) -> Mask:
        """Which of these blocks are being read by a read that takes too long: they cannot be loaded."""
        if not self._overdue:
            return np.zeros(len(ids), dtype=np.bool_)
        return np.isin(ids, list(self._overdue))

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
        return BlockRef(
            key, parent_key, self._holdings.radix.tokens_of(block), self._holdings.owner_of(block)
        )

    def was_read(self, move: Read, answer: HasRead) -> Ids:
        """A read is over: promote what arrived, give back what did not. Answers the blocks that did not come."""
        self._holdings.read_ended(DISK, move.ids)
        self._overdue.difference_update(move.ids.tolist())
        if answer.error is None:
            reasons = [outcome.reason for outcome in answer.outcomes]
        else:
            reasons = [MissReason.READ_FAILED] * len(move.ids)
        hit = np.array([reason is None for reason in reasons])
        arrived: Ids = move.ids[hit]
        lost: Ids = move.ids[~hit]
        self._holdings.arrived(HOST, arrived)
        self._holdings.failed(HOST, lost)
        self.num_bytes += int(self._holdings.residency.place[DISK, arrived].sum())
        if answer.error is None:  # the store has nothing good under these keys: what was there it has removed
            self._holdings.left(DISK, lost)
        awaited = np.array([block in self._wanted for block in arrived.tolist()], dtype=np.bool_)
        self._promote(arrived[awaited])
        for block, reason in zip(move.ids.tolist(), reasons, strict=True):
            if reason is not None:
                one = np.array([block], dtype=np.intp)
                if answer.error is None:
                    self._eviction.lost(one, reason)
                self._lose(one, reason)
        return lost

    def _lose(self, ids: Ids, reason: MissReason) -> None:
        """Blocks did not come: whoever waits for them computes them, in the slots that were reserved."""
        awaited = [block for block in ids.tolist() if block in self._wanted]
        self.misses[reason] += len(awaited)
        for block in awaited:
            lease, position = self._wanted.pop(block)
            lease.found_in[position] = NOT_CACHED
            lease.filling[position] = True
            lease.arriving[position] = False
            lease.num_loading -= 1
            lease.num_lost += 1
            lease.lost[position] = reason
        self._holdings.will_compute(np.array(awaited, dtype=np.intp))

    def _promote(self, ids: Ids) -> None:
        if len(ids):
            self._holdings.read_begins(HOST, ids)
            place = self._holdings.residency.place
            number = self._outbox.next_number()
            self._outbox.send(Promote(number, ids, place[HOST, ids], place[DEVICE, ids]))

    def arriving(self, move: Promote) -> None:
        """The first layers of a copy up are there."""
        for block in move.ids.tolist():
            if (wanted := self._wanted.get(block)) is not None:
                lease, position = wanted
                lease.arriving[position] = True

    def promoted(self, move: Promote, error: Exception | None) -> None:
        """A copy up is over. A block whose request has gone stays on the device: it is cached there now."""
        self._holdings.read_ended(HOST, move.ids)
        if error is not None:
            awaited = np.array([block in self._wanted for block in move.ids.tolist()], dtype=np.bool_)
            self._lose(move.ids[awaited], MissReason.COPY_FAILED)
            self._holdings.failed(DEVICE, move.ids[~awaited])
            return
        self._holdings.arrived(DEVICE, move.ids)
        for block in move.ids.tolist():
            if (wanted := self._wanted.pop(block, None)) is not None:
                lease, position = wanted
                lease.ready[position] = True
                lease.arriving[position] = False
                lease.num_loading -= 1

    def cancel(self, lease: Lease) -> None:
        """The request ends: what is not being copied to the device already will not be."""
        self._loads = [load for load in self._loads if load.lease is not lease]
        state = self._holdings.residency.state
        coming = lease.ids[state[DEVICE, lease.ids] == WRITING].tolist()
        mine = [block for block in coming if block in self._wanted and self._wanted[block][0] is lease]
        for block in mine:
            del self._wanted[block]
        ids = np.array(mine, dtype=np.intp)
        # what is in host memory is being copied up already; its slot stays taken until that copy ends
        self._holdings.failed(DEVICE, ids[state[HOST, ids] != PRESENT])
        lease.num_loading = 0
