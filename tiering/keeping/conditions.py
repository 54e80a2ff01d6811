"""What is asked before a block is copied to a lower tier. A condition that has nothing to say of a block says 0."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tiering.keeping.admission import Departing, Verdict, Verdicts
from tiering.keeping.ghosts import Array, Seen
from tiering.keeping.lifetimes import AGES, Curves, Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """Blocks that may be copied down, and what is known of them."""

    departing: Departing
    seen: Seen
    ages: Array
    """Block accesses since their last use."""
    curves: Curves | None
    """None as long as nothing is known."""
    now: int
    """Block accesses so far."""
    shares: Floats | None
    """What was chosen for all tiers together; None: there is room for all, or nothing is known."""
    capacity_blocks: int
    """Of the tier that they would enter, and those below."""
    life_blocks: int
    """Of all tiers: for so many block accesses at least a block is there that goes down."""


class Condition(Protocol):
    """One reason for or against copying blocks down."""

    def says(self, question: Question) -> Verdicts:
        """A verdict for each block, or 0."""
        ...


def default_conditions() -> Sequence[Condition]:
    """In the order in which they are heard."""
    return (ReuseSeen(), NeverReused(), FreeCapacity(), PredictedReuse())


class ReuseSeen:
    """Admits what was used at least twice while it was remembered."""

    def says(self, question: Question) -> Verdicts:
        return _where(question.seen.known & question.seen.again, Verdict.ADMIT)


class NeverReused:
    """Rejects what is as good as never used again, of that class and at that age: partial tails above all.

    Says nothing before blocks have been watched for twice as long as one stays: who has seen no use did not look long enough.
    """

    def __init__(self, least_chance: float = 0.01) -> None:
        """`least_chance`: of a use at any later time."""
        self._least_chance = least_chance

    def says(self, question: Question) -> Verdicts:
        if question.curves is None or question.now < 2 * question.life_blocks:
            return np.zeros(len(question.ages), dtype=np.int8)
        reused = question.curves.reused[question.seen.kind]
        before = AGES.searchsorted(question.ages) - 1  # the last age that they have reached
        by_now = np.take_along_axis(reused, np.maximum(before, 0)[:, None], axis=1)[:, 0]
        unused = 1 - np.where(before >= 0, by_now, 0.0)
        chance = (reused[:, -1] - 1 + unused) / np.maximum(unused, 1e-9)
        return _where(question.seen.known & (chance < self._least_chance), Verdict.REJECT)


class FreeCapacity:
    """Admits all while the tier has room that nobody has."""

    def __init__(self, least_share: float = 0.1) -> None:
        """`least_share`: of the tier, that is free."""
        self._least_share = least_share

    def says(self, question: Question) -> Verdicts:
        free = question.departing.free_blocks > self._least_share * question.capacity_blocks
        return np.full(len(question.ages), Verdict.ADMIT if free else 0, dtype=np.int8)


class PredictedReuse:
    """Rejects the classes that the tier is better filled without."""

    def says(self, question: Question) -> Verdicts:
        if question.shares is None:
            return np.zeros(len(question.ages), dtype=np.int8)
        out = question.shares.take(question.seen.kind) <= 0
        return _where(question.seen.known & out, Verdict.REJECT)


def _where(mask: NDArray[np.bool_], verdict: Verdict) -> Verdicts:
    return np.where(mask, np.int8(verdict), np.int8(0)).astype(np.int8)
