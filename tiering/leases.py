"""What requests hold: from admission, all or nothing, through growth and publication, to release or preemption."""

from collections import Counter
from enum import Enum, auto
from typing import Final

import numpy as np

from tiering.claim import Claim
from tiering.eviction import Eviction, Room
from tiering.expiry import Expiry
from tiering.holdings import Holdings
from tiering.holes import Holes
from tiering.lease import NOT_CACHED, Lease
from tiering.loads import Loads
from tiering.lookups import Lookups
from tiering.matching import CacheUse, Matching
from tiering.radix import Tokens
from tiering.residency import ABSENT, DEVICE, HOST, ID, NO_BLOCK, PRESENT, WRITING, Ids
from tiering.retention import Retention
from tiering.slot_table import SlotState
from tiering.swaps import Stash, StashState, Swaps

_NOTHING: Final[Ids] = np.empty(0, dtype=np.intp)
_PRIVATE, _IN_FLIGHT = SlotState.PRIVATE, SlotState.IN_FLIGHT  # members of an enum take longer to look up


class Wait(Enum):
    """Why a request is not admitted yet. It holds nothing, and is matched again when it is tried again."""

    FOR_BLOCKS = auto()
    """Another request is computing or loading blocks that this one shares."""
    FOR_ROOM = auto()
    """The device has no room; blocks are on their way out, or running requests must end first."""


class Leases:
    """The leases of all admitted requests."""

    def __init__(
        self,
        holdings: Holdings,
        matching: Matching,
        lookups: Lookups,
        holes: Holes,
        eviction: Eviction,
        loads: Loads,
        swaps: Swaps,
        expiry: Expiry,
        retention: Retention,
        *,
        explains: bool,
    ) -> None:
        """`explains`: see IndexConfig."""
        self._block_tokens = holdings.radix.block_tokens
        self._holdings, self._matching, self._lookups = holdings, matching, lookups
        self._holes, self._eviction, self._loads, self._swaps = holes, eviction, loads, swaps
        self._expiry, self._retention, self._explains = expiry, retention, explains
        self._leases: list[Lease] = []
        self.num_preempted = 0

    def __len__(self) -> int:
        return len(self._leases)

    # --- admission ------------------------------------------------------------------------------------------------

    def admit(
        self,
        tokens: Tokens,
        matched: Ids,
        max_blocks: int,
        chunk_blocks: int,
        stash: Stash | None,
        use: CacheUse,
        claim: Claim,
        *,
        compute_last: bool,
    ) -> Lease | Wait:
        """See Index.admit."""
        num_absent = self._matching.num_absent(matched)
        if num_absent < 0:
            return Wait.FOR_BLOCKS
        if stash is not None and stash.state is StashState.MOVING:
            return Wait.FOR_ROOM
        num_matched, block_tokens = len(matched), self._block_tokens
        num_blocks = min(max_blocks, self._num_to_begin(tokens, num_matched, chunk_blocks, stash))
        absent = _NOTHING
        if num_absent:
            (absent,) = (self._holdings.residency.state[DEVICE].take(matched) != PRESENT).nonzero()
        if self._holdings.tier_orders[DEVICE] is not None:
            whole = min(num_blocks, len(tokens) // block_tokens) if use is CacheUse.READ_WRITE else 0
            self._holdings.comes(matched, absent, tokens[num_matched * block_tokens : whole * block_tokens])
        num_missing, num_leased = num_blocks - num_matched + num_absent, 0
        if num_missing > self._holdings.slots[DEVICE].num_free:
            if not self._make_room(matched, absent, num_missing, claim):
                return Wait.FOR_ROOM
            num_leased = num_matched
        observed = None
        if self._explains:
            observed = self._matching.observe(tokens, matched, compute_last=compute_last, use=use)
        indexable = tokens if use is CacheUse.READ_WRITE else tokens[: num_matched * block_tokens]
        lease = self._grant(indexable, matched, num_leased, absent, num_blocks, max_blocks, claim)
        lease.observed = observed
        if stash is not None:
            self._swaps.swap_in(stash, lease)
        return lease

    def _make_room(self, matched: Ids, absent: Ids, num_missing: int, claim: Claim) -> bool:
        """Have slots for what the device lacks, that is for `absent` positions of the match and what follows it. Whether they are free.

        Then the match stays leased; it is meanwhile, or it might be what is evicted.
        """
        to_load, owner, room = matched[absent], claim.ownership.owner, Room.NO
        self._holdings.lease(matched, claim.rank)
        try:
            room = self._room_beside(to_load, num_missing, owner)
            if room is Room.NO and not self._leases and self._retention.give_way():
                room = self._room_beside(to_load, num_missing, owner)
        finally:  # a policy may break its contract
            if room is not Room.NOW:
                self._holdings.release(matched, claim.rank)
        return room is Room.NOW

    def _room_beside(self, to_load: Ids, num_slots: int, owner: bytes) -> Room:
        """Make room on the device; the host copies of what is to be loaded stay."""
        if not len(to_load):
            return self._eviction.device_room(num_slots, owner)
        # read, because they would be clean, if the disk has them too, and first to go
        in_host = to_load[self._holdings.residency.present(HOST, to_load)]
        self._holdings.read_begins(HOST, in_host)
        try:
            return self._eviction.device_room(num_slots, owner)
        finally:
            self._holdings.read_ended(HOST, in_host)

    def _num_to_begin(self, tokens: Tokens, num_matched: int, chunk_blocks: int, stash: Stash | None) -> int:
        """Blocks of the prefix, of what is computed first or comes back, and one to decode into."""
        prompt_blocks = -(-len(tokens) // self._block_tokens)
        first = min(num_matched + chunk_blocks, prompt_blocks)
        return max(first, 0 if stash is None else stash.start + len(stash)) + 1

    def _grant(
        self,
        tokens: Tokens,
        matched: Ids,
        num_leased: int,
        absent: Ids,
        num_blocks: int,
        max_blocks: int,
        claim: Claim,
    ) -> Lease:
        """Take the slots, enter the rest of the prompt into the index, and start the loads. `num_leased`: of what is matched, all or nothing.

        Or MemoryError, and nothing is leased.
        """
        holdings, num_matched = self._holdings, len(matched)
        found_in, path = holdings.found(matched, max_blocks, self._lookups.hits), matched
        try:
            path = self._path(tokens, matched)
            holdings.belongs(path, 0, claim.ownership)
        except MemoryError:
            if num_leased:
                holdings.release(matched, claim.rank)
            self._holes.prune(path[num_matched:][::-1])
            raise
        self._retention.used(path, claim.ttl_s)
        holdings.lease_further(path, num_leased, claim.rank)
        if len(absent):
            holdings.expect(DEVICE, matched[absent], self._take(len(absent), _IN_FLIGHT))
        if len(path) > num_matched:
            holdings.will_compute(path[num_matched:])
        slots: Ids = np.empty(num_blocks, dtype=ID)
        slots[:num_matched] = holdings.residency.place[DEVICE][matched]
        self._fill(path, num_matched, slots)
        lease = Lease(path, slots, found_in, max_blocks, claim)
        lease.ready[:num_matched] = True
        lease.filling[num_matched : len(path)] = True
        self._leases.append(lease)
        if len(absent):
            lease.ready[absent] = False
            self._loads.start(lease, absent, tokens)
        return lease

    def _path(self, tokens: Tokens, matched: Ids) -> Ids:
        """Enter what follows the match into the index, as far as it is this request's to compute; the path down to there.

        It ends in front of the first block that is another's: that one is on the device, or another request brings it there, but
        it cannot be waited for: the last block of a prompt, or one below a hole. A lease on it would keep two slots for one block.
        """
        radix, residency = self._holdings.radix, self._holdings.residency
        num_matched, block_tokens = len(matched), self._block_tokens
        num_blocks = len(tokens) // block_tokens
        if num_blocks == num_matched:
            return matched
        last = matched.item(-1) if num_matched else NO_BLOCK
        own = tokens[num_matched * block_tokens : num_blocks * block_tokens]
        known = radix.match_below(last, own)
        if not len(known):
            new = radix.append(last, own)
            return np.concatenate([matched, new]) if num_matched else new
        self._expiry.forget_path(known)
        known = known[residency.live[known]]
        others = np.flatnonzero((residency.state[DEVICE][known] != ABSENT) | residency.computing[known])
        if len(others):
            own = own[: others.item(0) * block_tokens]
        return np.concatenate([matched, radix.extend(last, own.tobytes())])

    def _fill(self, path: Ids, start: int, slots: Ids) -> None:
        """Fill a block table from position `start` on: with places of the path's blocks, which this request computes for all, and behind
        them with private ones.
        """
        end = min(len(path), len(slots))
        if start < end:
            slots[start:end] = places = self._take(end - start, _IN_FLIGHT)
            self._holdings.expect(DEVICE, path[start:end], places)
        if end < len(slots):
            start = max(start, end)
            slots[start:] = self._take(len(slots) - start, _PRIVATE)

    def _take(self, num_slots: int, state: SlotState) -> Ids:
        slots = self._holdings.slots[DEVICE].take(num_slots, state)
        assert slots is not None, "room was made for all"
        return slots

    def fork(self, lease: Lease, num_used: int, max_blocks: int) -> Lease | None:
        """See Index.fork."""
        num_shared = len(lease.ids)
        assert num_shared <= num_used <= len(lease.slots), "the prompt is not computed yet"
        assert lease.ready[:num_shared].all(), "what is not computed cannot be shared"
        num_private = min(max_blocks, num_used + 1) - num_shared
        if self._eviction.device_room(num_private, lease.claim.ownership.owner) is not Room.NOW:
            return None
        slots = np.concatenate([lease.slots[:num_shared], self._take(num_private, _PRIVATE)])
        other = Lease(
            lease.ids, slots, np.full(max_blocks, NOT_CACHED, dtype=np.int8), max_blocks, lease.claim
        )
        other.ready[:num_used] = lease.ready[:num_used]
        self._holdings.lease(other.ids, lease.claim.rank)
        self._leases.append(other)
        return other

    # --- while it runs --------------------------------------------------------------------------------------------

    def grow(self, lease: Lease, num_blocks: int) -> Room:
        """See Index.grow."""
        if not (missing := lease.num_missing(num_blocks)):
            return Room.NOW
        room = self._eviction.device_room(missing, lease.claim.ownership.owner)
        if room is Room.NO and len(self._leases) == 1 and self._retention.give_way():
            room = self._eviction.device_room(missing, lease.claim.ownership.owner)
        if room is Room.NOW:
            old = len(lease.slots)
            lease.slots = np.concatenate([lease.slots, np.empty(missing, dtype=np.intp)])
            self._fill(lease.ids, old, lease.slots)
        return room

    def publish(self, lease: Lease, tokens: Tokens, start: int, end: int) -> None:
        """See Index.publish."""
        lease.ready[start:end] = True
        indexed = slice(start, min(end, len(lease.ids)))
        filled = lease.ids[indexed][lease.filling[indexed]]
        lease.filling[indexed] = False
        self._holdings.arrived(DEVICE, filled)
        lease.indexable = tokens[:0] if self._matching.is_too_short(tokens) else tokens
        self._extend(lease)

    def _extend(self, lease: Lease) -> None:
        """Index the computed blocks behind the path, up to one that another request is filling."""
        num_blocks = len(lease.indexable) // self._block_tokens
        while len(lease.ids) < num_blocks and lease.ready.item(len(lease.ids)):
            if not self._extend_by_one(lease, lease.indexable):
                break

    def _extend_by_one(self, lease: Lease, tokens: Tokens) -> bool:
        """Index the computed block behind the path, or use the one that is there. False if another is filling it."""
        residency, table = self._holdings.residency, self._holdings.slots[DEVICE]
        position, block_tokens = len(lease.ids), self._block_tokens
        above = lease.ids.item(-1) if position else NO_BLOCK
        own = tokens[position * block_tokens : (position + 1) * block_tokens]
        block = self._holdings.radix.extend(above, np.ascontiguousarray(own, dtype="<i4").tobytes())
        self._holdings.belongs(block, position, lease.claim.ownership)
        if residency.computing[block].item() or residency.state[DEVICE][block].item() == WRITING:
            return False
        slot = lease.slots[position : position + 1]
        if residency.state[DEVICE][block].item() == PRESENT:
            table.free(slot, SlotState.PRIVATE)
            # a copy: chunks of the step that was just computed still show the old slot
            lease.slots = lease.slots.copy()
            lease.slots[position] = residency.place[DEVICE][block].item()
        else:
            table.turn(slot, SlotState.PRIVATE, SlotState.IN_FLIGHT)
            self._holdings.expect(DEVICE, block, slot)
            self._holdings.arrived(DEVICE, block)
        lease.ids = np.concatenate([lease.ids, block])
        self._retention.used(block, lease.claim.ttl_s)
        self._holdings.lease_further(lease.ids, position, lease.claim.rank)
        return True

    # --- the end --------------------------------------------------------------------------------------------------

    def release(self, lease: Lease) -> None:
        """See Index.release."""
        self._extend(lease)
        self._end(lease, self._swaps.release(lease))

    def preempt(self, lease: Lease, num_used: int) -> Stash | None:
        """See Index.preempt."""
        self.num_preempted += 1
        self._extend(lease)
        stash = self._swaps.keep(lease)
        if stash is not None:
            self._end(lease, self._swaps.release(lease))
            return stash
        start = len(lease.ids)
        leaving = lease.slots[start:num_used]
        stash = self._swaps.swap_out(start, leaving)
        self._end(lease, leaving if stash is not None else leaving[:0])
        return stash

    def _end(self, lease: Lease, copied: Ids) -> None:
        """Give back what was to come and the private slots, save those that are `copied`; keep what is cached."""
        assert not lease.released, "a lease is released once"
        lease.released = True
        self._leases.remove(lease)
        private = lease.slots[len(lease.ids) :]
        private = private[~np.isin(private, copied)] if len(copied) else private
        self._loads.cancel(lease)
        if len(private):
            self._holdings.slots[DEVICE].free(private, _PRIVATE)
        num_blocks = len(lease.ids)
        if np.count_nonzero(lease.ready[:num_blocks]) == num_blocks:  # all of it is on the device
            self._holdings.release(lease.ids, lease.claim.rank)
            return
        unfilled = lease.ids[lease.filling[:num_blocks]]
        self._holdings.wont_compute(unfilled)
        self._holdings.failed(DEVICE, unfilled[self._holdings.residency.state[DEVICE][unfilled] == WRITING])
        self._holdings.release(lease.ids, lease.claim.rank)
        self._holes.prune(lease.ids[::-1])

    def check(self) -> None:
        """Raise AssertionError unless leases hold what they must."""
        residency = self._holdings.residency
        leased = Counter(block for lease in self._leases for block in lease.ids.tolist())
        live = np.flatnonzero(residency.live)
        assert residency.leases[live].tolist() == [leased[block] for block in live.tolist()], (
            "a lease is lost"
        )
        held = live[residency.leases[live] > 0]
        coming = (residency.state[DEVICE][held] != ABSENT) | residency.computing[held]
        assert coming.all(), "a leased block is not coming to the device"
        assert not (residency.computing & (residency.state[DEVICE] == PRESENT)).any(), (
            "a block is computed that is on the device"
        )
        self._check_private()
        filling = [lease.ids[np.flatnonzero(lease.filling[: len(lease.ids)])] for lease in self._leases]
        computed = sorted(block for ids in filling for block in ids.tolist())
        assert computed == np.flatnonzero(residency.computing).tolist(), (
            f"requests compute {computed}, marked are {np.flatnonzero(residency.computing).tolist()}"
        )

    def _check_private(self) -> None:
        table = self._holdings.slots[DEVICE]
        held = [lease.slots[table.states(lease.slots) == SlotState.PRIVATE] for lease in self._leases]
        owned = sorted(slot for slots in (*held, *self._swaps.device_slots()) for slot in slots.tolist())
        states = table.states(np.arange(table.num_slots))
        found = np.flatnonzero(states == SlotState.PRIVATE).tolist()
        assert owned == found, f"private device slots are {found}, requests and their swaps own {owned}"
