"""The core: one index over all tiers. No I/O, no thread, no clock: events come in, moves go out.

The driver (TieredCache in real time, a simulator on a virtual clock) calls it from one thread::

    admit / publish / append / release      what requests do
    answer(...)                             a move that the driver was asked for is over
    plan(now_s) -> moves                    what to do next, in this order
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import numpy as np

from kvstore.block import BlockKey
from kvstore.store import BlockMeta
from tiering.eviction import Eviction
from tiering.holdings import ABSENT, DEVICE, DISK, HOST, PRESENT, WRITING, Holdings
from tiering.holes import Holes
from tiering.lease import Lease
from tiering.loads import Loads
from tiering.moves import Answer, Copied, Demote, Forget, HasRead, Move, Promote, Read, Write, Written
from tiering.outbox import Outbox
from tiering.radix import Tokens
from tiering.residency import NO_BLOCK, Ids, Tier
from tiering.rest import Rest
from tiering.restore import restore
from tiering.slot_table import SlotState
from tiering.writes import Sweep, Writes


class Wait(Enum):
    """Why a request is not admitted yet. It holds nothing, and is matched again when it is tried again."""

    FOR_BLOCKS = auto()
    """Another request is computing or loading blocks that this one shares."""
    FOR_ROOM = auto()
    """The device has no room; blocks are on their way out, or running requests must end first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """Sizes of the tiers and of the work that may be in flight. Raises ValueError for what cannot work."""

    block_tokens: int
    device_slots: int
    host_slots: int
    disk_bytes: int = 0
    """The most that this namespace may take on disk; 0 for no disk tier."""
    record_bytes: int = 0
    """The most that one block may take on disk."""
    loads: bool = True
    """Whether blocks below the device are brought back; otherwise they are computed again."""
    read_batch_blocks: int = 8
    """Small, so that copying up begins early and threads share one request's blocks."""
    read_budget_blocks: int = 64
    write_batch_blocks: int = 16
    """One commit a batch."""
    write_budget_blocks: int = 64
    clean_share: float = 0.5
    """Of the host slots, those kept free or on disk as well, so that demotion finds a place without waiting."""
    hole_ttl_s: float = 300.0
    """How long the blocks below a lost one wait for it to be computed again before they are dropped."""
    disk_failures: int = 3
    """Failed reads in a row after which blocks on disk are computed rather than read; failed writes, none written ..."""
    disk_rest_s: float = 30.0
    """... for so long."""

    def __post_init__(self) -> None:
        if self.device_slots < 1:
            raise ValueError(f"the device must hold at least one block, not {self.device_slots}")
        if self.disk_bytes and not self.host_slots:
            raise ValueError("a disk tier needs host memory to read into: host_slots is 0")
        if self.disk_bytes and self.record_bytes < 1:
            raise ValueError(f"record_bytes must be given with a disk tier, not {self.record_bytes}")


class Index:
    """Which block lives where, and what moves next. See the module docstring; one thread calls it."""

    def __init__(self, config: IndexConfig, root_key: BlockKey) -> None:
        """`root_key`: the parent key of every prompt's first block (Namespace.root_key)."""
        self.config = config
        self._root_key = root_key
        self._holdings = Holdings(
            block_tokens=config.block_tokens,
            device_slots=config.device_slots,
            host_slots=config.host_slots,
            disk_bytes=config.disk_bytes,
        )
        self._outbox = Outbox()
        self._eviction = Eviction(self._holdings, self._outbox)
        self._loads = Loads(
            self._holdings,
            self._eviction,
            self._outbox,
            root_key=root_key,
            batch=config.read_batch_blocks,
            budget=config.read_budget_blocks,
        )
        self._writes = Writes(
            self._holdings,
            self._eviction,
            self._outbox,
            root_key=root_key,
            reserved_bytes=max(1, config.record_bytes),
            batch=config.write_batch_blocks,
            budget=config.write_budget_blocks,
            clean_share=config.clean_share,
        )
        self._holes = Holes(self._holdings, self._eviction, config.hole_ttl_s)
        self._now_s = 0.0
        self._reads_rest = Rest(config.disk_failures, config.disk_rest_s)
        self._writes_rest = Rest(config.disk_failures, config.disk_rest_s)
        self._leases: list[Lease] = []

    # --- requests -------------------------------------------------------------------------------------------------

    def admit(self, tokens: Tokens, num_blocks: int) -> Lease | Wait:
        """Give a request its path and `num_blocks` device slots, all or nothing, and start its loads.

        `tokens`: the prompt, 1-D contiguous little-endian int32; `num_blocks` must have room for it. At most
        floor((n - 1) / block_tokens) of its blocks match, so that one token is always computed. What is left of its
        whole blocks is entered in the index as being computed by this request: whoever shares it waits. Raises
        ValueError if the slots do not exist at all, or are too few for the prompt.
        """
        if num_blocks > self.config.device_slots:
            raise ValueError(
                f"{num_blocks} blocks will never fit into {self.config.device_slots} device slots"
            )
        if len(tokens) > num_blocks * self.config.block_tokens:
            raise ValueError(f"{len(tokens)} tokens need more than {num_blocks} blocks")
        matched = self._match(tokens)
        if self._pending(matched):
            return Wait.FOR_BLOCKS
        # leased while room is made, or the path might be what is evicted
        self._holdings.lease(matched)
        state = self._holdings.residency.state
        absent = np.flatnonzero(state[DEVICE, matched] != PRESENT)
        # and read: its host copies would be clean, if the disk has them too, and first to go
        in_host = matched[absent][state[HOST, matched[absent]] == PRESENT]
        self._holdings.read_begins(HOST, in_host)
        has_room = self._eviction.device_room(num_blocks - len(matched) + len(absent))
        self._holdings.read_ended(HOST, in_host)
        if not has_room:
            self._holdings.release(matched)
            return Wait.FOR_ROOM
        lease = self._grant(tokens, matched, absent, num_blocks)
        self._holdings.release(matched)
        return lease

    def lookup(self, tokens: Tokens) -> dict[str, int]:
        """How many tokens of a prompt each tier would serve now, by the tier's label. Changes nothing."""
        nearest = self._holdings.residency.nearest_tier(self._match(tokens))
        return {tier.label: int((nearest == tier).sum()) * self.config.block_tokens for tier in Tier}

    def _match(self, tokens: Tokens) -> Ids:
        """The path of whole blocks that a prompt could use, as far as they are somewhere or on their way to the device."""
        num_tokens = max(0, len(tokens) - 1) // self.config.block_tokens * self.config.block_tokens
        matched = self._holdings.radix.match(tokens[:num_tokens])
        state = self._holdings.residency.state
        usable = state[DEVICE, matched] != ABSENT
        if self.config.loads:
            usable |= state[HOST, matched] != ABSENT
            if self._reads_rest.over(self._now_s):
                usable |= state[DISK, matched] == PRESENT
        ends = np.flatnonzero(~usable)
        return matched[: ends[0]] if len(ends) else matched

    def _pending(self, matched: Ids) -> bool:
        """Whether a block is being computed or loaded for another request."""
        state = self._holdings.residency.state
        on_its_way = (state[DEVICE, matched] == WRITING) | (
            (state[DEVICE, matched] == ABSENT) & (state[HOST, matched] == WRITING)
        )
        return bool(on_its_way.any())

    def _grant(self, tokens: Tokens, matched: Ids, absent: Ids, num_blocks: int) -> Lease:
        """Take the slots, enter the rest of the prompt into the index, and start the loads."""
        residency, table = self._holdings.residency, self._holdings.slots[DEVICE]
        found_in = residency.nearest_tier(matched).astype(np.int8)
        loading = table.take(len(absent), SlotState.IN_FLIGHT)
        private = table.take(num_blocks - len(matched), SlotState.PRIVATE)
        assert loading is not None and private is not None, "room was made for both"
        self._holdings.expect(DEVICE, matched[absent], loading)
        slots = np.concatenate([residency.place[DEVICE, matched], private]).astype(np.intp)
        whole = len(tokens) // self.config.block_tokens * self.config.block_tokens
        path = self._holdings.radix.insert(tokens[:whole])
        lease = Lease(path, slots, found_in)
        lease.ready[: len(matched)] = True
        lease.ready[absent] = False
        self._holdings.lease(path)
        self._leases.append(lease)
        self._claim(lease, len(matched), len(path))
        self._loads.start(lease, absent)
        return lease

    def _claim(self, lease: Lease, start: int, end: int) -> None:
        """Have this request compute, for all, the blocks in [start, end) that the device neither has nor expects."""
        ids = lease.ids[start:end]
        mine = start + np.flatnonzero(self._holdings.residency.state[DEVICE, ids] == ABSENT)
        self._holdings.slots[DEVICE].turn(lease.slots[mine], SlotState.PRIVATE, SlotState.IN_FLIGHT)
        self._holdings.expect(DEVICE, lease.ids[mine], lease.slots[mine])
        lease.filling[mine] = True

    def publish(self, lease: Lease, start: int, end: int) -> None:
        """The request has computed the blocks at positions [start, end): whole blocks become usable for all."""
        lease.ready[start:end] = True
        indexed = slice(start, min(end, len(lease.ids)))
        filled = start + np.flatnonzero(lease.filling[indexed])
        lease.filling[filled] = False
        self._holdings.arrived(DEVICE, lease.ids[filled])

    def append(self, lease: Lease, tokens: Tokens) -> None:
        """The reply has filled the next whole block behind the indexed path: index it, unless it is there already.

        `tokens`: its token ids, [block_tokens] int32. Its KV is in the slot at position len(lease.ids).
        """
        position = len(lease.ids)
        above = lease.ids.item(-1) if position else NO_BLOCK
        block = self._holdings.radix.extend(above, np.ascontiguousarray(tokens, dtype="<i4").tobytes())
        lease.ids = np.concatenate([lease.ids, block])
        self._holdings.residency.lease(block)
        self._holdings.order.touch(lease.ids)
        self._claim(lease, position, position + 1)
        self.publish(lease, position, position + 1)

    def release(self, lease: Lease) -> None:
        """The request has ended, in whatever way: give back what is its own, keep what is cached."""
        assert not lease.released, "a lease is released once"
        lease.released = True
        self._leases.remove(lease)
        cancelled = self._loads.cancel(lease)
        unfilled = lease.ids[np.flatnonzero(lease.filling[: len(lease.ids)])]
        self._holdings.failed(DEVICE, unfilled)
        table = self._holdings.slots[DEVICE]
        table.free(lease.slots[table.states(lease.slots) == SlotState.PRIVATE], SlotState.PRIVATE)
        self._holdings.release(lease.ids)
        self._hand_over(cancelled)
        self._hand_over(unfilled)
        self._holes.prune(lease.ids[::-1], self._now_s)

    def _hand_over(self, ids: Ids) -> None:
        """Blocks that were on their way to the device and are not any more: whoever else holds them provides them.

        So a leased block always is on the device or on its way there.
        """
        for block in ids[self._holdings.residency.leases[ids] > 0].tolist():
            heirs = [(lease, lease.position_of(block)) for lease in self._leases]
            found = [(lease, position) for lease, position in heirs if position is not None]
            # best who has computed its private copy already
            lease, position = max(found, key=lambda heir: heir[0].ready.item(heir[1]))
            self._claim(lease, position, position + 1)
            if lease.ready.item(position):
                self.publish(lease, position, position + 1)

    # --- the driver -----------------------------------------------------------------------------------------------

    def answer(self, answer: Answer) -> None:
        """A move that the driver was asked for is over."""
        move = self._outbox.answered(answer)
        match move, answer:
            case Demote(), Copied():
                self._eviction.demoted(move, answer.error)
            case Promote(), Copied():
                self._hand_over(self._loads.promoted(move, answer.error))
            case Read(), HasRead():
                self._reads_rest.note(answer.error, self._now_s)
                self._holes.prune(self._loads.was_read(move, answer), self._now_s)
            case Write(), Written():
                self._writes_rest.note(answer.error, self._now_s)
                self._writes.written(move, answer)
            case _:
                raise AssertionError(f"{type(answer).__name__} does not answer {type(move).__name__}")

    def plan(self, now_s: float) -> list[Move]:
        """What to do next. `now_s`: seconds on any clock that does not go backwards. Loads come before writes."""
        self._now_s = max(now_s, self._now_s)
        self._holes.expire(self._now_s)
        self._loads.plan()
        self._writes.plan(disk_ready=self._has_disk and self._writes_rest.over(self._now_s))
        return self._outbox.take()

    def sweep(self, to: Tier, *, then_free: bool) -> Sweep:
        """Move everything that can be moved down to `to`, over the next plans; an earlier sweep ends."""
        sweep = Sweep(to, then_free)
        self._writes.sweep(sweep)
        return sweep

    def clear(self) -> bool:
        """Forget every block in every tier that is not in use. False if something is, and stays."""
        residency = self._holdings.residency
        roots = np.flatnonzero(residency.live & (residency.parent < 0))
        removed = [self._eviction.remove(block) for block in roots.tolist()]
        return all(removed)

    def restore(self, found: Iterable[BlockMeta]) -> None:
        """Enter what a store holds into an empty index. Records whose parents are missing are forgotten."""
        assert not len(self._holdings.radix), "only an empty index can be restored"
        orphans = restore(self._holdings, self._root_key, found)
        if orphans:
            self._outbox.send(Forget(tuple(orphans)))
        self._eviction.fit_disk()  # the capacity may be smaller than it was

    @property
    def _has_disk(self) -> bool:
        return self.config.disk_bytes > 0

    # --- figures --------------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether no move is asked for or in flight and no sweep is under way."""
        return self._outbox.idle and not self._writes.sweeping

    def stats(self) -> dict[str, Any]:
        """A snapshot: blocks, slots and counts by tier. See docs/architecture.md for the meaning of each."""
        tiers = self._holdings.stats()
        rests = (self._reads_rest, self._writes_rest)
        tiers[DISK.label]["ready"] = self._has_disk and all(rest.over(self._now_s) for rest in rests)
        tiers[DISK.label]["failed_writes"] = self._writes.num_failed
        for tier in Tier:
            tiers[tier.label]["evicted"] = self._eviction.evicted[tier]
            tiers[tier.label]["dropped"] = self._eviction.dropped[tier]
        return {
            "tiers": tiers,
            "blocks": len(self._holdings.radix),
            "leases": len(self._leases),
            "failed_loads": {reason.value: count for reason, count in self._loads.misses.items()},
        }

    def check(self) -> None:
        """Raise AssertionError unless every part is consistent, and leases hold what they must."""
        self._holdings.check()
        self._holes.check()
        residency = self._holdings.residency
        leased = Counter(block for lease in self._leases for block in lease.ids.tolist())
        live = np.flatnonzero(residency.live)
        assert residency.leases[live].tolist() == [leased[block] for block in live.tolist()], (
            "a lease is lost"
        )
        held = live[residency.leases[live] > 0]
        assert (residency.state[DEVICE, held] != ABSENT).all(), "a leased block is not coming to the device"
