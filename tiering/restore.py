"""Taking up again what a store holds: keys, parents, tokens, ages; no payload is read. A part at a time, while requests run."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kvstore.block import TOKEN_ID_BYTES, BlockKey
from tiering.errands import Steps
from tiering.eviction import Eviction
from tiering.expiry import Expiry
from tiering.found import Found
from tiering.holdings import Holdings
from tiering.moves import Forget, Wanted
from tiering.outbox import Outbox
from tiering.planting import NewRuns
from tiering.residency import ABSENT, DISK, NO_BLOCK, Ids, block_keys
from tiering.retention import Retention

_STEP_RUNS: Final = 192
_STEP_BLOCKS: Final = 768
"""In one step, or deleted in one: half a millisecond, or most of one where all runs are short."""
_GONE: Final = -2
"""In place of the last block of a run that was not taken up."""
_NOTHING: Final = Wanted()


class Restore:
    """From `begin` to the end of `enter`: what is found is entered into the index, the most recently used first.

    What is not in yet is a miss. Meanwhile nothing is written and nothing leaves the store, so what was found is there;
    but requests enter blocks, and what was entered may leave the index again. A block that a request has computed has a
    copy on disk from then on. What would follow a block that has left, or an owner has had erased, is deleted.
    """

    def __init__(
        self, holdings: Holdings, eviction: Eviction, expiry: Expiry, retention: Retention, outbox: Outbox
    ) -> None:
        self._holdings, self._eviction, self._retention = holdings, eviction, retention
        self._expiry, self._outbox = expiry, outbox
        self._begun_s = 0.0
        self._erased: set[bytes] = set()
        self._cleared = False
        self.under_way = False
        """Whether the store may hold blocks that are not in the index yet."""
        self.num_found: int | None = None
        """Blocks that are to be entered; None while that is not known."""
        self.num_entered = 0
        """Of those, how many were looked at."""

    def begin(self, now_s: float) -> None:
        """A store is being listed. The index is empty."""
        held = np.count_nonzero(self._holdings.residency.held.any(axis=0))
        assert len(self._holdings.radix) == held, (
            "only an empty index can be restored, save for what is held in it"
        )
        self._holdings.order.leave_past()
        self._begun_s, self.under_way = now_s, True

    def end(self) -> None:
        """No more is entered: the store could not be listed, or has lost what was found."""
        if self.under_way:
            self.under_way = False
            self._holdings.order.forget_past()

    def clear(self) -> None:
        """What is not entered yet is to be deleted."""
        self._cleared = self.under_way

    def erase(self, owner: bytes) -> None:
        """What the owner has is not to be entered any more."""
        if self.under_way:
            self._erased.add(owner)

    def enter(self, found: Found, wanted: Mapping[BlockKey, Wanted]) -> Steps[None]:
        """An errand: enter what was found; then it is over. Ends early if `end` is called meanwhile.

        ValueError where blocks have not as many tokens as the index's.
        """
        if not self.under_way:
            return
        holdings = self._holdings
        token_bytes = holdings.radix.block_tokens * TOKEN_ID_BYTES
        if len(found) and found.tokens.shape[1] != token_bytes:
            raise ValueError(
                f"the store tells of blocks of {found.tokens.shape[1]} bytes of tokens, not {token_bytes}"
            )
        self.num_found = len(found)
        holdings.residency.reserve(len(found))
        holdings.order.recall(self._begun_s - found.ages_s)
        part = _Entering(holdings, self._retention, self._outbox, found, wanted, self._erased)
        for start in range(0, len(found.others), _STEP_BLOCKS):
            part.forget(found.others[start : start + _STEP_BLOCKS])
            yield None
        for first, end in _steps(found):
            if not self.under_way:
                return
            if self._cleared:
                part.forget(found.keys[found.starts[first] : found.starts[end]])
            else:
                part.enter(first, end)
                self._eviction.fit_disk()  # the capacity may be smaller than it was
                self._expiry.came_older()
            self.num_entered = int(found.starts[end])
            yield None
        self.end()

    def stats(self) -> dict[str, Any]:
        """How far it is."""
        return {
            "restoring": self.under_way,
            "found_blocks": self.num_found,
            "restored_blocks": self.num_entered,
        }

    def check(self) -> None:
        """Raise AssertionError if blocks are recalled that nobody enters."""
        order = self._holdings.order
        assert self.under_way or not order.num_open, "uses wait for blocks that do not come"


class _Entering:
    """Enters runs, in their order. Keeps where each ends."""

    def __init__(
        self,
        holdings: Holdings,
        retention: Retention,
        outbox: Outbox,
        found: Found,
        wanted: Mapping[BlockKey, Wanted],
        erased: set[bytes],
    ) -> None:
        self._holdings, self._outbox, self._found, self._erased = holdings, outbox, found, erased
        self._retention, self._wanted = retention, wanted
        self._tails = np.full(found.num_runs + 1, NO_BLOCK, dtype=np.int64)
        """The id of each run's last block. One more, which runs that follow none find by their -1."""

    def enter(self, first: int, end: int) -> None:
        """The runs from `first` up to `end`."""
        while first < end:
            first = self._plant(first, end)
            if first < end:
                self._merge(first)
                first += 1

    def _plant(self, first: int, end: int) -> int:
        """Enter runs as long as they are wholly new. Answers the first that may not be."""
        found, holdings = self._found, self._holdings
        after = found.after[first:end]
        end = first + _first_false(self._may_follow(after, first) & self._is_wanted(first, end))
        if end == first:
            return first
        after = after[: end - first]
        inside = after >= first
        start, stop = found.starts[[first, end]].tolist()
        runs = NewRuns(
            tokens=found.tokens[start:stop].tobytes(),
            lengths=np.diff(found.starts[first : end + 1]).tolist(),
            tails=np.where(inside, NO_BLOCK, self._tails[after]).tolist(),
            after=np.where(inside, after - first, -1).tolist(),
            alone=found.alone[first:end].tolist(),
        )
        ids, num_runs = holdings.radix.plant(runs)
        end = first + num_runs
        ends = found.starts[first + 1 : end + 1]
        self._tails[first:end] = ids[ends - start - 1]
        self._arrive(
            ids,
            np.arange(start, start + len(ids)),
            np.repeat(found.uses[first:end], np.diff(ends, prepend=start)),
        )
        return end

    def _may_follow(self, after: NDArray[np.int64], first: int) -> NDArray[np.bool_]:
        """Whether what runs follow is there still: their ids may have been given to others."""
        fits = np.ones(len(after), dtype=np.bool_)
        old = np.flatnonzero((after >= 0) & (after < first))
        fits[old] = self._is_there(after[old])
        return fits

    def _is_there(self, runs: NDArray[np.int64]) -> NDArray[np.bool_]:
        residency, tails = self._holdings.residency, self._tails[runs]
        mask: NDArray[np.bool_] = (tails >= 0) & residency.live[tails] & residency.has_key[tails]
        mask &= (residency.key[tails] == self._found.keys[self._found.starts[runs + 1] - 1]).all(axis=1)
        return mask

    def _is_wanted(self, first: int, end: int) -> NDArray[np.bool_]:
        """Whether each of these runs is nobody's who had their blocks erased."""
        found = self._found
        erased = [place for place, owner in enumerate(found.owner_table) if owner in self._erased]
        return ~np.isin(found.owners[found.starts[first:end]], erased)

    def _merge(self, run: int) -> None:
        """Enter a run that is there in part, or delete it: it follows what has left, or was erased."""
        found, holdings = self._found, self._holdings
        above = found.after[run : run + 1]
        start, stop = found.starts[[run, run + 1]].tolist()
        follows = above.item() < 0 or self._is_there(above).item()
        if not follows or not self._is_wanted(run, run + 1).item():
            self._tails[run] = _GONE
            self.forget(found.keys[start:stop])
            return
        tail = int(self._tails[above.item()])
        ids = holdings.radix.extend(tail, found.tokens[start:stop].tobytes())
        self._tails[run] = ids.item(-1)
        numbers = np.arange(start, stop)
        known = holdings.residency.state[DISK][ids] != ABSENT
        # two keys for the same tokens: one is no chain's
        twins = known & (holdings.residency.key[ids] != found.keys[numbers]).any(axis=1)
        self.forget(found.keys[numbers[twins]])
        new = ids[~known]
        self._arrive(new, numbers[~known], np.full(len(new), found.uses[run]))

    def _arrive(self, ids: Ids, numbers: NDArray[np.intp], uses: NDArray[np.int64]) -> None:
        """The disk has these blocks. Those that a request has entered were used since, and are whose it said."""
        if not len(ids):
            return
        found, holdings = self._found, self._holdings
        residency = holdings.residency
        residency.set_keys(ids, found.keys[numbers])
        untouched = residency.stamp[ids] == 0
        holdings.have_owners(ids[untouched], self._owner_numbers(found.owners[numbers[untouched]]))
        keys = np.ascontiguousarray(found.keys[numbers])
        ranks = None
        if self._wanted or holdings.terms.are_used:
            said = [self._wanted.get(key, _NOTHING) for key in block_keys(keys)]
            self._retention.recall(ids, [each.term for each in said])
            ranks = np.array([each.rank for each in said], dtype=np.int8)
        holdings.recalled(ids, uses, untouched, ranks)
        sizes = found.stored_bytes[numbers]
        holdings.expect(DISK, ids, sizes)
        holdings.arrived(DISK, ids, sizes)
        told = untouched & found.told[numbers]
        residency.told[ids] = np.where(told, residency.stamp[ids], 0)

    def _owner_numbers(self, places: NDArray[np.int32]) -> NDArray[np.int32]:
        table, owners = self._found.owner_table, self._holdings.owners
        if len(table) == 1:
            return np.full(len(places), owners.number(table[0]), dtype=np.int32)
        return np.array([owners.number(table[place]) for place in places.tolist()], dtype=np.int32)

    def forget(self, keys: NDArray[np.uint8]) -> None:
        """Have the records of these keys deleted, [n, KEY_BYTES]."""
        if len(keys):
            self._outbox.send(Forget(keys))


def _steps(found: Found) -> Iterator[tuple[int, int]]:
    """Runs that are entered together: the first of them, and the one behind the last."""
    first, starts = 0, found.starts
    while first < found.num_runs:
        most = int(np.searchsorted(starts, starts[first] + _STEP_BLOCKS, side="right")) - 1
        end = max(first + 1, min(first + _STEP_RUNS, most))
        yield first, end
        first = end


def _first_false(mask: NDArray[np.bool_]) -> int:
    """The place of the first False, or the length."""
    wrong = np.flatnonzero(~mask)
    return wrong.item(0) if len(wrong) else len(mask)
