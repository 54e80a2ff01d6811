"""What is dearest to compute again, and used most, stays longest."""

from typing import Final

from tiering.policies.keyed import Keyed
from tiering.policies.policy import Name

_LINEAR_BLOCKS: Final = 64.0
"""At this position attention over what comes before costs as much as all else that computing a block takes: with
blocks of 512 tokens 32k tokens, as in models of some billion parameters."""


class RecomputeCost(Keyed):
    """GreedyDual-Size-Frequency (Cherkasova, 1998), with what it takes to compute a block for its cost.

    worth = age + uses * cost. The age is what the last block was worth that had to go: what entered long ago, and is not
    used any more, is overtaken in time.
    """

    def __init__(self, capacity_blocks: int) -> None:
        super().__init__(capacity_blocks)
        self._age = 0.0
        self._uses: dict[Name, int] = {}
        self._costs: dict[Name, float] = {}

    def enter(self, name: Name, position: int) -> None:
        self._uses[name] = 1
        self._costs[name] = 1.0 + position / _LINEAR_BLOCKS
        self._place(name)

    def use(self, name: Name) -> None:
        self._uses[name] += 1
        self._place(name)

    def worth(self, name: Name) -> float:
        return self._age + self._uses[name] * self._costs[name]

    def _gone(self, name: Name, key: tuple[float, int]) -> None:
        self._age = key[0]
        self._forget(name)

    def leave(self, name: Name) -> None:
        super().leave(name)
        self._forget(name)

    def _forget(self, name: Name) -> None:
        del self._uses[name], self._costs[name]
