"""Readers of the order of uses that see only some of the blocks, and where each of them stands."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from tiering.eligible import Eligible
from tiering.kernels import kernels
from tiering.part import Part
from tiering.residency import NO_BLOCK, Ids, Mask, Residency

if TYPE_CHECKING:
    from tiering.policies.lru import LRU

Which = Callable[[Ids], Mask]
"""Of which blocks something holds."""

_A_PART: Final = -1
_NOTHING: Final[Ids] = np.empty(0, dtype=np.intp)


class Places:
    """The places of all views of an order, by number, so that one loop can set back several of them.

        column     meaning
        head       no block with an older stamp is eligible
        cursor     nor is one below this block with the head's own stamp; NO_BLOCK: any of that stamp may be
        rule       of tiering.rules, or -1 for a part

    The arrays are replaced when there are more views: read them each time.
    """

    def __init__(self) -> None:
        self.columns: tuple[NDArray[np.int64], ...] = (np.zeros(0, dtype=np.int64),) * 3
        """head, cursor and rule."""
        self.cells: tuple[memoryview[Any], ...] = ()
        """Head and cursor, one at a time."""
        self.have_parts = False
        """Whether any view is of a part, and so is to be told apart."""
        self._free: list[int] = []

    def add(self, rule: int) -> int:
        """The number of a new view, which has seen nothing yet."""
        first = (0, NO_BLOCK, rule)
        self.have_parts |= rule == _A_PART
        if self._free:
            number = self._free.pop()
            for column, new in zip(self.columns, first, strict=True):
                column[number] = new
            return number
        number = len(self.columns[0])
        self.columns = tuple(np.append(old, new) for old, new in zip(self.columns, first, strict=True))
        self.cells = tuple(column.data for column in self.columns[:2])
        return number

    def remove(self, number: int) -> None:
        """A view is not used any more: another gets its number."""
        self._free.append(number)


class View:
    """The eligible blocks in eviction order. Keeps a place in the log before which nothing is eligible."""

    def __init__(self, lru: "LRU", residency: Residency, eligible: Eligible | Part) -> None:
        """See `LRU.view`."""
        self._lru = lru
        self._residency, self.places = residency, lru.places
        self._eligible = eligible
        self.rule = eligible if isinstance(eligible, Eligible) else None
        """Who says which blocks it sees, if that is a rule and no part."""
        self.number = lru.places.add(_A_PART if self.rule is None else self.rule.number)
        """Of its place."""
        self._seen_by = SeenBy([self] if self.rule is not None else [])

    def peek(self, k: int) -> Ids:
        """Up to `k` eligible ids in eviction order: the older stamp first, the deeper first within one stamp.

        Blocks that were never touched are not seen. Changes nothing that a later peek would answer differently.
        """
        if k < 1:
            return np.empty(0, dtype=np.intp)
        return self._peek_part(k) if self.rule is None else self._lru.peek(self.number, self.rule, k)

    def _peek_part(self, k: int) -> Ids:
        heads, cursors = self.places.cells
        number = self.number
        if heads[number] > self._lru.now:
            return np.empty(0, dtype=np.intp)
        assert isinstance(self._eligible, Part), "it goes by no rule"
        found = self._lru.find_in(heads[number], cursors[number], k, self._eligible)
        if not len(found):
            heads[number], cursors[number] = self._lru.now + 1, NO_BLOCK
            return found
        cursors[number] = first = found.item(0)
        heads[number] = self._residency.cells.stamp[first]
        return found

    def first(self) -> int:
        """The only block of `peek(1)`, NO_BLOCK if there is none."""
        if self.rule is not None:
            return self._lru.first(self.number, self.rule)
        one = self.peek(1)
        return one.item() if len(one) else NO_BLOCK

    def rewind(self, ids: Ids) -> None:
        """These blocks were not eligible and may be so now although nobody touched them: look at those that are again."""
        if isinstance(self._eligible, Part):
            head = self.places.cells[0][self.number]
            if head and (oldest := self._eligible.oldest(ids, head)):
                self.look_from(oldest)
        else:
            self._seen_by.rewind(ids)

    def look_from(self, stamp: int) -> None:
        """Blocks that were used at this stamp or later may be eligible that were not."""
        heads, cursors = self.places.cells
        if stamp <= heads[self.number]:
            heads[self.number], cursors[self.number] = stamp, NO_BLOCK

    def end(self) -> None:
        """It is not used any more."""
        self.places.remove(self.number)

    def check(self) -> None:
        """Raise AssertionError if a block before the view's place is eligible: somebody forgot to rewind."""
        seen = self.peek(1)
        fresh = next(
            (
                found[:1]
                for ids in self._lru.upwards(0, NO_BLOCK, 64)
                if len(found := ids[self._eligible(ids)])
            ),
            _NOTHING,
        )
        assert np.array_equal(seen, fresh), (
            f"the view starts at {seen.tolist()}, eligible is {fresh.tolist()}"
        )


class SeenBy:
    """Views by rules of one order, over the same columns: set back together, in one pass over the blocks that they may see again."""

    def __init__(self, views: Sequence[View]) -> None:
        self._of = (views[0].rule, views[0].places) if views else None
        self.numbers: NDArray[np.int64] = np.array([view.number for view in views], dtype=np.int64)
        self._rewind = kernels().rewind

    def rewind(self, ids: Ids) -> None:
        """See `View.rewind`."""
        if self._of is None:
            return
        rule, places = self._of
        assert rule is not None, "views of parts are set back one by one"
        residency, counts = rule.residency, rule.host_slots.counts
        self._rewind(self.numbers, *places.columns, residency.stamp, counts, residency.ties, ids)
