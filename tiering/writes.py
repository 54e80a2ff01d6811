"""Copying down ahead of need: host memory is kept clean enough that making room there is never a wait for the disk."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from kvstore.block import KEY_BYTES, BlockKey
from tiering.entry import Entry
from tiering.eviction import Eviction
from tiering.holdings import Holdings
from tiering.kernels import kernels
from tiering.moves import Ancestor, Lineage, Write, Written
from tiering.outbox import Outbox
from tiering.residency import ABSENT, DEVICE, DISK, HOST, NO_BLOCK, PRESENT, WRITING, Ids, Tier


@dataclass(slots=True)
class Sweep:
    """A request to move everything down to a tier. The core sets `done` when nothing more can be moved."""

    to: Tier
    then_free: bool
    """Whether the copies above are given up. Otherwise they stay, clean."""
    only: Ids | None = None
    """The blocks that it is about, each after its parent; None for all."""
    ids: Ids = field(default_factory=lambda: np.empty(0, dtype=np.intp))
    stuck: Ids = field(default_factory=lambda: np.empty(0, dtype=np.intp))
    """Those of them that could not be copied from the device: they stay there."""
    refused: bool = False
    """Whether writes have failed so often in a row that no more are asked for."""
    done: bool = False
    cut_off: bool = False
    """Whether it is done because another has begun."""
    num_left: int = 0
    """When it is done: blocks above the tier that are not in it."""


class Writes:
    """Decides which host blocks are written to disk, and when; carries out sweeps."""

    def __init__(
        self,
        holdings: Holdings,
        eviction: Eviction,
        outbox: Outbox,
        entry: Entry,
        *,
        root_key: BlockKey,
        reserved_bytes: int,
        batch: int,
        budget: int,
        batch_from: Callable[[int], int],
        clean_share: float,
        deadline_s: float,
    ) -> None:
        """Sizes of the work.

        `reserved_bytes`: the most that a block may take on disk; `batch`, `budget`: blocks in one write, in all
        writes in flight; `batch_from`: blocks in one write from an owner's part of host memory of so many slots; `clean_share`: of
        the host slots, those to be kept free or clean; `deadline_s`: how long a write may take.
        """
        self._holdings, self._eviction, self._outbox, self._entry = holdings, eviction, outbox, entry
        self._root_key = root_key
        self._reserved_bytes = reserved_bytes
        self._reserved = np.full(batch, reserved_bytes)
        self._batch, self._budget, self._deadline_s = batch, budget, deadline_s
        self._batch_from, self._clean_share = batch_from, clean_share
        self._kernels = kernels()
        self._sweep: Sweep | None = None
        self.num_failed = 0
        """Blocks whose write failed; they stay in host memory."""
        self.num_bytes = 0
        """Written, ever, after compression."""

    def resize(
        self,
        *,
        batch: int,
        batch_from: Callable[[int], int],
        budget: int,
        clean_share: float,
        deadline_s: float,
    ) -> None:
        """Other sizes of the work from now on."""
        self._reserved = np.full(batch, self._reserved_bytes)
        self._batch, self._batch_from, self._budget = batch, batch_from, budget
        self._clean_share, self._deadline_s = clean_share, deadline_s

    @property
    def _max_dirty(self) -> int:
        """The most blocks in host memory, which may still be growing, that the disk need not have."""
        holdings = self._holdings
        num_usable, target = holdings.slots[HOST].num_usable, holdings.host_target
        num_slots, too_many = num_usable, 0
        if num_usable > target:
            num_slots, too_many = target, holdings.num_host_slots_too_many
        return max(0, num_slots - max(1, int(num_slots * self._clean_share)) - too_many)

    # --- ahead of need --------------------------------------------------------------------------------------------

    def plan(self, *, disk_ready: bool) -> None:
        """Ask for writes while host memory holds too many blocks that only it has, and for the next part of a sweep."""
        if self._sweep is not None:
            self._plan_sweep(self._sweep, disk_ready=disk_ready)
        if not disk_ready:
            return
        holdings = self._holdings
        excess = holdings.num_dirty_host - self._outbox.blocks[Write] - self._max_dirty
        if excess <= 0 and not holdings.owners.several:
            return
        if self._entry.disk_waits:
            return
        # a batch at a time: writing single blocks would commit once for each
        if excess > 0:
            wanted = self._allowed(max(excess, self._batch))
            ids = self._eviction.admitted_to_disk(holdings.host_dirty.plain.peek(wanted))
            self._make_room(ids)
            self._write(ids)
        elif holdings.shares.on:
            self._write_of_owners()

    def _write_of_owners(self) -> None:
        """Likewise for each owner's part of host memory: what others keep clean is not there for it."""
        for owner, excess in self._holdings.shares.too_dirty(self._clean_share):
            excess -= self._num_writing(owner)
            if excess > 0:
                wanted = self._allowed(max(excess, self._batch))
                self._write(self._eviction.admitted_to_disk(self._holdings.host_dirty.of(owner, wanted)))

    def _num_writing(self, number: int) -> int:
        """Blocks of an owner that are on their way to the disk."""
        owner, writes = self._holdings.residency.owner, self._outbox.moves(Write)
        return sum(int(np.count_nonzero(owner[move.ids] == number)) for move in writes)

    def expire(self) -> None:
        """Wait no longer for the writes that have taken too long; what they write from stays taken until they end."""
        self._outbox.expire(Write, self._deadline_s)

    def deadline_s(self) -> float | None:
        """When `expire` will have something to give up, unless it ends before; None for never."""
        since_s = self._outbox.oldest_s(Write)
        return None if since_s is None else since_s + self._deadline_s

    def _allowed(self, wanted: int) -> int:
        """How many of these the budget has room for: all, or whole batches. What is left of it would be a commit for a block or two."""
        room = self._budget - self._outbox.blocks[Write]
        return wanted if wanted <= room else max(0, room // self._batch * self._batch)

    def _write(self, ids: Ids) -> int:
        """Ask for writes of host blocks, in batches, as far as the disk has room. How many were asked for."""
        num_asked = 0
        if self._holdings.disk_is_over:
            return 0  # what is too much there goes first, a part in each plan
        parted = self._parted
        for batch in self._batches(ids):
            if parted:  # what gave room may have taken what follows it along
                batch = batch[self._holdings.is_host_dirty(batch)]
                if not len(batch):
                    continue
            room = self._disk_room(batch, len(batch))
            batch = batch[: room // self._reserved_bytes]
            if len(batch):
                self._send(batch)
                num_asked += len(batch)
            elif not parted:
                break
        return num_asked

    @property
    def _parted(self) -> bool:
        """Whether not all blocks are alike: somebody holds some, or owners have quotas."""
        holdings = self._holdings
        return holdings.holds.are_any or (holdings.owners.several and holdings.shares.on)

    def _make_room(self, ids: Ids) -> None:
        """Have what is older than all of these, least recently used first, leave the disk for several batches at once."""
        if len(ids) > self._batch and not (self._parted or self._holdings.disk_is_over):
            most_blocks = self._holdings.disk_capacity_bytes // self._reserved_bytes
            self._disk_room(ids[: self._batch], num_blocks=min(len(ids), most_blocks))

    def _batches(self, ids: Ids) -> Iterator[Ids]:
        """Parts of these, those that are held on disk first; where owners have quotas, each of one owner's."""
        groups = [ids]
        if self._holdings.holds.are_any:
            held = self._holdings.holds.are_held_in(DISK, ids)
            groups = [ids[held], ids[~held]]
        sized = [(group, self._batch) for group in groups]
        if self._holdings.shares.on:
            owner = self._holdings.residency.owner
            _, entitled = self._holdings.shares.standing(HOST)
            # what is written from cannot give way to others, and only its owner's own do
            sized = [
                (
                    group[owner[group] == number],
                    min(self._batch, self._batch_from(int(entitled.item(number)))),
                )
                for group in groups
                for number in np.unique(owner[group]).tolist()
            ]
        for group, size in sized:
            for start in range(0, len(group), size):
                yield group[start : start + size]

    def _disk_room(self, batch: Ids, num_blocks: int) -> int:
        """The bytes that the disk has for a batch, and what follows it, of those that so many blocks may take at most.

        What is held there is worth more than all else.
        """
        holdings, num_bytes = self._holdings, num_blocks * self._reserved_bytes
        if holdings.disk_bytes + num_bytes <= holdings.disk_capacity_bytes:
            return num_bytes
        residency, holds = holdings.residency, holdings.holds
        held = holds.are_any and holds.are_held_in(DISK, batch[:1]).item()
        return self._eviction.disk_room(
            num_bytes,
            used_before=holdings.order.now + 1 if held else self._kernels.oldest_of(residency.stamp, batch),
            owner=residency.cells.owner[batch.item(0)],
        )

    def _send(self, batch: Ids) -> None:
        self._holdings.read_begins(HOST, batch)
        self._holdings.expect(DISK, batch, self._reserved[: len(batch)])
        self._entry.write(len(batch) * self._reserved_bytes)
        slots = self._holdings.residency.place[HOST][batch]
        self._outbox.send(Write(self._outbox.next_number(), batch, slots, self._unkeyed(batch)))

    def _unkeyed(self, ids: Ids) -> Ids:
        """The blocks, and all above them whose keys are not known: each after its parent, if that is one of them."""
        residency = self._holdings.residency
        room, had = 4 * len(ids), np.empty(len(ids), dtype=np.bool_)
        while True:
            found: Ids = np.empty(room, dtype=np.intp)
            num = self._kernels.find_unkeyed(residency.parent, residency.has_key, ids, had, found)
            if num >= 0:
                return found[:num]
            room *= 2

    def lineage(self, unkeyed: Ids) -> Lineage:
        """What it takes to compute the keys of such blocks: what there is to say of them, and the keys to start from.

        The parent of a block that has a key has one too: keys become known from the root down.
        """
        residency, parent_of = self._holdings.residency, self._holdings.residency.cells.parent
        blocks = unkeyed.tolist()
        lineage, known = list[Ancestor](), {NO_BLOCK: self._root_key}
        start = 0
        for end, block in enumerate(blocks, 1):
            if end == len(blocks) or parent_of[blocks[end]] != block:  # the last of a run
                lineage += self._ancestors(blocks[start:end])
                start = end
        for above in {each.parent_id for each in lineage}.difference(blocks, known):
            if (key := residency.key_of(above)) is not None:
                known[above] = key
        return tuple(lineage), known

    def _ancestors(self, run: list[int]) -> Iterator[Ancestor]:
        """What there is to say of blocks that follow one another."""
        parent_of, owner_of = self._holdings.residency.cells.parent, self._holdings.owner_of
        tokens = self._holdings.radix.tokens_up(run[-1], len(run))
        for block, some in zip(run, reversed(tokens), strict=True):
            yield Ancestor(block, parent_of[block], some, owner_of(block))

    def written(self, move: Write, answer: Written) -> None:
        """A write is over; keep the keys that it computed."""
        keys = np.frombuffer(answer.keys, dtype=np.uint8).reshape(-1, KEY_BYTES)
        self._holdings.residency.set_keys(move.unkeyed[: len(keys)], keys)
        self._holdings.read_ended(HOST, move.ids)
        before = self._holdings.disk_bytes - len(move.ids) * self._reserved_bytes
        if answer.error is None:
            self._holdings.arrived(DISK, move.ids, answer.stored_bytes)
            self.num_bytes += self._holdings.disk_bytes - before
        else:
            self._holdings.failed(DISK, move.ids)
            self.num_failed += len(move.ids)
        self._entry.write(self._holdings.disk_bytes - before - len(move.ids) * self._reserved_bytes)

    # --- sweeps ---------------------------------------------------------------------------------------------------

    def sweep(self, sweep: Sweep) -> None:
        """Begin to move everything down, most recently used first, a prefix before what follows it."""
        ids = sweep.only if sweep.only is not None else self._holdings.radix.subtree(NO_BLOCK)
        # parents first, and a stable sort keeps it so
        sweep.ids = ids[np.argsort(-self._holdings.residency.stamp[ids], kind="stable")]
        if self._sweep is not None:
            self._sweep.done = self._sweep.cut_off = True
        self._sweep = sweep

    def not_demoted(self, ids: Ids) -> None:
        """A copy down has failed: the sweep leaves these blocks where they are, or it might try for ever."""
        if self._sweep is not None:
            self._sweep.stuck = np.union1d(self._sweep.stuck, ids)

    def refused(self) -> None:
        """Writes keep failing: the sweep does without the rest of them, or it might try for ever."""
        if self._sweep is not None:
            self._sweep.refused = True

    def _plan_sweep(self, sweep: Sweep, *, disk_ready: bool) -> None:
        writes = sweep.to is DISK and disk_ready and not sweep.refused
        writing = writes and self._sweep_host(sweep.ids)
        num_demoted = self._sweep_device(sweep.ids[~np.isin(sweep.ids, sweep.stuck)])
        residency = self._holdings.residency
        moving = (residency.state[HOST:, sweep.ids] == WRITING).any() or residency.readers[:, sweep.ids].any()
        if not (writing or num_demoted or (moving and self._outbox.is_moving)):
            self._finish(sweep)

    def _sweep_host(self, ids: Ids) -> bool:
        """Ask for writes of what the host has and the disk has not. Whether any are asked for, or wait for others to end."""
        state, readers = self._holdings.residency.state, self._holdings.residency.readers
        dirty = ids[(state[HOST, ids] == PRESENT) & (state[DISK, ids] == ABSENT) & (readers[HOST, ids] == 0)]
        allowed = self._allowed(len(dirty))
        waiting = not allowed and len(dirty) > 0 and self._outbox.blocks[Write] > 0
        return self._write(dirty[:allowed]) > 0 or waiting

    def _sweep_device(self, ids: Ids) -> int:
        """Ask for copies to the host of what only the device has. How many blocks."""
        state, readers = self._holdings.residency.state, self._holdings.residency.readers
        alone = (state[HOST, ids] == ABSENT) & (state[DISK, ids] == ABSENT)
        above = ids[alone & (state[DEVICE, ids] == PRESENT) & (readers[DEVICE, ids] == 0)]
        slots = self._eviction.host_slots_for_sweep(min(len(above), self._budget))
        self._eviction.demote(above[: len(slots)], slots, then_free=False)
        return len(slots)

    def _finish(self, sweep: Sweep) -> None:
        if sweep.then_free:
            state, leases = self._holdings.residency.state, self._holdings.residency.leases
            for tier in (tier for tier in (DEVICE, HOST) if tier < sweep.to):
                below = (state[tier + 1 :, sweep.ids] == PRESENT).any(axis=0)
                going = (state[tier, sweep.ids] == PRESENT) & below & (leases[sweep.ids] == 0)
                if self._holdings.holds.are_any:
                    going &= self._holdings.may_leave(tier, sweep.ids)
                self._holdings.left(tier, sweep.ids[going])
        state, live = self._holdings.residency.state[:, sweep.ids], self._holdings.residency.live[sweep.ids]
        above = (state[: sweep.to] == PRESENT).any(axis=0) & live
        sweep.num_left = int((above & (state[sweep.to] != PRESENT)).sum())
        sweep.done = True
        self._sweep = None

    @property
    def sweeping(self) -> bool:
        """Whether a sweep is under way."""
        return self._sweep is not None
