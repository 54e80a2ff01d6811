"""What somebody does to a prefix by hand, while requests go on: forget it, or move it down."""

from typing import Final

import numpy as np

from kvstore.reasons import MissReason
from kvstore.reports import Removed
from tiering.errands import Steps
from tiering.events import EventLog
from tiering.eviction import Eviction
from tiering.holdings import Holdings
from tiering.residency import PRESENT, Ids, Mask, Tier
from tiering.writes import Sweep, Writes

_COLLECT_NODES: Final = 512
_REMOVE_BLOCKS: Final = 128
"""In one step, some half of a millisecond. A node has at most as many, so it may be twice that."""

_MOST_PASSES: Final = 4
"""What comes, or is cut off, during one pass goes in the next; a prefix that is asked for all the time would never be done."""

_SWEEP_BLOCKS: Final = 2048
"""In one sweep, which looks at all of its blocks in each plan."""


class ByHand:
    """Errands that change what is cached. The core's thread runs them.

    A prefix is given by the tokens of a path of whole blocks, which mean the same whatever became of nodes and ids; what
    is done begins at the block at position `start` of it, and ends with what follows that one, on the path or not.
    """

    def __init__(self, holdings: Holdings, eviction: Eviction, writes: Writes, events: EventLog) -> None:
        self._holdings, self._eviction, self._writes, self._events = holdings, eviction, writes, events
        self.num_removed = 0
        """Blocks, ever."""

    def remove(self, path: bytes, start: int) -> Steps[Removed]:
        """Forget what is idle. Raises KeyError if the path is not in the index."""
        self._end_of(path)
        removed = num_left = 0
        for _ in range(_MOST_PASSES):
            gone, num_left = yield from self._pass(path, start)
            removed += gone
            if not gone:
                break
        self._events.append("removed", blocks=removed, in_use_blocks=num_left)
        return Removed(blocks=removed, in_use_blocks=num_left)

    def _pass(self, path: bytes, start: int) -> Steps[tuple[int, int]]:
        """Forget once what is idle. Blocks that went, and those that were in use."""
        top = self._at(path, start)
        if top is None:
            return 0, 0
        following = self._holdings.radix.following(top)
        while following.collect(_COLLECT_NODES):
            yield None
        gone = num_left = 0
        while len(ids := following.children_first(_REMOVE_BLOCKS)):
            num_removed = self._eviction.remove_idle(ids, MissReason.REMOVED)
            self.num_removed += num_removed
            gone += num_removed
            num_left += len(ids) - num_removed
            yield None
        return gone, num_left

    def demote(self, path: bytes, start: int, to: Tier) -> Steps[Removed]:
        """Move what is idle down to a tier, a part at a time. Raises KeyError if the path is not in the index."""
        self._end_of(path)
        moved = num_left = 0
        top = self._at(path, start)
        assert top is not None, "it is on the path"
        following = self._holdings.radix.following(top)
        while following.collect(_COLLECT_NODES):
            yield None
        while len(ids := following.parents_first(_SWEEP_BLOCKS)):
            before = ids[self._is_above(ids, to)]
            yield from self._sweep(before, to, then_free=True)
            above = self._is_above(before, to)
            moved += int((~above & self._holdings.residency.present(to, before)).sum())
            num_left += int(above.sum())
        self._events.append("moved_down", to=to.label, blocks=moved, in_use_blocks=num_left)
        return Removed(blocks=moved, in_use_blocks=num_left)

    def write_down(self, ids: Ids) -> Steps[int]:
        """Have the disk hold these blocks too, which nobody may take out of the index meanwhile. How many it does not hold then."""
        for start in range(0, len(ids), _SWEEP_BLOCKS):
            part = ids[start : start + _SWEEP_BLOCKS]
            yield from self._sweep(part[self._is_above(part, Tier.DISK)], Tier.DISK, then_free=False)
        return len(ids) - int(np.count_nonzero(self._holdings.residency.present(Tier.DISK, ids)))

    def _sweep(self, ids: Ids, to: Tier, *, then_free: bool) -> Steps[None]:
        """Wait for the turn of a sweep of these blocks, and for its end; once more if one of all blocks cut it off."""
        while len(ids):
            if self._writes.sweeping:
                yield lambda: not self._writes.sweeping
                continue
            sweep = Sweep(to, then_free, only=ids)
            self._writes.sweep(sweep)
            yield lambda sweep=sweep: sweep.done  # type: ignore[misc]
            if not sweep.cut_off:
                return

    def _is_above(self, ids: Ids, to: Tier) -> Mask:
        mask: Mask = (self._holdings.residency.state[:to, ids] == PRESENT).any(axis=0)
        return mask

    def _end_of(self, path: bytes) -> None:
        if self._at(path, len(path) // (4 * self._holdings.radix.block_tokens) - 1) is None:
            raise KeyError("what had this key is gone")

    def _at(self, path: bytes, position: int) -> int | None:
        """The block at a position of a path; None if it is not in the index."""
        ids = self._holdings.radix.match(np.frombuffer(path, dtype="<i4"))
        return ids.item(position) if 0 <= position < len(ids) else None
