"""How long blocks of each class wait for their next use, learned from those that were used again and those that were not."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Array = NDArray[np.int64]

AGE_STEPS = 4  # a doubling of the age, in steps
_YOUNGEST = (
    64.0  # block accesses: a few requests, within which even a block that is first to go is still there
)
_NUM_AGES = 21 * AGE_STEPS  # up to 2**27 block accesses

AGES: Floats = _YOUNGEST * 2.0 ** (np.arange(_NUM_AGES) / AGE_STEPS)
"""The ages, in block accesses, that are told apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curves:
    """What is known of the classes, by rows, at each age of AGES, by columns."""

    share: Floats
    """Of all blocks that are used, those of the class: shape (classes,)."""
    reused: Floats
    """Of a class's blocks, those used again by that age: (classes, ages)."""
    held: Floats
    """For how long a block is held that is dropped at that age, or when it is used again: in block accesses."""


class Lifetimes:
    """Counts, for each class, blocks used again at an age, and blocks lost sight of at an age; both fade.

    From these follows the share still unused at each age (Kaplan and Meier, 1958). A class of which little is known is
    taken for its family, and a family for all, as far as `doubt` blocks weigh against what was seen.
    """

    def __init__(self, families: Array, *, doubt: float, half_life: float) -> None:
        """`families`: of each class, the number of its family. `half_life`: block accesses in which what was seen fades by half."""
        self._families, self._doubt, self._half_life = families, doubt, half_life
        self._used = np.zeros((len(families), _NUM_AGES + 1))
        self._lost = np.zeros((len(families), _NUM_AGES + 1))
        self._entered = np.zeros(len(families))
        self._now = 0

    def enter(self, kind: int, num_blocks: int) -> None:
        """So many blocks of a class were used now."""
        self._entered[kind] += num_blocks

    def use(self, kinds: Array, ages: Array) -> None:
        """Blocks of these classes were used again, at these ages."""
        np.add.at(self._used, (kinds, AGES.searchsorted(ages)), 1.0)

    def lose(self, kinds: Array, ages: Array) -> None:
        """Blocks of these classes were not used again up to these ages; of more is not known."""
        np.add.at(self._lost, (kinds, AGES.searchsorted(ages)), 1.0)

    def fade(self, now: int) -> None:
        """It is `now`, in block accesses: what was seen until the last call counts less."""
        kept = 0.5 ** ((now - self._now) / self._half_life)
        self._now = now
        for counts in (self._used, self._lost, self._entered):
            counts *= kept

    def curves(self, waiting_kinds: NDArray[np.int16], waiting_since: Array, weight: float) -> Curves:
        """The curves now, when blocks wait since these times for a use, each of which stands for `weight` blocks."""
        ages = self._now - waiting_since
        weights = weight * 0.5 ** (ages / self._half_life)
        at = waiting_kinds.astype(np.int64) * (_NUM_AGES + 1) + AGES.searchsorted(ages)
        waiting = np.bincount(at, weights=weights, minlength=self._used.size).reshape(self._used.shape)
        lost = self._lost + waiting
        # who was lost sight of within a step was there for half of it
        at_risk = (self._used + lost)[:, ::-1].cumsum(axis=1)[:, ::-1] - lost / 2
        unused = 1 - self._chance(self._used, at_risk)[:, :_NUM_AGES]
        unused = unused.cumprod(axis=1)
        before = np.concatenate([np.ones((len(unused), 1)), unused[:, :-1]], axis=1)
        held = ((before + unused) / 2 * np.diff(AGES, prepend=0.0)).cumsum(axis=1)
        return Curves(share=self._entered / max(self._entered.sum(), 1.0), reused=1 - unused, held=held)

    def _chance(self, used: Floats, at_risk: Floats) -> Floats:
        """Of the blocks that reach an age unused, those used within the step."""
        of_all = used.sum(axis=0) / np.maximum(at_risk.sum(axis=0), 1e-9)
        num_families = self._families.max().item() + 1
        members = np.zeros((num_families, len(used)))
        members[self._families, np.arange(len(used))] = 1.0
        of_family = (members @ used + self._doubt * of_all) / (members @ at_risk + self._doubt)
        chance: Floats = (used + self._doubt * of_family[self._families]) / (at_risk + self._doubt)
        return chance.clip(max=1.0)

    def check(self) -> None:
        """Raise AssertionError unless all counts are."""
        for counts in (self._used, self._lost, self._entered):
            assert np.isfinite(counts).all(), "a count is not finite"
            assert counts.min() >= 0, "a count is negative"
