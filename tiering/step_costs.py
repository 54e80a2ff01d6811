"""What a step of an engine takes, by what is in it, and a move, by its blocks: what a replay is told."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

_ALIKE: Final = 32
"""Observations that are drawn from: those of steps that should have taken about as long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCosts:
    """Seconds of one step: for itself, for each token of prompts, for each pair of such a token and one that it sees; for each
    reply's token, and for each token that one sees.
    """

    step_s: float
    token_s: float
    pair_s: float = 0.0
    decode_s: float = 0.0
    context_s: float = 0.0

    def seconds(self, parts: Iterable["Part"]) -> float:
        """Of a step with these parts."""
        return float(
            terms(parts) @ np.array([self.step_s, self.token_s, self.pair_s, self.decode_s, self.context_s])
        )


@dataclass(frozen=True, slots=True)
class Part:
    """What a step computes of one request: `num_tokens` behind `start` others."""

    start: int
    num_tokens: int
    decode: bool


def terms(parts: Iterable[Part]) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """What a step is charged for, in the order of StepCosts' fields."""
    found = np.array([1.0, 0.0, 0.0, 0.0, 0.0])
    for part in parts:
        if part.decode:
            found[3:] += 1, part.start + 1
        else:
            found[1:3] += part.num_tokens, part.num_tokens * (part.start + part.num_tokens / 2)
    return found


class Scatter:
    """What steps took beside what they cost: large ones scatter otherwise than small ones."""

    def __init__(self, expected_s: Sequence[float], took_s: Sequence[float]) -> None:
        """Of at least one step each, what it should have taken, above 0, and what it took."""
        order = np.argsort(expected_s, kind="stable")
        self._expected_s = np.array(expected_s)[order]
        self.parts = np.array(took_s)[order] / self._expected_s
        """What each took, by what it should have, the cheapest first."""

    def drawn(self, expected_s: float, random: np.random.Generator) -> float:
        """What such a step takes this time: as one of those that are most like it."""
        at = int(self._expected_s.searchsorted(expected_s))
        first = max(0, min(at - _ALIKE // 2, len(self.parts) - _ALIKE))
        return expected_s * float(self.parts[random.integers(first, min(first + _ALIKE, len(self.parts)))])


@dataclass(frozen=True, kw_only=True, slots=True)
class MoveCosts:
    """Seconds of one move: until it begins, and for each block."""

    latency_s: float = 0.0
    block_s: float = 0.0

    def seconds(self, num_blocks: int) -> float:
        """Of one with so many blocks."""
        return self.latency_s + self.block_s * num_blocks
