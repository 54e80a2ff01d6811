"""Least recently used, children before parents."""

import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiering.eligible import Eligible
from tiering.kernels import kernels
from tiering.part import Part
from tiering.policies.view import Places, View
from tiering.residency import ID, NO_BLOCK, Ids, Mask, Residency
from tiering.rules import EVERY_BLOCK
from tiering.slot_table import SlotTable

_PAST = 1 << 40  # stamps that are left for touches from before the first one

Entries = Callable[[NDArray[np.int64], NDArray[np.int64]], Mask]
"""Which entries are wanted, by their stamps and their deepest blocks."""

_SLICE_ENTRIES = 1024  # entries that are looked through at once for wanted ones
_MAX_CHUNK = 512  # blocks that `upwards` tells at once


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
        self._kernels = kernels()
        self.places = Places()
        """Where its views stand."""
        self._every_block = Eligible(EVERY_BLOCK, residency, SlotTable(0))
        self.now = 0
        """The stamp of the latest touch."""
        self.now_s = 0.0
        """The time that touches have: whoever knows the time sets it."""
        place = np.zeros(2, dtype=np.int64)
        self._place: tuple[memoryview[Any], NDArray[np.int64]] = place.data, place
        """Where the walk under way is."""
        one: Ids = np.zeros(1, dtype=np.intp)
        self._one: tuple[memoryview[Any], Ids] = one.data, one
        self._num_waiting = 0  # entries of touches whose blocks are not known yet: the first ones
        self._num_open = 0  # and those of which more may come: one more than wait, once one was told of
        none = np.empty(0, dtype=np.int64)
        self._write_log(none, np.empty(0, dtype=np.float64), none)

    def _write_log(
        self, stamps: NDArray[np.int64], times: NDArray[np.float64], deepest: NDArray[np.int64]
    ) -> None:
        """Let the log hold these entries, and have room until it is to be compacted."""
        self._num = num = len(stamps)
        room = max(self._min_log_entries, 2 * num)
        self._stamps = np.empty(room, dtype=np.int64)  # of the first _num entries, ascending
        self._times = np.empty(room, dtype=np.float64)  # ascending too
        self._deepest = np.empty(room, dtype=np.int64)  # block of each, NO_BLOCK when all its blocks are gone
        self._stamps[:num], self._times[:num], self._deepest[:num] = stamps, times, deepest
        self._log = (self._stamps, self._times, self._deepest)
        self._deepest_cells: memoryview[int] = self._deepest.data  # to write one by

    def __len__(self) -> int:
        """Number of log entries, dead ones included."""
        return self._num

    def touch(self, path: Ids, leases: int = 0, first: int = 0) -> None:
        """The blocks of a path were used, by a request that holds those from position `first` on from now on (1), or does no more (-1).
        The path must start at a first block and leave none out.
        """
        if not len(path):
            return
        if self._num == len(self._stamps):
            self._compact()
        residency, num, now = self._residency, self._num, self.now + 1
        is_done = self._kernels.touch(
            residency.parent,
            residency.stamp,
            residency.leases,
            self._log,
            num,
            leases,
            first,
            path,
            now,
            self.now_s,
        )
        assert is_done, "a touched path starts at a first block, and is released as often as it was leased"
        self.now, self._num = now, num + 1

    def leave_past(self) -> None:
        """Touches from before may be told of later. To be called before the first touch."""
        assert not self.now, "what was touched before is to be told of before the first touch"
        self.now = _PAST

    def recall(self, times_s: NDArray[np.float64]) -> None:
        """There were touches before the first one, at these times in their order, numbered from 0; blocks come with `recalled`."""
        num = len(times_s)
        assert num < _PAST, "there is no room for so many"
        assert not self._num or self._stamps.item(0) > num, "the past is told of once"
        since = slice(self._num)  # is little
        self._write_log(
            np.concatenate([np.arange(1, num + 1), self._stamps[since]]),
            np.concatenate([times_s, self._times[since]]),
            np.concatenate([np.full(num, NO_BLOCK), self._deepest[since]]),
        )
        self._num_waiting = self._num_open = num

    def recalled(self, ids: Ids, numbers: NDArray[np.int64]) -> None:
        """The touches of these numbers were the last of these blocks, none of which was touched so far.

        To be told of the latest touch first, and of the blocks of one touch in the order of the path.
        """
        if not len(ids):
            return
        assert numbers.max() < self._num_open, "a touch was told of before a later one"
        self._residency.stamp[ids] = numbers + 1
        self._deepest[numbers] = ids  # of a touch that comes several times the last block counts
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
        self._kernels.forget(self._stamps, self._deepest, self._num, residency.parent, residency.stamp, ids)

    def removed_leaf(self, stamp: int, parent: int) -> None:
        """`removed` for one block that has this stamp and parent."""
        if stamp:  # else it was never touched
            # Without children it was the deepest of its stamp, so now its parent is. If that has a newer stamp, or there is
            # none, the entry is dead, as it should be.
            self._deepest_cells[self._kernels.place_of(self._stamps, self._num, stamp)] = parent

    def view(self, eligible: Eligible | Part) -> View:
        """A reader of the order that sees only the blocks that meet a rule, or are in a part."""
        return View(self, self._residency, eligible)

    def peek(self, number: int, eligible: Eligible, k: int) -> Ids:
        """The first `k` blocks that meet a rule, for the view of this number, whose place is where the first of them is from now on."""
        found: Ids = np.empty(k, dtype=ID)
        num = self._peek(number, eligible, found)
        return found if num == k else found[:num]

    def first(self, number: int, eligible: Eligible) -> int:
        """The only block of `peek(1)`, NO_BLOCK if there is none: in less time than it takes to make an array."""
        found, one = self._one
        return found[0] if self._peek(number, eligible, one) else NO_BLOCK

    def _peek(self, number: int, eligible: Eligible, found: Ids) -> int:
        residency = self._residency
        return self._kernels.peek(
            self._log,
            self._num_waiting,
            self._num,
            self.now,
            self.places.columns,
            number,
            residency.parent,
            residency.stamp,
            eligible.host_slots.counts,
            residency.ties,
            found,
        )

    def find_in(self, stamp: int, block: int, k: int, part: Part) -> Ids:
        """The first `k` blocks of `upwards` that are in a part."""
        return part.find((self._stamps, self._deepest, self._num, self._num_waiting), stamp, block, k)

    def upwards(self, stamp: int, block: int, limit: int, wanted: Entries | None = None) -> Iterator[Ids]:
        """All touched blocks in eviction order from a place in the log: `block`, if it has that stamp, else the
        deepest with this or the next later stamp. In chunks, the first of `limit` blocks, then growing. `wanted`: of which
        entries only. What is touched meanwhile may be seen or not.
        """
        start, rule = self._num_waiting, self._every_block.arguments()
        if wanted is not None:
            start = max(start, self._kernels.place_of(self._stamps, self._num, stamp))
        at, _ = self._place
        entry = 0 if wanted is not None else start
        for stamps, deepest in self._parts(start, wanted):
            num = len(stamps)
            while entry < num:
                found: Ids = np.empty(limit, dtype=np.intp)
                at[0], at[1] = entry, block
                num_found = self._walk(stamps, deepest, num, stamp, rule, found)
                entry, block, stamp = at[0], at[1], 0  # others walk before this goes on
                if num_found:
                    yield found[:num_found]
                    limit = min(4 * limit, max(limit, _MAX_CHUNK))
            entry, block = 0, NO_BLOCK

    def _walk(
        self,
        stamps: NDArray[np.int64],
        deepest: NDArray[np.int64],
        num: int,
        head: int,
        rule: tuple[Any, ...],
        found: Ids,
    ) -> int:
        residency = self._residency
        return self._kernels.walk(
            stamps, deepest, num, head, self._place[1], residency.parent, residency.stamp, *rule, found
        )

    def _parts(
        self, start: int, wanted: Entries | None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """The log's entries, all at once; or those that are wanted from a place on, some at a time."""
        if wanted is None:
            yield self._stamps[: self._num], self._deepest[: self._num]
            return
        for at in range(start, self._num, _SLICE_ENTRIES):
            entries = slice(at, min(at + _SLICE_ENTRIES, self._num))
            stamps, deepest = self._stamps[entries], self._deepest[entries]
            alive = self._alive(stamps, deepest)
            alive[alive] = wanted(stamps[alive], deepest[alive])
            yield stamps[alive], deepest[alive]

    def _alive(self, stamps: NDArray[np.int64], deepest: NDArray[np.int64]) -> Mask:
        # Where the deepest block has a newer stamp, a later touch went through it, and so through all above it.
        alive: Mask = (deepest != NO_BLOCK) & (self._residency.stamp.take(deepest) == stamps)
        return alive

    def _compact(self) -> None:
        """Drop the dead entries, save those of which blocks may be recalled still."""
        entries = slice(self._num)
        stamps, deepest = self._stamps[entries], self._deepest[entries]
        alive = self._alive(stamps, deepest)
        alive[: self._num_open] = True  # each is found by its number as long as blocks of it may come
        self._write_log(stamps[alive], self._times[entries][alive], deepest[alive])

    # ---- time

    def last_stamp(self, time_s: float) -> int:
        """The stamp of the last touch at `time_s` or before, as far as blocks have such a stamp; 0 if there is none."""
        end = self._times[: self._num].searchsorted(time_s, side="right").item()
        return self._stamps.item(end - 1) if end else 0

    def oldest_s(self) -> float | None:
        """When the block was last touched that has not been for the longest time; None if there is none."""
        first = next(self.upwards(0, NO_BLOCK, 1), None)
        return None if first is None else self.touched_s(first).item()

    def first_over_s(self, lives_s: NDArray[np.float64]) -> float:
        """When the first block will not have been touched for as long as it lives by its term; infinity for never.

        `lives_s`: by term. Of each touch the deepest block has the shortest.
        """
        first_s = np.inf
        for at in range(self._num_waiting, self._num, _SLICE_ENTRIES):
            entries = slice(at, min(at + _SLICE_ENTRIES, self._num))
            stamps, blocks, times_s = self._stamps[entries], self._deepest[entries], self._times[entries]
            alive = self._alive(stamps, blocks)
            ends_s = times_s[alive] + lives_s[self._residency.term[blocks[alive]]]
            first_s = min(first_s, float(ends_s.min(initial=np.inf)))
        return first_s

    def touched_s(self, ids: Ids) -> NDArray[np.float64]:
        """When each of these blocks was last touched; NaN for those that never were."""
        stamps = self._residency.stamp.take(ids)
        places = self._stamps[: self._num].searchsorted(stamps)
        touched = stamps > 0
        times_s = np.full(len(ids), np.nan)
        times_s[touched] = self._times[places[touched]]
        return times_s

    def check(self) -> None:
        """Raise AssertionError unless the log has every touched block. Takes time in proportion to all blocks."""
        residency = self._residency
        stamps = self._stamps[: self._num].tolist()
        assert stamps == sorted(set(stamps)), "the log is out of order"
        assert not stamps or stamps[-1] <= self.now, "the log is ahead of the time"
        open_stamps = list(range(1, self._num_open + 1))
        assert stamps[: self._num_open] == open_stamps, "a touch that may be told of is not in its place"
        assert self._num_waiting <= self._num_open <= self._num_waiting + 1, "a touch is told of out of turn"
        times = self._times[: self._num].tolist()
        assert times == sorted(times), "the times are out of order"
        assert not times or times[-1] <= self.now_s, "a touch is still to come"
        blocks = np.flatnonzero(residency.live & (residency.stamp > 0))
        logged = list(self.upwards(0, NO_BLOCK, _MAX_CHUNK))
        found = np.sort(np.concatenate([*logged, np.empty(0, dtype=np.intp)]))
        assert np.array_equal(found, blocks), f"{len(blocks)} blocks were touched, the log has {len(found)}"
        columns: tuple[object, ...] = (self._stamps, self._times, self._deepest, self._deepest)
        written = (*self._log, self._deepest_cells.obj)
        assert all(map(operator.is_, written, columns)), "a log is written to that was replaced"
