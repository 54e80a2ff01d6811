"""Bringing blocks up: from disk to host slots, from host slots to the device, for the requests that wait for them."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, repeat
from operator import itemgetter
from typing import Final

import numpy as np

from kvstore.block import BlockKey
from kvstore.reasons import MissReason
from kvstore.store import BlockRef
from tiering.batches import batches
from tiering.eviction import Eviction
from tiering.holdings import Holdings
from tiering.lease import NOT_CACHED, Lease
from tiering.moves import HasRead, Promote, Read
from tiering.outbox import Outbox
from tiering.radix import Tokens
from tiering.residency import DEVICE, DISK, HOST, NO_BLOCK, PRESENT, WRITING, Ids, Mask

_HOST_SHARE: Final = 4
"""While loads are passing through such a part of the host slots, or a batch is, no block that is nowhere else goes for more of
them: what is read is soon on the device as well, and later reads take its slots."""


@dataclass(slots=True, eq=False)
class _Load:
    lease: Lease
    unread: Ids
    """Positions of the lease's path whose blocks are on disk, and whose read has not been asked for; ascending."""
    tokens: Tokens
    """What leads to them, from the first token on."""
    since_s: float
    queued_blocks: int
    """What was asked for before, and had not come then."""
    until_s: float = math.inf
    """How long the lease waits for it."""
    asked_blocks: int = 0
    num_reads: int = 0
    """Asked for and not over."""
    is_late: bool = False
    """Whether the lease waits no more."""
    is_whole: bool = True
    """Whether all came of what is over."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CameLate:
    """What of a load was asked for has come, after its lease had stopped waiting: what came in time is counted as well."""

    num_blocks: int
    queued_blocks: int
    took_s: float


_NOBODY: Final = (None, 0)  # waits for a block that nobody waits for
_LEASE_OF: Final = itemgetter(0)


class Loads:
    """The loads of all admitted requests. Reads are asked for in prefix order, oldest request first, within a budget."""

    def __init__(
        self,
        holdings: Holdings,
        eviction: Eviction,
        outbox: Outbox,
        *,
        root_key: BlockKey,
        threads: int,
        batch: int,
        budget: int,
        deadline_s: float,
    ) -> None:
        """Sizes of the work.

        `threads`: reads that go on side by side; `batch`: blocks in one read, unless many are left; `budget`: blocks that may be
        in reads in flight together; `deadline_s`: how long a read may take, and how long a load may go on without being given a place to read into.
        """
        self._holdings, self._eviction, self._outbox = holdings, eviction, outbox
        self._root_key = root_key
        self._threads, self._batch, self._budget, self._deadline_s = threads, batch, budget, deadline_s
        # what there is to do is asked at each step: attributes are read fastest
        self.waiting: list[_Load] = []
        """Those of which not all reads were asked for."""
        self._wanted: dict[int, tuple[Lease, int]] = {}
        """Who waits for a block on its way to the device, and at which position of its path."""
        self.timed: list[_Load] = []
        """Loads that are waited for until some time only."""
        self.reads: dict[int, tuple[_Load, Ids]] = {}
        """Of which load a read is that is not over, and at which positions of its path, by the move's number."""
        self.overdue: set[int] = set()
        """Blocks whose read took too long and is not over: their host places are not to be touched until it is."""
        self.arrived: list[Ids] = []
        """Blocks that are in host memory, and are to be copied up with the next plan."""
        self._since_s = 0.0
        """When a read was last asked for, or the first of the loads was begun if that is later."""
        self.misses: Counter[MissReason] = Counter()
        """Blocks that a request waited for but that did not come, by reason."""
        self.num_bytes = 0
        """Read, ever, before decompression, of blocks that arrived."""
        self.num_given_up = 0
        """Loads, ever, that had no place to read into for too long."""
        self.num_late = 0
        """Loads, ever, of which something had not come when their leases stopped waiting."""
        self._came_late: list[CameLate] = []

    def resize(self, *, deadline_s: float) -> None:
        """Another deadline from now on, for what is under way as well."""
        self._deadline_s = deadline_s

    def start(self, lease: Lease, positions: Ids, tokens: Tokens) -> None:
        """Load the blocks at these positions of the lease, ascending, whose device places are reserved and WRITING.

        `tokens`: of the path, as the index has them, up to the last of these blocks at least.
        """
        residency = self._holdings.residency
        ids = lease.ids[positions]
        self._wanted.update(zip(ids.tolist(), zip(repeat(lease), positions.tolist())))  # noqa: B905 - who repeats has no end
        lease.num_loading += len(ids)
        on_host = residency.state[HOST].take(ids) == PRESENT
        self._promote(ids[on_host])
        load = _Load(lease, positions[~on_host], tokens, self._outbox.now_s, self.queued_blocks)
        if len(load.unread):
            self._since_s = self._since_s if self.waiting else self._outbox.now_s
            self.waiting.append(load)

    @property
    def queued_blocks(self) -> int:
        """Blocks that are to be read, and have not come."""
        return self._outbox.blocks[Read] + sum(len(load.unread) for load in self.waiting)

    def wait_for(self, lease: Lease, deadline_s: float) -> None:
        """Let the lease whose load was started last wait no longer than so many seconds for what is on disk.

        What has not come then is computed; what is read all the same stays in host memory. What is in host memory is waited for.
        """
        if self.waiting and (load := self.waiting[-1]).lease is lease:
            load.until_s = self._outbox.now_s + deadline_s
            self.timed.append(load)

    def take_late(self) -> list[CameLate]:
        """What has come late since the last call."""
        came, self._came_late = self._came_late, []
        return came

    def plan(self) -> None:
        """Ask for copies up of what is in host memory, and for reads as far as the budget and host memory allow.

        Loads for which there has been no place are given up.
        """
        if self.arrived:
            self._send_arrived()
        while self.waiting:
            load = self.waiting[0]
            num_reading = self._outbox.blocks[Read]
            num_passing = num_reading + self._outbox.blocks[Promote]
            enough = max(self._batch, self._holdings.num_host_slots // _HOST_SHARE)
            slots = self._eviction.host_slots(
                min(self._budget - num_reading, len(load.unread)), enough=enough - num_passing
            )
            if not len(slots):
                break
            self._since_s = self._outbox.now_s
            self._read(load, slots)
            if not len(load.unread):
                self.waiting.pop(0)
        if self.waiting and self._outbox.now_s - self._since_s >= self._deadline_s:
            self.num_given_up += len(self.waiting)
            self.give_up(MissReason.OVERDUE)

    def give_way(self) -> None:
        """What is held has left no place to read into, and nothing moves that might free one: requests compute what is not read.

        To be called when all has been asked for that can be.
        """
        if self.waiting and self._holdings.holds and not (self._outbox.is_moving or self._outbox.hangs):
            self.num_given_up += len(self.waiting)
            self.give_up(MissReason.OVERDUE)

    def expire(self) -> None:
        """Give up the reads that have taken too long; what they read into stays taken until they are over after all.

        And let leases wait no more whose time is over: their reads go on.
        """
        for load in self.timed:
            if load.lease.num_loading and self._outbox.now_s >= load.until_s:
                self._stop_waiting(load)
        if self.timed:
            self.timed = [load for load in self.timed if load.lease.num_loading and not load.is_late]
        for move in self._outbox.expire(Read, self._deadline_s):
            assert isinstance(move, Read), "reads were asked for"
            self.overdue.update(move.ids.tolist())
            self._lose(move.ids, MissReason.OVERDUE)

    def _stop_waiting(self, load: _Load) -> None:
        """What is not in host memory yet is computed. What is, is being copied up: a place that is written to cannot be computed in."""
        load.is_late = True
        self.num_late += 1
        if len(load.unread):
            self.waiting.remove(load)
        awaited = self._awaited_by(load.lease)
        state = self._holdings.residency.state[HOST]
        self.overdue.update(awaited[state[awaited] == WRITING].tolist())
        self._lose(awaited[state[awaited] != PRESENT], MissReason.LATE)

    def _awaited_by(self, lease: Lease) -> Ids:
        """Blocks that are on their way to the device for this lease."""
        missing = lease.ids[~lease.ready[: len(lease.ids)]].tolist()
        mine = [block for block in missing if block in self._wanted and self._wanted[block][0] is lease]
        return np.array(mine, dtype=np.intp)

    def give_up(self, reason: MissReason) -> None:
        """Do not read what has not been asked for yet: the requests compute it."""
        loads, self.waiting = self.waiting, []
        for load in loads:
            self._lose(load.lease.ids[load.unread], reason)

    def deadline_s(self) -> float | None:
        """When `expire` or `plan` will have something to give up, unless something ends before; None for never."""
        since_s = [self._outbox.oldest_s(Read), self._since_s if self.waiting else None]
        ends_s = [each + self._deadline_s for each in since_s if each is not None]
        ends_s += [load.until_s for load in self.timed if load.lease.num_loading]
        return min(ends_s, default=None)

    def is_overdue(self, ids: Ids) -> Mask:
        """Which of these blocks are being read by a read that takes too long: they cannot be loaded."""
        if not self.overdue:
            return np.zeros(len(ids), dtype=np.bool_)
        return np.isin(ids, list(self.overdue))

    def _read(self, load: _Load, slots: Ids) -> None:
        """Ask for reads of the load's next blocks into these host slots, in batches."""
        num_left = len(load.unread)
        positions, load.unread = load.unread[: len(slots)], load.unread[len(slots) :]
        ids = load.lease.ids[positions]
        self._holdings.read_begins(DISK, ids)
        self._holdings.expect(HOST, ids, slots)
        load.asked_blocks += len(ids)
        for some in batches(len(ids), num_left, self._budget, self._threads, self._batch):
            move = Read(self._outbox.next_number(), ids[some], slots[some])
            self.reads[move.number] = load, positions[some]
            load.num_reads += 1
            self._outbox.send(move)

    def refs(self, move: Read) -> tuple[BlockRef, ...]:
        """What a store is asked for in a read that is not over: made only for who has a store, as it takes longer than all else of it."""
        load, positions = self.reads[move.number]
        ids, tokens = move.ids, load.tokens
        residency, holdings = self._holdings.residency, self._holdings
        parents = residency.parent[ids].astype(np.intp)
        assert residency.has_key[ids].all(), "a stored block has a key"
        assert residency.has_key[parents[parents != NO_BLOCK]].all(), "the parent of a stored block has a key"
        parent_keys = residency.keys_of(parents)
        if parents.item(0) == NO_BLOCK:
            parent_keys[0] = self._root_key
        block_tokens = holdings.radix.block_tokens
        size = block_tokens * tokens.itemsize
        # as rows from the first of these positions to the last: numpy makes bytes of them faster than slices are cut
        some = tokens[positions.item(0) * block_tokens : (positions.item(-1) + 1) * block_tokens]
        rows = np.frombuffer(some.tobytes(), dtype=f"V{size}")[positions - positions.item(0)]
        owners = map(holdings.owners.owner, residency.owner[ids].tolist())
        return tuple(map(BlockRef, residency.keys_of(ids), parent_keys, rows.tolist(), owners))

    def was_read(self, move: Read, answer: HasRead) -> Ids:
        """A read is over: promote what arrived, give back what did not. Answers the blocks that did not come."""
        self._holdings.read_ended(DISK, move.ids)
        if self.overdue:
            self.overdue.difference_update(move.ids.tolist())
        reasons = [outcome.reason for outcome in answer.outcomes]
        if answer.error is not None:
            reasons = [MissReason.READ_FAILED] * len(move.ids)
        arrived, lost = move.ids, move.ids[:0]
        if any(reasons):
            hit = np.array([reason is None for reason in reasons])
            arrived, lost = move.ids[hit], move.ids[~hit]
        passing, staying = self._by_wanted(arrived)
        if len(passing):
            self._holdings.arrived_to_be_read(HOST, passing)
            self.arrived.append(passing)
        if len(staying):
            self._holdings.arrived(HOST, staying)
        self.num_bytes += np.add.reduce(self._holdings.residency.place[DISK].take(arrived)).item()
        if len(lost):
            self._did_not_come(lost, [reason for reason in reasons if reason is not None], answer.error)
        self._note_end(self.reads.pop(move.number)[0], is_whole=not len(lost))
        return lost

    def _note_end(self, load: _Load, *, is_whole: bool) -> None:
        """A read of this load is over."""
        load.num_reads -= 1
        load.is_whole &= is_whole
        if load.is_late and load.is_whole and not load.num_reads:
            took_s = self._outbox.now_s - load.since_s
            late = CameLate(num_blocks=load.asked_blocks, queued_blocks=load.queued_blocks, took_s=took_s)
            self._came_late.append(late)

    def _did_not_come(self, ids: Ids, reasons: Sequence[MissReason], error: Exception | None) -> None:
        """Of a read, blocks that were not read."""
        self._holdings.failed(HOST, ids)
        if error is None:  # the store has nothing good under these keys: what was there it has removed
            self._holdings.left(DISK, ids)
        for at, reason in enumerate(reasons):
            one = ids[at : at + 1]
            if error is None:
                self._eviction.lost(one, reason)
            self._lose(one, reason)

    def _by_wanted(self, ids: Ids) -> tuple[Ids, Ids]:
        """Of these blocks those that a request waits for, and the others."""
        are_wanted = list(map(self._wanted.__contains__, ids.tolist()))
        if all(are_wanted):
            return ids, ids[:0]
        mask = np.array(are_wanted)
        return ids[mask], ids[~mask]

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
        """Have these blocks copied up, with all that come until the next plan: a copy for each read would cost more."""
        if len(ids):
            self._holdings.read_begins(HOST, ids)
            self.arrived.append(ids)

    def _send_arrived(self) -> None:
        ids, self.arrived = np.concatenate(self.arrived), []
        place = self._holdings.residency.place
        self._outbox.send(Promote(self._outbox.next_number(), ids, place[HOST][ids], place[DEVICE][ids]))

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
            awaited, others = self._by_wanted(move.ids)
            self._lose(awaited, MissReason.COPY_FAILED)
            self._holdings.failed(DEVICE, others)
            return
        self._holdings.arrived(DEVICE, move.ids)
        for lease, of_lease in groupby(map(self._wanted.pop, move.ids.tolist(), repeat(_NOBODY)), _LEASE_OF):
            if lease is not None:
                positions = [position for _, position in of_lease]
                lease.ready[positions] = True
                lease.arriving[positions] = False
                lease.num_loading -= len(positions)

    def cancel(self, lease: Lease) -> None:
        """The request ends: what is not being copied to the device already will not be."""
        if not lease.num_loading:
            return
        self.waiting = [load for load in self.waiting if load.lease is not lease]
        lease.num_loading = 0
        ids = self._awaited_by(lease)
        if not len(ids):
            return
        for block in ids.tolist():
            del self._wanted[block]
        state = self._holdings.residency.state
        # what is in host memory is being copied up already; its slot stays taken until that copy ends
        self._holdings.failed(DEVICE, ids[state[HOST, ids] != PRESENT])

    def check(self) -> None:
        """Raise AssertionError unless what is to be copied up stays where it is, and has a place to go to."""
        residency = self._holdings.residency
        for ids in self.arrived:
            assert (residency.readers[HOST][ids] > 0).all(), "a block that is to be copied up may be evicted"
            assert (residency.state[DEVICE][ids] == WRITING).all(), (
                "a block to be copied up has no place there"
            )
        positions = [load.unread for load in self.waiting]
        assert all(len(each) and (np.diff(each) > 0).all() for each in positions), "reads are out of order"
        loads = [load for load, _ in self.reads.values()]
        reads = Counter(map(id, loads))
        assert all(load.num_reads == reads[id(load)] for load in loads), "a read is not counted"
        assert set(self.reads) == set(self._outbox.numbers(Read)), (
            "a read is nobody's, or is over and is not forgotten"
        )
