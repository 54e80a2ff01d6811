"""How long blocks live after their last use, where requests say so: a term for each block, as a small number."""

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tiering.residency import Ids, Mask, Residency

Stamps = NDArray[np.int64]

EVERYBODYS_TERM: Final = 0
"""The number of what a request gets that says nothing: the index's own TTL."""

_MOST_EXACT: Final = 200
"""Different times that are told apart; those that come later count as the next power of two. Bounds the numbers."""


class Term(NamedTuple):
    """Whose uses a block lives for: `own_s` after the last use, and with `by_default` as long as the TTL says as well."""

    own_s: float = 0.0
    by_default: bool = True


class Terms:
    """Owns the residency's column `term`.

    A block has the longest term of those that have used it since it was entered: the longest time that a request has asked
    for, and whether one has asked for none, to which the index's TTL applies, which may change. Uses cover paths from a
    first block, so what comes before a block never has a shorter term than it, whatever the TTL is.
    """

    def __init__(self, residency: Residency) -> None:
        """There is no TTL of the index's own."""
        self._residency = residency
        self._terms = [Term()]
        self._numbers = {Term(): EVERYBODYS_TERM}
        self._rows: dict[int, NDArray[np.uint16]] = {}
        """For each number, what becomes of the others where both use a block."""
        self.change(None)

    def change(self, ttl_s: float | None) -> None:
        """Another TTL of the index's own; None for never."""
        self.default_s = math.inf if ttl_s is None else ttl_s
        self._count()

    def _count(self) -> None:
        self.lives_s = [max(term.own_s, self.default_s if term.by_default else 0.0) for term in self._terms]
        """How long after its last use a block lives, by number."""
        self.shortest_s = min(self.lives_s)
        self.are_endless = self.shortest_s == math.inf
        """Whether nothing is ever over. Asked at each step: an attribute is read fastest."""

    @property
    def are_used(self) -> bool:
        """Whether any request has ever asked for a time of its own."""
        return len(self._terms) > 1

    def number(self, ttl_s: float | None) -> int:
        """What a request with this TTL uses blocks with; None for one that says nothing."""
        return EVERYBODYS_TERM if ttl_s is None else self.number_of(Term(ttl_s, by_default=False))

    def number_of(self, term: Term) -> int:
        """A term's number, a new one for one that is new."""
        if (known := self._numbers.get(term)) is not None:
            return known
        if len(self._terms) >= 2 * _MOST_EXACT:
            term = Term(2.0 ** math.ceil(math.log2(max(1.0, term.own_s))), term.by_default)
        if term not in self._numbers:
            for each in (Term(term.own_s, by_default=False), Term(term.own_s, by_default=True)):
                self._numbers[each] = len(self._terms)
                self._terms.append(each)
            self._rows.clear()
            self._residency.has_terms = True
            self._count()
        return self._numbers[term]

    def own_s(self, ids: Ids) -> NDArray[np.float64]:
        """The longest time that any request has asked for, of blocks; 0 where none has."""
        return np.array([term.own_s for term in self._terms])[self._residency.term[ids]]

    def by_default(self, ids: Ids) -> Mask:
        """Of which blocks the index's TTL counts."""
        return np.array([term.by_default for term in self._terms])[self._residency.term[ids]]

    def terms_of(self, ids: Ids) -> list[Term]:
        """Those of blocks."""
        return [self._terms[number] for number in self._residency.term[ids].tolist()]

    def used(self, path: Ids, number: int) -> Ids:
        """A request with this term uses blocks, from a first one on; those that nobody has touched so far are new.

        Answers the blocks whose term is another now.
        """
        if not len(self._terms) > 1:
            return path[:0]
        residency = self._residency
        before = residency.term[path]
        after = self._row(number)[before]
        after[residency.stamp[path] == 0] = number
        changed: Ids = path[after != before]
        if len(changed):
            residency.term[path] = after
        return changed

    def merged(self, one: int, other: int) -> int:
        """The number of the term of a block that both use."""
        return self._row(other).item(one)

    def __len__(self) -> int:
        """How many terms there are, that of who says nothing among them."""
        return len(self._terms)

    def _row(self, number: int) -> NDArray[np.uint16]:
        row = self._rows.get(number)
        if row is None:
            own_s, by_default = self._terms[number]
            merged = [
                Term(max(own_s, each.own_s), by_default or each.by_default) for each in list(self._terms)
            ]
            row = self._rows[number] = np.array([self._numbers[each] for each in merged], dtype=np.uint16)
        return row

    def check(self) -> None:
        """Raise AssertionError if a block has a term that there is not, or lives longer than what leads to it."""
        residency = self._residency
        live = np.flatnonzero(residency.live)
        terms = residency.term[live]
        assert not len(terms) or terms.max() < len(self._terms), "a block has a term that nobody has"
        below = live[residency.parent[live] >= 0]
        touched = below[residency.stamp[below] > 0]
        own_s = np.array([term.own_s for term in self._terms])
        by_default = np.array([term.by_default for term in self._terms])
        mine, above = residency.term[touched], residency.term[residency.parent[touched]]
        assert (own_s[above] >= own_s[mine]).all(), "what leads to a block has a shorter term"
        assert (by_default[above] >= by_default[mine]).all(), "what leads to a block is not by default"
