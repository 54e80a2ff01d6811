"""What users asked to keep: terms of requests, prefixes held in a tier, and caches that have a name."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvstore.block import TOKEN_ID_BYTES
from tiering.events import EventLog
from tiering.expiry import Expiry
from tiering.holdings import Holdings
from tiering.holds import Hold
from tiering.holes import Holes
from tiering.moves import Retain, Unname, Wanted
from tiering.outbox import Outbox
from tiering.owners import Ownership
from tiering.ranks import Rank
from tiering.residency import DEVICE, DISK, HOST, NO_BLOCK, PRESENT, Ids, Tier
from tiering.terms import Term


class TooMuchHeld(ValueError):
    """More would be held than may be, of the tier that it says."""


@dataclass(slots=True, eq=False)
class Named:
    """A cache that has a name. `key`: what the store knows it by; `ownership`: whose its blocks are; `path`: the tokens of its blocks."""

    key: bytes
    ownership: Ownership
    path: bytes
    hold: Hold
    lives_s: float
    """How long after its last use it is over; infinity for never."""
    since_s: float
    """When it was made, or given another time, on the core's clock."""


@dataclass(frozen=True, slots=True)
class NameNow:
    """How a named cache is now.

    tiers: blocks by the nearest tier that has each.   lost_blocks: those that no tier has.   bytes: on disk.
    left_s: until it is over, None for never.   held: whether its blocks are held still.
    """

    blocks: int
    lost_blocks: int
    tiers: dict[str, int]
    bytes: int
    left_s: float | None
    held: bool


class Retention:
    """Terms are told to the disk as they change, names and holds are kept within bounds, and what is over is let go.

    One thread calls it, the core's.
    """

    def __init__(
        self,
        holdings: Holdings,
        holes: Holes,
        expiry: Expiry,
        outbox: Outbox,
        events: EventLog,
        *,
        share: float,
        record_bytes: int,
        terms_changed: Callable[[], None] = lambda: None,
    ) -> None:
        """`share`: of each tier, what may be held; `record_bytes`: the most that a block takes on disk."""
        self._holdings, self._holes, self._expiry = holdings, holes, expiry
        self._outbox, self._events = outbox, events
        self._share, self._record_bytes = share, record_bytes
        self._terms_changed = terms_changed
        self._names: dict[bytes, Named] = {}
        self._kept: dict[bytes, list[Hold]] = {}
        self.due_s = math.inf
        """No name is over before."""
        self.restoring = False
        holdings.ranks.changed = self._tell
        self.num_expired = 0
        """Names that were over, ever."""
        self.num_broken = 0
        """Holds that were let go so that a request could run, ever."""

    # --- terms ----------------------------------------------------------------------------------------------------

    def used(self, path: Ids, ttl_s: float | None) -> None:
        """A request with this TTL uses a path; it is about to be touched."""
        terms, before_s = self._expiry.terms, self._expiry.terms.shortest_s
        if ttl_s is None and not terms.are_used:
            return
        term = terms.number(ttl_s)
        self._look_at_shortest(before_s)
        changed = self._expiry.used(path, term)
        if len(changed):
            self._tell(changed)

    def _look_at_shortest(self, before_s: float) -> None:
        if self._expiry.terms.shortest_s != before_s:
            self._expiry.came_shorter()
            self._terms_changed()

    def was_written(self, ids: Ids) -> None:
        """The disk has these blocks now, and knows nothing of what was said of them."""
        if self._expiry.terms.are_used or self._holdings.ranks.in_use:
            residency = self._holdings.residency
            self._tell(ids[(residency.term[ids] != 0) | (residency.rank[ids] != Rank.NORMAL)])

    def _tell(self, ids: Ids) -> None:
        residency = self._holdings.residency
        ids = ids[residency.state[DISK][ids] == PRESENT]
        if len(ids):
            terms = self._expiry.terms.terms_of(ids)
            ranks = map(Rank, residency.rank[ids].tolist())
            self._outbox.send(Retain(tuple(residency.keys_of(ids)), tuple(map(Wanted, terms, ranks))))

    def recall(self, ids: Ids, told: Sequence[Term]) -> None:
        """Blocks had these terms before a restart. What leads to them lives as long, whatever was told of it.

        To be called before they are touched.
        """
        terms, cells, before_s = (
            self._expiry.terms,
            self._holdings.residency.cells,
            self._expiry.terms.shortest_s,
        )
        for block, term in zip(ids.tolist(), told, strict=True):
            number = terms.number_of(term)
            is_new = not cells.stamp[block] and not cells.term[block]
            cells.term[block] = number if is_new else terms.merged(cells.term[block], number)
            above = cells.parent[block]
            while (
                above != NO_BLOCK and (longer := terms.merged(cells.term[above], number)) != cells.term[above]
            ):
                cells.term[above] = longer
                above = cells.parent[above]
        self._look_at_shortest(before_s)

    # --- bounds ---------------------------------------------------------------------------------------------------

    def most_blocks(self, tier: Tier) -> int:
        """How many blocks may be held in a tier of slots. Of host memory half is for what is preempted, and one for loads."""
        if tier is DEVICE:
            return int(self._holdings.slots[DEVICE].num_slots * self._share)
        return self._most_in_host(self._holdings.num_host_slots)

    def _most_in_host(self, num_slots: int) -> int:
        return max(0, min(int(num_slots * self._share), num_slots - num_slots // 2 - 1))

    def most_bytes(self) -> int:
        """How much may be held on disk."""
        return int(self._holdings.disk_capacity_bytes * self._share)

    def check_fits(self, host_slots: int, disk_bytes: int) -> None:
        """Raise ValueError if host memory, or the disk, is to become too small for what is held there."""
        held = self._holdings.holds.num_blocks[HOST]
        if host_slots < self._holdings.host_target and held > self._most_in_host(host_slots):
            raise ValueError(f"{held} blocks are held in host memory, too many for {host_slots} slots")
        held = self.held_bytes()
        if disk_bytes < self._holdings.disk_capacity_bytes and held > int(disk_bytes * self._share):
            raise ValueError(f"{held} bytes are held on disk, too many for {disk_bytes}")

    def held_bytes(self, more: Ids | None = None) -> int:
        """What is held on disk takes there, with some blocks more; those that are not there yet the most that they may."""
        held = self._holdings.residency.held[DISK] != 0
        if more is not None:
            held[more] = True
        return self._bytes_of(np.flatnonzero(held))

    def _bytes_of(self, ids: Ids) -> int:
        residency = self._holdings.residency
        there = residency.state[DISK][ids] == PRESENT
        return int(residency.place[DISK][ids[there]].sum()) + self._record_bytes * int((~there).sum())

    def _check_room(self, ids: Ids, tier: Tier) -> None:
        if tier is DISK:
            wanted, most, unit = self.held_bytes(ids), self.most_bytes(), "bytes"
        else:
            holds = self._holdings.holds
            wanted = holds.num_blocks[tier] + holds.num_more(ids, tier)
            most, unit = self.most_blocks(tier), "blocks"
        if wanted > most:
            raise TooMuchHeld(
                f"{wanted} {unit} would be held in the {tier.label} tier, and {most} may be: release or delete others, "
                "or raise held_share"
            )

    # --- prefixes -------------------------------------------------------------------------------------------------

    def keep(self, ids: Ids, path: bytes, tier: Tier) -> None:
        """Hold a path, whose tokens these are, until `release` says the same ones. TooMuchHeld, and no change, if it is."""
        if not len(ids):
            return
        self._check_room(ids, tier)
        self._kept.setdefault(path, []).append(self._holdings.hold(ids, tier))
        self._events.append("kept", tier=tier.label, blocks=len(ids))

    def release(self, path: bytes) -> int:
        """Let go of what `keep` holds of a prompt with these tokens, and of no longer path. How many blocks it were."""
        num_blocks = 0
        for kept in [kept for kept in self._kept if path.startswith(kept)]:
            holds = self._kept.pop(kept)
            for hold in holds:
                self._let_go(hold)
            num_blocks = max(num_blocks, *(len(hold.ids) for hold in holds))
        if num_blocks:
            self._events.append("released", blocks=num_blocks)
        return num_blocks

    def _let_go(self, hold: Hold) -> None:
        """Undo a hold that may be undone already. Holes that only it kept in the index go."""
        if not hold.released:
            self._holdings.let_go(hold)
            self._holes.prune(hold.ids[::-1])

    def give_way(self) -> bool:
        """No request runs, and the next finds no room: let go of what cannot leave the device. Whether there was any."""
        broken = [hold for hold in self._holdings.holds if self._is_stuck(hold)]
        for hold in broken:
            self._let_go(hold)
        if broken:
            self._look_when_due()
            self.num_broken += len(broken)
            blocks = sum(len(hold.ids) for hold in broken)
            self._events.append("gave_way", holds=len(broken), blocks=blocks)
            self._forget_released()
        return bool(broken)

    def _forget_released(self) -> None:
        """Paths that `keep` holds no more: nobody may ever say their tokens again."""
        self._kept = {
            path: left
            for path, holds in self._kept.items()
            if (left := [hold for hold in holds if not hold.released])
        }

    def _is_stuck(self, hold: Hold) -> bool:
        """Whether it keeps something on the device, where it is held, or that is not where it would have to be."""
        on_device = self._holdings.residency.present(DEVICE, hold.ids)
        return bool((on_device & self._holdings.would_be_missed(hold.ids)).any())

    # --- names ----------------------------------------------------------------------------------------------------

    @property
    def lowest(self) -> Tier:
        """The tier in which named caches are held."""
        if self._holdings.disk_capacity_bytes:
            return DISK
        return HOST if self._holdings.num_host_slots else DEVICE

    def name(self, key: bytes, ids: Ids, path: bytes, ownership: Ownership, ttl_s: float | None) -> Named:
        """Hold a path under a name. TooMuchHeld, and no change, if that is too much; KeyError if the name is taken."""
        if key in self._names:
            raise KeyError("the name is taken")
        self._check_room(ids, self.lowest)
        hold = self._holdings.hold(ids, self.lowest)
        return self._enter(Named(key, ownership, path, hold, _lives_s(ttl_s), self._holdings.order.now_s))

    def _enter(self, named: Named) -> Named:
        self._names[named.key] = named
        self.due_s = min(self.due_s, named.since_s + named.lives_s)
        return named

    def restore_name(
        self, key: bytes, path: bytes, ownership: Ownership, ttl_s: float | None, age_s: float
    ) -> None:
        """A name from before a restart, on an index that nothing was entered into: its blocks are held before they are found."""
        ids = self._holdings.radix.extend(NO_BLOCK, path)
        self._holdings.belongs(ids, 0, ownership)
        hold = self._holdings.holds.hold(ids, self.lowest)
        since_s = self._holdings.order.now_s - age_s
        self._enter(Named(key, ownership, path, hold, _lives_s(ttl_s), since_s))

    def extend(self, key: bytes, ttl_s: float | None) -> None:
        """Another time for a name, from now on. KeyError if there is no such name."""
        named = self._names[key]
        named.lives_s, named.since_s = _lives_s(ttl_s), self._holdings.order.now_s
        self.due_s = min(self.due_s, named.since_s + named.lives_s)

    def has(self, named: Named) -> bool:
        """Whether it is there still, and not another of the same name."""
        return self._names.get(named.key) is named

    def drop(self, key: bytes) -> None:
        """Let go of a name; its blocks stay as others do. KeyError if there is no such name."""
        self._let_go(self._names.pop(key).hold)

    def look(self, key: bytes) -> NameNow:
        """How a name is now. KeyError if there is no such name."""
        named = self._names[key]
        num_blocks = len(named.path) // (TOKEN_ID_BYTES * self._holdings.radix.block_tokens)
        left_s = self._over_s(named) - self._holdings.order.now_s
        left = None if left_s == math.inf else max(0.0, left_s)
        if named.hold.released:
            return NameNow(num_blocks, 0, {}, 0, left, held=False)
        residency, ids = self._holdings.residency, named.hold.ids
        nearest = residency.nearest_tier(ids)
        there = ids[residency.state[DISK][ids] == PRESENT]
        return NameNow(
            blocks=num_blocks,
            lost_blocks=int(np.count_nonzero(nearest == len(Tier))),
            tiers={tier.label: int(np.count_nonzero(nearest == tier)) for tier in Tier},
            bytes=int(residency.place[DISK][there].sum()),
            left_s=left,
            held=True,
        )

    def _over_s(self, named: Named) -> float:
        """When it is over: its time after the last use of its last block, or after it was made or extended."""
        if named.lives_s == math.inf or named.hold.released:
            return named.since_s + named.lives_s
        used_s = self._holdings.order.touched_s(named.hold.ids[-1:]).item()
        return (named.since_s if math.isnan(used_s) else max(named.since_s, used_s)) + named.lives_s

    def plan(self, *, restoring: bool) -> None:
        """Let go of names that are over. While the store is being listed it is not known when what is there was used."""
        self.restoring = restoring
        now_s = self._holdings.order.now_s
        if restoring or now_s < self.due_s:
            return
        over = [named for named in self._names.values() if self._over_s(named) <= now_s]
        for named in over:
            self.drop(named.key)
            self._outbox.send(Unname(named.key))
        if over:
            self.num_expired += len(over)
            self._events.append("names_expired", names=len(over))
        self._look_when_due()

    def _look_when_due(self) -> None:
        """Names are over at other times than before: uses of blocks that are held no more do not count."""
        self.due_s = min(map(self._over_s, self._names.values()), default=math.inf)

    def deadline_s(self) -> float | None:
        """When `plan` has something to do; None for never."""
        return None if self.restoring or self.due_s == math.inf else self.due_s

    def erase(self, owner: bytes) -> None:
        """Let go of every hold on what is an owner's, and of the owner's names."""
        residency, number = self._holdings.residency, self._holdings.owners.known(owner)
        for key in [key for key, named in self._names.items() if named.ownership.owner == owner]:
            self.drop(key)
            self._outbox.send(Unname(key))
        for hold in self._holdings.holds:
            if number is not None and (residency.owner[hold.ids] == number).any():
                self._let_go(hold)
        self._forget_released()
        self._look_when_due()

    # --- figures --------------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """A snapshot: what is held, what may be, and what became of it."""
        blocks = self._holdings.holds.num_blocks
        disk = self._holdings.disk_capacity_bytes > 0
        return {
            "names": len(self._names),
            "holds": len(self._holdings.holds),
            "held_blocks": {tier.label: blocks[tier] for tier in Tier},
            "most_held": {
                "device": self.most_blocks(DEVICE),
                "host": self.most_blocks(HOST),
                "disk_bytes": self.most_bytes() if disk else 0,
            },
            "expired_names": self.num_expired,
            "gave_way": self.num_broken,
            "terms": len(self._expiry.terms),
        }

    def check(self) -> None:
        """Raise AssertionError unless each hold has somebody who can let go of it, and names hold what they say."""
        kept = [hold for holds in self._kept.values() for hold in holds]
        assert not any(hold.released for hold in kept), "what is held no more is remembered"
        mine = [*kept, *(named.hold for named in self._names.values() if not named.hold.released)]
        assert len(mine) == len(self._holdings.holds), "a hold is nobody's"
        for named in self._names.values():
            if not named.hold.released:
                ids = named.hold.ids
                tokens = self._holdings.radix.tokens_up(ids.item(-1), len(ids)) if len(ids) else []
                assert b"".join(reversed(tokens)) == named.path, "a name holds another path"
            over_s = self._over_s(named)
            assert self.due_s <= over_s, f"a name is over at {over_s}, and looked at from {self.due_s} on"


def _lives_s(ttl_s: float | None) -> float:
    return math.inf if ttl_s is None else ttl_s
