"""The core: one index over all tiers. No I/O, no thread, no clock: events come in, moves go out.

The driver (TieredCache in real time, models of memory on a virtual clock in tests) calls it from one thread::

    admit / grow / publish / preempt / release      what requests do
    answer(...)                                     a move that the driver was asked for is over
    plan(now_s) -> moves                            what to do next, in this order
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from kvstore.block import BlockKey
from kvstore.reasons import MissReason
from kvstore.reports import Removed
from kvstore.store import BlockRef
from tiering.by_hand import ByHand
from tiering.choosing import Choosing
from tiering.claim import NO_CLAIM, Claim
from tiering.decision import Chooser
from tiering.disk_health import DiskHealth
from tiering.endings import Endings
from tiering.entry import Entry
from tiering.errands import Steps
from tiering.events import EventLog
from tiering.eviction import Eviction, Room
from tiering.expiry import Expiry
from tiering.figures import Figures
from tiering.fingerprints import fingerprints
from tiering.found import Found
from tiering.holdings import Holdings
from tiering.holes import Holes
from tiering.index_config import LIVE, IndexConfig, uses_told_within_s
from tiering.keep import Keep
from tiering.keeping import Told, admission_named
from tiering.lease import Lease
from tiering.leases import Leases, Wait
from tiering.loads import Loads
from tiering.lookups import Lookups
from tiering.matching import CacheUse, Matching
from tiering.moves import (
    Answer,
    Lineage,
    Move,
    Promote,
    Read,
    Wanted,
    Write,
)
from tiering.observation import Observed
from tiering.observer import Observer
from tiering.outbox import Outbox
from tiering.policies import policy_named
from tiering.radix import Tokens
from tiering.residency import DISK, HOST, PRESENT, Ids, Tier
from tiering.restore import Restore
from tiering.retention import Retention
from tiering.sizes import Sizes
from tiering.swaps import Stash, Swaps
from tiering.uses import Uses
from tiering.walk import Nodes, walk
from tiering.writes import Sweep, Writes

_log = logging.getLogger(__name__)


class Index:
    """Which block lives where, and what moves next. See the module docstring; one thread calls it."""

    def __init__(
        self,
        config: IndexConfig,
        root_key: BlockKey,
        *,
        block_bytes: int = 0,
        events: EventLog | None = None,
        chooser: Chooser | None = None,
        seed: int | None = None,
    ) -> None:
        """`root_key`: the parent key of every prompt's first block (Namespace.root_key).

        `block_bytes`: what a block takes in memory, for figures; `events`: where to note what happens.
        `chooser`: asked how much of each match to load; without one all of it is. `seed`: see RadixIndex.
        """
        self.config = config
        self.events = EventLog() if events is None else events
        self._holdings = Holdings(
            block_tokens=config.block_tokens,
            device_slots=config.device_slots,
            host_slots=config.host_slots,
            later_host_slots=config.later_host_slots,
            disk_bytes=config.disk_bytes,
            policy=policy_named(config.policy),
            chooses=config.admission != "all",
            quotas=config.quotas,
            high_s=config.high_s,
            seed=seed,
        )
        self._entry = Entry(
            self._holdings,
            None if config.admission == "all" else admission_named(config.admission),
            record_bytes=config.record_bytes,
            bytes_a_day=config.disk_bytes_a_day,
        )
        self._outbox = Outbox()
        self._disk = DiskHealth(config, self._outbox)
        self._holes = Holes(self._holdings, config.hole_ttl_s)
        self._eviction = Eviction(
            self._holdings, self._holes, self._outbox, self._entry, remembers=config.explains
        )
        self._loads = Loads(
            self._holdings,
            self._eviction,
            self._outbox,
            root_key=root_key,
            threads=config.read_threads,
            batch=config.read_batch_blocks,
            budget=config.blocks_in_reads,
            deadline_s=config.io_deadline_s,
        )
        self._writes = Writes(
            self._holdings,
            self._eviction,
            self._outbox,
            self._entry,
            root_key=root_key,
            reserved_bytes=max(1, config.record_bytes),
            batch=config.blocks_per_write,
            budget=config.write_budget_blocks,
            batch_from=config.blocks_written_from,
            clean_share=config.clean_share,
            deadline_s=config.io_deadline_s,
        )
        self._sizes = Sizes(self._holdings, self._eviction)
        self._most_host_slots = config.host_slots
        self._num_settings_changed = 0
        self._swaps = Swaps(self._holdings, self._eviction, self._outbox)
        self._expiry = Expiry(self._holdings, self._eviction, config.ttl_s)
        self.retention = Retention(
            self._holdings,
            self._holes,
            self._expiry,
            self._outbox,
            self.events,
            share=config.held_share,
            record_bytes=max(1, config.record_bytes),
            terms_changed=self._tell_uses_in_time,
        )
        """What users asked to keep."""
        self._uses = Uses(self._holdings, self._outbox, config.uses_told_within_s)
        self._restore = Restore(self._holdings, self._eviction, self._expiry, self.retention, self._outbox)
        self._lookups = Lookups()
        self._matching = Matching(
            self._holdings,
            self._loads,
            self._expiry,
            Observer(
                self._holdings,
                self._eviction.departed,
                self._loads,
                self._expiry,
                self._restore,
                host_loads=config.loads,
                mark_shift=config.mark_shift,
            ),
            host_loads=config.loads,
            min_prefix_tokens=config.min_prefix_tokens,
        )
        self._leases = Leases(
            self._holdings,
            self._matching,
            self._lookups,
            self._holes,
            self._eviction,
            self._loads,
            self._swaps,
            self._expiry,
            self.retention,
            explains=config.explains,
        )
        self._by_hand = ByHand(self._holdings, self._eviction, self._writes, self.events)
        self.keep = Keep(self._holdings, self._matching, self.retention, self._by_hand)
        """What users ask to have held."""
        self._choosing: Choosing | None = None
        if chooser is not None:
            self._choosing = Choosing(chooser, self._holdings, self._loads, block_bytes=block_bytes)
        self._endings = Endings(
            self._eviction,
            self._holes,
            self._loads,
            self._writes,
            self._swaps,
            self._uses,
            self.retention,
            self._disk,
            self._outbox,
            self.events,
            self._choosing,
            block_bytes=block_bytes,
        )
        self._now_s = 0.0
        self._figures = Figures(
            self._holdings,
            self._lookups,
            self._leases,
            self._eviction,
            self._entry,
            self._loads,
            self._writes,
            self._swaps,
            self._expiry,
            self.retention,
            self._restore,
            self._by_hand,
            self._disk,
            self._outbox,
            self.events,
            self._choosing,
            block_bytes=block_bytes,
        )

    # --- requests -------------------------------------------------------------------------------------------------

    def admit(
        self,
        tokens: Tokens,
        max_blocks: int,
        *,
        chunk_blocks: int,
        compute_last: bool = True,
        stash: Stash | None = None,
        use: CacheUse = CacheUse.READ_WRITE,
        claim: Claim = NO_CLAIM,
    ) -> Lease | Wait:
        """Give a request its path and the device slots that it needs to begin, all or nothing, and start its loads.

        `tokens`: the prompt, 1-D contiguous little-endian int32; `max_blocks`: the most that it may grow to, with room
        for the prompt; `chunk_blocks`: how far behind the matched prefix the first chunk reaches. It gets slots for the
        prefix, that chunk, and a block to decode into. With `compute_last` one token is always left to be computed: at
        most floor((n - 1) / block_tokens) blocks match. What is left of its whole blocks is entered in the index as
        being computed by this request: whoever shares it waits. `stash`: what `preempt` answered, unless it is lost;
        it is copied back up, and then over. `use`: without leave to write nothing is entered.
        `claim`: whose its blocks are, and how long they are to be kept.

        Raises ValueError if so many slots do not exist at all, or are too few for the prompt.
        """
        if max_blocks > self.config.device_slots:
            raise ValueError(
                f"{max_blocks} blocks will never fit into {self.config.device_slots} device slots"
            )
        if len(tokens) > max_blocks * self.config.block_tokens:
            raise ValueError(f"{len(tokens)} tokens need more than {max_blocks} blocks")
        found = matched = self._match(tokens, compute_last=compute_last, use=use)
        too_short = use is CacheUse.READ_WRITE and self._matching.is_too_short(tokens)
        if too_short:
            use = CacheUse.READ
        # what was preempted comes back whole; and for what is on its way a request waits
        chosen = None
        if self._choosing is not None and stash is None and not self._matching.is_pending(found):
            chosen = self._choosing.choose(tokens, found)
        if chosen is not None:
            matched = found[: chosen[1].num_blocks]
        outcome = self._leases.admit(
            tokens,
            matched,
            max_blocks,
            chunk_blocks,
            stash,
            use,
            claim,
            compute_last=compute_last,
        )
        if not isinstance(outcome, Lease):
            return outcome
        if too_short:
            self.not_indexed(tokens, len(matched), MissReason.TOO_SHORT)
        if use is not CacheUse.OFF:
            self._lookups.note(self._matching.num_usable(tokens, compute_last=compute_last))
        if self._choosing is not None and chosen is not None:
            self._choosing.taken(outcome, *chosen)
        return outcome

    def computed(self, lease: Lease, num_tokens: int, *, load_s: float, prefill_s: float) -> None:
        """A prompt of so many tokens is computed: its loads took `load_s` from admission on, what they left `prefill_s`."""
        if self._choosing is not None:
            self._choosing.computed(lease, num_tokens, load_s=load_s, prefill_s=prefill_s)

    def _match(
        self, tokens: Tokens, *, compute_last: bool = True, use: CacheUse = CacheUse.READ_WRITE
    ) -> Ids:
        return self._matching.match(
            tokens, compute_last=compute_last, disk_ready=self._disk.can_read, use=use
        )

    def lookup(self, tokens: Tokens) -> dict[str, int]:
        """How many tokens of a prompt each tier would serve now, by the tier's label. Changes nothing."""
        nearest = self._holdings.residency.nearest_tier(self._match(tokens))
        return {tier.label: int((nearest == tier).sum()) * self.config.block_tokens for tier in Tier}

    def observe(self, tokens: Tokens, use: CacheUse = CacheUse.READ_WRITE) -> Observed:
        """What there is of a prompt now: for `tiering.explain`. Changes nothing."""
        return self._matching.observe(tokens, self._match(tokens, use=use), compute_last=True, use=use)

    def not_indexed(
        self, tokens: Tokens, start: int, reason: MissReason = MissReason.REPLY_NOT_INDEXED
    ) -> None:
        """The blocks of these tokens from position `start` on were computed, and nobody is to find them: remember why."""
        radix = self._holdings.radix
        chain = fingerprints(tokens, radix.block_tokens, radix.seed)[start:]
        self._eviction.departed.note(chain, len(Tier), reason, self._now_s)

    def num_matching(self, tokens: Tokens, use: CacheUse = CacheUse.READ_WRITE) -> int:
        """How many leading blocks of a prompt would not be computed again, those on their way included."""
        return len(self._match(tokens, use=use))

    def fork(self, lease: Lease, num_used: int, max_blocks: int) -> Lease | None:
        """Another lease for a second reply to the same computed prompt; None if there is no room for it now.

        It shares the path. Behind that, up to position `num_used`, it has slots of its own, into which the caller must
        copy the first one's before anything is computed in them; and one more to decode into.
        """
        return self._leases.fork(lease, num_used, max_blocks)

    def make_room(self, num_blocks: int) -> None:
        """Let idle blocks leave the device until so many slots are free, or will be."""
        self._eviction.device_room(num_blocks)

    def grow(self, lease: Lease, num_blocks: int) -> Room:
        """Extend the block table to `num_blocks`, if that is more. Room.NOW if it is done; else nothing has changed."""
        return self._leases.grow(lease, num_blocks)

    def publish(self, lease: Lease, tokens: Tokens, start: int, end: int) -> None:
        """The request has computed the blocks at positions [start, end): whole blocks become usable for all.

        `tokens`: its tokens from the first on, as far as they may be indexed, 1-D contiguous int32. Blocks behind the
        path extend it; where another request was faster, its block is used from now on, and `lease.slots` says so.
        """
        self._leases.publish(lease, tokens, start, end)

    def preempt(self, lease: Lease, num_used: int) -> Stash | None:
        """`release`, but keep what the request computed for itself behind the indexed path, up to `num_used` blocks.

        None if there is no such thing, or no place for it: then it is lost.
        """
        return self._leases.preempt(lease, num_used)

    def drop(self, stash: Stash) -> None:
        """The preempted request will not come back. A stash that is over already is fine."""
        self._swaps.drop(stash)

    def release(self, lease: Lease, told: Told | None = None) -> None:
        """The request has ended, in whatever way: give back what is its own, keep what is cached.

        `told`: what the admission is to learn from it, and to judge its blocks by: what is not worth a place is first to leave
        the device, until it is found again. None: it learns nothing, and all blocks were used now.
        """
        self._leases.release(lease)
        if told is not None and self._entry.learns:
            self._entry.ended(lease.ids, lease.num_cached_blocks, told)

    # --- the driver -----------------------------------------------------------------------------------------------

    def answer(self, answer: Answer) -> None:
        """A move that the driver was asked for is over."""
        self._endings.answer(answer)

    def lineage(self, move: Write) -> Lineage:
        """What it takes to compute the keys for a write that is not over."""
        return self._writes.lineage(move.unkeyed)

    def refs(self, move: Read) -> tuple[BlockRef, ...]:
        """What a store is asked for in a read that is not over: identities of its blocks, in its order."""
        return self._loads.refs(move)

    def arriving(self, number: int) -> None:
        """The first layers of what a Promote or SwapIn brings are there; its answer is still to come."""
        move = self._outbox.in_flight(number)
        if isinstance(move, Promote):
            self._loads.arriving(move)

    def at(self, now_s: float) -> None:
        """It is `now_s`, in seconds on any clock that does not go backwards. What is used from here on is used then.

        Between plans, for whoever may come long after the last one: it must not find what has expired since then.
        """
        if now_s > self._now_s:
            self._now_s = self._holdings.order.now_s = self._outbox.now_s = now_s
        if not self._expiry.terms.are_endless:
            self._expiry.at(self._now_s)
        if self._holdings.ranks.in_use:
            self._holdings.at(self._now_s)

    def plan(self, now_s: float) -> list[Move]:
        """What to do next. `now_s`: as for `at`. Loads come before writes."""
        self.at(now_s)
        restoring, loads, retention = self._restore.under_way, self._loads, self.retention
        # parts are asked where they have something to do: most plans ask for little
        if not self._expiry.terms.are_endless:
            self._expiry.plan()
        if restoring is not retention.restoring or self._now_s >= retention.due_s:
            retention.plan(restoring=restoring)
        if self._holes.found_s:
            self._holes.expire(self._now_s, self._drop_behind)
        if loads.reads or loads.timed:
            loads.expire()
        if self._outbox.blocks[Write]:
            self._writes.expire()
        can_write = self._disk.can_write
        if loads.waiting and not self._disk.can_read:
            loads.give_up(MissReason.TIER_OFF)
        if loads.arrived or loads.waiting:
            loads.plan()
        if not restoring:  # or what is there already would be written again
            self._writes.plan(disk_ready=can_write)
        self._sizes.plan(writing=self._outbox.blocks[Write] > 0)
        if loads.waiting:
            loads.give_way()
        if self._uses.are_told:
            self._uses.plan(self._now_s, disk_ready=can_write and not restoring)
        if self.events.are_kept:
            self._figures.tell()
        return self._outbox.take()

    def _drop_behind(self, hole: int) -> bool:
        return self._eviction.drop(hole, DISK, MissReason.BEHIND_A_LOSS)

    def deadline_s(self) -> float | None:
        """When `plan` must be called again even if nothing ends before; None for never."""
        parts = (self._loads, self._writes, self._expiry, self._uses, self.retention)
        deadlines = [*(part.deadline_s() for part in parts), self._sizes.deadline_s]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def host_grows(self, num_slots: int) -> None:
        """So many host slots are ready, those from before among them."""
        assert num_slots <= self._most_host_slots, f"{num_slots} host slots are more than there will be"
        self._holdings.slots[HOST].grow(num_slots)
        self._sizes.fit_host()
        self._holdings.show_held()
        self.events.append("host_grew", slots=num_slots)

    def sweep(self, to: Tier, *, then_free: bool) -> Sweep:
        """Move everything that can be moved down to `to`, over the next plans; an earlier sweep ends."""
        sweep = Sweep(to, then_free)
        self._writes.sweep(sweep)
        return sweep

    # --- for other threads ----------------------------------------------------------------------------------------

    def walk(self) -> Steps[list[Nodes]]:
        """An errand: all nodes, for a listing."""
        return walk(self._holdings)

    def remove_prefix(self, path: bytes, start: int) -> Steps[Removed]:
        """An errand: forget what is idle of a path's blocks from position `start` on, and of all that follows the first.

        `path`: the tokens of whole blocks. Raises KeyError if they are not in the index.
        """
        return self._by_hand.remove(path, start)

    def demote_prefix(self, path: bytes, start: int, to: Tier) -> Steps[Removed]:
        """An errand: the same moved down to a tier. RuntimeError if there is no such tier."""
        if not (self.config.disk_bytes if to is DISK else self.config.host_slots):
            raise RuntimeError(f"there is no {to.label} tier to move blocks down to")
        return self._by_hand.demote(path, start, to)

    @property
    def num_changes(self) -> int:
        """What was changed by hand, ever: it may have made room."""
        return self._by_hand.num_removed + self._num_settings_changed

    # --- settings -------------------------------------------------------------------------------------------------

    def change(self, **changes: Any) -> None:
        """Go on with another `config`: of its fields only LIVE ones may change.

        A tier that becomes smaller does so over the next plans. Raises ValueError, and changes nothing, for what cannot
        work, for more host slots than there were at the start, and for a disk tier that comes or goes.
        """
        if wrong := sorted(changes.keys() - LIVE):
            raise ValueError(
                f"{', '.join(wrong)} cannot be changed; changeable are {', '.join(sorted(LIVE))}"
            )
        later: dict[str, Any] = {"later_host_slots": 0} if "host_slots" in changes else {}
        config = replace(self.config, **changes, **later)
        if config.host_slots > self._most_host_slots:
            raise ValueError(
                f"host_slots must be at most {self._most_host_slots}, as at the start, not {config.host_slots}"
            )
        if (config.disk_bytes > 0) != (self.config.disk_bytes > 0):
            raise ValueError("a disk tier cannot come or go: disk_bytes is 0 as long as it was at the start")
        self.retention.check_fits(config.host_slots, config.disk_bytes)
        if config.ttl_s != self.config.ttl_s:
            self._expiry.change(config.ttl_s)
            self._tell_uses_in_time()
        self._holdings.shares.change(config.quotas)
        self._matching.min_prefix_tokens = config.min_prefix_tokens
        self.config = config
        self._sizes.resize(config.host_slots, config.disk_bytes)
        self._entry.resize()
        self._holdings.show_held()
        self._loads.resize(deadline_s=config.io_deadline_s)
        self._writes.resize(
            batch=config.blocks_per_write,
            batch_from=config.blocks_written_from,
            budget=config.write_budget_blocks,
            clean_share=config.clean_share,
            deadline_s=config.io_deadline_s,
        )
        self._num_settings_changed += 1
        told = {name: value for name, value in changes.items() if name != "quotas"}
        self.events.append("changed", **told)

    def _tell_uses_in_time(self) -> None:
        """What lives for the shortest time is to be known on disk in time."""
        self._uses.change(uses_told_within_s(self._expiry.terms.shortest_s))

    def clear(self) -> bool:
        """Forget every block in every tier that is not in use. False if something is, and stays.

        Of what is being restored the rest is deleted instead, over the steps of `restore`.
        """
        self._restore.clear()
        residency = self._holdings.residency
        roots = np.flatnonzero(residency.live & (residency.parent < 0))
        removed = [self._eviction.remove(block, MissReason.REMOVED) for block in roots.tolist()]
        return all(removed)

    def erase(self, owner: bytes) -> bool:
        """Forget every block of an owner in every tier. False if some are in use: these stay, with what leads to them.

        Of those nothing is counted on that the disk has: the store erases it.
        """
        self._restore.erase(owner)
        self.retention.erase(owner)
        for block in self._holdings.tops_of(owner).tolist():
            self._eviction.remove_idle(self._holdings.radix.subtree(block)[::-1], MissReason.REMOVED)
        self._eviction.departed.forget()
        left = self._holdings.blocks_of(owner)
        state, readers = self._holdings.residency.state[DISK], self._holdings.residency.readers[DISK]
        stored = left[(state[left] == PRESENT) & (readers[left] == 0)]
        self._eviction.forget(stored)
        self._holdings.left(DISK, stored)
        self._holes.prune(stored[::-1])
        return not len(left)

    def disk_was_emptied(self) -> None:
        """The store has lost its records: none that was there is counted on, and what nobody else holds is a hole.

        What is being read or written is not touched: how that ends, its answer tells; but a read that fails may have
        been of the old files, and nothing is there. What may have been written to the empty store already is deleted
        with the rest.
        """
        self._restore.end()
        self._disk.was_emptied()
        self._loads.give_up(MissReason.ABSENT)
        state, readers = self._holdings.residency.state, self._holdings.residency.readers
        lost = np.flatnonzero((state[DISK] == PRESENT) & (readers[DISK] == 0))
        self._eviction.lost(lost, MissReason.READ_FAILED)
        self._eviction.forget(lost)
        self._holdings.left(DISK, lost)
        self._holes.prune(lost)
        self.events.append("fresh_start", blocks=len(lost))

    def begin_restore(self, now_s: float) -> None:
        """A store is being listed, and may hold what is not in this index, which is empty: see Restore. `now_s`: as for `at`.

        Nothing is written until `restore` or `end_restore` has ended that.
        """
        self.at(now_s)
        self._restore.begin(now_s)

    def restore(self, found: Found, wanted: Mapping[BlockKey, Wanted] | None = None) -> Steps[None]:
        """An errand: enter what the store holds. Records whose parents are missing are forgotten. `wanted`: of those blocks
        of which requests have said something.

        What cannot be entered, as for want of memory, is logged and left: nobody waits for this errand, and nothing is
        written until it is over.
        """
        try:
            yield from self._restore.enter(found, wanted or {})
        except AssertionError:  # our own books do not agree: whoever drives this has to know
            raise
        except Exception as error:  # noqa: BLE001 - a store may be anybody's
            _log.error("what is on disk cannot all be used: %s", error, extra={"error": error})
            self.end_restore(error)
        else:
            self.events.append("restored", blocks=self._restore.num_entered)

    def end_restore(self, error: Exception) -> None:
        """The store cannot be listed, or not all be entered: go on as if it held nothing more."""
        self._restore.end()
        self.events.append("failed", move="restore", blocks=0, error=type(error).__name__)

    @property
    def restoring(self) -> bool:
        """Whether the disk may hold what is not in the index yet."""
        return self._restore.under_way

    def tell_uses(self) -> None:
        """The end is near: let the disk know of all uses that it does not know of yet, up to a bound."""
        if self._disk.can_write and not self.restoring:
            self._uses.tell_all()

    @property
    def num_expired(self) -> int:
        """Moves and loads that have taken too long, ever: what they kept from happening may be possible now."""
        return self._outbox.num_expired + self._loads.num_given_up + self._loads.num_late

    # --- figures --------------------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether a plan has something to do before a move is over."""
        loads = self._loads
        return bool(loads.arrived or loads.waiting or self._outbox.has_new or self._writes.sweeping)

    @property
    def idle(self) -> bool:
        """Whether no move is asked for, none is in flight that is not overdue, and no sweep is under way."""
        return self._outbox.idle and not self._loads.arrived and not self._writes.sweeping

    def stats(self) -> dict[str, Any]:
        """A snapshot: blocks, slots and counts by tier. See docs/architecture.md for the meaning of each.

        Any thread may ask, also while another changes the index: then some figures are a moment younger than others.
        """
        return self._figures.stats()

    def owners(self) -> dict[str, dict[str, Any]]:
        """Of each owner what it has, in places and bytes: see Shares.stats. Any thread may ask."""
        return self._holdings.shares.stats(all_of_them=True)

    def check(self) -> None:
        """Raise AssertionError unless every part is consistent, and leases hold what they must."""
        if self._choosing is not None:
            self._choosing.check()
        self._holdings.check()
        self._entry.check()
        self._holes.check()
        self._loads.check()
        self._expiry.check()
        self._restore.check()
        self._sizes.check()
        self._outbox.check()
        self._leases.check()
        self.retention.check()
        self._swaps.check()
