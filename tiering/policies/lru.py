"""Least recently used, children before parents."""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from tiering.residency import NO_BLOCK, Ids, Mask, Residency

_PAST = 1 << 40  # stamps that are left for touches from before the first one

Eligible = Callable[[Ids], Mask]
Entries = Callable[[NDArray[np.int64], NDArray[np.int64]], Mask]
"""Which entries are wanted, by their stamps and their deepest blocks."""

_FEW_ENTRIES = 8  # entries read one by one before a slice pays
_SLICE_ENTRIES = 1024
_FEW_BLOCKS = 32  # likewise the blocks of one chain
_SLICE_BLOCKS = 256
_MAX_CHUNK = 512  # blocks whose eligibility is asked for at once


class LRU:
    """Orders blocks by their last touch, and within one touch the deepest first.

    Owns the column `stamp` of the residency. A touch covers a path from a first block; so a parent's stamp is never
    older than its child's, the blocks of one stamp lie on one path, and one log entry a touch, the stamp and the
    deepest block that still has it, is all that is kept. Walking the log from the oldest entry, and each entry from
    its deepest block upwards, meets every child before its parent: a leaf rule without counts of children.

        log      (1, d)   (2, f)   (3, c)            stamps   a3 - b3 - c3 - d1
                  d        f, e     c, b, a                        `- e2 - f2

    An entry has the time of its touch as well, which is what `now_s` was then; it must not go backwards.

    Touches from before the first one may become known later: the entries of all of them at once, and then their blocks,
    those of the latest touch first. Entries that wait for their blocks still are passed over::

        log      (1, -) (2, -) (3, d) ... (n, f) (n + 1, e) ...
                 `- waiting      `- recalled     `- since then
    """

    def __init__(self, residency: Residency, min_log_entries: int = 1024) -> None:
        """An empty log, which is compacted whenever it has doubled, but never below `min_log_entries`."""
        self._residency = residency
        self._min_log_entries = min_log_entries
        self._now = 0
        self.now_s = 0.0
        """The time that touches have: whoever knows the time sets it."""
        self._stamps = array("q")  # of the log's entries, ascending
        self._times = array("d")  # of the entries, ascending too
        self._deepest = array("q")  # block of each entry, NO_BLOCK when all its blocks are gone
        self._compact_at = min_log_entries
        self._num_waiting = 0  # entries of touches whose blocks are not known yet: the first ones
        self._num_open = 0  # and those of which more may come: one more than wait, once one was told of

    def __len__(self) -> int:
        """Number of log entries, dead ones included."""
        return len(self._stamps)

    def touch(self, path: Ids) -> None:
        """The blocks of a path were used. The path must start at a first block and leave none out."""
        if not len(path):
            return
        residency = self._residency
        assert residency.cells.parent[path.item(0)] == NO_BLOCK, "a touched path starts at a first block"
        if len(self._stamps) >= self._compact_at:
            self._compact()
        self._now += 1
        residency.used(path, self._now)
        self._stamps.append(self._now)
        self._times.append(self.now_s)
        self._deepest.append(path.item(-1))

    def leave_past(self) -> None:
        """Touches from before may be told of later. To be called before the first touch."""
        assert not self._now, "what was touched before is to be told of before the first touch"
        self._now = _PAST

    def recall(self, times_s: NDArray[np.float64]) -> None:
        """There were touches before the first one, at these times in their order, numbered from 0; blocks come with `recalled`."""
        num = len(times_s)
        assert num < _PAST, "there is no room for so many"
        assert not self._stamps or self._stamps[0] > num, "the past is told of once"
        stamps, times, deepest = array("q"), array("d"), array("q")
        stamps.frombytes(np.arange(1, num + 1, dtype=np.int64).tobytes())
        times.frombytes(times_s.astype(np.float64).tobytes())
        deepest.frombytes(np.full(num, NO_BLOCK, dtype=np.int64).tobytes())
        # what was touched since is little, and so is what is copied here
        self._stamps, self._times, self._deepest = (
            stamps + self._stamps,
            times + self._times,
            deepest + self._deepest,
        )
        self._num_waiting = self._num_open = num
        self._compact_at = max(self._compact_at, 2 * len(stamps))

    def recalled(self, ids: Ids, numbers: NDArray[np.int64]) -> None:
        """The touches of these numbers were the last of these blocks, none of which was touched so far.

        To be told of the latest touch first, and of the blocks of one touch in the order of the path.
        """
        if not len(ids):
            return
        assert numbers.max() < self._num_open, "a touch was told of before a later one"
        self._residency.stamp[ids] = numbers + 1
        # of a touch that comes several times the last block counts; the view must not outlive this line
        np.frombuffer(self._deepest, dtype=np.int64)[numbers] = ids
        self._num_waiting = numbers.min().item()
        self._num_open = self._num_waiting + 1

    @property
    def num_open(self) -> int:
        """Touches, the first ones, of which blocks may be recalled still."""
        return self._num_open

    def forget_past(self) -> None:
        """No more blocks are recalled."""
        self._num_waiting = self._num_open = 0

    def removed(self, ids: Ids) -> None:
        """The blocks are about to leave the index, in this order, each without children at its turn.

        To be called while their parents and stamps can still be read. The ids may be given out again after it.
        """
        residency = self._residency
        if len(ids) == 1:
            cells, block = residency.cells, ids.item()
            self.removed_leaf(cells.stamp[block], cells.parent[block])
            return
        stamps = residency.stamp.take(ids)
        last = np.ones(len(ids), dtype=np.bool_)  # of a run with the same stamp
        last[:-1] = stamps[1:] != stamps[:-1]
        for stamp, parent in zip(stamps[last].tolist(), residency.parent[ids[last]].tolist(), strict=True):
            self.removed_leaf(stamp, parent)

    def removed_leaf(self, stamp: int, parent: int) -> None:
        """`removed` for one block that has this stamp and parent, or for several of one stamp on the way up to that parent."""
        if not stamp:
            return  # never touched
        # A block without children was the deepest of its stamp, so now its parent is. If that has a newer stamp, or
        # there is none, the entry is dead, as it should be.
        self._deepest[bisect_left(self._stamps, stamp)] = parent

    def view(
        self,
        eligible: Eligible,
        is_eligible: "Callable[[int], bool] | None" = None,
        wanted: Entries | None = None,
    ) -> "View":
        """A reader of the order that sees only the blocks for which `eligible(ids)` is true.

        `eligible` takes an intp array of ids and returns a mask of the same length; it must change nothing. `is_eligible`
        says the same of one block, for whoever peeks at one at a time. `wanted`: which
        touches may have eligible blocks, by their stamps and deepest blocks; the others are passed over.
        """
        return View(self, self._residency, eligible, is_eligible, wanted)

    def first(self, stamp: int, block: int, is_eligible: Callable[[int], bool]) -> int:
        """The first block of `upwards` that is eligible, NO_BLOCK if there is none."""
        cells = self._residency.cells
        parent_of, stamp_of = cells.parent, cells.stamp
        for entry_stamp, deepest in self._entries(bisect_left(self._stamps, stamp)):
            at = deepest
            if entry_stamp == stamp and block != NO_BLOCK and stamp_of[block] == stamp:
                at = block
            while at != NO_BLOCK and stamp_of[at] == entry_stamp:
                if is_eligible(at):
                    return at
                at = parent_of[at]
        return NO_BLOCK

    def upwards(self, stamp: int, block: int, limit: int, wanted: Entries | None = None) -> Iterator[Ids]:
        """All touched blocks in eviction order from a place in the log: `block`, if it has that stamp, else the
        deepest with this or the next later stamp. In chunks, the first of `limit` blocks, then growing. `wanted`: of which
        entries only.
        """
        chunk: list[int] = []
        for entry_stamp, deepest in self._entries(bisect_left(self._stamps, stamp), wanted):
            at = deepest
            if entry_stamp == stamp and block != NO_BLOCK and self._residency.cells.stamp[block] == stamp:
                at = block
            while at != NO_BLOCK:
                at = self._climb(at, entry_stamp, chunk, limit)
                if len(chunk) == limit:
                    yield np.array(chunk, dtype=np.intp)
                    chunk = []
                    limit = min(4 * limit, max(limit, _MAX_CHUNK))
        if chunk:
            yield np.array(chunk, dtype=np.intp)

    def _entries(self, start: int, wanted: Entries | None = None) -> Iterator[tuple[int, int]]:
        """(stamp, deepest block) of the log's living entries from number `start`."""
        start = max(start, self._num_waiting)
        stop = min(start + _FEW_ENTRIES, len(self._stamps)) if wanted is None else start
        stamp_of = self._residency.cells.stamp
        for entry in range(start, stop):
            stamp, deepest = self._stamps[entry], self._deepest[entry]
            if deepest != NO_BLOCK and stamp_of[deepest] == stamp:
                yield stamp, deepest
        for at in range(stop, len(self._stamps), _SLICE_ENTRIES):
            # Slices are copies: a numpy view of the arrays themselves would forbid them to grow.
            stamps = np.frombuffer(self._stamps[at : at + _SLICE_ENTRIES], dtype=np.int64)
            blocks = np.frombuffer(self._deepest[at : at + _SLICE_ENTRIES], dtype=np.int64)
            alive = self._alive(stamps, blocks)
            if wanted is not None:
                alive[alive] = wanted(stamps[alive], blocks[alive])
            yield from zip(stamps[alive].tolist(), blocks[alive].tolist(), strict=True)

    def _alive(self, stamps: NDArray[np.int64], deepest: NDArray[np.int64]) -> Mask:
        # Where the deepest block has a newer stamp, a later touch went through it, and so through all above it.
        alive: Mask = (deepest != NO_BLOCK) & (self._residency.stamp.take(deepest) == stamps)
        return alive

    def _climb(self, block: int, stamp: int, chunk: list[int], limit: int) -> int:
        """Add to the chunk `block` and its ancestors of the same stamp, until it holds `limit` blocks.

        Returns the ancestor to go on with, NO_BLOCK if there is none.
        """
        cells, append = self._residency.cells, chunk.append
        parent_of, stamp_of = cells.parent, cells.stamp
        singles, left = 0, limit - len(chunk)
        while left:
            append(block)
            left -= 1
            singles += 1
            if singles == _FEW_BLOCKS:
                singles = 0
                run = min(self._row_above(block, stamp), left)
                chunk.extend(range(block - 1, block - 1 - run, -1))
                block -= run
                left -= run
            block = parent_of[block]
            if block == NO_BLOCK or stamp_of[block] != stamp:
                return NO_BLOCK
        return block

    def _row_above(self, block: int, stamp: int) -> int:
        """How many ancestors of the same stamp have ids that count down from the block's, as long runs do."""
        low = max(block - _SLICE_BLOCKS, 0)
        chained = self._residency.parent[low + 1 : block + 1] == np.arange(low, block)
        chained &= self._residency.stamp[low:block] == stamp
        (broken,) = (~chained).nonzero()
        return block - low if not len(broken) else block - low - 1 - broken.item(-1)

    def _compact(self) -> None:
        """Drop the dead entries, save those of which blocks may be recalled still."""
        stamps, deepest = np.array(self._stamps), np.array(self._deepest)
        alive = self._alive(stamps, deepest)
        alive[: self._num_open] = True  # each is found by its number as long as blocks of it may come
        self._stamps = array("q", stamps[alive].tobytes())
        self._times = array("d", np.array(self._times)[alive].tobytes())
        self._deepest = array("q", deepest[alive].tobytes())
        self._compact_at = max(self._min_log_entries, 2 * len(self._stamps))

    @property
    def now(self) -> int:
        """The stamp of the latest touch."""
        return self._now

    # ---- time

    def last_stamp(self, time_s: float) -> int:
        """The stamp of the last touch at `time_s` or before, as far as blocks have such a stamp; 0 if there is none."""
        end = bisect_right(self._times, time_s)
        return self._stamps[end - 1] if end else 0

    def oldest_s(self) -> float | None:
        """When the block was last touched that has not been for the longest time; None if there is none."""
        for stamp, _ in self._entries(0):
            return self._times[bisect_left(self._stamps, stamp)]
        return None

    def first_over_s(self, lives_s: NDArray[np.float64]) -> float:
        """When the first block will not have been touched for as long as it lives by its term; infinity for never.

        `lives_s`: by term. Of each touch the deepest block has the shortest.
        """
        first_s = np.inf
        for at in range(self._num_waiting, len(self._stamps), _SLICE_ENTRIES):
            stamps = np.frombuffer(self._stamps[at : at + _SLICE_ENTRIES], dtype=np.int64)
            blocks = np.frombuffer(self._deepest[at : at + _SLICE_ENTRIES], dtype=np.int64)
            times_s = np.frombuffer(self._times[at : at + _SLICE_ENTRIES], dtype=np.float64)
            alive = self._alive(stamps, blocks)
            ends_s = times_s[alive] + lives_s[self._residency.term[blocks[alive]]]
            first_s = min(first_s, float(ends_s.min(initial=np.inf)))
        return first_s

    def touched_s(self, ids: Ids) -> NDArray[np.float64]:
        """When each of these blocks was last touched; NaN for those that never were."""
        stamps = self._residency.stamp.take(ids)
        # views of the arrays, which forbid them to grow as long as they are there: no longer than this line
        places = np.frombuffer(self._stamps, dtype=np.int64).searchsorted(stamps)
        touched = stamps > 0
        times_s = np.full(len(ids), np.nan)
        times_s[touched] = np.frombuffer(self._times, dtype=np.float64)[places[touched]]
        return times_s

    def check(self) -> None:
        """Raise AssertionError unless the log has every touched block. Takes time in proportion to all blocks."""
        residency = self._residency
        stamps = self._stamps.tolist()
        assert stamps == sorted(set(stamps)), "the log is out of order"
        assert not stamps or stamps[-1] <= self._now, "the log is ahead of the time"
        open_stamps = list(range(1, self._num_open + 1))
        assert stamps[: self._num_open] == open_stamps, "a touch that may be told of is not in its place"
        assert self._num_waiting <= self._num_open <= self._num_waiting + 1, "a touch is told of out of turn"
        times = self._times.tolist()
        assert len(times) == len(stamps), "a touch has no time"
        assert times == sorted(times), "the times are out of order"
        assert not times or times[-1] <= self.now_s, "a touch is still to come"
        blocks = np.flatnonzero(residency.live & (residency.stamp > 0))
        logged = list(self.upwards(0, NO_BLOCK, _MAX_CHUNK))
        found = np.sort(np.concatenate([*logged, np.empty(0, dtype=np.intp)]))
        assert np.array_equal(found, blocks), f"{len(blocks)} blocks were touched, the log has {len(found)}"


class View:
    """The eligible blocks in eviction order. Keeps a place in the log before which nothing is eligible."""

    def __init__(
        self,
        lru: LRU,
        residency: Residency,
        eligible: Eligible,
        is_eligible: Callable[[int], bool] | None = None,
        wanted: Entries | None = None,
    ) -> None:
        self._lru, self._wanted = lru, wanted
        self._is_eligible = is_eligible
        self._residency = residency
        self._eligible = eligible
        self._head = 0  # no block with an older stamp is eligible
        # Nor is one below this block with the head's own stamp; NO_BLOCK: any of that stamp may be.
        self._cursor = NO_BLOCK

    def peek(self, k: int) -> Ids:
        """Up to `k` eligible ids in eviction order: the older stamp first, the deeper first within one stamp.

        Blocks that were never touched are not seen. Changes nothing that a later peek would answer differently.
        """
        found: list[Ids] = []
        missing = k
        if missing < 1 or self._head > self._lru.now:
            return np.empty(0, dtype=np.intp)
        if k == 1 and self._is_eligible is not None:
            block = self.first()
            return np.array([block] if block != NO_BLOCK else [], dtype=np.intp)
        for ids in self._lru.upwards(self._head, self._cursor, k + 2, self._wanted):
            hits = ids[self._eligible(ids)][:missing]
            if len(hits):
                found.append(hits)
                missing -= len(hits)
                if not missing:
                    break
        if not found:
            self._head, self._cursor = self._lru.now + 1, NO_BLOCK
            return np.empty(0, dtype=np.intp)
        self._cursor = found[0].item(0)
        self._head = self._residency.cells.stamp[self._cursor]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def first(self) -> int:
        """The only block of `peek(1)`, NO_BLOCK if there is none. For a view that was given an `is_eligible`."""
        assert self._is_eligible is not None, "this view takes arrays only"
        block = self._lru.first(self._head, self._cursor, self._is_eligible)
        self._cursor = block
        self._head = self._lru.now + 1 if block == NO_BLOCK else self._residency.cells.stamp[block]
        return block

    def rewind(self, ids: Ids) -> None:
        """These blocks were not eligible and may be so now although nobody touched them: look at those that are again."""
        stamps = self._residency.stamp[ids]
        before = stamps <= self._head
        if not np.count_nonzero(before):
            return
        behind = ids[before & (stamps > 0)]
        if len(behind):
            behind = behind[self._eligible(behind)]
        if len(behind):  # or each round would look again, in vain, at all that follows
            self._head, self._cursor = self._residency.stamp[behind].min().item(), NO_BLOCK

    def look_from(self, stamp: int) -> None:
        """Blocks that were used at this stamp or later may be eligible that were not."""
        if stamp <= self._head:
            self._head, self._cursor = stamp, NO_BLOCK

    def check(self) -> None:
        """Raise AssertionError if a block before the view's place is eligible: somebody forgot to rewind."""
        seen = self.peek(1)
        fresh = View(self._lru, self._residency, self._eligible).peek(1)
        assert np.array_equal(seen, fresh), (
            f"the view starts at {seen.tolist()}, eligible is {fresh.tolist()}"
        )
